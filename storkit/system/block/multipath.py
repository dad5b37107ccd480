"""Tables of device-mapper's target `multipath`: one disk by several paths, whose loss its user does not notice.

The kernel sends what is read and written by all paths, gives up one that fails, and asks again by another; while none
is left it keeps everything, with `queue`. It never tries again a path that it gave up: somebody has to say `reinstate`,
once the path is known to lead to the right disk again.

`queue_mode bio` makes the node one of the same kind as a linear one, and so a table of several paths can take the place
of a linear one under whoever has the node open (Linux 4.8, dm_table_determine_type() in drivers/md/dm-table.c). There
is no way back but to `error`: the kernel calls this target immutable (table_load() in drivers/md/dm-ioctl.c).

Kernel: parse_features() and multipath_status() in drivers/md/dm-mpath.c.
"""

from __future__ import annotations

import re
from collections.abc import Sequence

MODULES = ("dm_multipath", "dm_service_time")
_QUEUE = "queue_if_no_path"
_PATH = re.compile(r"(?<= )(\d+:\d+) ([AF]) \d+")
_DEVICE = re.compile(r"(?<= )\d+:\d+(?= |$)")


def line(devices: Sequence[str], sectors: int, queue: bool) -> str:
    """The table of a node over these devices, as MAJOR:MINOR, in one group: each takes its share."""
    words = ([_QUEUE] if queue else []) + ["queue_mode", "bio"]
    paths = " ".join(f"{device} 1" for device in devices)
    return f"0 {sectors} multipath {len(words)} {' '.join(words)} 0 1 1 service-time 0 {len(devices)} 1 {paths}"


def is_multipath(table: str) -> bool:
    return " multipath " in table


def alike(one: str, other: str) -> bool:
    """Whether two tables are one: the kernel shows this target's features and arguments in words of its own."""
    if is_multipath(one) and is_multipath(other):
        return _told(one) == _told(other)
    return one == other


def _told(table: str) -> tuple[list[str], bool, list[str]]:
    return table.split()[:2], f" {_QUEUE} " in table, sorted(_DEVICE.findall(table))


def parse_paths(status: str) -> dict[str, bool]:
    """The devices of a node's status, as MAJOR:MINOR, and whether the kernel uses each: it has not given it up."""
    return {device: state == "A" for device, state in _PATH.findall(status)}
