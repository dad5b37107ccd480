"""How much room a volume group or a thin pool has, when that is too little, and what to warn of."""

from __future__ import annotations

import re
from collections.abc import Sequence

from storkit.core.errors import Conflict, StorkitError, UsageError
from storkit.core.units import format_size, parse_size
from storkit.system.lvmtools import LogicalVolume, VolumeGroup

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
