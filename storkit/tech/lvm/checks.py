"""What stands in the way of a request to an LVM pool, and what to warn of: room, names, other volumes."""

from __future__ import annotations

import re
from collections.abc import Sequence

from storkit.core.errors import Conflict, StorkitError, UsageError
from storkit.core.model import Volume, closed
from storkit.core.units import exact_size, format_size, parse_size
from storkit.tech.files import volumefile
from storkit.tech.lvm.tools import BATCH, LogicalVolume, VolumeGroup, tag, tags_of

_UUID = re.compile(r"[0-9a-f]{8}(-[0-9a-f]{4}){3}-[0-9a-f]{12}", re.ASCII)
_RESERVED = re.compile(
    r"snapshot|pvmove|.*_(cdata|cmeta|corig|cvol|iorig|mimage|mlog|pmspare|rimage|rmeta|tdata|tmeta|vdata|vorigin|wcorig)"
)
"""Names that lvm(8) keeps for itself: these beginnings, and these anywhere."""
_TAG_MAX = 1024
_DM_NAME_MAX = 126
"""Of the device's name: the volume group's and the logical volume's with hyphens doubled, and one between."""
_SHARE = re.compile(r"([0-9]{1,2}(?:\.[0-9]+)?|100)%", re.ASCII)
_METADATA_FLOOR = 5.0
_HEALTH = {"F": "has failed", "D": "is out of data space", "M": "has read-only metadata, after an error"}


def share(text: str, key: str) -> float:
    """Percent, from `5%`. Raises UsageError, naming the inventory's key."""
    match = _SHARE.fullmatch(text.strip())
    if match is None:
        raise UsageError(f"{key} = {text!r} is not a share", f'write it like this: {key} = "5%"')
    return float(match[1])


def floors(text: str, size: int) -> tuple[int, float]:
    """The bytes of data, and the percent of metadata, that must be free in a thin pool of `size` bytes."""
    if text.strip().endswith("%"):
        percent = share(text, "floor")
        return int(size * percent / 100), percent
    return (parse_size(text) if text.strip() != "0" else 0), _METADATA_FLOOR


def thick_problems(group: VolumeGroup, needed: int) -> list[StorkitError]:
    if needed <= group.free:
        return []
    message = f"no room in volume group {group.name}: {format_size(needed)} needed, {format_size(group.free)} free"
    return [Conflict(message, f"vgs {group.name}; add a disk with vgextend, or choose another pool")]


def thin_problems(vg: str, pool: LogicalVolume, floor: str, zeroing: bool) -> list[StorkitError]:
    """What keeps an active thin pool from taking new volumes."""
    name = f"thin pool {vg}/{pool.name}"
    if pool.health in _HEALTH:
        return [Conflict(f"{name} {_HEALTH[pool.health]}", f"lvs -a {vg}; lvmthin(7) tells how to repair it")]
    problems: list[StorkitError] = []
    if zeroing and not pool.zeroes:
        message = f"{name} does not zero new chunks: volumes would show what others left there"
        problems.append(Conflict(message, f"lvchange -Zy {vg}/{pool.name}"))
    least, percent = floors(floor, pool.size)
    free = int(pool.size * (1 - (pool.data or 0.0) / 100))
    if free < least:
        message = f"{name} has {format_size(free)} free, below the floor of {format_size(least)}"
        problems.append(Conflict(message, f"lvextend -L +SIZE {vg}/{pool.name}, or delete volumes"))
    spare = 100 - (pool.metadata or 0.0)
    if spare < percent:
        message = f"{name} has {spare:.1f}% of its metadata free, below the floor of {percent:g}%"
        problems.append(Conflict(message, f"lvextend --poolmetadatasize +SIZE {vg}/{pool.name}"))
    return problems


def warnings(name: str, pool: LogicalVolume, sizes: Sequence[int], warn: str, overcommit: float) -> list[str]:
    """What to say of the thin pool below storkit's pool `name`, with volumes of these sizes."""
    if pool.data is None or pool.metadata is None:
        return [f"how full pool {name} is, is not known: its thin pool {pool.name} is not active"]
    said = [f"pool {name}: its thin pool {pool.name} {_HEALTH[pool.health]}"] if pool.health in _HEALTH else []
    provisioned, limit = sum(sizes), share(warn, "warn")
    if provisioned > overcommit * pool.size:
        said.append(
            f"pool {name} is over-committed: its volumes can grow to {format_size(provisioned)}, and its thin pool "
            f"{pool.name} has {format_size(pool.size)}"
        )
    for what, taken in (("data", pool.data), ("metadata", pool.metadata)):
        if taken >= limit:
            said.append(f"pool {name} is nearly full: {taken:g}% of the {what} of its thin pool {pool.name} is taken")
    return said


def being_made(group: VolumeGroup, lv: LogicalVolume) -> StorkitError:
    """A Conflict for a volume whose batch is not published."""
    batch = lv.tags.get(BATCH, "")
    host = group.making.get(batch, "")
    hint = f"wait until that command has ended; if it was killed, any change of a volume on {host} clears it away"
    return Conflict(f"volume {lv.name} is being made by a command on {host}", hint)


def another(lv: LogicalVolume, volume: Volume) -> list[StorkitError]:
    """A Conflict if the volume of that name is not the one that is meant."""
    uuid = lv.tags.get("uuid", "")
    if uuid == volume.uuid:
        return []
    return [
        Conflict(
            f"volume {lv.name} is another one than was meant: its UUID is {uuid or 'lost'}, not {volume.uuid}",
            f"look at it: storkit volume show {lv.name}",
        )
    ]


def needed(group: VolumeGroup, name: str, what: str) -> list[StorkitError]:
    """Snapshots that storkit did not make: lvremove would take those that are not thin along with their origin."""
    pool = group.lvs[name].pool
    users = [lv.name for lv in group.lvs.values() if lv.origin == name and not (pool and lv.pool == pool)]
    if not users:
        return []
    message = f"volume {name} cannot be {what}: the logical volume {', '.join(users)} stands on it"
    return [Conflict(message, f"remove it first: lvremove {group.name}/{users[0]}")]


def request_problems(volume: Volume, vg: str) -> list[StorkitError]:
    """What is wrong with a volume that is asked for, whatever there is already."""
    problems = volumefile.size_problems(volume, "raw")
    if not _UUID.fullmatch(volume.uuid):
        problems.append(UsageError(f"{volume.uuid!r} is not a UUID for volume {volume.name}", "uuidgen makes one"))
    if _RESERVED.match(volume.name):
        problems.append(UsageError(f"LVM keeps the name {volume.name} for itself", "choose another name"))
    if len(f"{vg}-{volume.name}".replace("-", "--")) > _DM_NAME_MAX:
        message = f"the name of volume {volume.name} in volume group {vg} is too long for device-mapper"
        problems.append(UsageError(message, f"use {_DM_NAME_MAX} characters at most for both, hyphens counted twice"))
    return problems


def tag_problems(volume: Volume) -> list[StorkitError]:
    """A hold that is too long for a tag (1,024 characters, lvm(8)): it names a file."""
    if volume.hold is None or len(tag("hold", tags_of(volume)["hold"])) <= _TAG_MAX:
        return []
    message = f"the name of the file is too long for a tag of LVM: {volume.hold.file}"
    return [UsageError(message, "choose a shorter one")]


def derive_problems(old: Volume, volumes: Sequence[Volume]) -> list[StorkitError]:
    problems: list[StorkitError] = []
    for volume in volumes:
        if 0 < volume.size < old.size:
            message = f"volume {volume.name} of {format_size(volume.size)} is smaller than {old.name}, its source"
            problems.append(UsageError(message, f"make it {exact_size(old.size)} or larger"))
    if why := closed(old):
        problems.append(Conflict(why, "wait for that, or run it again: storkit plan list"))
    return problems


def served_problems(volume: Volume, old: Volume) -> list[StorkitError]:
    """Why a volume cannot get another size under those who have it open."""
    if volume.size >= old.size:
        return []
    return [Conflict(f"volume {old.name} is in use and cannot become smaller", "stop its guest first")]


def resize_problems(volume: Volume, old: Volume, shrink: bool) -> list[StorkitError]:
    problems: list[StorkitError] = []
    if old.kind != "disk":
        hint = f"clone it larger: storkit volume clone {old.name} NEW --size {exact_size(volume.size)}"
        problems.append(Conflict(f"volume {old.name} is a {old.kind}, which is never changed", hint))
    if why := closed(old):
        problems.append(Conflict(why, "wait for it"))
    if volume.size < old.size and not shrink:
        message = (
            f"volume {old.name} has {format_size(old.size)}: making it {format_size(volume.size)} cuts off "
            "what lies beyond"
        )
        problems.append(Conflict(message, "shrink the file system in it first, then give --shrink twice"))
    return problems
