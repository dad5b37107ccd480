"""The verbs of golden images: a volume sealed as a version, what a build has written taken out again, a look at all of
its bytes."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import ClassVar

from storkit.core.errors import Conflict, Unsafe
from storkit.core.identities import AbsolutePath, MaybeUuid
from storkit.core.imagefiles import Examined, Inside
from storkit.core.model import Volume
from storkit.plans.plan import Step
from storkit.plans.verb import BlindVerb, Run, Verb


@dataclass(frozen=True)
class SealVolume(Verb[list[Volume]]):
    """A volume that nobody writes from now on, and the checksum of its bytes. `origin`: what it is said to have been
    made from; empty: as it is."""

    verb: ClassVar[str] = "seal"
    volume: Volume
    origin: MaybeUuid = ""

    def find(self, run: Run, step: Step) -> list[Volume]:
        return run.on(step.host).pool(step.target).find([self.volume.name])

    def act(self, run: Run, step: Step) -> list[Volume]:
        pool = run.on(step.host).pool(step.target)
        now = next((each for each in pool.find([self.volume.name]) if each.uuid == self.volume.uuid), None)
        if now is None:
            raise Conflict(f"volume {self.volume.name} is not the one that was to be sealed", "storkit volume list")
        # First, so that what is read is what stays.
        (sealed,) = pool.relabel([replace(now, kind="image", origin=self.origin or now.origin, checksum="")])
        found = run.on(step.host).images.examine(sealed)
        if found.damage:
            raise Unsafe(f"volume {sealed.name} is damaged: {'; '.join(found.damage)}", "make it anew")
        return pool.relabel([replace(sealed, checksum=found.checksum)])

    def undo(self, run: Run, step: Step, before: list[Volume]) -> None:
        there = run.on(step.host).pool(step.target).find([self.volume.name])
        mine = [volume for volume in before if volume.uuid in {each.uuid for each in there}]
        run.on(step.host).pool(step.target).relabel(mine)


@dataclass(frozen=True)
class PutBackFiles(BlindVerb):
    """Files of a clone as they are in the image that it was made from. No undo: rolling back the `clone` before it
    deletes the volume."""

    verb: ClassVar[str] = "put_back"
    volume: Volume
    source: Volume
    inside: Inside
    paths: list[AbsolutePath]

    def act(self, run: Run, step: Step) -> None:
        run.on(step.host).images.put_back([self.volume, self.source], self.inside, self.paths)


@dataclass(frozen=True)
class ExamineVolume(BlindVerb):
    """All bytes of an image read, and its files checked."""

    verb: ClassVar[str] = "examine"
    question: ClassVar[bool] = True
    volume: Volume

    def act(self, run: Run, step: Step) -> Examined:
        return run.on(step.host).images.examine(self.volume)
