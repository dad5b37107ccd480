"""All disks of a guest kept as they are at one instant, and set back to that."""

from __future__ import annotations

from dataclasses import dataclass

from storkit.core import codec
from storkit.core.errors import Conflict, NotFound, raise_problems
from storkit.core.identities import check_name
from storkit.core.model import Volume
from storkit.plans.intent.coordinator import Coordinator
from storkit.plans.intent.making import must_be_free, new_volume
from storkit.plans.intent.restoring import Restored, restore
from storkit.plans.intent.views import guest_view, refuse_unless_stopped, wherever
from storkit.plans.migration import GuestView, guest_holds
from storkit.plans.plan import Plan, Stages
from storkit.plans.planner import finish_plan
from storkit.plans.verb import step
from storkit.plans.verbs.guests import PauseGuest, WakeGuest
from storkit.plans.verbs.volumes import SnapshotVolume


@dataclass(frozen=True, slots=True)
class GuestSnapshot:
    """What was kept of a guest, by its volumes' names. `paused`: it stood still meanwhile."""

    guest: str
    snapshots: dict[str, str]
    paused: bool


def snapshot(coordinator: Coordinator, name: str, label: str) -> GuestSnapshot:
    """Keep every disk that a guest writes as it is, all at one instant, as VOLUME.LABEL.

    A guest that runs with several disks stands still meanwhile: one of them would be of an earlier moment otherwise,
    which no power cut leaves. Raises Conflict: it is in two places; a pool cannot do it while the disk is in use.
    """
    made: dict[str, Volume] = {}
    pauses = list[bool]()

    def build() -> Plan:
        what = wherever(coordinator, name)
        what.known()
        if not made:
            made.update(_wanted(coordinator, what, label))
        plan = _plan(coordinator, what, made)
        pauses[:] = [any(each.verb == "pause" for each in plan.steps)]
        return plan

    ran = coordinator.change(build)
    coordinator.survey.hints.put(codec.load(list[Volume], ran.of("snapshot"), strict=False))
    return GuestSnapshot(name, {volume: each.name for volume, each in made.items()}, pauses[0])


def revert(coordinator: Coordinator, name: str, label: str, discard: bool = False) -> list[Restored]:
    """Set every disk that a guest writes back to what it was when `snapshot` kept it; the guest must be stopped. Each
    by a plan of its own: a command that was cut short is given again. `discard` as in `VolumeActs.restore`."""
    what = guest_view(coordinator, name)
    refuse_unless_stopped(coordinator, what.guest, "its disks cannot be set back")
    wanted = {volume.name: _label(volume, label) for volume in what.written}
    there = {volume.name for volume in coordinator.survey.present([*wanted.values()])}
    raise_problems(
        [
            NotFound(f"volume {volume} was not kept as {kept}", "storkit volume list")
            for volume, kept in wanted.items()
            if kept not in there
        ]
    )
    return [restore(coordinator, volume, kept, discard) for volume, kept in wanted.items()]


def _label(volume: Volume, label: str) -> str:
    return f"{volume.name}.{label}"


def _wanted(coordinator: Coordinator, what: GuestView, label: str) -> dict[str, Volume]:
    names = [check_name("volume", _label(volume, label)) for volume in what.written]
    if not names:
        raise Conflict(f"guest {what.name} writes no disk", f"storkit guest show {what.name}")
    must_be_free(coordinator, names)
    return {
        volume.name: new_volume(
            coordinator.inventory.pool(volume.pool), kept, volume.size, origin=volume.uuid, kind="snapshot"
        )
        for volume, kept in zip(what.written, names, strict=True)
    }


def _plan(coordinator: Coordinator, what: GuestView, made: dict[str, Volume]) -> Plan:
    stages = Stages()
    if len(what.running) > 1:
        raise Conflict(f"guest {what.name} runs on {' and '.join(what.running)}", f"storkit migrate status {what.name}")
    running = [host for host in what.running if what.places[host] == "running"]
    pauses = running if len(what.written) > 1 else []
    for host in pauses:
        stages.then(step(PauseGuest(what.name), host, what.target, f"have {what.name} stand still on {host}"))
    stages.then(
        *(
            step(
                SnapshotVolume([made[volume.name]], volume), volume.host, f"pool:{volume.pool}",
                f"snapshot {volume.name} as {made[volume.name].name}",
            )
            for volume in what.written
        )
    )  # fmt: skip
    for host in pauses:
        stages.then(step(WakeGuest(what.name), host, what.target, f"let {what.name} go on on {host}"))
    return finish_plan(f"snapshot guest {what.name}", stages, guest_holds(what), coordinator.inventory)
