"""How a directory is mounted, as far as it matters for locks (proc_pid_mountinfo(5), nfs(5))."""

from __future__ import annotations

import os
from pathlib import Path

_ALONE = ("nolock", "local_lock=all", "local_lock=flock", "local_lock=posix")


def keeps_locks_alone(path: Path) -> str:
    """The option by which an NFS client keeps the locks of a mount to itself; empty: it asks the server."""
    try:
        device = os.stat(path).st_dev
        lines = Path("/proc/self/mountinfo").read_text(errors="surrogateescape").splitlines()
    except OSError:  # it is not there: others say so
        return ""
    return next((why for line in lines if (why := alone(line, f"{os.major(device)}:{os.minor(device)}"))), "")


def alone(line: str, device: str) -> str:
    """That option in a line of mountinfo, if it is of this device and of NFS."""
    words = line.split()
    if len(words) < 10 or words[2] != device or "-" not in words:
        return ""
    kind, _, options = words[words.index("-") + 1 :][:3]
    if not kind.startswith("nfs"):
        return ""
    return next((each for each in options.split(",") if each in _ALONE), "")
