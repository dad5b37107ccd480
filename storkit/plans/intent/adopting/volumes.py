"""What is there becomes a volume, without a byte of it being copied; and volumes are given back."""

from __future__ import annotations

from collections.abc import Sequence
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path

from storkit.core.contracts.pools import PoolVerbs
from storkit.core.errors import (
    Conflict,
    HostUnreachable,
    NotFound,
    Problems,
    StorkitError,
    Unsafe,
    Unsupported,
    UsageError,
    raise_problems,
)
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


@dataclass(slots=True)
class Candidate:
    """What pools say of something that is to become a volume."""

    able: list[tuple[PoolConfig, Adoptable]] = field(default_factory=list)
    problems: list[StorkitError] = field(default_factory=list)

    def chosen(self) -> tuple[PoolConfig, Adoptable]:
        """The pool that it becomes a volume of: where it lies already, or the first that can take it. Raises why there
        is none."""
        if not self.able:
            # What one pool knows and refuses is said alone: that the others do not know it is no news.
            known = [each for each in self.problems if not isinstance(each, NotFound)]
            raise_problems(_once(known or self.problems))
        return min(self.able, key=lambda each: each[1].moved)


def choose_all(
    coordinator: Coordinator, wanted: Sequence[Existing], pools: Sequence[PoolConfig]
) -> dict[str, Candidate]:
    """What these pools say of all of it, by its places: each pool is asked once, if nothing speaks against any."""
    found = {existing.place: Candidate() for existing in wanted}
    for config in pools if wanted else ():
        pool = coordinator.connections.to(config.host).pool(f"pool:{config.name}")
        said: list[Adoptable] = []
        with suppress(UsageError, Conflict, NotFound, Unsafe, Unsupported, Problems):
            said = pool.adoptable(list(wanted)) if len(wanted) > 1 else []
        for number, existing in enumerate(wanted):
            if said:
                found[existing.place].able.append((config, said[number]))
            else:
                _ask_alone(found[existing.place], config, pool, existing)
    return found


def choose(coordinator: Coordinator, existing: Existing, pools: Sequence[PoolConfig]) -> tuple[PoolConfig, Adoptable]:
    """The pool that something becomes a volume of. Raises why there is none."""
    return choose_all(coordinator, [existing], pools)[existing.place].chosen()


def _ask_alone(candidate: Candidate, config: PoolConfig, pool: PoolVerbs, existing: Existing) -> None:
    try:
        (seen,) = pool.adoptable([existing])
        candidate.able.append((config, seen))
    except HostUnreachable:
        raise
    except StorkitError as error:
        candidate.problems += error.each


def own_name(name: str, seen: Adoptable) -> str:
    """The name of a volume: what is wanted, or what it is called already."""
    try:
        return check_name("volume", name or seen.name)
    except UsageError as error:
        raise UsageError(error.message, f"name the volume: storkit volume adopt {seen.place} NAME") from None


def _once(problems: list[StorkitError]) -> list[StorkitError]:
    return list({each.message: each for each in problems}.values())
