"""Locks that die with their holder: flock(2) on files that say who holds them.

A program that a command has started goes on when the command is killed, and may change what the next one has looked at
already. So it is lent the locks of its command (`lent`): they are free once both have ended.
"""

from __future__ import annotations

import errno
import fcntl
import os
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

from storkit.core.errors import Conflict, Unsafe
from storkit.system import files

_descriptors: set[int] = set()
"""Of the locks that this process holds."""
_changing = threading.Lock()


def use_lock(run: Path, uuid: str) -> Path:
    """The lock that a server holds for as long as it has a volume open. `run` is the home host's Site.run.

    A pool asks `held` before it deletes, resizes or copies a volume; a transport passes the locked descriptor on to its
    server, so that the kernel lets go of the lock when, and only when, the last process that could write is gone.
    """
    directory = run / "use"
    with suppress(OSError):  # who only asks needs none; who locks is told by that
        files.make_private(directory)
    return directory / f"{uuid}.lock"


class Lock:
    """An open, locked file. It is released by `release`, or by the death of every process that has it open."""

    def __init__(self, path: Path, descriptor: int) -> None:
        self.path = path
        self.descriptor = descriptor
        with _changing:
            _descriptors.add(descriptor)

    def release(self, *, remove: bool = False) -> None:
        """Let go. `remove`: of the file as well, unless someone else holds it too (a shared lock)."""
        if remove:
            try:
                fcntl.flock(self.descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
                self.path.unlink(missing_ok=True)
            except BlockingIOError:
                pass
        with _changing:
            _descriptors.discard(self.descriptor)
            os.close(self.descriptor)


@contextmanager
def lent() -> Iterator[list[int]]:
    """Descriptors, for a program that is being started, that hold all locks which this process holds now.

    Not for a program that leaves a daemon, nor for one that may wait in the kernel for a device that does not answer:
    the next command could not lock what it needs to put that right.
    """
    with _changing:
        copies = [os.dup(descriptor) for descriptor in _descriptors]
    try:
        yield copies
    finally:
        for copy in copies:
            os.close(copy)


def acquire(path: Path, what: str, *, shared: bool = False, holder: str = "", wait: float = 0.0) -> Lock:
    """Lock `path`, or raise Conflict with what the holder wrote of itself.

    `wait` is for how many seconds to go on asking; 0: ask once.
    """
    deadline = time.monotonic() + wait
    while True:
        descriptor = files.open_own(path, os.O_RDWR | os.O_CREAT)
        try:
            fcntl.flock(descriptor, (fcntl.LOCK_SH if shared else fcntl.LOCK_EX) | fcntl.LOCK_NB)
        except BlockingIOError:
            who = os.pread(descriptor, 400, 0).decode(errors="replace").strip() or "another process"
            os.close(descriptor)
            if time.monotonic() >= deadline:
                raise Conflict(
                    f"{what} is locked by {who}",
                    f"wait until that command has ended, then try again; its processes: fuser -v {path}",
                ) from None
            time.sleep(0.01)
            continue
        if _same_file(path, descriptor):
            break
        # Its holder removed the file between our open and our lock: the lock that counts is on the new one.
        os.close(descriptor)
    try:
        # Of several that share it, the last one is named.
        os.ftruncate(descriptor, 0)
        os.pwrite(descriptor, holder.encode(), 0)
    except OSError:  # a full disk: a descriptor left open would hold the lock
        os.close(descriptor)
        raise
    return Lock(path, descriptor)


def _same_file(path: Path, descriptor: int) -> bool:
    try:
        return os.path.samestat(path.lstat(), os.fstat(descriptor))
    except FileNotFoundError:
        return False


def held(path: Path) -> bool:
    """Whether anyone holds a lock on `path` now. Nobody does on what is no file."""
    try:
        descriptor = _opened(path)
    except (FileNotFoundError, Unsafe):
        return False
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        return True
    finally:
        os.close(descriptor)
    return False


def _opened(path: Path) -> int:
    try:
        return files.open_plain(path, os.O_RDWR)
    except OSError as error:
        if error.errno not in (errno.EROFS, errno.EACCES):
            raise
    return files.open_plain(path, os.O_RDONLY)  # only NFS wants more for a lock
