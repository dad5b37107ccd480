"""What all need that make volumes: names that are free, new records, and what came of it."""

from __future__ import annotations

from datetime import UTC, datetime
from uuid import uuid4

from storkit.core import codec
from storkit.core.errors import Conflict, Unsupported, raise_problems
from storkit.core.inventory import PoolConfig
from storkit.core.model import Export, Volume, VolumeKind, guest_of
from storkit.core.units import parse_size
from storkit.plans.intent.coordinator import Coordinator, Ran

Bytes = int | str
"""A size: bytes, or as people write it (`8GiB`)."""


def in_bytes(size: Bytes) -> int:
    """Raises UsageError."""
    return parse_size(size) if isinstance(size, str) else size


def pool_of(coordinator: Coordinator, name: str) -> PoolConfig:
    """The pool that is named, or the inventory's default. Raises NotFound."""
    return coordinator.survey.acting(coordinator.inventory.pool(name or coordinator.inventory.defaults.pool))


def new_volume(
    pool: PoolConfig, name: str, size: int, *, origin: str = "", kind: VolumeKind = "disk", format: str = ""
) -> Volume:
    """A volume that is yet to be made, with a UUID of its own. `format`: what its pool may make it, if it likes."""
    now = datetime.now(UTC).isoformat(timespec="seconds")
    record = {"name": name, "uuid": str(uuid4()), "size": size, "pool": pool.name, "host": pool.host,
              "origin": origin, "kind": kind, "format": format, "created": now}  # fmt: skip
    return codec.load(Volume, record)


def refuse_several(coordinator: Coordinator, pool: str, what: str) -> None:
    """Raise Unsupported for what is not made for pools with several managers. `what`: it, as `fleets are not made`."""
    if coordinator.inventory.pool(pool).managers:
        message = f"pool {pool} has several managers, and {what} in it"
        raise Unsupported(message, "take an image of a pool with one host: storkit volume move, or import it there")


def clone_format(coordinator: Coordinator, pool: PoolConfig) -> str:
    """The format that a clone may get whose pool can share no blocks: an overlay's, if what serves it takes that."""
    from storkit.core import registry

    transport = registry.transport(coordinator.inventory.transport(pool.name).partition(":")[2])
    return "qcow2" if registry.pool(pool.type).overlays and "qcow2" in transport.formats else ""


def clone_kind(source: Volume) -> VolumeKind:
    """What a clone of a volume is: trees are cloned to trees, everything else to disks."""
    return "tree" if source.kind == "tree" else "disk"


def must_be_free(coordinator: Coordinator, names: list[str], pool: PoolConfig | None = None) -> None:
    """A name stands for one disk on every host: it must be free in every pool that answers; the others are named at
    the end. `pool` is where they are to be made. A damaged volume keeps its name."""
    survey = coordinator.survey
    taken = survey.volumes(names)
    if pool and pool.name in survey.failed:
        raise survey.failed[pool.name]
    survey.refuse_damaged(names)
    raise_problems(
        [
            Conflict(f"volume {volume.name} exists already in pool {volume.pool}", f"storkit volume show {volume.name}")
            for volume in taken
        ]
    )


def made(coordinator: Coordinator, ran: Ran) -> list[Volume]:
    """The volumes that the last step of a plan has made."""
    volumes = codec.load(list[Volume], ran.results[ran.plan.steps[-1].id], strict=False)
    coordinator.survey.hints.put(volumes)
    return volumes


def hosts_of(exports: list[Export]) -> list[str]:
    """The hosts among the clients: no other host need be asked about a volume, since no server lets it in."""
    return list(dict.fromkeys(export.client for export in exports if not guest_of(export.client)))
