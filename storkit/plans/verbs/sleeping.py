"""The verbs of guests that sleep; their order, and why it is so: storkit.plans.guests.sleep."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

from storkit.core.errors import Conflict, NotAllowed, Unsafe
from storkit.core.identities import GuestName, MaybePath, MaybeUuid, Uuid
from storkit.core.model import ALIVE, Saved, Volume
from storkit.plans.plan import Step
from storkit.plans.verb import BlindVerb, Run, Verb, names
from storkit.plans.verbs.exports import SetWriters
from storkit.plans.verbs.moves import guest_on


@dataclass(frozen=True)
class HoldVolumes(Verb[list[Volume]]):
    """Undone by ending the holds that this plan began."""

    verb: ClassVar[str] = "hold"
    volumes: list[Volume]

    def find(self, run: Run, step: Step) -> list[Volume]:
        return run.on(step.host).pool(step.target).find(names(self.volumes))

    def act(self, run: Run, step: Step) -> list[Volume]:
        return run.on(step.host).pool(step.target).hold(self.volumes)

    def undo(self, run: Run, step: Step, before: list[Volume]) -> None:
        held = {volume.uuid: volume.hold.id for volume in before if volume.hold}
        for volume in self.volumes:
            if volume.hold and held.get(volume.uuid) != volume.hold.id:
                run.on(step.host).pool(step.target).release([volume], volume.hold.id)


@dataclass(frozen=True)
class SaveGuest(BlindVerb):
    """Undone by letting the guest go on. A barrier: where the guest is gone, its file and its holds stay."""

    verb: ClassVar[str] = "save"
    barrier = True
    name: GuestName
    saved: Saved
    file: MaybePath = ""

    def act(self, run: Run, step: Step) -> Saved:
        return run.on(step.host).hypervisor(step.target).save(self.name, self.saved, self.file)

    def undo(self, run: Run, step: Step, before: None) -> None:
        run.on(step.host).hypervisor(step.target).unsave(self.name, self.saved, self.file)

    def by_hand(self, step: Step) -> str:
        return f"storkit guest restore {self.name}"


@dataclass(frozen=True)
class EndSaved(BlindVerb):
    """The guest ends, of which all is in the file. Nothing takes that back but `guest restore`: a barrier, unless the
    guest is still there."""

    verb: ClassVar[str] = "sleep"
    barrier = True
    name: GuestName

    def act(self, run: Run, step: Step) -> None:
        if guest_on(run, step.host, step.target, self.name) == "running":
            raise Unsafe(f"guest {self.name} runs since it was saved", "storkit plan rollback")
        run.on(step.host).hypervisor(step.target).stop(self.name, force=True)

    def undo(self, run: Run, step: Step, before: None) -> None:
        if guest_on(run, step.host, step.target, self.name) not in ALIVE:
            raise Unsafe(f"guest {self.name} sleeps already", self.by_hand(step))

    def by_hand(self, step: Step) -> str:
        return f"storkit guest restore {self.name}"


@dataclass(frozen=True)
class WakeWriters(SetWriters):
    """The writers of volumes that are held, by the id of their hold: for the guest, which wakes up."""

    verb: ClassVar[str] = "wake_writers"
    hold: MaybeUuid = ""

    def act(self, run: Run, step: Step) -> None:
        self._set(run, step, self.volumes, self.hosts, self.hosts, self.hold)


@dataclass(frozen=True)
class LoadGuest(BlindVerb):
    """The guest in a host's memory again. Undone by ending it, which has not run."""

    verb: ClassVar[str] = "load"
    name: GuestName
    hold: Uuid
    file: MaybePath = ""

    def act(self, run: Run, step: Step) -> None:
        run.on(step.host).hypervisor(step.target).load(self.name, self.hold, self.file)

    def undo(self, run: Run, step: Step, before: None) -> None:
        run.on(step.host).hypervisor(step.target).retire(self.name)


@dataclass(frozen=True)
class ReleaseVolumes(Verb[list[Volume]]):
    """The holds end before the guest runs; undone, while it does not, by holding its disks again."""

    verb: ClassVar[str] = "release"
    volumes: list[Volume]
    hold: Uuid

    def find(self, run: Run, step: Step) -> list[Volume]:
        return run.on(step.host).pool(step.target).find(names(self.volumes))

    def act(self, run: Run, step: Step) -> list[Volume]:
        return run.on(step.host).pool(step.target).release(self.volumes, self.hold)

    def undo(self, run: Run, step: Step, before: list[Volume]) -> None:
        if held := [volume for volume in before if volume.hold and volume.hold.id == self.hold]:
            run.on(step.host).pool(step.target).hold(held)


@dataclass(frozen=True)
class GiveUpHolds(BlindVerb):
    """The holds end for good: the memory is given up."""

    verb: ClassVar[str] = "give_up"
    undoable = False
    volumes: list[Volume]
    hold: Uuid

    def act(self, run: Run, step: Step) -> list[Volume]:
        return run.on(step.host).pool(step.target).release(self.volumes, self.hold)


@dataclass(frozen=True)
class AwakeGuest(BlindVerb):
    """The guest goes on. A barrier: once it has, what it was is past."""

    verb: ClassVar[str] = "awake"
    barrier = True
    name: GuestName
    run: bool

    def act(self, run: Run, step: Step) -> None:
        run.on(step.host).hypervisor(step.target).resume(self.name, self.run)

    def undo(self, run: Run, step: Step, before: None) -> None:
        if (status := guest_on(run, step.host, step.target, self.name)) != "arrived":
            raise Unsafe(f"guest {self.name} is {status} on {step.host}: it is awake", self.by_hand(step))

    def by_hand(self, step: Step) -> str:
        return f"storkit guest show {self.name}"


@dataclass(frozen=True)
class SpendMemory(BlindVerb):
    """The file with the memory says that it was used, or goes. Where it does neither, the result says why: the hold has
    ended, so the file wakes nobody, and the plan has done what it was for."""

    verb: ClassVar[str] = "spend"
    name: GuestName
    guest: Uuid
    file: MaybePath = ""

    def act(self, run: Run, step: Step) -> str:
        try:
            run.on(step.host).hypervisor(step.target).spend(self.name, self.guest, self.file)
        except (Conflict, NotAllowed, Unsafe) as error:
            return error.message
        return ""
