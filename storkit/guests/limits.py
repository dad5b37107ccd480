"""What each hypervisor cannot do of a guest record, said before anything is rendered."""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator
from typing import Literal

from storkit.core.errors import StorkitError, Unsupported
from storkit.core.guest import Guest
from storkit.core.model import DiskSource
from storkit.guests.check import path_problem, text_problem
from storkit.guests.place import Place

MOST = {"ide": 4, "sata": 6, "scsi": 256}
"""Disks that one controller takes: two IDE channels, AHCI's six ports in QEMU, virtio-scsi's targets."""


XEN_TYPES = ("pv", "pvh", "hvm")
_UML_OWN = re.compile(r"ubd|udb|(?:iomem|initrd|mem|umid|uml_dir|mconsole)=", re.ASCII)
"""Words of User-Mode Linux (linux.uml --help) that open a file as a disk or as memory, or that storkit has said."""


def xen_type(guest: Guest) -> str:
    """The type of domain that a guest is under Xen: its `machine`, which may have Xen's version (pvh-4.17), or else
    what its firmware needs."""
    kind = guest.machine.partition("-")[0]
    if kind in XEN_TYPES:
        return kind
    return "hvm" if guest.boot.firmware == "uefi" else "pvh"


def limits(guest: Guest, sources: list[DiskSource], hypervisor: str, place: Place) -> list[StorkitError]:
    """Everything that keeps this guest, with these disks, from being rendered for a hypervisor."""
    problems: list[StorkitError] = []
    if len(sources) != len(guest.disks):
        problems.append(Unsupported(f"{guest.name} has {len(guest.disks)} disks, but {len(sources)} disk sources came"))
    problems += [problem for source in sources for problem in _source(source)]
    by_name: dict[str, Callable[[Guest, list[DiskSource], Place], Iterator[StorkitError]]] = {
        "qemu": _qemu,
        "libvirt": _libvirt,
        "xl": _xl,
        "uml": _uml,
    }
    problems += card_problems(guest, hypervisor)
    if hypervisor in by_name:
        problems += by_name[hypervisor](guest, sources, place)
    return problems


OWN_CARDS: dict[str, tuple[Literal["user", "group"], ...]] = {"qemu": ("user", "group"), "uml": ("group",)}
"""The kinds of cards that hypervisors have without anything of their host, and without root."""


def card_problems(guest: Guest, hypervisor: str) -> list[StorkitError]:
    """The network cards that a hypervisor has none of."""
    own = OWN_CARDS.get(hypervisor, ())
    hint = f"name a bridge, or one of kind {' or '.join(own)}" if own else "name a bridge"
    return [
        Unsupported(f"nics[{number}]: {hypervisor} has no card of kind {nic.kind!r}", hint)
        for number, nic in enumerate(guest.nics)
        if nic.kind != "bridge" and nic.kind not in own
    ]


def _source(source: DiskSource) -> Iterator[StorkitError]:
    """What no template could write down."""
    if source.kind != "network" and path_problem(source.path):
        yield Unsupported(f"the disk {source.path!r} cannot be used: {path_problem(source.path)}")
    for value in (source.export, source.socket, source.server, source.tls_dir, source.tls_user, source.format):
        if text_problem(value):
            yield Unsupported(f"the disk source's {value!r} cannot be passed on: {text_problem(value)}")
    if source.kind == "network" and not source.socket and not source.server:
        yield Unsupported(f"the disk source {source.uri} has neither a socket nor a server")


def _network(sources: list[DiskSource], hypervisor: str) -> Iterator[StorkitError]:
    for source in sources:
        if source.kind == "network" and source.protocol != "nbd":
            yield Unsupported(
                f"{hypervisor} guests cannot take a disk by {source.protocol or 'no protocol'} yet",
                "attach it as a block device, or over nbd",
            )


def _buses(guest: Guest, hypervisor: str) -> Iterator[StorkitError]:
    for bus, most in MOST.items():
        count = sum(disk.bus == bus for disk in guest.disks)
        if count > most:
            yield Unsupported(f"{count} disks on the {bus} bus, which takes {most}", "put the others on virtio")
    if any(disk.bus == "xen" for disk in guest.disks):
        yield Unsupported(f"{hypervisor} guests have no xen disks", 'write bus = "virtio"')


def _extra(guest: Guest) -> Iterator[StorkitError]:
    """Nothing that a guest opens is no volume: a move would take it for granted, and a clone share it."""
    from storkit.guests.documents.openers import qemu_openers

    for disk in qemu_openers(guest.extra):
        message = f"extra: {disk.target} opens {disk.place}, which is no volume of {guest.name}"
        yield Unsupported(message, "make it a disk of the guest's, with a volume, or take it out")


def _qemu(guest: Guest, sources: list[DiskSource], place: Place) -> Iterator[StorkitError]:
    yield from _network(sources, "qemu")
    yield from _extra(guest)
    yield from _buses(guest, "qemu")
    machine = place.machine or guest.machine
    for number, disk in enumerate(guest.disks):
        if disk.bus in ("ide", "sata") and disk.readonly:
            yield Unsupported(f"disks[{number}]: QEMU's {disk.bus} disks cannot be read-only", 'write bus = "scsi"')
        if disk.bus == "ide" and "q35" in machine:
            yield Unsupported(f"disks[{number}]: {machine} has no ide bus", 'write bus = "sata" or "virtio"')
        if disk.bus != "virtio" and machine == "microvm":
            yield Unsupported(f"disks[{number}]: microvm takes no {disk.bus} disks", 'write bus = "virtio"')
    own = guest.document and guest.hypervisor == "qemu"
    if guest.boot.firmware == "uefi" and not own and not (place.uefi_code and place.uefi_vars):
        yield Unsupported("no UEFI firmware was found for this guest", "apt install ovmf")


def _libvirt(guest: Guest, sources: list[DiskSource], place: Place) -> Iterator[StorkitError]:
    yield from _network(sources, "libvirt")
    yield from _extra(guest)
    yield from _buses(guest, "libvirt")
    for disk, source in zip(guest.disks, sources, strict=False):
        if disk.bus == "flash" and source.format != "raw":
            yield Unsupported(f"libvirt takes UEFI variables that are raw, not {source.format}", "import them so")
    for source in sources:
        if source.tls == "psk":
            yield Unsupported(
                "libvirt opens NBD over TLS with certificates only, not with a pre-shared key",
                "use x509 credentials, or attach the disk as a block device",
            )
    if guest.cpu and guest.cpu not in ("host", "host-model") and "," in guest.cpu:
        yield Unsupported(
            f"cpu {guest.cpu!r}: libvirt takes a model's name, without QEMU's flags", 'write cpu = "host"'
        )


def _xl(guest: Guest, sources: list[DiskSource], place: Place) -> Iterator[StorkitError]:
    for number, source in enumerate(sources):
        if source.kind == "network":
            yield Unsupported(
                f"disks[{number}]: Xen opens no {source.protocol} URI itself",
                "attach it as a block device, or keep the guest on a hypervisor of QEMU's",
            )
        elif source.kind == "block" and source.format != "raw":
            yield Unsupported(f"disks[{number}]: Xen's phy backend takes raw devices, not {source.format}")
        elif source.format not in ("raw", "qcow", "qcow2", "vhd", "qed"):
            yield Unsupported(f"disks[{number}]: Xen takes no {source.format} images")
        if source.path.endswith(","):
            # libxlu_disk_l.l strips one comma from the end of target=
            yield Unsupported(f"disks[{number}]: xl takes no path that ends in a comma", "rename the file")
    if any(disk.bus == "flash" for disk in guest.disks):
        yield Unsupported("Xen's guests keep no UEFI variables", "leave the disk on bus flash out")
    if guest.cpu:
        yield Unsupported("Xen guests see the host's processor: cpu cannot be chosen", "leave cpu out")
    if guest.machine and guest.machine not in XEN_TYPES and not place.machine:
        yield Unsupported(f"machine {guest.machine!r} is no type of Xen's guests", "write pv, pvh or hvm")
    elif guest.boot.firmware == "uefi" and xen_type(guest) != "hvm":
        yield Unsupported(f"Xen's {guest.machine} guests have no UEFI firmware", 'write machine = "hvm"')


def _uml(guest: Guest, sources: list[DiskSource], place: Place) -> Iterator[StorkitError]:
    for number, (disk, source) in enumerate(zip(guest.disks, sources, strict=False)):
        if source.kind == "network" or source.format != "raw":
            what = source.protocol if source.kind == "network" else source.format
            yield Unsupported(
                f"disks[{number}]: User-Mode Linux takes raw files and devices, not {what}",
                "storkit guest start shows it as one; by hand: qemu-storage-daemon --export type=fuse",
            )
        if "," in source.path or ":" in source.path:
            # ubd_setup_common() takes what follows either for a backing file
            message = f"disks[{number}]: User-Mode Linux takes no path with a comma or a colon: {source.path}"
            yield Unsupported(message, "give its pool, or the host's state, another directory")
        if disk.bus != "virtio":
            yield Unsupported(f"disks[{number}]: User-Mode Linux has no {disk.bus} bus", "leave bus out")
    if guest.vcpus > 1:
        yield Unsupported("User-Mode Linux runs on one processor", "write vcpus = 1")
    if guest.boot.firmware == "uefi":
        yield Unsupported("User-Mode Linux has no firmware", "leave boot.firmware out")
    for number, nic in enumerate(guest.nics):
        if nic.kind == "bridge" and number >= len(place.taps):
            hint = 'leave it out, and by hand: ip tuntap add; extra = ["vec0:transport=tap,ifname=..."]'
            yield Unsupported(f"nics[{number}]: User-Mode Linux needs a tap device for a card on a bridge", hint)
    for key, words in (("boot.cmdline", guest.boot.cmdline.split()), ("extra", guest.extra)):
        for word in words:
            if _UML_OWN.match(word):
                hint = "write it as memory, boot.initrd or a disk of the guest's, or take it out"
                yield Unsupported(f"{key}: {word!r} is for storkit to say to User-Mode Linux", hint)
