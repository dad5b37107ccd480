"""What there is of a fleet's members: theirs is what their fleet's record has the UUIDs of, and nothing else, whatever
it is called."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field

from storkit.core.errors import Conflict, StorkitError, Unsupported, UsageError, raise_problems
from storkit.core.guest import Guest, KeptGuest
from storkit.core.model import Volume
from storkit.guests import files
from storkit.guests.fleets.record import Fleet
from storkit.plans.intent.coordinator import Coordinator
from storkit.plans.intent.kept import sources


def volume_names(fleet: Fleet, member: str) -> list[str]:
    """The names of a member's volumes, the one that it writes first."""
    return [member, *([f"{member}-seed"] if fleet.seeded else [])]


def volumes(coordinator: Coordinator, fleet: Fleet, names: Iterable[str]) -> dict[str, Volume]:
    """The volumes of these names in the fleet's pool. Raises what keeps one from being seen: then it is not known
    whether it is there."""
    survey, pool, wanted = coordinator.survey, coordinator.inventory.pool(fleet.pool), list(names)
    found = survey.volumes(wanted, [pool])
    if error := survey.silence(pool) or survey.failed.get(pool.name):
        raise error
    survey.refuse_damaged(wanted)
    return {volume.name: volume for volume in found}


def is_own(fleet: Fleet, member: str, volume: Volume) -> bool:
    """Whether a volume was made for a member."""
    made = fleet.made.get(member)
    return made is not None and volume.uuid in (made.disk, made.seed, made.was)


def guests(coordinator: Coordinator, fleet: Fleet, members: Sequence[str]) -> dict[str, Guest]:
    """The guests of members: those that have files here, and others that their pools keep. Others of the same name are
    left out."""
    here = set(files.names(coordinator.guests))
    kept = {}
    if any(member not in here for member in members):
        kept = {each.name: (pool, each) for pool, each in sources.only_kept(coordinator)}
    found: dict[str, Guest] = {}
    for member in members:
        if member in here:
            guest = files.load(coordinator.guests, member)
        elif member in kept:
            guest = sources.read(coordinator, *kept[member])
        else:
            continue
        if (made := fleet.made.get(member)) and guest.uuid == made.guest:
            found[member] = guest
    return found


def of(coordinator: Coordinator, fleet: Fleet, members: Sequence[str]) -> list[Guest]:
    """The guests of members, which must be there. Raises Conflict with those that are not."""
    found = guests(coordinator, fleet, members)
    hint = f"create it again, as it was: storkit fleet show {fleet.name}"
    missing = [member for member in members if member not in found]
    problems: list[StorkitError] = [
        Conflict(f"{each} is not there, or is no member any more", hint) for each in missing
    ]
    raise_problems(problems)
    return [found[member] for member in members]


@dataclass(frozen=True, slots=True)
class Found:
    """What there is of a fleet."""

    missing: list[str] = field(default_factory=list)
    """Members that are not there, or have lost their disks."""
    unwritten: list[str] = field(default_factory=list)
    """Those that their pool keeps, and that have no file here: a kill came before it, or somebody has removed it."""
    lost: list[str] = field(default_factory=list)
    """Of the missing, those that have a record and no disk."""
    leftovers: list[Volume] = field(default_factory=list)
    """Volumes that were made for the fleet and never came to be used: a kill came before that."""


def look(coordinator: Coordinator, fleet: Fleet) -> Found:
    """What there is of a fleet. Raises Conflict: what has a member's name is somebody else's."""
    wanted = [name for member in fleet.members for name in volume_names(fleet, member)]
    there = volumes(coordinator, fleet, [*wanted, fleet.base_name])
    here, mine = set(files.names(coordinator.guests)), guests(coordinator, fleet, fleet.members)
    known = set(sources.names(coordinator))
    kept = _kept(coordinator, fleet, [there[name] for name in fleet.members if name in there and name not in here])
    gone = {uuid for uuid, was in kept.items() if was.gone}
    found, problems = Found(), list[StorkitError]()
    for member in fleet.members:
        guest = mine.get(member)
        disks = [there[name] for name in volume_names(fleet, member) if name in there]
        if guest is None and member in known:
            message = f"guest {member} is there, and is not this fleet's"
            problems.append(Conflict(message, f"storkit guest show {member}"))
            continue
        strange = [volume for volume in disks if not is_own(fleet, member, volume)]
        if not guest:  # its record was deleted, and its disk was not
            strange += [each for each in disks if each not in strange and each.uuid in gone]
        if strange:
            problems += [_somebodys(volume) for volume in strange]
            continue
        if guest and member not in there:
            found.missing.append(member)
            found.lost.append(member)
        elif guest and not _has(fleet, guest, disks):
            message = f"the disk of {member} is another than its record says"
            problems.append(Conflict(message, f"storkit fleet reset {fleet.name} {member}"))
        elif guest and member not in here:
            found.unwritten.append(member)
        elif not guest:
            found.missing.append(member)
            found.leftovers.extend(disks)
    base = there.get(fleet.base_name) if fleet.base else None
    if base and base.uuid == fleet.base and base.kind != "image":
        found.leftovers.append(base)  # who has laid what in it, nobody knows
    raise_problems(problems)
    return found


def _has(fleet: Fleet, guest: Guest, disks: Sequence[Volume]) -> bool:
    """Whether a guest's record names the volumes of its member that there are. It may have others beside."""
    named = {disk.volume: disk.uuid for disk in guest.disks}
    return len(disks) == len(volume_names(fleet, guest.name)) and all(
        named.get(volume.name) == volume.uuid for volume in disks
    )


def _somebodys(volume: Volume) -> StorkitError:
    message = f"volume {volume.name} is there, and may have what somebody wants to keep"
    return Conflict(message, f"storkit volume delete {volume.name}, if not")


def _kept(coordinator: Coordinator, fleet: Fleet, there: list[Volume]) -> dict[str, KeptGuest]:
    """What the pool keeps with volumes, by their UUIDs, also of guests that were deleted."""
    if not there:
        return {}
    pool = coordinator.connections.to(there[0].host).pool(f"pool:{fleet.pool}")
    try:
        return {kept.uuid: kept for kept in pool.kept([volume.uuid for volume in there]).guests}
    except (UsageError, Unsupported):  # it keeps no guests
        return {}
