"""The verbs of volumes that get another place: copied, compared with their copy, opened there."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

from storkit.core.errors import Unsafe, Unsupported, raise_problems
from storkit.core.guest import KeptGuest
from storkit.core.identities import Count, Line
from storkit.core.model import MOVING, Volume
from storkit.plans.plan import Step
from storkit.plans.verb import BlindVerb, Run, names
from storkit.plans.verbs.volumes import RelabelVolumes


@dataclass(frozen=True)
class PlaceCopy(BlindVerb):
    """An empty volume with the name and the UUID of one that is moved, marked as one that nobody uses. Undone by
    deleting it, as long as it is."""

    verb: ClassVar[str] = "place"
    volume: Volume

    def act(self, run: Run, step: Step) -> list[Volume]:
        made = run.on(step.host).pool(step.target).create([self.volume])
        for each in made:
            if each.made != self.volume.made:  # two pools of one directory, or of one volume group
                message = f"pool {each.pool} has volume {each.name} already: it is the same storage"
                raise Unsafe(message, "storkit pool list")
        return made

    def undo(self, run: Run, step: Step, before: None) -> None:
        _drop(run, step, self.volume)

    def by_hand(self, step: Step) -> str:
        return f"storkit volume delete {self.volume.pool}/{self.volume.name}"


@dataclass(frozen=True)
class DropCopy(BlindVerb):
    """What a move that was cut short left where it was to go, and still is as it was left. Nothing needs it back."""

    verb: ClassVar[str] = "drop"
    volume: Volume

    def act(self, run: Run, step: Step) -> None:
        _drop(run, step, self.volume)


def _drop(run: Run, step: Step, volume: Volume) -> None:
    """Delete a copy that nothing uses, as it is closed; the disk itself never."""
    pool = run.on(step.host).pool(step.target)
    there = [each for each in pool.find([volume.name]) if (each.uuid, each.made) == (volume.uuid, volume.made)]
    if there:
        pool.delete(there)


@dataclass(frozen=True)
class CopyVolume(BlindVerb):
    """The content of a volume, in one of the step's host. Undone by what deletes the copy."""

    verb: ClassVar[str] = "copy"
    volume: Volume
    source: Volume
    transport: Line = ""
    """By which the source is attached at the step's host; empty: it is at home there."""
    rate: Count = 0

    def act(self, run: Run, step: Step) -> None:
        here = run.on(step.host)
        if not self.transport:
            here.images.refill([self.volume, self.source], self.rate)
            return
        attached = here.transport(self.transport).find_attachments([self.source.uuid])
        if not attached:
            message = f"volume {self.source.name} is not attached on {step.host} any more"
            raise Unsafe(message, f"storkit volume show {self.source.name}")
        here.images.pull(self.volume, attached[0], self.rate)


@dataclass(frozen=True)
class DigestVolume(BlindVerb):
    """What a volume holds, in a line."""

    verb: ClassVar[str] = "digest"
    volume: Volume

    def act(self, run: Run, step: Step) -> str:
        return run.on(step.host).images.digest(self.volume)


@dataclass(frozen=True)
class SameDigest(BlindVerb):
    """The digests of two earlier steps, which have to be one."""

    verb: ClassVar[str] = "same"
    volume: Volume
    steps: list[Line]

    def act(self, run: Run, step: Step) -> str:
        found = {each: str(run.result(each)) for each in self.steps}
        if len(set(found.values())) > 1:
            said = ", ".join(value.rpartition(":")[2][:16] for value in found.values())
            message = f"the copy of volume {self.volume.name} is another than the disk: {said}"
            raise Unsafe(message, "move it again; if that fails as well, a disk or a memory of these hosts is bad")
        return found[self.steps[0]]


@dataclass(frozen=True)
class CarryGuests(BlindVerb):
    """What a volume's pool keeps of its guest, every generation that is there, goes to the pool of the copy; the step's
    peer has the other one. Undone by what deletes the copy."""

    verb: ClassVar[str] = "carry"
    volume: Volume
    source: Line

    def act(self, run: Run, step: Step) -> list[Count]:
        old, new = run.on(step.peer).pool(self.source), run.on(step.host).pool(step.target)
        try:
            kept = old.kept([self.volume.uuid])
        except Unsupported:  # a pool of a kind that keeps none
            return []
        raise_problems([Unsafe(each.message, each.hint) for each in kept.damaged])
        generation = max([each.generation for each in kept.guests], default=0)
        if not generation:
            return []
        there = max([each.generation for each in new.kept([self.volume.uuid]).guests], default=0)
        found: list[KeptGuest] = []
        while generation > there and (texts := old.texts([self.volume.uuid], generation)):
            found[:0] = texts
            generation -= 1
        for each in found:
            new.keep([each], carried=True)
        return [each.generation for each in found]


@dataclass(frozen=True)
class OpenCopy(RelabelVolumes):
    """The copy is the disk from then on. Undone by closing it again, as long as the old one is there."""

    verb: ClassVar[str] = "open"
    barrier = True
    source: Volume | None = None

    def undo(self, run: Run, step: Step, before: list[Volume]) -> None:
        source = self.source
        if source is None or not any(
            each.uuid == source.uuid and each.made == MOVING
            for each in run.on(source.host).pool(f"pool:{source.pool}").find([source.name])
        ):
            (name,) = names(self.volumes)
            message = f"volume {name} is in pool {step.target.partition(':')[2]} alone by now"
            raise Unsafe(message, f"storkit volume show {name}")
        super().undo(run, step, before)

    def needs(self, step: Step) -> set[str]:
        return super().needs(step) | ({self.source.host} if self.source else set())

    def by_hand(self, step: Step) -> str:
        (name,) = names(self.volumes)
        return f"storkit volume move {name} --to {step.target.partition(':')[2]}"
