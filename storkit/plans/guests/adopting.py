"""Plans that make guests storkit's, with their disks in place, and give them back. Pure functions, as planner's."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from storkit.core import registry
from storkit.core.guest import Guest
from storkit.core.inventory import Inventory
from storkit.core.model import Existing, Volume
from storkit.plans.migration import GuestView, guest_holds, leave, others
from storkit.plans.plan import Plan, Stages, Step
from storkit.plans.planner import add_attach, add_detach, by_pool, finish_plan, locks_of, names_of
from storkit.plans.verb import step
from storkit.plans.verbs.guests import GiveGuestBack, TakeGuests, Taking
from storkit.plans.verbs.volumes import AdoptVolumes, DisownVolumes


@dataclass(frozen=True, slots=True)
class AdoptedDisk:
    """A disk of a guest, and the volume that it becomes."""

    volume: Volume
    existing: Existing
    readonly: bool


@dataclass(frozen=True, slots=True)
class AdoptedGuest:
    """A guest that is to be adopted; its record names its disks in the same order."""

    guest: Guest
    disks: list[AdoptedDisk]
    runs: bool = False
    alone: bool = False
    """Its own process has disks open that nobody else may open as long as it lives."""

    @property
    def volumes(self) -> list[Volume]:
        return [disk.volume for disk in self.disks]

    @property
    def first(self) -> AdoptedDisk:
        """The one that the guest is kept with."""
        return next(disk for disk in self.disks if not disk.readonly)


def adopt(adopted: Sequence[AdoptedGuest], host: str, keep: Sequence[Step], inventory: Inventory) -> Plan:
    """Make volumes of guests' disks, keep the guests with them (`keep`), give them to the host where the guests are,
    and let its hypervisor have them there."""
    stages = Stages()
    disks = {disk.volume.uuid: disk for each in adopted for disk in each.disks}
    volumes = [disk.volume for disk in disks.values()]
    stages.then(
        *(step(AdoptVolumes(group, [disks[volume.uuid].existing for volume in group]), group[0].host, f"pool:{pool}",
               f"adopt {names_of(group)}")
          for pool, group in by_pool(volumes))
    )  # fmt: skip
    stages.then(*keep)
    taken = [each for each in adopted if each.runs or registry.hypervisor(each.guest.hypervisor).keeps]
    if there := [volume for each in taken if not each.alone for volume in each.volumes]:
        written = [volume for volume in there if not disks[volume.uuid].readonly]
        add_attach(stages, there, host, {host} if written else None, inventory, written=written)
    for kind in dict.fromkeys(each.guest.hypervisor for each in taken):
        mine = [each for each in taken if each.guest.hypervisor == kind]
        title = f"take {_named(mine)} on {host}"
        verb = TakeGuests([_taking(each, inventory) for each in mine])
        stages.then(step(verb, host, f"hypervisor:{kind}", title))
    return finish_plan(f"adopt {_named(adopted)} on {host}", stages, locks_of(volumes), inventory)


def release(subject: GuestView, keeps: bool, forget: Sequence[Step], inventory: Inventory) -> Plan:
    """Give a guest that runs nowhere, and its disks, back to the host where they are. `keeps`: its hypervisor has it
    there afterwards. `forget`: what ends what is kept of it."""
    stages, home = Stages(), subject.volumes[0].host
    # First, and so undone last: to take the guest again its disks have to be there.
    if keeps:
        transports = [inventory.transport(volume.pool) for volume in subject.volumes]
        verb = GiveGuestBack(subject.guest, subject.volumes, transports)
        stages.then(step(verb, home, subject.target, f"give {subject.name} back to {home}"))
    leave(stages, subject, [host for host in others(subject) if host != home or not keeps])
    add_detach(stages, subject.volumes, [home] if keeps else [], inventory)
    stages.then(*forget)
    stages.then(
        *(step(DisownVolumes(group), group[0].host, f"pool:{pool}", f"release {names_of(group)}")
          for pool, group in by_pool(subject.volumes))
    )  # fmt: skip
    return finish_plan(f"release guest {subject.name}", stages, guest_holds(subject), inventory)


def _taking(adopted: AdoptedGuest, inventory: Inventory) -> Taking:
    volumes = [] if adopted.alone else adopted.volumes
    return Taking(adopted.guest, volumes, [inventory.transport(volume.pool) for volume in volumes])


def _named(adopted: Sequence[AdoptedGuest]) -> str:
    names = [each.guest.name for each in adopted]
    return ", ".join(names) if len(names) < 4 else f"{len(names)} guests"
