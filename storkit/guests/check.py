"""What a guest record must be beyond its types, whatever hypervisor runs it. Every problem is found at once.

What one hypervisor in particular cannot do is in storkit.guests.limits.
"""

from __future__ import annotations

import re
import unicodedata
from collections.abc import Callable, Iterator
from dataclasses import fields
from ipaddress import IPv4Address, IPv4Interface
from uuid import UUID

from storkit.core.errors import StorkitError, UsageError
from storkit.core.guest import Guest
from storkit.core.model import check_name

MIB = 1024**2

_MAC = re.compile(r"[0-9a-f]{2}(?::[0-9a-f]{2}){5}", re.ASCII | re.IGNORECASE)
_BRIDGE = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]{0,14}", re.ASCII)
_TARGET = re.compile(r"(?:vd|xvd|sd|hd)[a-z]{1,2}", re.ASCII)
_WORD = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]*", re.ASCII)


def check(guest: Guest, where: str = "") -> list[StorkitError]:
    """Everything that is wrong with `guest`, each with the path of its key; `where` names the file or verb."""
    return [_placed(error, where, key) for key, error in _problems(guest)]


def text_problem(value: str) -> str:
    """Why a text cannot go into a configuration file, if it cannot: no hypervisor's syntax carries control
    characters, line separators, or what is no character in XML 1.0 (section 2.2)."""
    for character in value:
        category = unicodedata.category(character)
        if category in ("Cc", "Cs", "Zl", "Zp") or ord(character) & 0xFFFE == 0xFFFE:
            return f"it has the character U+{ord(character):04X}"
    return ""


def path_problem(value: str) -> str:
    """Why a text is no absolute path, if it is none."""
    problem = text_problem(value)
    if problem:
        return problem
    if not value.startswith("/"):
        return "it is not an absolute path"
    if any(part == ".." for part in value.split("/")):
        return "it has a '..'"
    return ""


def _placed(error: StorkitError, where: str, key: str) -> StorkitError:
    place = ": ".join(part for part in (where, key) if part)
    return type(error)(f"{place}: {error.message}" if place else error.message, error.hint)


def _problems(guest: Guest) -> Iterator[tuple[str, StorkitError]]:
    yield from _tried("name", lambda: check_name("guest", guest.name))
    yield from _uuid("uuid", guest.uuid)
    if guest.document:
        # What it says is its hypervisor's to judge (storkit.guests.document).
        yield from _disks(guest)
        return
    if guest.local:
        yield "local", UsageError("a guest without a document of its own has nothing local", "leave it out")
    if guest.memory < MIB or guest.memory % MIB:
        yield (
            "memory",
            UsageError(f"{guest.memory} bytes is not one or more whole MiB", 'write "512MiB" or "2GiB"'),
        )
    if guest.vcpus < 1:
        yield "vcpus", UsageError(f"a guest needs at least 1, not {guest.vcpus}")
    yield from _tried("hypervisor", lambda: check_name("hypervisor", guest.hypervisor))
    if guest.machine and not _WORD.fullmatch(guest.machine):
        yield "machine", UsageError(f"{guest.machine!r} is no machine type", "list them: qemu-system-x86_64 -M help")
    for key in ("cpu", "boot.cmdline"):
        problem = text_problem(guest.cpu if key == "cpu" else guest.boot.cmdline)
        if problem:
            yield key, UsageError(f"it cannot be passed on: {problem}", "write it in one line of plain text")
    for number, text in enumerate(guest.extra):
        problem = text_problem(text) or ("" if text else "it is empty")
        if problem:
            yield f"extra[{number}]", UsageError(f"it cannot be passed on: {problem}", "one line of plain text each")
    yield from _boot(guest)
    yield from _root(guest)
    yield from _disks(guest)
    yield from _flash(guest)
    yield from _nics(guest)


def _boot(guest: Guest) -> Iterator[tuple[str, StorkitError]]:
    paths = {"boot.kernel": guest.boot.kernel, "boot.initrd": guest.boot.initrd, "console": guest.console}
    for key, path in paths.items():
        problem = path_problem(path) if path else ""
        if problem:
            yield (
                key,
                UsageError(f"{path!r} cannot be used: {problem}", "write a full path, as /srv/vmlinuz"),
            )
    if guest.boot.kernel or guest.hypervisor == "uml":
        return
    for field in fields(guest.boot):
        if field.name in ("initrd", "cmdline") and getattr(guest.boot, field.name):
            yield f"boot.{field.name}", UsageError("it is of no use without boot.kernel", "set boot.kernel as well")


def _root(guest: Guest) -> Iterator[tuple[str, StorkitError]]:
    root = guest.root
    if root is None:
        return
    yield from _tried("root.volume", lambda: check_name("volume", root.volume))
    if root.uuid:
        yield from _uuid("root.uuid", root.uuid)
    if not guest.boot.kernel:
        yield "root", UsageError("no firmware boots from NFS here", "set boot.kernel, and boot.initrd if it needs one")
    try:
        if "/" not in root.address:
            raise ValueError
        IPv4Interface(root.address)
    except ValueError:
        hint = "write 10.0.1.50/24: the kernel's ip= knows IPv4 alone"
        yield "root.address", UsageError(f"{root.address!r} is no IPv4 address with a prefix", hint)
    for key, value in (("gateway", root.gateway), ("server", root.server)):
        if value and not _ipv4(value):
            yield f"root.{key}", UsageError(f"{value!r} is no IPv4 address", "a kernel that boots asks no DNS")
    for key, value in (("options", root.options), ("path", root.path)):
        if text_problem(value) or " " in value:
            yield f"root.{key}", UsageError(f"{value!r} cannot stand on a kernel's command line")
    for word in guest.boot.cmdline.split():
        if word.startswith(("root=", "nfsroot=")):
            yield "boot.cmdline", UsageError(f"{word!r}: the root is {root.volume}", "leave it out: storkit adds it")


def _flash(guest: Guest) -> Iterator[tuple[str, StorkitError]]:
    """What UEFI keeps its variables in."""
    found = [(f"disks[{number}]", disk) for number, disk in enumerate(guest.disks) if disk.bus == "flash"]
    for number, (key, disk) in enumerate(found):
        if guest.boot.firmware != "uefi":
            yield key, UsageError("no firmware but UEFI keeps variables", 'set boot.firmware to "uefi"')
        if disk.readonly:
            yield key, UsageError("UEFI writes its variables", "leave readonly out")
        if number:
            yield key, UsageError("UEFI keeps its variables in one volume", "name one")


def _ipv4(text: str) -> bool:
    try:
        return bool(IPv4Address(text))
    except ValueError:
        return False


def _disks(guest: Guest) -> Iterator[tuple[str, StorkitError]]:
    targets: dict[str, int] = {}
    volumes: dict[str, int] = {}
    for number, disk in enumerate(guest.disks):
        key = f"disks[{number}]"
        yield from _tried(f"{key}.volume", lambda name=disk.volume: check_name("volume", name))  # type: ignore[misc]
        if disk.uuid:
            yield from _uuid(f"{key}.uuid", disk.uuid)
        if disk.target and not guest.document and not _TARGET.fullmatch(disk.target):
            yield f"{key}.target", UsageError(f"{disk.target!r} is no disk's name", "write vda, sda, hda or xvda")
        for what, value, seen in (("target", disk.target, targets), ("volume", disk.volume, volumes)):
            if value and seen.setdefault(value, number) != number:
                yield f"{key}.{what}", UsageError(f"{value!r} is disks[{seen[value]}].{what} already", "name another")


def _group(text: str) -> bool:
    address, _, port = text.rpartition(":")
    try:
        return IPv4Address(address).is_multicast and port.isascii() and port.isdecimal() and 0 < int(port) < 1 << 16
    except ValueError:
        return False


def _nics(guest: Guest) -> Iterator[tuple[str, StorkitError]]:
    macs: dict[str, int] = {}
    for number, nic in enumerate(guest.nics):
        key = f"nics[{number}]"
        if nic.kind != "group" and nic.group:
            yield f"{key}.group", UsageError(f"a card of kind {nic.kind!r} has no group", 'write kind = "group"')
        if nic.kind != "bridge" and nic.bridge:
            yield f"{key}.bridge", UsageError(f"a card of kind {nic.kind!r} has no bridge", "leave kind out")
        if nic.kind == "group" and not _group(nic.group):
            hint = "write 239.192.1.1:20000, of 224.0.0.0/4"
            yield f"{key}.group", UsageError(f"{nic.group!r} is no multicast address and port", hint)
        if nic.kind == "bridge" and not nic.bridge:
            yield key, UsageError("'bridge' is missing", "list: ip link show type bridge")
        elif nic.kind == "bridge" and not _BRIDGE.fullmatch(nic.bridge):
            yield (
                f"{key}.bridge",
                UsageError(f"{nic.bridge!r} cannot name a bridge", "list: ip link show type bridge"),
            )
        if not _WORD.fullmatch(nic.model):
            yield f"{key}.model", UsageError(f"{nic.model!r} is no card's model", "write virtio, e1000 or the like")
        if not nic.mac:
            continue
        if not _MAC.fullmatch(nic.mac):
            yield f"{key}.mac", UsageError(f"{nic.mac!r} is no MAC address", "write 52:54:00:12:34:56, or leave it out")
        elif int(nic.mac[:2], 16) & 1:
            yield f"{key}.mac", UsageError(f"{nic.mac} is a group's address, no card can have it", "leave it out")
        elif macs.setdefault(nic.mac.lower(), number) != number:
            yield f"{key}.mac", UsageError(f"{nic.mac} is nics[{macs[nic.mac.lower()]}].mac already", "leave it out")


def _uuid(key: str, value: str) -> Iterator[tuple[str, StorkitError]]:
    try:
        good = str(UUID(value)) == value
    except ValueError:
        good = False
    if not good:
        yield key, UsageError(f"{value!r} is no UUID in lower case", "make one: uuidgen")


def _tried(key: str, action: Callable[[], object]) -> Iterator[tuple[str, StorkitError]]:
    try:
        action()
    except StorkitError as error:
        yield key, error
