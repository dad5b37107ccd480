"""The verbs of volumes: made, filled, relabelled, resized, deleted, written to files."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import ClassVar

from storkit.core.identities import Count, Line, Uuid, VolumeName, Word
from storkit.core.imagefiles import ImageFile, ImageInfo
from storkit.core.model import Existing, Volume
from storkit.plans.plan import Step
from storkit.plans.verb import BlindVerb, Run, Verb, names, uuids


@dataclass(frozen=True)
class _Make(Verb[list[Uuid]]):
    """Undone by deleting the volumes that this plan made, known by their UUIDs."""

    volumes: list[Volume]

    def find(self, run: Run, step: Step) -> list[Uuid]:
        return uuids(run.on(step.host).pool(step.target).find(names(self.volumes)))

    def undo(self, run: Run, step: Step, before: list[Uuid]) -> None:
        pool = run.on(step.host).pool(step.target)
        there = uuids(pool.find(names(self.volumes)))
        pool.delete([volume for volume in self.volumes if volume.uuid in there and volume.uuid not in before])

    def by_hand(self, step: Step) -> str:
        return f"storkit volume delete {' '.join(names(self.volumes))}"


@dataclass(frozen=True)
class CreateVolumes(_Make):
    """Empty volumes."""

    verb: ClassVar[str] = "create"

    def act(self, run: Run, step: Step) -> list[Volume]:
        return run.on(step.host).pool(step.target).create(self.volumes)


@dataclass(frozen=True)
class AdoptVolumes(Verb[list[Uuid]]):
    """Volumes of what is there. Undone by giving back those that this plan made, known by their UUIDs."""

    verb: ClassVar[str] = "adopt"
    volumes: list[Volume]
    found: list[Existing]

    def find(self, run: Run, step: Step) -> list[Uuid]:
        return uuids(run.on(step.host).pool(step.target).look(names(self.volumes)).volumes)

    def act(self, run: Run, step: Step) -> list[Volume]:
        return run.on(step.host).pool(step.target).adopt(self.volumes, self.found)

    def undo(self, run: Run, step: Step, before: list[Uuid]) -> None:
        run.on(step.host).pool(step.target).disown([each for each in self.volumes if each.uuid not in before])

    def by_hand(self, step: Step) -> str:
        return f"storkit volume release {' '.join(names(self.volumes))}"


@dataclass(frozen=True)
class DisownVolumes(Verb[list[Volume]]):
    """Volumes are given back. Undone by adopting them again, under the names and UUIDs that they had."""

    verb: ClassVar[str] = "disown"
    volumes: list[Volume]

    def find(self, run: Run, step: Step) -> list[Volume]:
        return run.on(step.host).pool(step.target).look(names(self.volumes)).volumes

    def act(self, run: Run, step: Step) -> list[Line]:
        return run.on(step.host).pool(step.target).disown(self.volumes)

    def undo(self, run: Run, step: Step, before: list[Volume]) -> None:
        # In a guest's disk: what is in it was no obstacle when it was made, or adopted.
        found = [Existing(each.was or each.path, each.format, in_guest=True) for each in before]
        run.on(step.host).pool(step.target).adopt(before, found)


@dataclass(frozen=True)
class ImportTree(_Make):
    """A volume of kind `tree` from a tar or a directory of its host."""

    verb: ClassVar[str] = "import_tree"
    source: Line

    def act(self, run: Run, step: Step) -> list[Volume]:
        return run.on(step.host).pool(step.target).import_tree(self.volumes, self.source)


@dataclass(frozen=True)
class CloneVolume(_Make):
    """Volumes with the content of another."""

    verb: ClassVar[str] = "clone"
    source: Volume

    def act(self, run: Run, step: Step) -> list[Volume]:
        return run.on(step.host).pool(step.target).clone(self.source, self.volumes)


@dataclass(frozen=True)
class SnapshotVolume(_Make):
    """A volume as it is now, kept under other names."""

    verb: ClassVar[str] = "snapshot"
    source: Volume

    def act(self, run: Run, step: Step) -> list[Volume]:
        return run.on(step.host).pool(step.target).snapshot(self.source, self.volumes)


@dataclass(frozen=True)
class FillVolume(BlindVerb):
    """The content of an image. No undo: rolling back the `create` before it deletes the volume."""

    verb: ClassVar[str] = "fill"
    volume: Volume
    source: Line
    format: Word = ""
    checksum: Line = ""
    max_size: Count = 0

    def act(self, run: Run, step: Step) -> ImageInfo:
        return run.on(step.host).images.fill(self.volume, self.source, self.format, self.checksum, self.max_size)


@dataclass(frozen=True)
class RefillVolume(BlindVerb):
    """A volume that is marked as importing gets the content of another. Nothing brings back what it had."""

    verb: ClassVar[str] = "refill"
    undoable = False
    volume: Volume
    source: Volume

    def act(self, run: Run, step: Step) -> None:
        run.on(step.host).images.refill([self.volume, self.source])


@dataclass(frozen=True)
class RelabelVolumes(Verb[list[Volume]]):
    """Another kind, or another word for how they were made."""

    verb: ClassVar[str] = "relabel"
    volumes: list[Volume]

    def find(self, run: Run, step: Step) -> list[Volume]:
        return run.on(step.host).pool(step.target).find(names(self.volumes))

    def act(self, run: Run, step: Step) -> list[Volume]:
        return run.on(step.host).pool(step.target).relabel(self.volumes)

    def undo(self, run: Run, step: Step, before: list[Volume]) -> None:
        run.on(step.host).pool(step.target).relabel(before)


@dataclass(frozen=True)
class RenameVolumes(BlindVerb):
    """Other names for volumes. Undone by the ones that they had."""

    verb: ClassVar[str] = "rename"
    volumes: list[Volume]
    to: list[VolumeName]

    def act(self, run: Run, step: Step) -> list[Volume]:
        return run.on(step.host).pool(step.target).rename(self.volumes, self.to)

    def undo(self, run: Run, step: Step, before: None) -> None:
        renamed = [replace(volume, name=name) for volume, name in zip(self.volumes, self.to, strict=True)]
        run.on(step.host).pool(step.target).rename(renamed, names(self.volumes))

    def by_hand(self, step: Step) -> str:
        return "; ".join(
            f"storkit volume rename {name} {volume.name}" for volume, name in zip(self.volumes, self.to, strict=True)
        )


@dataclass(frozen=True)
class CloseVolume(RelabelVolumes):
    """Volumes are marked, so that nothing uses them while their content is written over. That is not taken back: by
    then it may be neither the old nor the new one."""

    verb: ClassVar[str] = "close"
    undoable = False


@dataclass(frozen=True)
class ResizeVolumes(BlindVerb):
    """Nothing brings the bytes back."""

    verb: ClassVar[str] = "resize"
    undoable = False
    volumes: list[Volume]
    shrink: bool = False
    served: bool = False

    def act(self, run: Run, step: Step) -> list[Volume]:
        return run.on(step.host).pool(step.target).resize(self.volumes, self.shrink, self.served)


@dataclass(frozen=True)
class FlattenVolumes(BlindVerb):
    """Volumes that stand on no other. Nothing to undo: they read as they did."""

    verb: ClassVar[str] = "flatten"
    volumes: list[Volume]

    def act(self, run: Run, step: Step) -> list[Volume]:
        return run.on(step.host).pool(step.target).flatten(self.volumes)


@dataclass(frozen=True)
class DeleteVolumes(BlindVerb):
    """Nothing brings the bytes back."""

    verb: ClassVar[str] = "delete"
    undoable = False
    volumes: list[Volume]

    def act(self, run: Run, step: Step) -> None:
        run.on(step.host).pool(step.target).delete(self.volumes)


@dataclass(frozen=True)
class ExportImage(BlindVerb):
    """A volume as an image file of its host."""

    verb: ClassVar[str] = "export_image"
    volume: Volume
    file: Line
    format: Word = "qcow2"
    compress: bool = False

    def act(self, run: Run, step: Step) -> ImageFile:
        return run.on(step.host).images.export_image(self.volume, self.file, self.format, self.compress)
