"""What a guest that another host keeps has its hypervisor open or run beside its volumes.

Whoever keeps it could have written anything there: a file of this host's to read, a script for root to run. So the
words that may come from another host unseen are few, and all else is for a person to look at first.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator

from storkit.core.guest import Guest
from storkit.guests import parse_xl
from storkit.guests.documents.edits import line_of
from storkit.guests.documents.markup import Element, elements

_PROGRAMS = re.compile(r"/usr/(bin/(qemu-system-\w+|kvm|qemu-kvm)|libexec/qemu-kvm|lib/xen[\w.-]*/bin/qemu-system-\w+)")
_FIRMWARE = re.compile(r"/usr/share/(OVMF|AAVMF|qemu|edk2|ovmf|seabios)/[\w./-]*")
_KNOWN = {"emulator": _PROGRAMS, "loader": _FIRMWARE, "backend": re.compile("/dev/u?random"),
          "partition": re.compile("/machine")}  # fmt: skip
"""Elements of libvirt's to what may stand in them though it is a path."""
_OPEN = frozenset({
    "script", "hostdev", "filesystem", "seclabel", "init", "kernel", "initrd", "dtb", "nvram", "commandline",
    "shmem", "redirdev", "tpm", "initarg",
})  # fmt: skip
"""Elements of libvirt's that open something, whatever they say."""
_HARMLESS = frozenset({
    "name", "uuid", "type", "builder", "memory", "maxmem", "vcpus", "maxvcpus", "vcpu_avail", "on_poweroff",
    "on_reboot", "on_watchdog", "on_crash", "on_soft_reset", "disk", "vif", "boot", "vnc", "vnclisten",
    "vncdisplay", "vncunused", "sdl", "stdvga", "vga", "videoram", "usb", "usbdevice", "acpi", "apic", "pae",
    "hpet", "nx", "hap", "viridian", "localtime", "rtc_timeoffset", "timer_mode", "tsc_mode", "nestedhvm",
    "xen_platform_pci", "firmware", "bootloader", "cpu_weight", "cap", "cpus", "serial", "keymap", "extra",
    "root", "cmdline",
})  # fmt: skip
"""Keys of xl's that open nothing, as long as no path stands in their values."""
_XL_PATH = re.compile(r"/|\bscript=|\bbackend=", re.I)
_XL_GUESTS = ("extra", "root", "cmdline", "disk")
"""Keys of xl's whose paths are the guest's own, or those of its disks."""
_XL_ONLY = {"bootloader": ["pygrub"], "serial": ["pty"]}


def opened(guest: Guest) -> list[str]:
    """What a guest opens or runs on its host that is none of its volumes, each in a few words with its line."""
    found = [f"{name} of the host's own (local)" for name in guest.local]
    boot = {"kernel": guest.boot.kernel, "initrd": guest.boot.initrd, "console": guest.console}
    found += [f"{key} {value}" for key, value in boot.items() if value and not guest.document]
    found += [f"the word {word[:80]!r}" for word in guest.extra]
    if guest.document:
        found += _LANGUAGES[guest.hypervisor](guest) if guest.hypervisor in _LANGUAGES else ["its whole document"]
    return found


def _libvirt(guest: Guest) -> list[str]:
    volumes = {disk.target for disk in guest.disks}
    text = guest.document

    def walk(element: Element) -> Iterator[str]:
        tag = element.tag.rpartition(":")[2]
        inner = [each for each in element.children if each is not metadata]
        if tag == "disk" and element.get("target", "dev") in volumes:
            # Its source and what that stands on become the volume's, but for what is in the source.
            kept = [each for each in inner if each.tag not in ("source", "backingStore")]
            inner = kept + [each for source in element.all("source") for each in source.children]
        values = [element.text.strip(), *(value for key, value in element.attributes.items() if key[:5] != "xmlns")]
        paths = [value for value in values if "/" in value and not _said(tag, value)]
        if tag in _OPEN or (tag == "emulator" and not _PROGRAMS.fullmatch(element.text.strip())):
            yield f"line {line_of(text, element.start)}: {tag} {' '.join(paths)[:80]}".rstrip()
        elif paths and tag not in ("title", "description"):
            yield f"line {line_of(text, element.start)}: {tag} {paths[0][:80]}"
        for child in inner:
            yield from walk(child)

    root = elements(text)
    metadata = root.first("metadata")
    kind = root.get("", "type")
    return [*([] if kind in ("kvm", "qemu", "xen") else [f"a domain of type {kind[:20]!r}"]), *walk(root)]


def _said(tag: str, value: str) -> bool:
    return tag in _KNOWN and _KNOWN[tag].fullmatch(value) is not None and ".." not in value


def _xl(guest: Guest) -> list[str]:
    found = []
    for key, _, tokens in parse_xl.assignments(guest.document):
        words = [parse_xl.unquoted(token.word, token.line) for token in tokens if token.kind == "string"]
        paths = [] if key in _XL_GUESTS else [word for word in words if _XL_PATH.search(word)]
        if key not in _HARMLESS or words != _XL_ONLY.get(key, words):
            found.append(f"line {tokens[0].line}: {key} {' '.join(words)[:80]}".rstrip())
        elif paths:
            found.append(f"line {tokens[0].line}: {key} {paths[0][:80]}")
    return found


_LANGUAGES: dict[str, Callable[[Guest], list[str]]] = {"libvirt": _libvirt, "xl": _xl}
