"""Which volume a name stands for: NAME, or POOL/NAME.

A volume that is being moved is in two pools, and one of the two is the disk (`disk_of`): a hint that finds one that is
closed is not enough.

A name stands for one disk over all pools: `create` and `rename` ask every pool that answers. So a volume that is found
where it was last, with the UUID that it had, is the one, and no other pool is asked. Where there is no such hint, or it
does not hold, all pools are asked. POOL/NAME is looked for in that pool alone.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from typing import Protocol

from storkit.core.errors import (
    Conflict,
    HostUnreachable,
    NotFound,
    ServiceUnreachable,
    StorkitError,
    in_a_line,
    raise_problems,
)
from storkit.core.inventory import PoolConfig
from storkit.core.model import LEAVING, Damaged, Volume, check_name, closed
from storkit.hosts.connections import Connections
from storkit.plans.remembered import Hints


class Pools(Protocol):
    """The pools, and what is known of them: a Survey (plans.survey) is one."""

    connections: Connections
    hints: Hints
    silent: dict[str, HostUnreachable | ServiceUnreachable]
    failed: dict[str, StorkitError]
    damaged: dict[tuple[str, str], Damaged]

    def of_pools(self, wanted: Mapping[PoolConfig, list[str] | None]) -> list[Volume]: ...
    def volumes(self, names: list[str] | None = None) -> list[Volume]: ...
    def refuse_damaged(self, names: Iterable[str]) -> None: ...
    def of_damaged(self, volume: Damaged) -> StorkitError: ...
    def silence(self, pool: PoolConfig) -> HostUnreachable | ServiceUnreachable | None: ...


def parts(name: str) -> tuple[str, str]:
    """The pool, empty if none is said, and the volume's name in it. Raises UsageError."""
    pool, slash, own = name.rpartition("/")
    if slash:
        check_name("pool", pool)
    return pool, check_name("volume", own)


def find_all(pools: Pools, names: list[str], uuids: Mapping[str, str]) -> list[Volume]:
    """The volumes of these names, in this order; every one that is missing is named.

    `uuids`: what is known of some (a guest's record has the UUIDs of its disks): it decides between two of one name.
    """
    found, unknown = present(pools, names, uuids)
    missing = [name for name in dict.fromkeys(names) if name not in found and name not in unknown]
    pools.refuse_damaged(missing)
    if missing:
        unknown[missing[0]] = _nowhere(pools, missing)
    unknown |= {name: why for name, volume in found.items() if (why := _out_of_reach(pools, volume))}
    raise_problems(list(unknown.values()))
    return [found[name] for name in names]


def _out_of_reach(pools: Pools, volume: Volume) -> StorkitError | None:
    """Why a volume that another manager of its pool has found can be used by none: who serves it is silent."""
    error = pools.silent.get(volume.manager) if volume.manager else None
    if error is None:
        return None
    message = f"volume {volume.name} was last served by {volume.manager}, and {error.message}"
    hint = f"bring {volume.manager} back; or, once you have seen that it is off:"
    return HostUnreachable(message, f"{hint} storkit fence {volume.manager} --confirmed-off")


def present(
    pools: Pools, names: Iterable[str], uuids: Mapping[str, str]
) -> tuple[dict[str, Volume], dict[str, StorkitError]]:
    """Those of these volumes that are found, and why others that have a place could not be looked for there: to take
    what has the same name elsewhere could only be a mistake. Raises Conflict: a name stands for two."""
    inventory, hints = pools.connections.inventory, pools.hints
    places: dict[str, tuple[PoolConfig, str, str]] = {}
    for name in dict.fromkeys(names):
        pool, own = parts(name)
        hint = hints.get(own)
        if pool:
            places[name] = inventory.pool(pool), own, ""
        elif hint and hint.pool in inventory.pools and (uuids.get(name) or hint.uuid) == hint.uuid:
            places[name] = inventory.pools[hint.pool], own, hint.uuid
    asked: dict[PoolConfig, list[str] | None] = {}
    for config in dict.fromkeys(config for config, _, _ in places.values()):
        asked[config] = [own for place, own, _ in places.values() if place is config]
    seen = {(volume.pool, volume.name): volume for volume in pools.of_pools(asked)}
    found: dict[str, Volume] = {}
    unknown: dict[str, StorkitError] = {}
    for name, (config, own, uuid) in places.items():
        volume = seen.get((config.name, own))
        if volume and uuid and closed(volume):
            volume = None
        if volume and (not uuid or volume.uuid == uuid):
            found[name] = volume
            if (hint := hints.get(own)) and hint.uuid != volume.uuid:
                hints.drop(own)  # the name stands for two, or what was meant is gone
        elif why := _why_not(pools, config, own, said=not uuid):
            unknown[name] = why
        else:
            hints.drop(own)
    rest = [name for name in dict.fromkeys(names) if name not in found and name not in unknown]
    return found | _everywhere(pools, rest, uuids), unknown


def disk_of(volumes: Sequence[Volume]) -> Volume | None:
    """Which of these, of one name, is the disk, where they are of one UUID as well, as while it is moved: the one that
    is open, or else the one that the other was copied from. None: they are two disks."""
    if len({volume.uuid for volume in volumes}) == 1:
        for found in (
            [volume for volume in volumes if not closed(volume)],
            [volume for volume in volumes if volume.made in LEAVING],
        ):
            if len(found) == 1:
                return found[0]
            if found:
                break
    return volumes[0] if len(volumes) == 1 else None


def _everywhere(pools: Pools, names: list[str], uuids: Mapping[str, str]) -> dict[str, Volume]:
    """Ask all pools that there are."""
    same: dict[str, list[Volume]] = {}
    for volume in pools.volumes(names) if names else []:
        same.setdefault(volume.name, []).append(volume)
    found: dict[str, Volume] = {}
    for name, volumes in same.items():
        meant = [volume for volume in volumes if volume.uuid == uuids.get(name)] or volumes
        disk = disk_of(meant)
        if disk is None:
            places = [f"{volume.pool}/{name}" for volume in meant]
            raise Conflict(
                f"volume {name} is in pool {' and in pool '.join(volume.pool for volume in meant)}",
                f"write {' or '.join(places)}",
            )
        found[name] = disk
        if len(volumes) == 1 and not closed(disk):
            pools.hints.put(volumes)
    return found


def _why_not(pools: Pools, pool: PoolConfig, name: str, said: bool) -> StorkitError | None:
    """Why a volume was not found in its pool. `said`: by a person; otherwise None if only the hint was wrong."""
    what = f"volume {name} of pool {pool.name}" if said else f"volume {name}, last in pool {pool.name},"
    if error := pools.silence(pool):
        return type(error)(f"{what} cannot be looked for: {error.message}", error.advice)
    if reason := pools.failed.get(pool.name):
        return Conflict(f"{what} cannot be looked for: {in_a_line(reason)}", reason.each[0].advice)
    if damaged := pools.damaged.get((pool.name, name)):
        return pools.of_damaged(damaged)
    return (
        NotFound(f"pool {pool.name} has no volume {name}", f"storkit volume list --pool {pool.name}") if said else None
    )


def _nowhere(pools: Pools, names: list[str]) -> StorkitError:
    """Why volumes were not found: they are not there, or where they may be cannot be asked."""
    missing, inventory = ", ".join(names), pools.connections.inventory
    for pool in inventory.pools.values():
        if error := pools.silence(pool):
            return HostUnreachable(f"no volume {missing} was found, and {error.message}", error.advice)
        if reason := pools.failed.get(pool.name):
            message = f"no volume {missing} was found, and pool {pool.name} cannot be looked at"
            return Conflict(f"{message}: {in_a_line(reason)}", reason.each[0].advice)
    gone = {hint.pool for name in names if (hint := pools.hints.get(name)) and hint.pool not in inventory.pools}
    was = f"; it was in pool {', '.join(sorted(gone))}, which is not in the inventory" if gone else ""
    return NotFound(f"there is no volume {missing}{was}", "storkit volume list")
