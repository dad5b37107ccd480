"""A guest's QEMU that storkit has not started: the note by which it is known here until it ends.

RUN/qemu-HASH/adopted has its pid and when it started, so that no other process of that number is taken for it, and the
socket of its monitor with the number of its inode: another QEMU that is given the same path removes the socket.
"""

from __future__ import annotations

from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path

from storkit.core import codec
from storkit.core.identities import Count, Line, MaybePath, Words
from storkit.system import openers
from storkit.system.files import read_json


@dataclass(frozen=True, slots=True)
class Adopted:
    """A process that somebody else has started."""

    pid: Count
    started: Line
    """As the kernel says it (openers.started)."""
    monitor: MaybePath = ""
    """The socket at which it takes commands of QMP; empty: there is none."""
    inode: Count = 0
    """The socket's."""
    pinned: Words = ""
    """Why it cannot leave this host before its next stop; empty: it can."""

    def socket(self) -> Path | None:
        """Its monitor, if the socket is still its own."""
        if self.monitor:
            with suppress(OSError):
                if Path(self.monitor).stat().st_ino == self.inode:
                    return Path(self.monitor)
        return None


def read(path: Path) -> Adopted | None:
    """The process of a note; None: there is no note, or the process has ended."""
    try:
        found = codec.load(Adopted, read_json(path, "note of a process"), str(path))
    except FileNotFoundError:
        return None
    with suppress(OSError):
        if openers.started(found.pid) == found.started:
            return found
    return None
