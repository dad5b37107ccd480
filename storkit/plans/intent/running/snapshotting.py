"""All disks of a guest kept as they are at one instant, and set back to that."""

from __future__ import annotations

from dataclasses import dataclass

from storkit.core import codec
from storkit.core.errors import Conflict, NotFound, StorkitError, collected, in_a_line, raise_problems
from storkit.core.guest import Frozen
from storkit.core.identities import check_name
from storkit.core.model import Volume
from storkit.plans.guests import freezing
from storkit.plans.intent.coordinator import Coordinator, Ran
from storkit.plans.intent.disks import having
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
    """What was kept of a guest, by its volumes' names."""

    guest: str
    snapshots: dict[str, str]
    paused: bool
    """It stood still meanwhile."""
    frozen: int
    """How many of its file systems did, whole, by its agent; 0: the snapshots are as after a power cut, or it did not
    run."""
    why: str = ""
    """Why none did of a guest that ran."""

    @property
    def said(self) -> str:
        """Whether they stood still, in a line for people."""
        return said_of(self.guest, self.frozen, self.why)


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
    frozen, why = told(ran).get(name, (0, ""))
    return GuestSnapshot(name, {volume: each.name for volume, each in made.items()}, pauses[0], frozen, why)


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


def told(ran: Ran) -> dict[str, tuple[int, str]]:
    """Whether file systems stood still until their disks were kept: how many of each guest, or why none did."""
    found: dict[str, tuple[int, str]] = {}
    for each, result in ran.done:
        if each.verb in ("freeze", "thaw"):
            said = codec.load(Frozen, result, strict=False)
            systems, why = found.get(said.name, (said.systems, said.why))
            found[said.name] = (min(systems, said.systems), why or said.why)
    return found


def snapshot_volume(coordinator: Coordinator, source: str, name: str) -> Volume:
    """Keep a volume as it is now, under another name (VolumeActs.snapshot). The file systems of a guest that writes it
    stand still meanwhile, if its agent can have it so."""
    check_name("volume", name)
    kept = list[Volume]()

    def build() -> Plan:
        volume = coordinator.survey.volume(source)
        if not kept:
            must_be_free(coordinator, [name])
            pool = coordinator.inventory.pool(volume.pool)
            kept.append(new_volume(pool, name, volume.size, origin=volume.uuid, kind="snapshot"))
        return freezing.snapshot(volume, kept[0], _writers(coordinator, volume), coordinator.inventory)

    ran = coordinator.change(build)
    for guest, (systems, why) in told(ran).items():
        coordinator.warn(said_of(guest, systems, why))
    (volume,) = codec.load(list[Volume], ran.of("snapshot"), strict=False)
    coordinator.survey.hints.put([volume])
    return volume


def said_of(guest: str, systems: int, why: str) -> str:
    """A line for people."""
    if systems:
        return f"guest {guest}: its file systems stood still meanwhile ({systems})"
    return f"guest {guest}: its file systems did not stand still, so it is what a power cut leaves: {why}"


def _writers(coordinator: Coordinator, volume: Volume) -> list[GuestView]:
    """The guests that run and may write a volume. One that cannot be looked at has its file systems go on."""
    exports = coordinator.survey.exports([volume])
    if not any(export.writable and export.uuid == volume.uuid for export in exports):
        return []
    problems: list[StorkitError] = []
    found: list[GuestView] = []
    for name in having(coordinator, [volume], problems)[volume.uuid]:
        with collected(problems):
            found.append(guest_view(coordinator, name))
    for problem in problems:
        coordinator.warn(f"whether its file systems stand still is not known: {in_a_line(problem)}")
    return found


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
    frozen = [what] if running else []
    freezing.freeze(stages, frozen)
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
    freezing.thaw(stages, frozen)
    return finish_plan(f"snapshot guest {what.name}", stages, guest_holds(what), coordinator.inventory)
