"""Golden images: their versions listed, sealed, built, checked and pruned."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from storkit.core import codec
from storkit.core.errors import StorkitError, Unsafe, UsageError, collected, raise_problems
from storkit.core.imagefiles import Examined
from storkit.core.model import Volume
from storkit.guests.fleets import record
from storkit.plans.intent.coordinator import Coordinator
from storkit.plans.intent.golden import versions
from storkit.plans.intent.golden.versions import ImageVersion, Version

if TYPE_CHECKING:
    from storkit.plans.intent.golden.building import BuildWish, Built
    from storkit.plans.plan import Plan


@dataclass(frozen=True, slots=True)
class Verified:
    """An image whose bytes are as they were when it was sealed."""

    image: ImageVersion
    checksum: str
    """Of its bytes now."""
    kept: bool
    """Whether there is one from when it was sealed, that it was compared with."""


class ImageActs:
    """Look at the versions of golden images, make them, and remove them. NAME alone is the newest version, NAME@3 that
    one; both may be POOL/NAME."""

    def __init__(self, coordinator: Coordinator) -> None:
        self._coordinator = coordinator

    def listing(self) -> list[ImageVersion]:
        """All versions of all images, in the order of their names."""
        volumes = self._coordinator.survey.volumes()
        return self._shown(versions.among(volumes), volumes)

    def show(self, name: str) -> list[ImageVersion]:
        """The versions of an image, or NAME@3 alone."""
        found = versions.of(self._coordinator, name)
        return self._shown(found, self._beside(found))

    def verify(self, name: str) -> Verified:
        """Read all of a version. Raises Unsafe: it is damaged, or is not what was sealed."""
        (version,) = versions.of(self._coordinator, name)[-1:]

        def build() -> Plan:
            from storkit.plans import planner
            from storkit.plans.plan import Stages
            from storkit.plans.verb import step
            from storkit.plans.verbs.images import ExamineVolume

            stages, title = Stages(), f"read all of {version.shown}"
            stages.then(step(ExamineVolume(version.volume), version.volume.host, "images", title))
            holds = planner.locks_of([version.volume], shared=True)
            return planner.finish_plan(title, stages, holds, self._coordinator.inventory)

        ((_, result),) = self._coordinator.change(build).done
        found, kept = codec.load(Examined, result, strict=False), version.volume.checksum
        hint = "restore its volume from a backup; clones that share no bytes with it are not harmed"
        if found.damage:
            raise Unsafe(f"{version.shown} is damaged: {'; '.join(found.damage)}", hint)
        if kept and found.checksum != kept:
            raise Unsafe(f"{version.shown} is {found.checksum}, and was {kept} when it was sealed", hint)
        (seen,) = self._shown([version], self._beside([version]))
        return Verified(seen, found.checksum, bool(kept))

    def seal(self, volume: str, image: str = "") -> ImageVersion:
        """Make a volume a golden image, which nobody writes any more, and keep the checksum of its bytes. `image`:
        leave it as it is, and make a copy of it the next version of that image."""
        from storkit.plans.intent.golden import sealing

        made = sealing.seal(self._coordinator, volume, image)
        return self.show(f"{made.volume.pool}/{made.shown}")[0]

    def build(self, image: str, wish: BuildWish) -> Built:
        """Boot a clone of an image, run a script in it, and seal what it is then as the next version of `image`.

        Raises CommandFailed: the script failed; its output is in it. Nothing is left then, unless it is to be kept.
        """
        from storkit.plans.intent.golden import building

        return building.build(self._coordinator, self._fleets, image, wish, self.show)

    def prune(self, name: str, keep: int = 1) -> list[str]:
        """Delete versions of an image that nobody uses, but for the newest `keep`; their names."""
        if versions.asked(name)[2] or keep < 1:
            raise UsageError("an image keeps its newest version, at least", f"storkit image prune {name} --keep 1")
        gone: list[ImageVersion] = []

        def build() -> Plan:
            from storkit.plans import planner
            from storkit.plans.plan import Stages

            found = self.show(name)
            exports = self._coordinator.survey.exports([each.volume for each in found])
            used = {export.uuid for export in exports}
            gone[:] = self._unused([each for each in found[:-keep] if each.volume.uuid not in used])
            if not gone:
                return planner.finish_plan("nothing to prune", Stages(), [], self._coordinator.inventory)
            return planner.delete([each.volume for each in gone], exports, self._coordinator.inventory)

        self._coordinator.change(build)
        for each in gone:
            self._coordinator.survey.hints.drop(each.volume.name)
        return [each.name for each in gone]

    @property
    def _fleets(self) -> Path:
        return self._coordinator.inventory.directory / "fleets"

    def _beside(self, found: list[Version]) -> list[Volume]:
        """All volumes that may have to do with these versions: those of their pools."""
        pools = dict.fromkeys(version.volume.pool for version in found)
        return self._coordinator.survey.volumes(None, [self._coordinator.inventory.pool(pool) for pool in pools])

    def _unused(self, old: list[ImageVersion]) -> list[ImageVersion]:
        """Those that no fleet, no guest and no volume needs, but for others that go with them."""
        from storkit.plans.intent import disks

        problems: list[StorkitError] = []
        guests = disks.having(self._coordinator, [each.volume for each in old], problems)
        raise_problems(problems)
        free = [each for each in old if not each.fleets and not guests[each.volume.uuid]]
        while True:
            names = {each.volume.name for each in free}
            left = [each for each in free if not set(each.needed) - names]
            if len(left) == len(free):
                return free
            free = left

    def _shown(self, found: Iterable[Version], volumes: list[Volume]) -> list[ImageVersion]:
        known = {volume.uuid: volume for volume in volumes}
        newest = {(each.image, each.volume.pool): each.number for each in versions.among(volumes)}
        fleets = self._users()
        shown = []
        for version in found:
            volume = version.volume
            children = [each for each in volumes if each.origin == volume.uuid]
            origin = known.get(volume.origin)
            source = "" if origin is None else origin.name
            if origin is not None and versions.is_version(origin):
                image, number = versions.split(origin.name)
                source = f"{image}@{number}"
            shown.append(
                ImageVersion(
                    version.image, version.number, volume, newest[version.image, volume.pool] == version.number, source,
                    [each.name for each in children if each.kind != "image"],
                    [each.name for each in children if each.made in ("overlay", "prepared")],
                    fleets.get(volume.uuid, []),
                )
            )  # fmt: skip
        return shown

    def _users(self) -> dict[str, list[str]]:
        """The fleets that are made of each image, by its UUID. Raises what is wrong with a file: it may name any."""
        found: dict[str, list[str]] = {}
        problems: list[StorkitError] = []
        for name in record.names(self._fleets):
            with collected(problems):
                found.setdefault(record.load(self._fleets, name).image_uuid, []).append(name)
        raise_problems(problems)
        return found
