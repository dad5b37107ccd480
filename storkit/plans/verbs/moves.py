"""The verbs that move a guest: its destination waits, its source sends, and both are asked where it runs."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

from storkit.core import codec
from storkit.core.errors import CommandFailed, HostUnreachable, ServiceUnreachable, StorkitError, TimedOut, Unsafe
from storkit.core.identities import GuestName, HostName
from storkit.core.model import ALIVE, MigrationResult
from storkit.hosts import elsewhere
from storkit.plans.plan import Step
from storkit.plans.verb import BlindVerb, Run


@dataclass(frozen=True)
class ReceiveGuest(BlindVerb):
    """The destination's waiting process. Undone by ending it, unless the guest runs there."""

    verb: ClassVar[str] = "receive"
    name: GuestName

    def guest_hosts(self, step: Step) -> set[str]:
        return {step.host, step.peer}

    def act(self, run: Run, step: Step) -> str:
        return receive(run, step.host, step.peer, step.target, self.name)

    def undo(self, run: Run, step: Step, before: None) -> None:
        run.on(step.host).hypervisor(step.target).retire(self.name)


@dataclass(frozen=True)
class SendGuest(BlindVerb):
    """The live migration itself, from `host` to `peer`. Undone by migrating back.

    The guest goes on at the destination only when the source says that it has let go: a network cut in the switchover
    cannot leave it running on both. A barrier: while it runs at the destination, its disk must not be taken from there.
    """

    verb: ClassVar[str] = "send"
    barrier = True
    name: GuestName
    receive: str
    """The step whose result is the URI to send to."""
    paused: bool

    def guest_hosts(self, step: Step) -> set[str]:
        return {step.host, step.peer}

    def act(self, run: Run, step: Step) -> MigrationResult:
        uri = codec.load(str, run.result(self.receive), f"the result of step {self.receive}")
        if guest_on(run, step.peer, step.target, self.name) == "incoming":
            # Who listened there may have ended with a command that was killed.
            uri = receive(run, step.peer, step.host, step.target, self.name)
        return self._move(run, step.target, step.host, step.peer, uri)

    def _move(self, run: Run, target: str, source: str, destination: str, uri: str) -> MigrationResult:
        there, name = run.on(destination).hypervisor(target), self.name
        credential = there.credential(name)
        try:
            result = run.on(source).hypervisor(target).send(name, uri, credential)
        except HostUnreachable:
            raise
        except StorkitError as error:
            self._see_that_it_runs(run, target, source, destination, error)
            if not isinstance(error, CommandFailed):
                raise
            said = there.messages(name)
            raise CommandFailed(
                error.argv, error.status, f"{said}\n{error.stderr}" if said else error.stderr,
                host=error.host, hint=error.hint,
            ) from None  # fmt: skip
        try:
            there.resume(name, not self.paused)
        except StorkitError as error:
            if guest_on(run, destination, target, name) != "stopped":
                raise
            raise self._lost(source, destination) from error
        return result

    def _lost(self, source: str, destination: str) -> Unsafe:
        """Where the destination went down after the source had let go."""
        message = f"guest {self.name} has moved from {source} to {destination}, which has lost it: its memory is lost"
        return Unsafe(message, f"storkit migrate cleanup {self.name}; then storkit guest start {self.name}")

    def _see_that_it_runs(self, run: Run, target: str, source: str, destination: str, error: StorkitError) -> None:
        """After a move that failed. Raises StorkitError: the guest is gone; nobody has its memory any more."""
        name = self.name
        if guest_on(run, source, target, name) != "stopped":
            return
        if guest_on(run, destination, target, name) in ("stopped", "incoming"):
            raise StorkitError(
                f"guest {name} is gone: its process on {source} ended while it was moved to {destination}"
                f" ({error.message}); its disks are as it left them",
                f"storkit guest start {name} --on {source}",
            ) from None

    def undo(self, run: Run, step: Step, before: None) -> None:
        name, origin, destination = self.name, step.host, step.peer
        at_origin = run.on(origin).hypervisor(step.target)
        # It goes on by itself when its coordinator is killed: between two looks the guest could still move.
        try:
            at_origin.cancel(name)
        except TimedOut:
            # A hypervisor that hangs may be waiting for the destination's: that is ended first, unless all of the
            # guest is there, which may be all that there is of it.
            if guest_on(run, destination, step.target, name) == "arrived":
                raise
            run.on(destination).hypervisor(step.target).retire(name)
            at_origin.cancel(name)
        there = guest_on(run, destination, step.target, name)
        here = guest_on(run, origin, step.target, name)
        if here in ALIVE:
            if there in ALIVE:
                raise Unsafe(f"guest {name} runs on {origin} and on {destination}", f"storkit migrate status {name}")
            return
        if there == "arrived":
            run.on(destination).hypervisor(step.target).resume(name, not self.paused)
        elif there not in ALIVE:
            if here == "stopped":
                return
            if there == "stopped":
                raise self._lost(origin, destination)
            raise Unsafe(
                f"guest {name} is {there} on {destination} and {here} on {origin}",
                f"storkit plan resume; or, if it is lost: storkit migrate cleanup {name}",
            )
        at_origin.retire(name)
        uri = receive(run, origin, destination, step.target, name)
        self._move(run, step.target, destination, origin, uri)

    def by_hand(self, step: Step) -> str:
        return f"storkit migrate cleanup {self.name}"


@dataclass(frozen=True)
class ConfirmPlace(BlindVerb):
    """The guest runs on `host` and on none of `others`; nothing that follows happens otherwise."""

    verb: ClassVar[str] = "confirm"
    name: GuestName
    others: list[HostName]

    def act(self, run: Run, step: Step) -> dict[str, str]:
        name = self.name
        run.on(step.host).hypervisor(step.target).cancel(name)
        here = guest_on(run, step.host, step.target, name)
        if here not in ALIVE:
            raise Unsafe(
                f"guest {name} is {here} on {step.host}, where it should run", f"storkit migrate status {name}"
            )
        for other in self.others:
            there = guest_on(run, other, step.target, name)
            if there in ("running", "starting", "unknown") or (there == "paused" and here == "running"):
                raise Unsafe(
                    f"guest {name} is {there} on {other} while it runs on {step.host}",
                    f"storkit migrate status {name}; stop one of them by hand",
                )
        return {"running": step.host}


@dataclass(frozen=True)
class ResumeGuest(BlindVerb):
    """Let a guest that has arrived go on."""

    verb: ClassVar[str] = "resume"
    name: GuestName

    def act(self, run: Run, step: Step) -> None:
        run.on(step.host).hypervisor(step.target).resume(self.name)


@dataclass(frozen=True)
class RetireGuest(BlindVerb):
    """End what is left of a guest on a host that it has moved away from."""

    verb: ClassVar[str] = "retire"
    name: GuestName

    def act(self, run: Run, step: Step) -> None:
        run.on(step.host).hypervisor(step.target).retire(self.name)


def receive(run: Run, destination: str, source: str, target: str, name: str) -> str:
    """Have `destination` wait for the guest from `source`; the URI to send to. Raises Unsafe: it leads elsewhere."""
    same = run.same_machine(destination, source)
    told = "" if same else run.source(source, destination)
    uri = run.on(destination).hypervisor(target).receive(name, same, run.address(source), told)
    if not same:
        elsewhere.refuse_destination(name, target, uri, run.address(destination), destination)
    return uri


def guest_on(run: Run, host: str, target: str, name: str) -> str:
    """The status of a guest on a host, `stopped` if it is not known there; `unknown` if the host, or its hypervisor, is
    silent."""
    try:
        states = run.on(host).hypervisor(target).find([name])
    except (HostUnreachable, ServiceUnreachable):
        return "unknown"
    return states[0].status if states else "stopped"
