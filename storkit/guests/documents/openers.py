"""The words of a QEMU command that open a file or a device of this host, wherever they stand: in a command line, in
libvirt's `qemu:arg`, in xl's `device_model_args`."""

from __future__ import annotations

import json
from collections.abc import Iterator, Sequence

from storkit.guests.documents.edits import DocumentDisk
from storkit.guests.parse_qemu import ALONE, options

MEDIA = {
    "-hda": "disk", "-hdb": "disk", "-hdc": "disk", "-hdd": "disk", "-sd": "disk", "-mtdblock": "disk",
    "-pflash": "firmware", "-fda": "floppy", "-fdb": "floppy", "-cdrom": "cdrom",
}  # fmt: skip
"""Options whose argument is an image."""
_DEVICES = ("vfio-", "usb-host", "scsi-generic", "scsi-block", "vhost-user-", "nvdimm", "virtio-pmem")
"""Kinds of -device that have something of this host's."""


def qemu_openers(words: Sequence[str]) -> list[DocumentDisk]:
    """What these arguments open. No line is known of them."""
    return list(_found(words))


def _found(words: Sequence[str]) -> Iterator[DocumentDisk]:
    position = 0
    while position < len(words):
        option = words[position]
        position += 1
        if not option.startswith("-"):
            yield DocumentDisk(option, 0, option)
            continue
        option = "-" + option.lstrip("-")
        if option in ALONE or position == len(words):
            continue
        value = words[position]
        position += 1
        yield from _opened(option, value)


def _opened(option: str, value: str) -> Iterator[DocumentDisk]:
    if option in MEDIA:
        yield DocumentDisk(option, 0, value, kind=MEDIA[option])
    elif option == "-drive":
        values = options(value)
        place = values.get("file") or values.get("file.filename") or (value if "driver" in values else "")
        if place:
            kind = "cdrom" if values.get("media") == "cdrom" else "disk"
            yield DocumentDisk(values.get("id") or f"-drive {place}", 0, place, kind=kind)
    elif option == "-blockdev":
        node = json.loads(value) if value.startswith("{") else options(value, "driver")
        yield DocumentDisk(str(node.get("node-name", "-blockdev")), 0, value)
    elif option in ("-virtfs", "-fsdev"):
        yield DocumentDisk(f"{option} {value}", 0, value, kind="filesystem")
    elif option == "-object" and options(value, "type").get("type") == "memory-backend-file":
        yield DocumentDisk(f"{option} {value}", 0, options(value).get("mem-path", value), kind="memory")
    elif option in ("-device", "-usbdevice") and value.startswith(_DEVICES):
        yield DocumentDisk(f"{option} {value}", 0, value, kind="device")
