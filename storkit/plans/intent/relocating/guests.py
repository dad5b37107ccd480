"""Guests that go to another host with their disks, where no storage is shared: what each writes is moved to a pool of
that host. The guest does not run meanwhile."""

from __future__ import annotations

from dataclasses import dataclass, field

from storkit.core.errors import Conflict, NotFound, StorkitError, Unsupported, collected, raise_problems
from storkit.core.inventory import PoolConfig
from storkit.plans.intent import views
from storkit.plans.intent.coordinator import Coordinator
from storkit.plans.intent.making import Bytes
from storkit.plans.intent.relocating import volumes as relocating
from storkit.plans.intent.relocating.volumes import Moved
from storkit.plans.intent.running import starting


@dataclass(frozen=True, slots=True)
class GuestMoved:
    """A guest whose disks are on another host. `started`: whether it was started there."""

    guest: str
    host: str
    volumes: list[Moved] = field(default_factory=list)
    started: bool = False


def move(
    coordinator: Coordinator, name: str, to: str, pool: str, stop: bool, start: bool, rate: Bytes | None
) -> GuestMoved:
    """Move a guest with its disks (GuestActs.move). Each disk is a plan of its own: the same command goes on."""
    relocating.bytes_a_second(rate)
    host = coordinator.host(to)
    where = _pool(coordinator, host, pool)
    view = views.wherever(coordinator, name)
    view.known()
    if view.places and all(volume.pool == where.name for volume in view.written):
        runs = " and ".join(view.places)
        message = f"the disks of guest {name} are in pool {where.name} already, and it is on {runs}"
        raise Conflict(message, f"storkit migrate run {name} --to {to}")
    problems: list[StorkitError] = []
    if view.guest.root:
        message = f"the root of guest {name} is a tree, which is not moved"
        problems.append(Unsupported(message, f"storkit volume import --tree, into pool {where.name}"))
    if view.places and not stop:
        runs = " and ".join(f"{status} on {each}" for each, status in view.places.items())
        message = f"guest {name} is {runs}, and its disks are not moved under it"
        problems.append(Conflict(message, f"storkit guest move {name} --to {to} --stop; it is started there"))
    for volume in view.written:
        with collected(problems):
            relocating.refuse(coordinator, volume, where)
    raise_problems(problems)
    hypervisor = coordinator.connections.to(host).hypervisor(view.target)
    unfit = coordinator.once((host, "check", view.guest), lambda: hypervisor.check(view.guest))
    raise_problems([Conflict(f"{host}: {each}", f"storkit host check {host}") for each in unfit])
    if view.places:
        starting.stop(coordinator, [name], "", False, 60.0)
    try:
        names = [f"{volume.pool}/{volume.name}" for volume in view.written]
        moved = [relocating.move(coordinator, each, where.name, False, rate) for each in names]
    except StorkitError:
        if view.places:
            coordinator.warn(f"guest {name} was shut down: the same command goes on; or storkit guest start {name}")
        raise
    started = stop or start
    if started:
        starting.start(coordinator, {name: host})
    return GuestMoved(name, host, moved, started)


def _pool(coordinator: Coordinator, host: str, name: str) -> PoolConfig:
    """The pool of a host that is named, or its only one. Raises Conflict, NotFound."""
    there = [pool for pool in coordinator.inventory.pools.values() if host in pool.hosts]
    if name:
        pool = coordinator.inventory.pool(name)
        if host not in pool.hosts:
            raise Conflict(f"pool {name} is on host {pool.host}, not on {host}", f"--to {pool.host}")
        return pool
    if not there:
        raise NotFound(f"host {host} has no pool that disks could go to", "storkit pool list")
    if len(there) > 1:
        names = ", ".join(pool.name for pool in there)
        raise Conflict(f"host {host} has several pools: {names}", f"--pool {there[0].name}")
    return there[0]
