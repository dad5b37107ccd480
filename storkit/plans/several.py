"""What several managers of one pool say of it, as one."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field, replace

from storkit.core.errors import StorkitError, Unsafe
from storkit.core.inventory import PoolConfig
from storkit.core.model import Damaged, PoolContent, Volume


@dataclass(frozen=True, slots=True)
class Merged:
    """A pool, as its managers see it together."""

    acting: str = ""
    """The first that sees it, and is not barred: who acts for what nobody serves; empty: none."""
    volumes: list[Volume] = field(default_factory=list)
    """Each with the host that acts for it: the manager that serves it, or the one that acts for the pool."""
    damaged: list[Damaged] = field(default_factory=list)
    problem: StorkitError | None = None
    """Why nothing can be done with the pool."""


def merged(pool: PoolConfig, contents: Mapping[str, PoolContent]) -> Merged:
    """What managers see of a pool, by their names: the same UUID is the same volume. Of a volume that was changed
    between two looks, the later term counts."""
    seen = {name: contents[name] for name in pool.managers if name in contents}
    if len({content.directory for content in seen.values()}) > 1:
        who = " and ".join(seen)
        message = f"{who} do not see one directory: {pool.settings.get('path', '')} of pool {pool.name}"
        return Merged(problem=Unsafe(message, "mount the same directory on all managers: findmnt -T it, on each"))
    if seen and not any(content.directory for content in seen.values()) and len(seen) < len(pool.managers):
        # An empty directory may be a mount point without its file system: nobody begins a pool in it alone.
        others = ", ".join(name for name in pool.managers if name not in seen)
        message = f"{' and '.join(seen)} sees nothing made in pool {pool.name} so far, and {others} cannot say"
        where = pool.settings.get("path", "")
        hint = f"is its file system mounted there? findmnt -T {where}; a new pool is begun when all its managers answer"
        return Merged(problem=Unsafe(message, hint))
    barred = {name for content in seen.values() for name in content.barred}
    acting = next((name for name in seen if name not in barred), "")
    if not acting:
        if not seen:
            return Merged()
        message = f"all managers of pool {pool.name} that answer are barred from it: {', '.join(seen)}"
        return Merged(problem=Unsafe(message, f"once it is known to be harmless: storkit unfence {next(iter(seen))}"))
    latest: dict[str, Volume] = {}
    for name, content in seen.items():
        for volume in content.volumes:
            known = latest.get(volume.uuid)
            own = name == (volume.manager or acting)
            if known is None or volume.term > known.term or (volume.term == known.term and own):
                latest[volume.uuid] = volume
    volumes: list[Volume] = []
    damaged = [*seen[acting].damaged]
    for uuid in (volume.uuid for volume in seen[acting].volumes):
        volume = latest[uuid]
        if volume.manager not in ("", *pool.managers):
            message = f"volume {volume.name} is {volume.manager}'s to serve, which is no manager by the inventory"
            hint = f"write {volume.manager} into hosts of [pools.{pool.name}]"
            damaged.append(Damaged(volume.name, pool.name, acting, message, hint))
            continue
        volumes.append(replace(volume, host=volume.manager or acting))
    return Merged(acting, volumes, damaged)
