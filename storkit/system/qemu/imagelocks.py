"""QEMU's locks on an image, held by storkit for a server of its own (QEMU: block/file-posix.c).

Who has an image open in QEMU, qemu-nbd, qemu-img or a storage daemon holds read locks on single bytes of it: byte
100 + N for a permission that it has, 200 + N for one that nobody else may have; and it is refused if anybody holds the
opposite of one of them. A server for several clients lets its own exports share everything, and with them the whole
machine: two `qemu-nbd` of one raw image write at once. So storkit holds what somebody has who writes alone, and tells
its server to hold nothing (`locking=off`). The locks are those of the open file (F_OFD_SETLK of fcntl(2)), which the
server inherits: they are there before it is, and end with it, however it ends.

They bind whoever asks for locks. Who only opens the file is not refused.

Beside a guest's own QEMU, which has the image open since before it was a volume, nothing is locked: it asks for its
own locks again when a migration of its has failed, and would be refused. The server gets descriptors without locks
then, and `lock` takes these in its place once that QEMU has ended.
"""

from __future__ import annotations

import errno
import fcntl
import os
import struct
import time
from collections.abc import Collection, Iterable, Iterator, Sequence
from contextlib import ExitStack, contextmanager
from pathlib import Path

from storkit.core.errors import Conflict, Unsupported
from storkit.system import files, openers

_HAS, _ALONE = 100, 200
_READ, _WRITE, _RESIZE = 0, 1, 3
"""Bits of QEMU's permissions (BLK_PERM_CONSISTENT_READ, _WRITE, _RESIZE)."""
_FLOCK = struct.Struct("hhqqi4x")
_PIDFD_GETFD = 438
"""Its number, the same on every architecture but Alpha."""
_TICK = 0.01


@contextmanager
def held(images: Iterable[Path], what: str, *, writes: bool, deadline: float) -> Iterator[list[int]]:
    """Hold the locks on an image, the first, and on those that it stands on; the descriptors that hold them.

    Until `deadline` (time.monotonic) one is waited for whose holder has been killed.

    Raises Conflict: somebody has one of them open. Unsupported: the file system has no locks.
    """
    with ExitStack() as stack:
        descriptors = []
        for number, image in enumerate(images):
            descriptor = _opened(image)
            stack.callback(os.close, descriptor)
            _hold(descriptor, image, what, writes and number == 0, deadline)
            descriptors.append(descriptor)
        yield descriptors


@contextmanager
def beside(images: Iterable[Path], what: str, known: Collection[int]) -> Iterator[list[int]]:
    """Descriptors of images as `held` gives them, without locks: these processes have them open.

    Raises Conflict: others have locks on one of them.
    """
    with ExitStack() as stack:
        descriptors = []
        for image in images:
            descriptors.append(_opened(image))
            stack.callback(os.close, descriptors[-1])
            opened = openers.find([str(image)]).get(str(image), [])
            if others := [each for each in opened if each.locked and not each.killed and each.pid not in known]:
                raise _conflict(image, what, others)
        yield descriptors


def lock(pid: int, descriptors: Sequence[int], images: Sequence[Path], what: str, *, writes: bool) -> None:
    """Take the locks of `held` on descriptors that a process has had from `beside`, of these images.

    Raises Conflict: somebody has one of the images open. Unsupported: the kernel does not let this user have them.
    """
    process = os.pidfd_open(pid)
    try:
        for number, (theirs, image) in enumerate(zip(descriptors, images, strict=True)):
            # A lock is that of the open file: taken by a copy of the descriptor, it is the process's from then on.
            copy = _copied(process, theirs)
            try:
                _hold(copy, image, what, writes and number == 0, time.monotonic())
            finally:
                os.close(copy)
    finally:
        os.close(process)


def _copied(process: int, descriptor: int) -> int:
    """A copy of another process's descriptor (pidfd_getfd(2), of Linux 5.6), which the C library has no call for."""
    import ctypes

    libc = ctypes.CDLL(None, use_errno=True)
    copy = int(libc.syscall(_PIDFD_GETFD, process, descriptor, 0))
    if copy < 0:
        reason = os.strerror(ctypes.get_errno())
        raise Unsupported(f"a descriptor of another process cannot be had: {reason}", "do it as root, on Linux 5.6")
    return copy


def _hold(descriptor: int, image: Path, what: str, writes: bool, deadline: float) -> None:
    has, alone = [_READ, *([_WRITE] if writes else [])], [_WRITE, _RESIZE]
    mine = [*(_HAS + bit for bit in has), *(_ALONE + bit for bit in alone)]
    # First taken, then looked at, as QEMU does: of two at once both may be refused, and never neither.
    against = [*(_ALONE + bit for bit in has), *(_HAS + bit for bit in alone)]
    while busy := [byte for byte in mine if not _take(descriptor, byte, image)] + [
        byte for byte in against if _taken(descriptor, byte)
    ]:
        found = openers.find([str(image)]).get(str(image), [])
        by = [each for each in found if any(map(each.has_locked, busy)) and not each.killed]
        if by or time.monotonic() > deadline:
            raise _conflict(image, what, by)
        time.sleep(_TICK)  # who was killed is no longer seen, or soon will not be, and its locks end with it


def _conflict(image: Path, what: str, by: list[openers.Opener]) -> Conflict:
    who = " and ".join(map(str, by)) or "a process that this user does not see"
    pids = ",".join(str(each.pid) for each in by)
    hint = f"see what it is, and end it: ps -fp {pids}" if by else f"as root: fuser -v {image}"
    return Conflict(f"{what} is in use: {who} holds QEMU's lock on {image}", hint)


def _opened(image: Path) -> int:
    if files.is_device(image):
        return os.open(image, os.O_RDONLY | os.O_CLOEXEC)
    return files.open_plain(image, os.O_RDONLY)


def _take(descriptor: int, byte: int, image: Path) -> bool:
    try:
        fcntl.fcntl(descriptor, fcntl.F_OFD_SETLK, _FLOCK.pack(fcntl.F_RDLCK, os.SEEK_SET, byte, 1, 0))
    except OSError as error:
        if error.errno not in (errno.EAGAIN, errno.EACCES):
            hint = f"put the pool on a file system that has locks: findmnt -T {image}"
            raise Unsupported(f"{image} cannot be locked: {error.strerror}", hint) from error
        return False
    return True


def _taken(descriptor: int, byte: int) -> bool:
    """Whether another open file has a lock on a byte."""
    asked = _FLOCK.pack(fcntl.F_WRLCK, os.SEEK_SET, byte, 1, 0)
    kind, *_ = _FLOCK.unpack(fcntl.fcntl(descriptor, fcntl.F_OFD_GETLK, asked))
    return bool(kind != fcntl.F_UNLCK)
