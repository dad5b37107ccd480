"""Where a guest's record and document come from: its files in guests/, or what a pool keeps of it beside its volume.

The files are a checkout, and what this coordinator works with. Where there are none, as for a second administrator, or
on the machine that follows one that was lost, the guest is as its pool keeps it. That is what another host says: it is
checked as an import is, and on a host of another machine it opens nothing but its volumes until somebody has looked.
"""

from __future__ import annotations

from collections.abc import Collection, Iterable
from dataclasses import replace

from storkit.core import registry
from storkit.core.backend import Hypervisor
from storkit.core.errors import (
    Conflict,
    StorkitError,
    Unsafe,
    Unsupported,
    collected,
    in_a_line,
    quoted,
)
from storkit.core.guest import Disk, Guest, KeptGuest, Root, digest_of
from storkit.core.inventory import PoolConfig
from storkit.core.model import Volume
from storkit.guests import files
from storkit.guests.documents import foreign
from storkit.plans.intent.coordinator import Coordinator


def home(guest: Guest) -> Disk | Root | None:
    """The volume that a guest is kept with: the first one that it writes, which no other guest can have. None: it
    writes none, and is kept in guests/ alone."""
    return next((disk for disk in guest.disks if not disk.readonly), guest.root)


def load(coordinator: Coordinator, name: str) -> Guest:
    """A guest, from its files or from what is kept. Raises NotFound; UsageError, Problems: what it says is wrong."""
    if files.path(coordinator.guests, name).exists() or (found := find(coordinator, name)) is None:
        return files.load(coordinator.guests, name)
    return read(coordinator, *found)


def find(coordinator: Coordinator, name: str) -> tuple[PoolConfig, KeptGuest] | None:
    """What is kept of the guest of a name, without its texts; None: nothing.

    Raises Conflict: two guests of that name are kept; HostUnreachable: nothing was found, and not everybody answers.
    """
    survey = coordinator.survey
    known = coordinator.kept_in.get(name)
    if known and (there := _named(name, survey.kept([known[0]], [known[1]]))):
        return there[0]
    there = _named(name, survey.kept())
    if len({(kept.guest, kept.uuid) for _, kept in there}) > 1:
        places = " and ".join(f"volume {kept.volume} of pool {pool.name}" for pool, kept in there)
        message = f"guests named {name} are kept with {places}"
        raise Conflict(message, "delete one of them where its files are: storkit guest delete")
    if there:
        coordinator.kept_in[name] = (there[0][0], there[0][1].uuid)
        return there[0]
    for pool in coordinator.inventory.pools.values():
        if error := survey.silence(pool):
            raise type(error)(f"no guest {name} was found, and {error.message}", error.advice)
        if reason := survey.failed.get(pool.name):
            message = f"no guest {name} was found, and pool {pool.name} cannot be looked at: {in_a_line(reason)}"
            raise Conflict(message, reason.each[0].advice)
    return None


def _named(name: str, there: list[tuple[PoolConfig, KeptGuest]]) -> list[tuple[PoolConfig, KeptGuest]]:
    return [(pool, kept) for pool, kept in there if kept.name == name and not kept.gone]


def with_volume(coordinator: Coordinator, volume: Volume) -> KeptGuest | None:
    """The newest of what is kept with a volume, without its texts; None: nothing."""
    pool = coordinator.inventory.pool(volume.pool)
    return next((kept for _, kept in coordinator.survey.kept([pool], [volume.uuid])), None)


def read(coordinator: Coordinator, pool: PoolConfig, kept: KeptGuest, generation: int = 0) -> Guest:
    """A guest as a pool keeps it: the newest generation, or another."""
    return parse(coordinator, pool, whole(coordinator, pool, kept, generation))


def whole(coordinator: Coordinator, pool: PoolConfig, kept: KeptGuest, generation: int = 0) -> KeptGuest:
    """What is kept, with its texts. Raises Conflict: there is no such generation any more."""
    texts = coordinator.connections.to(pool.host).pool(f"pool:{pool.name}").texts([kept.uuid], generation)
    if not texts:
        message = f"generation {generation or kept.generation} of guest {kept.name} is not kept"
        raise Conflict(message, f"storkit guest show {kept.name}")
    return texts[0]


def parse(coordinator: Coordinator, pool: PoolConfig, kept: KeptGuest) -> Guest:
    """The guest that these texts describe. Raises UsageError, Problems, Unsafe: they are none of that name, or another
    guest than they are said to be."""
    where, speaker = f"guest {kept.name} in pool {pool.name}", coordinator.survey.speaker(pool.host)
    try:
        guest = files.parse(kept.record, where, kept.name, own=kept.document)
    except StorkitError as error:
        for each in error.each:
            each.message, each.said_by = quoted(each.message, speaker), speaker
            each.args = (each.message,)
        raise
    if guest.hypervisor not in registry.names(Hypervisor):  # type: ignore[type-abstract]
        raise Unsupported(f"{where} is for {guest.hypervisor}, which storkit does not know", "storkit guest list")
    first = home(guest)
    said = (guest.uuid, guest.document, first.uuid if first else "", digest_of(kept.record, kept.document))
    if said != (kept.guest, kept.document, kept.uuid, kept.digest):
        message = f"{where} is not what host {pool.host} says that it is"
        raise Unsafe(message, f"storkit guest checkout {kept.name} --generation {max(1, kept.generation - 1)}")
    return guest


def only_kept(
    coordinator: Coordinator, pools: Iterable[PoolConfig] | None = None, needed: Collection[str] | None = None
) -> list[tuple[PoolConfig, KeptGuest]]:
    """The guests that these pools (None: all) keep, and that have no files in guests/. `needed`: the hosts that are to
    be waited for (None: all)."""
    here = set(files.names(coordinator.guests))
    found = [
        (pool, kept)
        for pool, kept in coordinator.survey.kept(pools, needed=needed)
        if not kept.gone and kept.name not in here
    ]
    for pool, kept in found:
        coordinator.kept_in[kept.name] = (pool, kept.uuid)
    return sorted({kept.uuid: (pool, kept) for pool, kept in found}.values(), key=lambda each: each[1].name)


def everybody(
    coordinator: Coordinator, problems: list[StorkitError], needed: Collection[str] | None = None
) -> list[Guest]:
    """All guests, those that only a pool keeps as well; what is wrong with others is added to `problems`. Who is kept
    by another host has volumes of that host alone here: it has no say about those of others."""
    guests: list[Guest] = []
    for name in files.names(coordinator.guests):
        with collected(problems):
            guests.append(files.load(coordinator.guests, name))
    for pool, kept in only_kept(coordinator, needed=needed):
        with collected(problems):
            guest = read(coordinator, pool, kept)
            wanted = [disk for disk in [*guest.disks, guest.root] if disk]
            found = coordinator.survey.present([disk.volume for disk in wanted], {d.volume: d.uuid for d in wanted})
            own = {volume.uuid for volume in found if _is_keepers(coordinator, pool, volume)}
            root = guest.root if guest.root and guest.root.uuid in own else None
            guests.append(replace(guest, disks=[disk for disk in guest.disks if disk.uuid in own], root=root))
    return guests


def refuse_old(coordinator: Coordinator, guest: Guest, volumes: list[Volume]) -> None:
    """Before a guest is put on a host. Raises Conflict: somebody has changed or deleted it since its files here were
    made. Warns of a change here that is not kept."""
    first = home(guest)
    volume = next((each for each in volumes if first and each.uuid == first.uuid), None)
    if volume is None or not files.path(coordinator.guests, guest.name).exists():
        return
    kept = with_volume(coordinator, volume)
    if kept is None or (kept.guest != guest.uuid and kept.gone):
        return
    mine = files.texts(coordinator.guests, guest.name)
    if digest_of(mine.record, mine.document) == kept.digest and not kept.gone:
        return
    refuse_change(kept, guest, mine.generation)
    coordinator.warn(f"guest {guest.name} is taken as its files have it, which is not kept yet: "
                     f"storkit guest diff {guest.name}; storkit guest commit {guest.name}")  # fmt: skip


def refuse_change(kept: KeptGuest, guest: Guest, generation: int) -> None:
    """Raise Conflict if what is kept is not the generation that files were made from, or is another guest's."""
    if kept.guest != guest.uuid and not kept.gone:
        message = f"volume {kept.volume} is the first disk of guest {kept.name} ({kept.guest}), which is kept with it"
        raise Conflict(message, f"storkit guest show {kept.name}; or storkit guest delete {kept.name}")
    if kept.generation != generation:
        what = "deleted" if kept.gone else "changed"
        since = f"by {kept.by or 'somebody'} ({kept.since}, generation {kept.generation})"
        raise Conflict(
            f"guest {guest.name} was {what} {since}, and its files here are of generation {generation or 'none'}",
            f"storkit guest diff {guest.name}; then storkit guest checkout {guest.name}; or put both into the files, "
            f"and write there: generation = {kept.generation}",
        )


def _is_keepers(coordinator: Coordinator, pool: PoolConfig, volume: Volume) -> bool:
    """Whether a volume is one of the host that speaks for a pool, which has a say about it: it is on that machine, or
    in that pool, whichever of its managers serves it."""
    shared = bool(pool.managers) and volume.pool == pool.name
    return shared or coordinator.connections.same_machine(volume.host, pool.host)


def refuse_unseen(coordinator: Coordinator, guest: Guest, volumes: Iterable[Volume], host: str) -> None:
    """Raise Unsafe if a guest that only a pool keeps would have more than volumes of the pool's host, and open more on
    another machine: whoever has the pool's host would have those as well."""
    if files.path(coordinator.guests, guest.name).exists() or (found := find(coordinator, guest.name)) is None:
        return
    keeper = found[0].host
    same = coordinator.connections.same_machine
    strange = [volume for volume in volumes if not _is_keepers(coordinator, found[0], volume)]
    opened = [f"volume {volume.name} of host {volume.host}" for volume in strange]
    opened += [] if same(keeper, host) else foreign.opened(guest)
    if opened:
        more = f" and {len(opened) - 3} more" if len(opened) > 3 else ""
        raise Unsafe(
            f"guest {guest.name}, as host {keeper} keeps it, is to have on {host}: {'; '.join(opened[:3])}{more}",
            f"look at it: storkit guest checkout {guest.name}; and then, if it is as it should be, try again",
        )


def names(coordinator: Coordinator) -> list[str]:
    """All guests, those that only a pool keeps as well, in the order of their names; hosts that do not answer are not
    waited for long."""
    kept = [kept.name for _, kept in only_kept(coordinator, needed=())]
    return sorted({*files.names(coordinator.guests), *kept})
