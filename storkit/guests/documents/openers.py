"""The words of a QEMU command that open a file or a device of this host, wherever they stand: in a command line, in
libvirt's `qemu:arg`, in xl's `device_model_args`."""

from __future__ import annotations

import re
from collections.abc import Iterator, Sequence

from storkit.guests.command import Pair, pairs
from storkit.guests.documents import blocks
from storkit.guests.documents.edits import DocumentDisk
from storkit.guests.documents.options import Argument, read
from storkit.guests.documents.shell import Word

_DEVICES = (
    "vfio-", "usb-host", "scsi-generic", "scsi-block", "vhost-user-", "vhost-scsi", "nvdimm", "virtio-pmem",
    "virtio-input-host", "usb-mtp", "u2f-passthru", "kvm-pci-assign", "pci-assign",
)  # fmt: skip
"""Kinds of -device that have something of this host's."""
_FIRST = {
    "-device": "driver", "-object": "qom-type", "-netdev": "type", "-nic": "type", "-net": "type",
    "-chardev": "backend", "-tpmdev": "type", "-fsdev": "fsdriver", "-virtfs": "fsdriver",
}  # fmt: skip
"""Options to the key that the first word of their argument leaves out."""
_PORTS = ("-serial", "-parallel", "-monitor", "-virtioconsole", "-debugcon")
_PORT = re.compile(r"/dev/(?!pts/|null$).*|pipe:.*")


def qemu_openers(words: Sequence[str]) -> list[DocumentDisk]:
    """What these arguments open. No line is known of them. Raises UsageError: they cannot be read."""
    found = pairs([Word(word, 0, 0, 0) for word in words])
    disks = [DocumentDisk(_called(block), 0, block.disk.place, kind=block.disk.kind) for block in blocks.find(found)]
    return [*disks, *(disk for pair in found for disk in opened(pair))]


def _called(block: blocks.Block) -> str:
    """A disk's name in a foreign document, which has disks of its own: that of QEMU's words alone."""
    if block.argument is None:
        return block.pair.option or block.disk.place
    named = block.argument.get("id") or block.argument.get("node-name")
    return block.disk.target if named else f"{block.pair.option} {block.disk.place}"


def opened(pair: Pair) -> Iterator[DocumentDisk]:
    """What an option opens that is no disk."""
    option, value = pair.option, pair.text
    if option in _PORTS and _PORT.fullmatch(value):
        yield _other(pair, value, "device")
    elif option == "-mem-path":
        yield _other(pair, value, "memory")
    elif option == "-usbdevice" and value.startswith(("host:", "disk:")):
        yield _other(pair, value, "device")
    elif option in _FIRST:
        argument = read(value, _FIRST[option])
        yield from _opened(pair, argument, argument.get(_FIRST[option]))


def _opened(pair: Pair, argument: Argument, what: str) -> Iterator[DocumentDisk]:
    option = pair.option
    if option in ("-virtfs", "-fsdev") and what != "synth":
        yield _other(pair, argument.get("path") or argument.get("socket") or pair.text, "filesystem")
    elif option == "-object" and what == "memory-backend-file":
        yield _other(pair, argument.get("mem-path"), "memory")
    elif option == "-object" and what == "input-linux":
        yield _other(pair, argument.get("evdev"), "device")
    elif option == "-object" and what.startswith("secret") and argument.get("file"):
        yield _other(pair, argument.get("file"), "secret")
    elif option == "-device" and what.startswith(_DEVICES):
        yield _other(pair, pair.text, "device")
    elif option == "-tpmdev":
        yield DocumentDisk("tpm", pair.line, argument.get("path") or what, kind="device")
    elif option == "-chardev" and what in ("serial", "tty", "parallel", "parport", "pipe"):
        yield _other(pair, argument.get("path"), "device")
    elif option in ("-netdev", "-nic", "-net"):
        if argument.get("smb"):
            yield _other(pair, argument.get("smb"), "filesystem")
        if what == "vhost-vdpa":
            yield _other(pair, argument.get("vhostdev"), "device")


def _other(pair: Pair, place: str, kind: str) -> DocumentDisk:
    return DocumentDisk(f"{pair.option} {pair.text}", pair.line, place, kind=kind)
