"""Volumes that get another size; a larger one under the guests that have them."""

from __future__ import annotations

from dataclasses import dataclass, field

from storkit.core import codec, registry
from storkit.core.backend import Hypervisor
from storkit.core.errors import Conflict, StorkitError, UsageError, in_a_line, raise_problems
from storkit.core.guest import Guest
from storkit.core.model import Export, Volume
from storkit.core.units import format_size, parse_size
from storkit.plans import planner
from storkit.plans.guests import growing
from storkit.plans.intent import views
from storkit.plans.intent.coordinator import Coordinator
from storkit.plans.intent.disks import readable, whose_variables
from storkit.plans.intent.making import Bytes, hosts_of, in_bytes
from storkit.plans.plan import Plan


@dataclass(frozen=True, slots=True)
class Resized:
    """A volume with its new size, and the running guests that have it: whether each sees the new size already.
    Otherwise it does at its next start."""

    volume: Volume
    guests: dict[str, bool] = field(default_factory=dict)


def resize(coordinator: Coordinator, name: str, size: Bytes, cut_off: bool) -> Resized:
    """Give a volume another size (VolumeActs.resize)."""

    def build() -> Plan:
        volume = coordinator.survey.volume(name)
        wanted = _wanted(volume, size)
        if wanted < volume.size and not cut_off:
            raise UsageError(
                f"{volume.name} is {format_size(volume.size)} large; at {format_size(wanted)} its end would be cut off",
                f"shrink the file system in it, then: storkit volume resize {name} {size} --shrink --shrink",
            )
        if owner := whose_variables(coordinator, volume):
            message = (
                f"volume {volume.name} is the UEFI variables of guest {owner}, whose firmware finds them by its size"
            )
            raise Conflict(message, "leave it as it is; storkit guest show " + owner)
        exports = coordinator.survey.exports([volume])
        if wanted < volume.size or not any(export.uuid == volume.uuid for export in exports):
            return planner.resize(volume, wanted, cut_off, exports, coordinator.inventory)
        return _grow(coordinator, volume, wanted, exports)

    ran = coordinator.change(build)
    ((_, done),) = [(step, result) for step, result in ran.done if step.verb == "resize"]
    (volume,) = codec.load(list[Volume], done, strict=False)
    coordinator.survey.hints.put([volume])
    seen = {step.args["name"]: bool(result) for step, result in ran.done if step.verb == "grow_guest"}
    return Resized(volume, seen)


def _wanted(volume: Volume, size: Bytes) -> int:
    if isinstance(size, str) and size.startswith("+"):
        return volume.size + parse_size(size[1:])
    return in_bytes(size)


def _grow(coordinator: Coordinator, volume: Volume, size: int, exports: list[Export]) -> Plan:
    """The plan for a volume that somebody has. Given again, it goes through every step again."""
    hosts = hosts_of([export for export in exports if export.uuid == volume.uuid])
    guests: list[tuple[str, str, str]] = []
    problems: list[StorkitError] = []
    for guest in _guests_of(coordinator, volume):
        view = views.guest_view(coordinator, guest.name)
        view.known()
        guests += [(guest.name, host, view.target) for host in view.running]
        if view.running:
            problems += _unable(coordinator, volume, guest, view.running[0])
    raise_problems(problems)
    return growing.grow(volume, size, hosts, guests, coordinator.inventory)


def _unable(coordinator: Coordinator, volume: Volume, guest: Guest, host: str) -> list[StorkitError]:
    """Why a volume cannot become larger under a guest that runs: it would lose writes, or nobody could do it."""
    hypervisor = registry.hypervisor(guest.hypervisor)
    own = registry.transport(coordinator.inventory.transport(volume.pool).partition(":")[2])
    attached = coordinator.survey.attachments([host], [volume]).get(host, [])
    hint = f"storkit guest stop {guest.name}, then give the command again"
    if not hypervisor.reconnects and any(each.source.kind == "network" for each in attached):
        message = (
            f"guest {guest.name} under {guest.hypervisor} does not wait for its NBD server, which has to begin anew"
        )
        return [Conflict(message, hint)]
    if volume.format == "qcow2" and not own.locks_images and hypervisor.grow is Hypervisor.grow:
        message = (
            f"guest {guest.name} has the image of {volume.name} open, and {guest.hypervisor} cannot make it larger"
        )
        return [Conflict(message, hint)]
    return []


def _guests_of(coordinator: Coordinator, volume: Volume) -> list[Guest]:
    problems: list[StorkitError] = []
    guests = readable(coordinator, [volume.pool], problems)
    for problem in problems:
        coordinator.warn(f"whether it has {volume.name} is not known: {in_a_line(problem)}")
    return [guest for guest in guests if any(disk.uuid == volume.uuid for disk in guest.disks)]
