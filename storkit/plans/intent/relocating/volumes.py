"""Volumes that get another pool, on the same host or on another: their name, UUID, content and guests stay.

One of the two is the disk at any moment, and both say so themselves, so that a command that was killed leaves no doubt:

    the old one          the new one
    open                 importing     it is being copied; the old one is the disk
    moving               importing     nothing uses either, while all their bytes are compared; still the old one
    moving               open          the new one is the disk
    deleted              open

Nothing uses what is importing or moving, whoever asks, and both hosts refuse it themselves. One that a guest writes is
moved under it (live.py), where its hypervisor can do that.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from datetime import UTC, datetime

from storkit.core.errors import Conflict, StorkitError, Unsafe, Unsupported, UsageError, raise_problems
from storkit.core.holds import held
from storkit.core.inventory import PoolConfig
from storkit.core.model import IMPORTING, MIRRORED, MOVED, MOVING, SWITCHING, Export, Volume, closed
from storkit.core.units import format_size
from storkit.plans import planner
from storkit.plans.intent.coordinator import Coordinator
from storkit.plans.intent.golden import versions
from storkit.plans.intent.making import Bytes, in_bytes, new_volume
from storkit.plans.intent.relocating import live
from storkit.plans.lookup import disk_of
from storkit.plans.plan import Hold, Plan, Stages, Step
from storkit.plans.planner import add_attach, add_detach, finish_plan, locks_of
from storkit.plans.verb import step
from storkit.plans.verbs.relocating import (
    CarryGuests,
    CopyVolume,
    DigestVolume,
    DropCopy,
    OpenCopy,
    PlaceCopy,
    SameDigest,
)
from storkit.plans.verbs.volumes import DeleteVolumes, RelabelVolumes, SnapshotVolume


@dataclass(frozen=True, slots=True)
class Moved:
    """A volume where it is now. `was`: the pool that it was in; empty: it was there already. `kept`: the snapshot that
    was left there; empty: none. `digest`: what both sides held when they were compared; empty: nothing was copied.
    `guest`: under which it was moved; empty: none. `stall_ms`: how long that one stood still at the switch."""

    volume: Volume
    was: str = ""
    kept: str = ""
    digest: str = ""
    guest: str = ""
    stall_ms: int = 0


def move(coordinator: Coordinator, name: str, to: str, keep: bool, rate: Bytes | None) -> Moved:
    """Give a volume another pool (VolumeActs.move). A move that was cut short is gone on with, whatever its journal
    says: the volumes themselves say how far it came."""
    pool, limit = coordinator.survey.acting(coordinator.inventory.pool(to)), bytes_a_second(rate)
    found: list[Volume] = []
    kept: list[Volume] = []

    def build() -> Plan:
        named = coordinator.survey.volume(name)
        both = [each for each in coordinator.survey.volumes([named.name]) if each.uuid == named.uuid]
        volume = disk_of(both) or named  # POOL/NAME may be what a move that was cut short has left
        found[:] = [volume]
        others = [each for each in both if each.pool != volume.pool]
        if volume.pool == pool.name:
            return _stays(coordinator, volume, others)
        twin = next((each for each in others if each.pool == pool.name), None)
        seen = live.look(coordinator, volume, twin)
        exports = seen.exports
        problems = _refused(coordinator, volume, pool, twin)
        if seen.alive:
            problems += live.refused(coordinator, volume, pool, seen, limit)
            problems += _unkept(volume, keep)
        before, stages = volume, Stages()
        if volume.made in MIRRORED and not seen.alive:
            if twin and volume.made == SWITCHING and seen.said == "switched":
                raise_problems(problems)
                return live.switched(coordinator, volume, twin, seen)
            # Its guest has ended before it had switched: the copy is worth nothing any more.
            volume, twin = live.reopen(stages, coordinator, volume, twin, seen), None
            exports = []
        # What a move that was cut short has left is ended by this one.
        mine = [each for each in exports if twin and each.client == pool.host and not each.writable]
        if not seen.alive:
            strangers = [each for each in exports if each not in mine]
            problems += planner.exported([volume], strangers, coordinator.inventory)
        if strange := [each.pool for each in others if each.pool != pool.name]:
            message = f"a move of volume {volume.name} to pool {strange[0]} was cut short"
            problems.append(Conflict(message, f"storkit volume move {volume.name} --to {strange[0]}"))
        raise_problems(problems)
        if seen.alive:
            return live.plan(coordinator, before, pool, twin, seen, limit)
        if keep and not kept and not closed(volume):
            kept.append(_kept(coordinator, volume))
        return _plan(coordinator, volume, pool, twin, mine, kept, limit, stages)

    ran = coordinator.change(build, over_marks=True)
    (old,) = found
    coordinator.survey.hints.put(kept)
    coordinator.survey.hints.drop(old.name)
    (now,) = coordinator.survey.find_all([f"{pool.name}/{old.name}"], {old.name: old.uuid})
    coordinator.survey.hints.put([now])
    digests = [str(result) for each, result in ran.done if each.verb in ("same", "compare")]
    stalls = [(str(each.args["name"]), int(result["stall_ms"])) for each, result in ran.done if each.verb == "switch"]
    was = old.pool if old.pool != pool.name else ""
    guest, stall = stalls[0] if stalls else ("", 0)
    return Moved(now, was, kept[0].name if kept else "", digests[0] if digests else "", guest, stall)


def _unkept(volume: Volume, keep: bool) -> list[StorkitError]:
    """No snapshot is left of what a guest writes."""
    if not keep:
        return []
    hint = f"storkit volume snapshot {volume.name}, or stop its guest"
    return [Unsupported(f"volume {volume.name} is moved under its guest, and --keep would keep half a write", hint)]


def _stays(coordinator: Coordinator, volume: Volume, others: Sequence[Volume]) -> Plan:
    """A volume that is where it is to be."""
    if volume.made in MIRRORED:
        return live.called_off(coordinator, volume, others, live.look(coordinator, volume, next(iter(others), None)))
    left = [each for each in others if each.made in MIRRORED]
    if left and len(others) == 1 and not closed(volume):
        return live.opened(coordinator, volume, left[0])
    return _tidy(coordinator, volume, others)


def bytes_a_second(rate: Bytes | None) -> int:
    """A limit of a copy; 0: none. Raises UsageError."""
    limit = 0 if rate is None else in_bytes(rate)
    if rate is not None and limit < 1 << 16:
        raise UsageError(f"{limit} bytes a second are too few to copy a disk", "--rate 50MiB")
    return limit


def refuse(coordinator: Coordinator, volume: Volume, pool: PoolConfig) -> None:
    """Raise what keeps a volume from going to a pool, whoever has it now."""
    raise_problems(_refused(coordinator, volume, pool, None) if volume.pool != pool.name else [])


def _refused(coordinator: Coordinator, volume: Volume, pool: PoolConfig, twin: Volume | None) -> list[StorkitError]:
    """Why a volume cannot go to a pool."""
    problems = held(volume, "moved")
    if volume.kind == "tree":
        hint = f"on {volume.host}: tar --xattrs --acls; then storkit volume import --tree"
        problems.append(Unsupported(f"volume {volume.name} is a tree, which is not moved", hint))
    if volume.made == IMPORTING:
        problems.append(Conflict(f"the import of volume {volume.name} has not ended", "storkit plan list"))
    if twin and not closed(twin):
        message = f"pool {pool.name} has volume {volume.name} as well: it is the storage of pool {volume.pool}"
        problems.append(Conflict(message, "storkit pool list"))
    if volume.kind != "disk":
        problems += _needed(coordinator, volume)
    return problems


def _needed(coordinator: Coordinator, volume: Volume) -> list[StorkitError]:
    """Who stands on the bytes of an image, or on its name: the versions of one image are in one pool."""
    there = coordinator.survey.volumes(None, [coordinator.inventory.pool(volume.pool)])
    problems: list[StorkitError] = []
    on_it = [each.name for each in there if each.origin == volume.uuid and each.made == "overlay"]
    if on_it:
        message = f"volume {volume.name} cannot be moved: {', '.join(on_it[:5])} stand{'s' if not on_it[1:] else ''}"
        problems.append(Conflict(f"{message} on it", f"storkit volume flatten {' '.join(on_it[:5])}"))
    if versions.is_version(volume):
        image = versions.split(volume.name)[0]
        others = [each.shown for each in versions.among(there, image) if each.volume.uuid != volume.uuid]
        if others:
            message = f"image {image} has other versions in pool {volume.pool}, and all are in one pool"
            problems.append(Conflict(message, f"storkit image prune {image}, or clone: {', '.join(others[:5])}"))
    return problems


def _kept(coordinator: Coordinator, volume: Volume) -> Volume:
    """The snapshot of a volume that stays where it was."""
    label = f"{volume.name[:40]}.before-{datetime.now(UTC):%Y%m%d-%H%M%S-%f}"[:-3]
    pool = coordinator.inventory.pool(volume.pool)
    return new_volume(pool, label, volume.size, origin=volume.uuid, kind="snapshot")


def _plan(
    coordinator: Coordinator, volume: Volume, pool: PoolConfig, twin: Volume | None, mine: Sequence[Export],
    kept: list[Volume], rate: int, stages: Stages,
) -> Plan:  # fmt: skip
    """The whole way, from wherever one that was cut short has come to. `stages`: what comes before."""
    inventory = coordinator.inventory
    here, there = f"pool:{volume.pool}", f"pool:{pool.name}"
    copy = replace(
        volume,
        pool=pool.name,
        host=pool.host,
        path="",
        format="",
        made=IMPORTING,
        kind="disk",
        was="",
        manager="",
        term=0,
    )
    if mine:
        add_detach(stages, [volume], [pool.host], inventory)
    if twin:
        title = f"delete what was copied to pool {pool.name} before"
        stages.then(step(DropCopy(twin), pool.host, there, title))
    for each in kept:
        stages.then(step(SnapshotVolume([each], volume), volume.host, here, f"keep {volume.name} as {each.name}"))
    title = f"allocate {format_size(volume.size)} for {volume.name} in pool {pool.name}"
    stages.then(step(PlaceCopy(copy), pool.host, there, title))
    title = f"copy {volume.name} from pool {volume.pool} to pool {pool.name}"
    transport = inventory.transport(volume.pool)
    if pool.host == volume.host:
        stages.then(step(CopyVolume(copy, volume, rate=rate), pool.host, "images", title))
    else:
        add_attach(stages, [volume], pool.host, None, inventory)
        stages.then(step(CopyVolume(copy, volume, transport, rate), pool.host, "images", title, peer=volume.host))
        add_detach(stages, [volume], [pool.host], inventory)
    title = f"close {volume.name} in pool {volume.pool}"
    stages.then(step(RelabelVolumes([replace(volume, made=MOVING)]), volume.host, here, title))
    stages.then(
        step(DigestVolume(volume), volume.host, "images", f"read all of {volume.name} in pool {volume.pool}"),
        step(DigestVolume(copy), pool.host, "images", f"read all of {volume.name} in pool {pool.name}"),
    )
    both = [each.id for each in stages.stages[-1]]
    title = f"compare {volume.name} with its copy"
    stages.then(step(SameDigest(volume, both), pool.host, "images", title, peer=volume.host))
    title = f"keep what is kept with {volume.name} in pool {pool.name}"
    stages.then(step(CarryGuests(copy, here), pool.host, there, title, peer=volume.host))
    opened = replace(copy, kind=volume.kind, made=MOVED)
    title = f"open {volume.name} in pool {pool.name}"
    stages.then(step(OpenCopy([opened], source=volume), pool.host, there, title, peer=volume.host))
    stages.then(_delete(volume))
    title = f"move {volume.name} from pool {volume.pool} to pool {pool.name}"
    return finish_plan(title, stages, _holds([volume, copy]), inventory)


def _delete(volume: Volume) -> Step:
    title = f"delete {volume.name} in pool {volume.pool}"
    return step(DeleteVolumes([volume]), volume.host, f"pool:{volume.pool}", title)


def _tidy(coordinator: Coordinator, volume: Volume, others: Sequence[Volume]) -> Plan:
    """A volume that is where it is to be: what a move that was cut short has left elsewhere goes."""
    inventory, stages = coordinator.inventory, Stages()
    names = " and ".join(each.pool for each in [volume, *others])
    if volume.made != MOVING and any(not closed(each) for each in others):
        raise Conflict(f"volume {volume.name} is in pool {names}", "storkit pool list")
    if volume.made == MOVING:
        _refuse_to_open(coordinator, volume, others, names)
    exports = coordinator.survey.exports([volume]) if others else []
    left = [each.host for each in others if any(e.client == each.host and not e.writable for e in exports)]
    if left:
        add_detach(stages, [volume], left, inventory)
    for each in others:
        if each.made == MOVING:
            stages.then(_delete(each))
        else:
            title = f"delete what was copied to pool {each.pool}"
            stages.then(step(DropCopy(each), each.host, f"pool:{each.pool}", title))
    if volume.made == MOVING:
        title = f"open {volume.name} in pool {volume.pool}"
        stages.then(step(RelabelVolumes([replace(volume, made=MOVED)]), volume.host, f"pool:{volume.pool}", title))
    return finish_plan(f"end the move of {volume.name}", stages, _holds([volume, *others]), inventory)


def _refuse_to_open(coordinator: Coordinator, volume: Volume, others: Sequence[Volume], names: str) -> None:
    """Raise Unsafe if it is not certain that a volume which is marked as moving is still the disk: its copy may be open
    where nobody answers; and what two pools of one directory both show would be deleted as the other's remains."""
    if any(each.made != IMPORTING for each in others):
        message = f"pools {names} all have volume {volume.name} as the disk: they are one storage, perhaps"
        raise Unsafe(message, "take the pool that is not its own out of the inventory, then try again")
    survey = coordinator.survey
    if others or not (survey.silent or survey.failed or survey.unread or survey.damaged):
        return
    silent = ", ".join([*sorted(survey.silent), *(f"pool {name}" for name in sorted(survey.failed))]) or "a host"
    raise Unsafe(
        f"volume {volume.name} is marked as moving, and {silent} cannot say whether its copy is the disk by now",
        f"bring it back; then: storkit volume move {volume.name} --to {volume.pool}",
    )


def _holds(volumes: Sequence[Volume]) -> list[Hold]:
    """One lock at each home: two pools of one host have one for both."""
    return locks_of(list({volume.host: volume for volume in volumes}.values()))
