"""The verbs that move a guest: its destination waits, its source sends, and both are asked where it runs."""

from __future__ import annotations

from typing import Any

from storkit.core import codec
from storkit.core.errors import CommandFailed, HostUnreachable, StorkitError, TimedOut, Unsafe
from storkit.core.model import GuestState
from storkit.plans.plan import Step
from storkit.plans.verb import Run, Verb


class Receive(Verb):
    """The destination's waiting process. Undone by ending it, unless the guest runs there."""

    def act(self, run: Run, step: Step) -> Any:
        return receive(run, step.host, step.peer, step.target, step.args["name"])

    def undo(self, run: Run, step: Step, before: Any) -> None:
        run.call(step.host, step.target, "retire", name=step.args["name"])


class Send(Verb):
    """The live migration itself, from `host` to `peer`. Undone by migrating back.

    The guest goes on at the destination only when the source says that it has let go: a network cut in the switchover
    cannot leave it running on both. A barrier: while it runs at the destination, its disk must not be taken from there.
    """

    barrier = True

    def act(self, run: Run, step: Step) -> Any:
        name, paused = step.args["name"], step.args["paused"]
        uri = run.result(step.args["receive"])
        if guest_on(run, step.peer, step.target, name) == "incoming":
            # Who listened there may have ended with a command that was killed.
            uri = receive(run, step.peer, step.host, step.target, name)
        return self._move(run, step.target, name, step.host, step.peer, uri, not paused)

    def _move(self, run: Run, target: str, name: str, source: str, destination: str, uri: str, go_on: bool) -> Any:
        credential = run.call(destination, target, "credential", name=name)
        try:
            result = run.call(source, target, "send", name=name, uri=uri, credential=credential)
        except HostUnreachable:
            raise
        except StorkitError as error:
            self._see_that_it_runs(run, target, name, source, destination, error)
            if not isinstance(error, CommandFailed):
                raise
            said = run.call(destination, target, "messages", name=name)
            raise CommandFailed(
                error.argv, error.status, f"{said}\n{error.stderr}" if said else error.stderr,
                host=error.host, hint=error.hint,
            ) from None  # fmt: skip
        run.call(destination, target, "resume", name=name, run=go_on)
        return result

    def _see_that_it_runs(
        self, run: Run, target: str, name: str, source: str, destination: str, error: StorkitError
    ) -> None:
        """After a move that failed. Raises StorkitError: the guest is gone; nobody has its memory any more."""
        if guest_on(run, source, target, name) != "stopped":
            return
        if guest_on(run, destination, target, name) in ("stopped", "incoming"):
            raise StorkitError(
                f"guest {name} is gone: its process on {source} ended while it was moved to {destination}"
                f" ({error.message}); its disks are as it left them",
                f"storkit guest start {name} --on {source}",
            ) from None

    def undo(self, run: Run, step: Step, before: Any) -> None:
        name, origin, destination = step.args["name"], step.host, step.peer
        go_on = not step.args["paused"]
        # It goes on by itself when its coordinator is killed: between two looks the guest could still move.
        try:
            run.call(origin, step.target, "cancel", name=name)
        except TimedOut:
            # A hypervisor that hangs may be waiting for the destination's: that is ended first, if nothing runs there.
            run.call(destination, step.target, "retire", name=name)
            run.call(origin, step.target, "cancel", name=name)
        there = guest_on(run, destination, step.target, name)
        here = guest_on(run, origin, step.target, name)
        if here in ("running", "paused"):
            if there in ("running", "paused"):
                raise Unsafe(f"guest {name} runs on {origin} and on {destination}", f"storkit migrate status {name}")
            return
        if there == "arrived":
            run.call(destination, step.target, "resume", name=name, run=go_on)
        elif there not in ("running", "paused"):
            if here == "stopped":
                return
            raise Unsafe(
                f"guest {name} is {there} on {destination} and {here} on {origin}",
                f"storkit plan resume, or storkit guest stop {name} --force and start it again",
            )
        run.call(origin, step.target, "retire", name=name)
        uri = receive(run, origin, destination, step.target, name)
        self._move(run, step.target, name, destination, origin, uri, go_on)

    def by_hand(self, step: Step) -> str:
        return f"storkit migrate cleanup {step.args['name']}"


class Confirm(Verb):
    """The guest runs on `host` and on none of `others`; nothing that follows happens otherwise."""

    def act(self, run: Run, step: Step) -> Any:
        name = step.args["name"]
        run.call(step.host, step.target, "cancel", name=name)
        here = guest_on(run, step.host, step.target, name)
        if here not in ("running", "paused"):
            raise Unsafe(
                f"guest {name} is {here} on {step.host}, where it should run", f"storkit migrate status {name}"
            )
        for other in step.args["others"]:
            there = guest_on(run, other, step.target, name)
            if there in ("running", "starting", "unknown") or (there == "paused" and here == "running"):
                raise Unsafe(
                    f"guest {name} is {there} on {other} while it runs on {step.host}",
                    f"storkit migrate status {name}; stop one of them by hand",
                )
        return {"running": step.host}


def receive(run: Run, destination: str, source: str, target: str, name: str) -> Any:
    """Have `destination` wait for the guest from `source`; the URI to send to."""
    same = run.same_machine(destination, source)
    told = "" if same else run.source(source, destination)
    known = {"same_machine": same, "source": run.address(source), "told": told}
    return run.call(destination, target, "receive", name=name, **known)


def guest_on(run: Run, host: str, target: str, name: str) -> str:
    """The status of a guest on a host, `stopped` if it is not known there; `unknown` if the host is silent."""
    try:
        states = codec.load(list[GuestState], run.call(host, target, "find", guests=[name]))
    except HostUnreachable:
        return "unknown"
    return states[0].status if states else "stopped"
