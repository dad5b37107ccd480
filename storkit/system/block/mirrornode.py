"""A node over two disks: what is written goes into both, and what the first has is copied to the second.

This is device-mapper's target `mirror` with a log in memory and `handle_errors`. It copies region by region, beside
those who write, and reads from the first disk. A write that one of the two does not take is held by the kernel, until
the node gets another table, and goes through that one: so nobody loses a write for the copy's sake, and somebody has to
give the node its first disk alone (storkit.hypervisors._nodes.watch does it, whatever becomes of a command).

The target `raid` would not hold anything. Without metadata of its own it was seen to hang for good in Linux 6.1 when
its second disk failed under a writer; and it may go on with the second disk alone, of which nothing would tell after a
power cut. The target `clone` has the second one written alone from its first moment on.
"""

from __future__ import annotations

import re
from dataclasses import dataclass
from pathlib import Path

from storkit.system.block import configfs

REGION = 1024
"""Sectors that are copied at once; a write to them waits for that long."""
_TABLE = re.compile(r"0 (\d+) mirror core \d+ \d+(?: \w+)* 2 (\d+:\d+) 0 (\d+:\d+) 0(?: \d+(?: \w+)*)?")
_STATUS = re.compile(r"mirror 2 (\d+:\d+) (\d+:\d+) (\d+)/(\d+) 1 ([A-Z])([A-Z])\b")
_LINEAR = re.compile(r"0 (\d+) linear (\d+:\d+) 0")


@dataclass(frozen=True, slots=True)
class MirrorStatus:
    """What the kernel says of a mirror."""

    done: int
    """Regions that are the same in both."""
    regions: int
    good: bool
    """Whether both disks have taken all that they were given."""

    @property
    def whole(self) -> bool:
        """Whether both disks hold the same, but for what is under way."""
        return self.good and self.done == self.regions


def prepare() -> None:
    """Load what such nodes need. Raises Unsupported: this kernel has it not."""
    if not Path("/sys/module/dm_mirror").is_dir():
        configfs.modprobe("dm_mirror")


def line(disk: str, copy: str, sectors: int) -> str:
    """The table over two devices, as MAJOR:MINOR."""
    return f"0 {sectors} mirror core 1 {REGION} 2 {disk} 0 {copy} 0 1 handle_errors"


def legs(table: str) -> tuple[str, str] | None:
    """The disk and its copy, as MAJOR:MINOR; None: the table is no mirror."""
    found = _TABLE.fullmatch(table)
    return (found[2], found[3]) if found else None


def plain(table: str) -> str:
    """The one device, as MAJOR:MINOR, that all of a node lies on from its first byte; empty: it is another table."""
    found = _LINEAR.fullmatch(table)
    return found[2] if found else ""


def stands_on(table: str, wanted: str) -> bool:
    """Whether a node is the mirror of the very disk that it is wanted to stand on."""
    found, disk = _TABLE.fullmatch(table), _LINEAR.fullmatch(wanted)
    return bool(found and disk and (found[1], found[2]) == (disk[1], disk[2]))


def parse_status(text: str) -> MirrorStatus | None:
    """As the kernel tells it (`dmsetup status`); None: it is no mirror's."""
    found = _STATUS.match(text)
    if found is None:
        return None
    return MirrorStatus(int(found[3]), int(found[4]), found[5] == found[6] == "A")
