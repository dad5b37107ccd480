"""Who has a block device open: processes, apart from those that are dead but for an I/O that does not come back.

A killed process whose write waits for a lost iSCSI target stays, with its files open, until that write ends (proc(5)).
"""

from __future__ import annotations

import os
import stat
from pathlib import Path

PROC = Path("/proc")
_SIGKILL = 1 << 8


def only_killed(path: str) -> bool:
    """Whether a device is open in processes that have been killed, and nowhere else that can be seen: not in others,
    not mounted, not below another device."""
    number = os.stat(path).st_rdev
    name = f"{os.major(number)}:{os.minor(number)}"
    if any(Path(f"/sys/dev/block/{name}/holders").iterdir()):
        return False
    if any(line.split()[2] == name for line in (PROC / "self/mountinfo").read_text().splitlines()):
        return False
    found = [killed(task) for task in PROC.glob("[0-9]*/task/[0-9]*") if _has_open(task, number)]
    return bool(found) and all(found)


def killed(task: Path) -> bool:
    """Whether a thread, a directory of /proc, has a SIGKILL on its way, or has ended."""
    try:
        status = dict(line.split(":\t", 1) for line in (task / "status").read_text().splitlines() if ":\t" in line)
    except OSError:
        return True
    return status["State"][0] in "ZX" or bool((int(status["SigPnd"], 16) | int(status["ShdPnd"], 16)) & _SIGKILL)


def _has_open(task: Path, number: int) -> bool:
    try:
        descriptors = list((task / "fd").iterdir())
    except OSError:
        return False
    for descriptor in descriptors:
        try:
            found = descriptor.stat()
        except OSError:
            continue
        if stat.S_ISBLK(found.st_mode) and found.st_rdev == number:
            return True
    return False
