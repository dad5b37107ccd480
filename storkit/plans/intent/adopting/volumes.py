"""What is there becomes a volume, without a byte of it being copied; and volumes are given back."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from storkit.core.errors import HostUnreachable, NotFound, StorkitError, UsageError, raise_problems
from storkit.core.identities import check_name, several
from storkit.core.inventory import PoolConfig
from storkit.core.model import Adoptable, Existing, Volume
from storkit.plans import planner
from storkit.plans.intent import disks
from storkit.plans.intent.coordinator import Coordinator
from storkit.plans.intent.making import made, must_be_free, new_volume, pool_of
from storkit.plans.plan import Plan


@dataclass(frozen=True, slots=True)
class Released:
    """A volume that was given back."""

    volume: Volume
    place: str
    """Where its bytes are."""


def adopt(coordinator: Coordinator, place: str, name: str, host: str, pool: str) -> Volume:
    """Make a volume of a file or a logical volume (VolumeActs.adopt)."""
    if name:
        check_name("volume", name)
    pools = candidates(coordinator, host, pool)
    existing = Existing(named(coordinator, place, pools[0].host))
    wanted: list[Volume] = []

    def build() -> Plan:
        config, seen = choose(coordinator, existing, pools)
        if not wanted:
            must_be_free(coordinator, [own_name(name, seen)], config)
            wanted.append(new_volume(config, own_name(name, seen), seen.size))
        return planner.adopt(wanted[0], existing, coordinator.inventory)

    return made(coordinator, coordinator.change(build))[0]


def release(coordinator: Coordinator, names: Sequence[str], force: bool) -> list[Released]:
    """Give volumes back that no host has, and, without `force`, no guest."""
    names = several(names)
    released: list[Volume] = []

    def build() -> Plan:
        released[:] = coordinator.survey.find_all(names)
        if not force:
            disks.refuse_to_lose(coordinator, released, "release")
        return planner.release(released, coordinator.survey.exports(released), coordinator.inventory)

    ran = coordinator.change(build)
    places = dict[str, str]()
    for step, result in ran.done:
        places |= zip((each["uuid"] for each in step.args["volumes"]), result, strict=True)
    for volume in released:
        coordinator.survey.hints.drop(volume.name)
    return [Released(volume, places[volume.uuid]) for volume in released]


def candidates(coordinator: Coordinator, host: str, pool: str) -> list[PoolConfig]:
    """The pools that something of a host may become a volume of: the one that is named, or all of the host, which is
    that of the default pool if none is named."""
    inventory = coordinator.inventory
    where = coordinator.host(host) if host else pool_of(coordinator, pool).host
    if pool:
        config = pool_of(coordinator, pool)
        if config.host != where:
            raise UsageError(f"pool {pool} is on {config.host}, and not on {where}", "leave --on out, or --pool")
        return [config]
    found = [each for each in inventory.pools.values() if each.host == where]
    if not found:
        raise NotFound(f"host {where} has no pool", f'add one to the inventory: [pools.NAME] host = "{where}"')
    default = inventory.defaults.pool
    return sorted(found, key=lambda each: each.name != default)


def named(coordinator: Coordinator, place: str, host: str) -> str:
    """What a person named, as its host knows it: a file of this machine by its whole path."""
    local = coordinator.inventory.host(host).machine == "local"
    return str(Path(place).absolute()) if local and not place.startswith("/") and Path(place).exists() else place


def choose(coordinator: Coordinator, existing: Existing, pools: Sequence[PoolConfig]) -> tuple[PoolConfig, Adoptable]:
    """The pool that something becomes a volume of: where it lies already, or the first that can take it. Raises why
    there is none."""
    able: list[tuple[PoolConfig, Adoptable]] = []
    problems: list[StorkitError] = []
    for config in pools:
        try:
            (seen,) = coordinator.connections.to(config.host).pool(f"pool:{config.name}").adoptable([existing])
            able.append((config, seen))
        except HostUnreachable:
            raise
        except StorkitError as error:
            problems += error.each
    if not able:
        # What one pool knows and refuses is said alone: that the others do not know it is no news.
        known = [each for each in problems if not isinstance(each, NotFound)]
        raise_problems(_once(known or problems))
    return min(able, key=lambda each: each[1].moved)


def own_name(name: str, seen: Adoptable) -> str:
    """The name of a volume: what is wanted, or what it is called already."""
    try:
        return check_name("volume", name or seen.name)
    except UsageError as error:
        raise UsageError(error.message, f"name the volume: storkit volume adopt {seen.place} NAME") from None


def _once(problems: list[StorkitError]) -> list[StorkitError]:
    return list({each.message: each for each in problems}.values())
