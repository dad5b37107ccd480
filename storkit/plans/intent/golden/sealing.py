"""Volumes made versions of golden images: nobody writes them any more, and the checksum of their bytes is kept."""

from __future__ import annotations

from storkit.core.errors import Conflict, StorkitError, raise_problems
from storkit.core.model import Volume
from storkit.plans import planner
from storkit.plans.intent import disks
from storkit.plans.intent.coordinator import Coordinator
from storkit.plans.intent.golden import versions
from storkit.plans.intent.golden.versions import Version
from storkit.plans.intent.making import clone_format, made, must_be_free, new_volume
from storkit.plans.plan import Plan, Stages
from storkit.plans.verb import step
from storkit.plans.verbs.images import SealVolume
from storkit.plans.verbs.volumes import CloneVolume


def seal(coordinator: Coordinator, name: str, image: str) -> Version:
    """Make a volume a golden image; with `image` a copy of it, that image's next version."""
    copies = list[Volume]()

    def build() -> Plan:
        volume = versions.source(coordinator, name)
        if volume.kind == "tree":
            raise Conflict(f"volume {volume.name} is a tree, and no image of a disk", "storkit volume list")
        exports = coordinator.survey.exports([volume])
        planner.refuse_written(volume, exports, "sealed")
        stages = Stages()
        if not image:
            versions.volume_name(versions.split(volume.name)[0], 1)
            _refuse_disk(coordinator, volume)
            add_seal(stages, volume)
            return planner.finish_plan(f"seal {volume.name}", stages, planner.locks_of([volume]), coordinator.inventory)
        if not copies:
            pool = coordinator.inventory.pool(volume.pool)
            own = versions.volume_name(image, next_number(coordinator, image, volume.pool))
            must_be_free(coordinator, [own])
            format = clone_format(coordinator, pool)
            copies.append(new_volume(pool, own, volume.size, origin=volume.uuid, format=format))
        title = f"clone {volume.name} to {copies[0].name}"
        stages.then(step(CloneVolume(copies, volume), volume.host, f"pool:{volume.pool}", title))
        add_seal(stages, copies[0])
        holds = planner.locks_of([volume], shared=True)
        return planner.finish_plan(f"seal {volume.name} as {copies[0].name}", stages, holds, coordinator.inventory)

    (volume,) = made(coordinator, coordinator.change(build))
    return Version(*versions.split(volume.name), volume)


def _refuse_disk(coordinator: Coordinator, volume: Volume) -> None:
    """Raise Conflict if a guest has a volume as its disk, which it could write no longer."""
    problems: list[StorkitError] = []
    guests = disks.having(coordinator, [volume], problems)[volume.uuid]
    if guests and volume.kind != "image":
        hint = f"make a copy of it a version: storkit image seal {volume.name} IMAGE"
        problems.append(Conflict(f"volume {volume.name} is a disk of guest {guests[0]}, which writes it", hint))
    raise_problems(problems)


def add_seal(stages: Stages, volume: Volume, origin: str = "") -> None:
    """Nobody writes this volume from then on, and its checksum is kept."""
    title = f"seal {volume.name}, and keep its checksum"
    stages.then(step(SealVolume(volume, origin), volume.host, f"pool:{volume.pool}", title))


def next_number(coordinator: Coordinator, image: str, pool: str) -> int:
    """The number of the next version of an image."""
    there = coordinator.survey.volumes(None, [coordinator.inventory.pool(pool)])
    return max((version.number for version in versions.among(there, image)), default=0) + 1
