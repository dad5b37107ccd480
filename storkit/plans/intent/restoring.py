"""Volumes set back to what they were when a snapshot of them was made."""

from __future__ import annotations

from dataclasses import dataclass
from datetime import UTC, datetime

from storkit.core.errors import Conflict, StorkitError, raise_problems
from storkit.core.holds import held
from storkit.core.model import IMPORTING, Volume
from storkit.core.units import format_size
from storkit.plans import planner
from storkit.plans.intent.coordinator import Coordinator
from storkit.plans.intent.making import new_volume
from storkit.plans.plan import Plan, Stages
from storkit.plans.planner import finish_plan, locks_of, with_changed
from storkit.plans.verb import step
from storkit.plans.verbs.volumes import CloseVolume, RefillVolume, RelabelVolumes, ResizeVolumes, SnapshotVolume

RESTORED = "restored"


@dataclass(frozen=True, slots=True)
class Restored:
    """A volume that is as it was when a snapshot was made. `kept`: the snapshot of what it was before; empty: none."""

    volume: Volume
    kept: str = ""


def restore(coordinator: Coordinator, name: str, snapshot: str, discard: bool) -> Restored:
    """Set a volume back (VolumeActs.restore). Plans that are open for it are given up: what they left is written over.

    A volume that was being restored has nothing to be kept: its content is neither the old nor the new one.
    """
    kept: list[Volume] = []
    found: list[Volume] = []

    def build() -> Plan:
        volume, source = coordinator.survey.find_all([name, snapshot])
        found[:] = [volume]
        exports = coordinator.survey.exports([volume])
        raise_problems([*_strange(volume, source), *planner.exported([volume], exports, coordinator.inventory)])
        if not (kept or discard or volume.made == IMPORTING):
            pool = coordinator.inventory.pool(volume.pool)
            label = f"{volume.name[:40]}.before-{datetime.now(UTC):%Y%m%d-%H%M%S-%f}"[:-3]
            kept.append(new_volume(pool, label, volume.size, origin=volume.uuid, kind="snapshot"))
        return _plan(coordinator, volume, source, [] if volume.made == IMPORTING else kept)

    coordinator.change(build, over_marks=True)
    coordinator.survey.hints.put(kept)
    (volume,) = coordinator.survey.find_all([name], {found[0].name: found[0].uuid})
    return Restored(volume, kept[0].name if kept else "")


def _strange(volume: Volume, source: Volume) -> list[StorkitError]:
    """Why a volume cannot become what another one is."""
    problems = held(volume, "restored")
    if volume.kind != "disk":
        problems.append(Conflict(f"volume {volume.name} is a {volume.kind}, which is never changed", "name a disk"))
    if source.kind != "snapshot" or source.origin != volume.uuid or source.pool != volume.pool:
        message = f"volume {source.name} is no snapshot of {volume.name}"
        problems.append(Conflict(message, "storkit volume list; or storkit volume clone, for another volume of it"))
    return problems


def _plan(coordinator: Coordinator, volume: Volume, source: Volume, kept: list[Volume]) -> Plan:
    stages, pool = Stages(), f"pool:{volume.pool}"
    larger, smaller = max(volume.size, source.size), source.size < volume.size
    closed = with_changed(volume, size=larger, made=IMPORTING)
    for each in kept:
        stages.then(step(SnapshotVolume([each], volume), volume.host, pool, f"keep {volume.name} as {each.name}"))
    title = f"resize {volume.name} from {format_size(volume.size)} to {format_size(source.size)}"
    if larger > volume.size:
        stages.then(step(ResizeVolumes([with_changed(volume, size=larger)]), volume.host, pool, title))
    shrink = step(
        ResizeVolumes([with_changed(closed, size=source.size, made=RESTORED)], True), volume.host, pool, title
    )
    title = f"keep {volume.name} from being used while it is written over"
    stages.then(step(CloseVolume([closed]), volume.host, pool, title))
    title = f"write {source.name} over {volume.name}"
    stages.then(step(RefillVolume(closed, source), volume.host, "images", title))
    opened = with_changed(closed, made=RESTORED)
    stages.then(step(RelabelVolumes([opened]), volume.host, pool, f"let {volume.name} be used"))
    if smaller:  # at the end: until then whatever it holds is whole, the old or the new
        stages.then(shrink)
    title = f"restore {volume.name} from {source.name}"
    holds = locks_of([volume]) + locks_of([source], shared=True)
    return finish_plan(title, stages, holds, coordinator.inventory)
