"""Which guests have a volume as their disk: asked of their files, before one disk gets two guests or none."""

from __future__ import annotations

from collections.abc import Collection, Iterable

from storkit.core.errors import Conflict, StorkitError, collected, raise_problems
from storkit.core.guest import Disk, Guest
from storkit.core.model import Volume
from storkit.guests import files
from storkit.plans.intent.coordinator import Coordinator
from storkit.plans.intent.kept import sources


def readable(coordinator: Coordinator, pools: Iterable[str], problems: list[StorkitError]) -> list[Guest]:
    """The guests whose files can be read, and those without files that these pools keep; what is wrong with the others
    is added to `problems`."""
    guests = []
    for name in files.names(coordinator.guests):
        try:
            guests.append(files.load(coordinator.guests, name))
        except StorkitError as error:
            problems += error.each
    asked = [coordinator.inventory.pools[name] for name in dict.fromkeys(pools) if name in coordinator.inventory.pools]
    for pool, kept in sources.only_kept(coordinator, asked) if asked else ():
        with collected(problems):
            guests.append(sources.read(coordinator, pool, kept))
    return guests


def having(coordinator: Coordinator, volumes: list[Volume], problems: list[StorkitError]) -> dict[str, list[str]]:
    """The guests that have each volume as a disk, by its UUID; files that may name one, and cannot be read, are added
    to `problems`."""
    guests = readable(coordinator, [volume.pool for volume in volumes], problems)
    found = {}
    for volume in volumes:
        as_disk = Disk(volume.name, uuid=volume.uuid)
        found[volume.uuid] = [guest.name for guest in guests if any(_same(as_disk, disk) for disk in _disks(guest))]
    return found


def whose_variables(coordinator: Coordinator, volume: Volume) -> str:
    """The guest whose UEFI variables a volume is, as far as files can be read; empty: it is a disk."""
    for guest in readable(coordinator, [volume.pool], []):
        for disk in guest.disks:
            flash = disk.bus == "flash" or (guest.document and disk.target == "nvram")
            if disk.uuid == volume.uuid and flash:
                return guest.name
    return ""


def refuse_to_lose(coordinator: Coordinator, volumes: list[Volume], verb: str, but: Collection[str] = ()) -> None:
    """Raise what speaks against volumes being no more (`verb`: delete, release): the guests that have them, and files
    that may name them. `but`: guests that go with them."""
    problems: list[StorkitError] = []
    found = having(coordinator, volumes, problems)
    for volume in volumes:
        if owners := [name for name in found[volume.uuid] if name not in but]:
            hint = f"storkit guest delete {owners[0]}; or, to let it lose its disk: storkit volume {verb} --force"
            named = f"guest {owners[0]}" if len(owners) == 1 else f"guests {', '.join(owners)}"
            problems.append(Conflict(f"volume {volume.name} is a disk of {named}", f"{hint} {volume.name}"))
    raise_problems(problems)


def refuse_to_share(coordinator: Coordinator, *guests: Guest) -> None:
    """Raise Conflict for every disk that one of `guests` and a guest that is there would both write.

    The right to write is a host's: two guests on one host would both have it. One that only reads is warned of what
    the other one writes. Files that cannot be read are named, and do not stand in the way.
    """
    damaged: list[StorkitError] = []
    problems: list[StorkitError] = []
    firsts = [first for guest in guests if (first := sources.home(guest))]
    known = {first.volume: first.uuid for first in firsts if first.uuid}
    pools = [volume.pool for volume in coordinator.survey.present([first.volume for first in firsts], known)]
    others = readable(coordinator, pools, damaged)
    pairs = ((guest, other) for other in others for guest in guests if other.name != guest.name)
    for guest, other in pairs:
        for disk in _disks(guest):
            for theirs in _disks(other):
                if not _same(disk, theirs) or (disk.readonly and theirs.readonly):
                    continue
                if not disk.readonly and not theirs.readonly:
                    hint = (
                        f"storkit volume clone {disk.volume} NEW for one of them, or storkit guest delete {other.name}"
                    )
                    message = f"volume {disk.volume} is a disk of guest {other.name}, which writes it"
                    problems.append(Conflict(message, hint))
                    continue
                reads, writes = (guest, other) if disk.readonly else (other, guest)
                coordinator.warn(f"guest {reads.name} reads volume {disk.volume} while guest {writes.name} writes it")
    for error in damaged:
        coordinator.warn(error.message)
    raise_problems(problems)


def _disks(guest: Guest) -> list[Disk]:
    """The disks, and a root as one that is written."""
    root = [Disk(guest.root.volume, uuid=guest.root.uuid)] if guest.root else []
    return [*root, *guest.disks]


def _same(one: Disk, other: Disk) -> bool:
    """A name stands for another volume once the first one is gone; files written by hand have no UUID."""
    return one.uuid == other.uuid if one.uuid and other.uuid else one.volume == other.volume
