"""Guests kept with their volumes: a new generation of one, as a plan, so that a kill leaves it whole and undoable."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, replace
from datetime import UTC, datetime

from storkit.core.errors import StorkitError, Unsafe, Unsupported, UsageError, collected, quoted, raise_problems
from storkit.core.guest import Disk, Guest, KeptGuest, Root, digest_of
from storkit.core.model import Volume
from storkit.guests import files
from storkit.guests.files import Texts
from storkit.hosts import rights
from storkit.plans import planner
from storkit.plans.intent import views
from storkit.plans.intent.coordinator import Coordinator
from storkit.plans.intent.kept import sources
from storkit.plans.plan import Plan, Stages, Step
from storkit.plans.verb import step
from storkit.plans.verbs.guests import ForgetGuests, KeepGuests

_AT_ONCE = 8 << 20
"""Characters of texts in one step: a line between hosts has an end."""


@dataclass(frozen=True, slots=True)
class NewGeneration:
    """A generation that is to be kept with a volume."""

    volume: Volume
    guest: KeptGuest


def keep(
    coordinator: Coordinator, guests: Sequence[tuple[Guest, Texts]], check: Callable[[], None] = lambda: None
) -> list[int]:
    """Keep what guests' files say, or are to say, with their first volumes, in one plan; their generations. 0: one has
    no volume of its own, or its pool keeps no guests: then its files are all there is. `check` refuses by what is true
    under the locks.

    Raises Conflict: what is kept is not what was made from.
    """
    kept: list[int] = []

    def build() -> Plan:
        check()
        homes = [sources.home(guest) for guest, _ in guests]
        wanted: list[NewGeneration] = []
        kept[:] = [0] * len(guests)
        volumes = _volumes(coordinator, [first for first in homes if first])
        there = _there(coordinator, volumes.values())
        problems: list[StorkitError] = []
        for number, ((guest, said), first) in enumerate(zip(guests, homes, strict=True)):
            if first is None or (volume := volumes[first.volume]).pool not in there:
                continue
            with collected(problems):
                new, kept[number] = _new(coordinator, guest, said, volume, there[volume.pool].get(volume.uuid))
                wanted += new
        raise_problems(problems)
        names = [guest.name for guest, _ in guests]
        title = f"keep guest {names[0]}" if len(names) == 1 else f"keep guests {names[0]} ... {names[-1]}"
        return _plan(coordinator, wanted, title)

    coordinator.change(build)
    return kept


def _new(
    coordinator: Coordinator, guest: Guest, said: Texts, volume: Volume, there: KeptGuest | None
) -> tuple[list[NewGeneration], int]:
    """What is to be kept of a guest, and its generation. `there`: what is kept with its first volume now."""
    wanted = _moved_away(coordinator, guest, volume)
    newest = there.generation if there else 0
    if there and not there.gone and (there.guest, there.digest) == (guest.uuid, _digest(said)):
        return wanted, newest
    if there and not (there.gone and (wanted or there.guest != guest.uuid)):
        sources.refuse_change(there, guest, said.generation)
    new = KeptGuest(volume.name, volume.uuid, guest.name, guest.uuid, newest + 1, guest.hypervisor, said.record,
                    said.document)  # fmt: skip
    return [*wanted, NewGeneration(volume, new)], newest + 1


def forget(coordinator: Coordinator, guest: Guest) -> None:
    """Keep with a guest's first volume that it was deleted. A volume that is gone, or cannot be asked for, has no say;
    of the latter it is warned."""
    first = sources.home(guest)

    def build() -> Plan:
        volumes = coordinator.survey.present([first.volume], views.uuids([first])) if first else []
        wanted = [gone for volume in volumes if (gone := _gone(coordinator, guest, volume))]
        return _plan(coordinator, wanted, f"forget guest {guest.name}")

    coordinator.change(build)
    if first and coordinator.survey.silent:
        silent = ", ".join(sorted(coordinator.survey.silent))
        coordinator.warn(
            f"what host {silent} keeps of guest {guest.name}, if it does, is there until it is deleted again"
        )


def first(guest: Guest, volume: Volume) -> NewGeneration:
    """The first generation of a guest, with a volume that nothing is kept with."""
    kept = KeptGuest(volume.name, volume.uuid, guest.name, guest.uuid, 1, guest.hypervisor, files.dumps(guest),
                     guest.document)  # fmt: skip
    return NewGeneration(volume, kept)


def forgetting(coordinator: Coordinator, guest: Guest, volume: Volume) -> list[Step]:
    """The step that ends what is kept of a guest with a volume that is to be given back; none: nothing is."""
    gone = _gone(coordinator, guest, volume)
    if gone is None:
        return []
    pool = coordinator.inventory.pool(volume.pool)
    newest = replace(gone.guest, generation=gone.guest.generation - 1, gone=False)
    were = sources.whole(coordinator, pool, newest)
    kept = _signed(gone.guest)
    return [step(ForgetGuests([kept], [were]), volume.host, f"pool:{volume.pool}", _title([kept], volume))]


def steps(wanted: Sequence[NewGeneration]) -> list[Step]:
    """The steps that keep these generations."""
    groups: list[tuple[Volume, list[KeptGuest]]] = []
    size = 0
    for each in sorted(wanted, key=lambda each: each.volume.pool):
        texts = each.guest.record, each.guest.document
        size += len(texts[0]) + len(texts[1])
        if not groups or size > _AT_ONCE or groups[-1][0].pool != each.volume.pool:
            groups.append((each.volume, []))
            size = len(texts[0]) + len(texts[1])
        groups[-1][1].append(_signed(each.guest))
    return [step(KeepGuests(kept), volume.host, f"pool:{volume.pool}", _title(kept, volume)) for volume, kept in groups]


def _signed(kept: KeptGuest) -> KeptGuest:
    since = datetime.now(UTC).strftime("%Y-%m-%dT%H:%M:%SZ")
    return replace(kept, by=rights.asker(), since=since, digest=digest_of(kept.record, kept.document))


def _plan(coordinator: Coordinator, wanted: Sequence[NewGeneration], title: str) -> Plan:
    stages = Stages()
    stages.then(*steps(wanted))
    holds = planner.locks_of([each.volume for each in wanted])
    return planner.finish_plan(title, stages, holds, coordinator.inventory)


def _title(guests: list[KeptGuest], volume: Volume) -> str:
    if len(guests) > 1:
        return f"keep guests {guests[0].name} ... {guests[-1].name} in pool {volume.pool}"
    what = "forget" if guests[0].gone else "keep"
    return f"{what} guest {guests[0].name} with volume {guests[0].volume} (generation {guests[0].generation})"


def _volumes(coordinator: Coordinator, disks: Sequence[Disk | Root]) -> dict[str, Volume]:
    names = [disk.volume for disk in disks]
    return dict(zip(names, coordinator.survey.find_all(names, views.uuids(disks)), strict=True))


def _there(coordinator: Coordinator, volumes: Iterable[Volume]) -> dict[str, dict[str, KeptGuest]]:
    """The newest of what is kept with volumes, by pool and UUID, of the pools that keep guests; told of others. Raises
    Unsafe: what is kept there is damaged."""
    found: dict[str, dict[str, KeptGuest]] = {}
    for pool, group in planner.by_pool(list(volumes)):
        host = group[0].host
        try:
            there = coordinator.connections.to(host).pool(f"pool:{pool}").kept([volume.uuid for volume in group])
        except (UsageError, Unsupported) as error:  # an agent of the version before does not know the verb
            coordinator.warn(f"pool {pool} of host {host} keeps no guests: {error.message}")
            continue
        speaker = coordinator.survey.speaker(host)
        raise_problems([Unsafe(quoted(each.message, speaker), each.hint) for each in there.damaged])
        found.setdefault(pool, {}).update({kept.uuid: kept for kept in there.guests})
    return found


def _moved_away(coordinator: Coordinator, guest: Guest, volume: Volume) -> list[NewGeneration]:
    """What ends of a guest where it was kept before, with another volume than now."""
    try:
        before = sources.home(files.load(coordinator.guests, guest.name))
    except StorkitError:
        return []
    if before is None or not before.uuid or before.uuid == volume.uuid:
        return []
    there = coordinator.survey.present([before.volume], {before.volume: before.uuid})
    return [gone for each in there if each.uuid == before.uuid and (gone := _gone(coordinator, guest, each))]


def _gone(coordinator: Coordinator, guest: Guest, volume: Volume) -> NewGeneration | None:
    """That a guest is not kept with a volume any more; None: it is not."""
    there = sources.with_volume(coordinator, volume)
    if there is None or there.gone or there.guest != guest.uuid:
        return None
    gone = replace(there, name=guest.name, volume=volume.name, generation=there.generation + 1, gone=True)
    return NewGeneration(volume, gone)


def _digest(said: Texts) -> str:
    return digest_of(said.record, said.document)
