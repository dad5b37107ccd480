"""The block devices that Xen's backend in the kernel (xen-blkback) has open for domains, by sysfs.

No process has them open: a thread of the kernel reads and writes each, past the page cache, as long as the domain has
its disk. Sources: drivers/block/xen-blkback/xenbus.c (the attributes, the thread's name DOMAIN.DISK-RING),
docs/man/xen-vbd-interface.7 of Xen (the number of a disk).
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path

DEVICES = Path("/sys/bus/xen-backend/devices")
_THREAD = re.compile(r"(\d+)\.([a-z]+\d*)-\d+")
_LETTERS = 26


@dataclass(frozen=True, slots=True)
class DomainDisk:
    """A device that is a domain's disk."""

    domain: int
    disk: str
    """As the domain calls it: xvda."""
    device: tuple[int, int]
    """The major and minor number."""
    writes: bool


def find(devices: Path | None = None) -> list[DomainDisk]:
    """All that there are now."""
    return list(_each(devices or DEVICES))


def _each(devices: Path) -> Iterator[DomainDisk]:
    for entry in devices.glob("vbd-*-*"):
        _, domain, number = entry.name.split("-")
        try:
            major, minor = (int(each, 16) for each in (entry / "physical_device").read_text().strip().split(":"))
            mode = (entry / "mode").read_text().strip()
        except (OSError, ValueError):  # it has none yet, or any more
            continue
        yield DomainDisk(int(domain), name(int(number)), (major, minor), mode != "r")


def name(number: int) -> str:
    """What a guest calls the disk of a number of Xen's; empty: it is of a kind that nobody uses any more."""
    if number >> 28 == 1:
        disk, part = (number >> 8) & 0xFFFFF, number & 0xFF
    elif number >> 8 == 202:
        disk, part = (number >> 4) & 0xF, number & 0xF
    else:
        return ""
    letters = ""
    while disk >= 0:
        letters = chr(ord("a") + disk % _LETTERS) + letters
        disk = disk // _LETTERS - 1
    return f"xvd{letters}{part or ''}"


def threads(names: Mapping[int, str]) -> dict[tuple[int, str], list[int]]:
    """Of the names of processes by their numbers, those of the backend's threads: by the domain and its disk."""
    found: dict[tuple[int, str], list[int]] = {}
    for pid, comm in sorted(names.items()):
        if match := _THREAD.fullmatch(comm):
            found.setdefault((int(match[1]), match[2]), []).append(pid)
    return found
