"""`guest import FILE`: a guest record from what an administrator already has: libvirt XML, xl.cfg, a QEMU command line.

The formats are read by parse_libvirt, parse_xl and parse_qemu. What they understand goes into the record; everything
else is named in `warnings`, never dropped in silence. The caller turns each disk source into a volume.
"""

from __future__ import annotations

import re
from dataclasses import dataclass, replace
from ipaddress import IPv4Interface
from pathlib import PurePosixPath
from typing import Literal, get_args
from uuid import uuid4

from storkit.core.errors import UsageError, raise_problems
from storkit.core.guest import Disk, Guest, Root
from storkit.core.model import DiskSource
from storkit.guests.check import MIB, check
from storkit.guests.command import likely
from storkit.guests.draft import GuestDraft

MAX_TEXT = MIB

Kind = Literal["libvirt", "xl", "qemu"]


@dataclass(frozen=True, slots=True)
class Imported:
    """A guest as its old configuration describes it."""

    guest: Guest
    sources: list[DiskSource]
    """Where its disks are now, in the order of guest.disks, whose volumes are names made from these places."""
    warnings: list[str]
    """What was not understood or cannot be kept, each by its name."""


def parse(text: str, where: str = "", *, name: str = "", kind: str = "") -> Imported:
    """The guest that `text` describes.

    `where` names the file in messages; `name` renames the guest; `kind` is libvirt, xl or qemu, guessed if empty.

    Raises UsageError or Problems: `text` cannot be read, with the line where the format has lines, or what it says is
    no guest that storkit can keep.
    """
    if len(text) > MAX_TEXT:
        raise UsageError(f"{len(text)} characters are too many for a guest's configuration")
    if kind and kind not in get_args(Kind):
        raise UsageError(f"there is no format {kind!r}", f"known here: {', '.join(get_args(Kind))}")
    kind = kind or sniff(text)
    where = where or f"the {kind} configuration"
    found = draft(kind, text, where)
    raise_problems([type(each)(f"{where}: {each.message}", each.hint) for each in found.refused])
    found.hypervisor = kind
    return _imported(found, where, name)


def draft(kind: str, text: str, where: str) -> GuestDraft:
    """What a configuration says, as it stands there. Raises UsageError: it cannot be read; `where` names it."""
    if kind == "libvirt":
        from storkit.guests.parse_libvirt import read
    elif kind == "xl":
        from storkit.guests.parse_xl import read
    else:
        from storkit.guests.parse_qemu import read
    try:
        return read(text)
    except UsageError as error:
        raise UsageError(f"{where}: {error.message}", error.hint) from error
    except (ValueError, TypeError, AttributeError, LookupError, RecursionError) as error:
        hint = f"it was read as {kind}; check where it comes from"
        raise UsageError(f"{where} cannot be read: {type(error).__name__}: {error}", hint) from error


def root_of(text: str, where: str, kind: str) -> Root | None:
    """The root on NFS that a configuration mounts."""
    return read_root(draft(kind, text, where).boot.cmdline)[1]


def sniff(text: str) -> Kind:
    """Which format a text is in, by its first word."""
    first = next((line.strip() for line in text.splitlines() if line.strip() and not line.strip().startswith("#")), "")
    if first.startswith("<"):
        return "libvirt"
    if first.startswith("-") or likely(text):
        return "qemu"
    return "xl"


def _imported(found: GuestDraft, where: str, name: str) -> Imported:
    if not found.uuid:
        found.uuid = str(uuid4())
        found.warn("uuid: there was none, a new one was made")
    cmdline, root = read_root(found.boot.cmdline)
    guest = Guest(
        name=name or found.name,
        uuid=found.uuid.lower(),
        memory=found.memory,
        vcpus=found.vcpus,
        hypervisor=found.hypervisor,
        machine=found.machine,
        cpu=found.cpu,
        boot=replace(found.boot, cmdline=cmdline),
        root=root,
        nics=[replace(nic, mac=nic.mac.lower()) for nic in found.nics],
        console=found.console,
        extra=found.extra,
    )
    disks: list[Disk] = []
    for disk, source in found.disks:
        taken = {other.volume for other in disks}
        disks.append(replace(disk, volume=volume_name(source, guest.name or "disk", taken)))
    guest = replace(guest, disks=disks)
    raise_problems(check(guest, where))
    derived = replace(guest, nics=[replace(nic, mac="") for nic in guest.nics])
    nics = [replace(nic, mac="" if nic.mac == derived.mac(n) else nic.mac) for n, nic in enumerate(guest.nics)]
    return Imported(replace(guest, nics=nics), [source for _, source in found.disks], found.warnings)


def read_root(cmdline: str) -> tuple[str, Root | None]:
    """A kernel's command line without the words that `Root.words` makes, and that root; as it is, with None, where it
    mounts no root by NFS, or asks DHCP for the guest's address."""
    words = dict(word.partition("=")[::2] for word in cmdline.split())
    place = re.fullmatch(r"([0-9.]+):(/[^,]*),?(.*)", words.get("nfsroot", ""))
    ip = [*words.get("ip", "").split(":"), "", "", "", ""]
    try:
        address = IPv4Interface(f"{ip[0]}/{ip[3]}").with_prefixlen
    except ValueError:
        return cmdline, None
    if words.get("root") != "/dev/nfs" or place is None:
        return cmdline, None
    ours = {"root", "nfsroot", "ip", "nfs.nfs4_unique_id", "rw"}
    rest = " ".join(word for word in cmdline.split() if word.partition("=")[0] not in ours)
    server, path, options = place.groups()
    name = PurePosixPath(path.removesuffix("/root")).name.removesuffix(".tree")
    return rest, Root(volume_name(DiskSource("file", name), "root", set()), address, ip[2], options, "", server, path)


def volume_name(source: DiskSource, otherwise: str, taken: set[str]) -> str:
    """A name for the volume that `source` will be, from its path or its name on the wire."""
    stem = source.export or PurePosixPath(source.path).name
    if source.kind == "file":
        stem = re.sub(r"\.(?:img|raw|qcow2?|vmdk|vhd|vdi|qed)$", "", stem)
    stem = re.sub(r"[^A-Za-z0-9._-]+", "-", stem)
    stem = re.sub(r"\.\.+", ".", stem).lstrip("._-")[:60] or otherwise
    name, number = stem, 1
    while name in taken:
        number += 1
        name = f"{stem}-{number}"
    return name
