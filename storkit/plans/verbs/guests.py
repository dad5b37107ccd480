"""The verbs of guests that stay where they are: kept with their volumes, defined, started, stopped, woken."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import ClassVar

from storkit.core.backend import refuse_broken
from storkit.core.errors import Conflict
from storkit.core.guest import Guest, KeptGuest, TakenGuest
from storkit.core.identities import GuestName, Line, Seconds, Size, Uuid, Word
from storkit.core.model import ALIVE, DiskSource, GuestState, Volume
from storkit.plans.plan import Step
from storkit.plans.verb import BlindVerb, Run, Verb, uuids


@dataclass(frozen=True)
class _Defined(Verb[list[GuestState]]):
    """A guest's configuration on a host, rendered from its attachments there. `find`: whether it had one before."""

    guest: Guest
    volumes: list[Volume]
    transports: list[Line]
    """Of the volumes, in their order."""
    machine: Word = ""

    def find(self, run: Run, step: Step) -> list[GuestState]:
        return run.on(step.host).hypervisor(step.target).find([self.guest.name])

    def _define(self, run: Run, step: Step) -> str:
        hypervisor, secrets = run.on(step.host).hypervisor(step.target), run.secrets(self.guest)
        if secrets:
            return hypervisor.define(self.guest, self._disks(run, step), self.machine, secrets)
        return hypervisor.define(self.guest, self._disks(run, step), self.machine)

    def _give_back(self, run: Run, step: Step) -> None:
        run.on(step.host).hypervisor(step.target).give_back(self.guest, run.secrets(self.guest))

    def _disks(self, run: Run, step: Step) -> list[DiskSource]:
        """Where the guest's disks are on the host."""
        sources = _sources(run, step, self.volumes, self.transports)
        return [sources[uuid] for uuid in uuids(self.volumes)]

    def _undefine(self, run: Run, step: Step) -> None:
        run.on(step.host).hypervisor(step.target).undefine(self.guest.name)


def _sources(run: Run, step: Step, volumes: list[Volume], transports: list[Line]) -> dict[str, DiskSource]:
    """Where volumes, by their UUIDs, are on the step's host; `transports` are theirs, in their order."""
    found = [
        attachment
        for transport in dict.fromkeys(transports)
        for attachment in run.on(step.host).transport(transport).find_attachments(uuids(volumes))
    ]
    sources = {attachment.uuid: attachment.source for attachment in found}
    gone = [volume.name for volume in volumes if volume.uuid not in sources]
    if gone:
        raise Conflict(f"{', '.join(gone)} is not attached on {step.host}", "storkit status")
    refuse_broken(found)
    return sources


@dataclass(frozen=True)
class DefineGuest(_Defined):
    """Undone by forgetting a guest that the host did not know before."""

    verb: ClassVar[str] = "define"

    def act(self, run: Run, step: Step) -> str:
        return self._define(run, step)

    def undo(self, run: Run, step: Step, before: list[GuestState]) -> None:
        if not before:
            self._undefine(run, step)


@dataclass(frozen=True)
class UndefineGuest(_Defined):
    """Undone by defining a guest that the host knew before."""

    verb: ClassVar[str] = "undefine"

    def act(self, run: Run, step: Step) -> None:
        self._undefine(run, step)

    def undo(self, run: Run, step: Step, before: list[GuestState]) -> None:
        if before:
            self._define(run, step)


@dataclass(frozen=True)
class Taking:
    """A guest that is to become storkit's where its hypervisor has it; without volumes if nobody else may open them."""

    guest: Guest
    volumes: list[Volume]
    transports: list[Line]
    """Of the volumes, in their order."""


@dataclass(frozen=True)
class TakeGuests(Verb[list[GuestState]]):
    """Guests that their hypervisor has become storkit's. Undone by giving back those that were not before."""

    verb: ClassVar[str] = "take"
    guests: list[Taking]

    def find(self, run: Run, step: Step) -> list[GuestState]:
        return run.on(step.host).hypervisor(step.target).find([each.guest.name for each in self.guests])

    def act(self, run: Run, step: Step) -> list[Line]:
        volumes = [volume for each in self.guests for volume in each.volumes]
        transports = [transport for each in self.guests for transport in each.transports]
        sources = _sources(run, step, volumes, transports)
        taken = [
            TakenGuest(each.guest, [sources[uuid] for uuid in uuids(each.volumes)], run.secrets(each.guest) or None)
            for each in self.guests
        ]
        return run.on(step.host).hypervisor(step.target).take(taken)

    def undo(self, run: Run, step: Step, before: list[GuestState]) -> None:
        for guest in (each.guest for each in self.guests):
            run.on(step.host).hypervisor(step.target).give_back(guest, run.secrets(guest))


@dataclass(frozen=True)
class GiveGuestBack(_Defined):
    """A guest is its hypervisor's alone again, as its document has it. Undone by taking it, with its disks there."""

    verb: ClassVar[str] = "give_back"

    def act(self, run: Run, step: Step) -> None:
        self._give_back(run, step)

    def undo(self, run: Run, step: Step, before: list[GuestState]) -> None:
        if before:
            taken = TakenGuest(self.guest, self._disks(run, step), run.secrets(self.guest) or None)
            run.on(step.host).hypervisor(step.target).take([taken])


@dataclass(frozen=True)
class StartGuest(Verb[list[GuestState]]):
    """Undone by taking the power of a guest that did not run before."""

    verb: ClassVar[str] = "start"
    name: GuestName

    def find(self, run: Run, step: Step) -> list[GuestState]:
        return run.on(step.host).hypervisor(step.target).find([self.name])

    def act(self, run: Run, step: Step) -> GuestState:
        return run.on(step.host).hypervisor(step.target).start(self.name)

    def undo(self, run: Run, step: Step, before: list[GuestState]) -> None:
        if not any(state.status in ALIVE for state in before):
            run.on(step.host).hypervisor(step.target).stop(self.name, force=True)

    def by_hand(self, step: Step) -> str:
        return f"storkit guest stop {self.name} --force"


@dataclass(frozen=True)
class StopGuest(BlindVerb):
    """A stopped guest starts again by `guest start`, not by rollback: what it was doing is gone."""

    verb: ClassVar[str] = "stop"
    undoable = False
    repeated = True
    name: GuestName
    force: bool
    timeout: Seconds

    def act(self, run: Run, step: Step) -> None:
        run.on(step.host).hypervisor(step.target).stop(self.name, self.force, self.timeout)


@dataclass(frozen=True)
class WakeGuest(BlindVerb):
    """Let a guest go on that stands still."""

    verb: ClassVar[str] = "wake"
    name: GuestName

    def act(self, run: Run, step: Step) -> GuestState:
        return run.on(step.host).hypervisor(step.target).wake(self.name)


@dataclass(frozen=True)
class PauseGuest(BlindVerb):
    """A guest stands still until the plan lets it go on. Undone by that."""

    verb: ClassVar[str] = "pause"
    name: GuestName

    def act(self, run: Run, step: Step) -> GuestState:
        return run.on(step.host).hypervisor(step.target).pause(self.name)

    def undo(self, run: Run, step: Step, before: None) -> None:
        run.on(step.host).hypervisor(step.target).wake(self.name)

    def by_hand(self, step: Step) -> str:
        return f"storkit guest resume {self.name}"


@dataclass(frozen=True)
class GrowGuest(BlindVerb):
    """A running guest is told that a disk of its has become larger; whether it sees it before its next start."""

    verb: ClassVar[str] = "grow_guest"
    undoable = False
    name: GuestName
    disk: Uuid
    size: Size

    def act(self, run: Run, step: Step) -> bool:
        return run.on(step.host).hypervisor(step.target).grow(self.name, self.disk, self.size)


@dataclass(frozen=True)
class KeepGuests(Verb[list[KeptGuest]]):
    """A new generation of guests, where their pool keeps them. `find`: the generations that were the newest before,
    without their texts. Undone by taking back what this plan has kept."""

    verb: ClassVar[str] = "keep"
    guests: list[KeptGuest]

    def find(self, run: Run, step: Step) -> list[KeptGuest]:
        return run.on(step.host).pool(step.target).kept(uuids(self.guests)).guests

    def act(self, run: Run, step: Step) -> None:
        run.on(step.host).pool(step.target).keep(self.guests)

    def undo(self, run: Run, step: Step, before: list[KeptGuest]) -> None:
        were = {kept.uuid: kept.generation for kept in before}
        mine = [guest for guest in self.guests if were.get(guest.uuid, 0) < guest.generation]
        run.on(step.host).pool(step.target).unkeep(mine)

    def by_hand(self, step: Step) -> str:
        return "; ".join(f"storkit guest diff {guest.name}" for guest in self.guests)


@dataclass(frozen=True)
class ForgetGuests(KeepGuests):
    """Guests end with volumes that are to be given back, and with which all that is kept goes. Undone by keeping them
    again, once the volumes are there."""

    verb: ClassVar[str] = "forget"
    were: list[KeptGuest]
    """With their texts."""

    def undo(self, run: Run, step: Step, before: list[KeptGuest]) -> None:
        super().undo(run, step, before)
        pool = run.on(step.host).pool(step.target)
        there = uuids(pool.kept(uuids(self.were)).guests)
        if lost := [replace(kept, generation=1) for kept in self.were if kept.uuid not in there]:
            pool.keep(lost)
