"""Bytes of block devices past the page cache: zeroed, discarded, copied with O_DIRECT.

Whoever reads the same bytes through another device (a device-mapper sibling, an iSCSI target) sees them at once, which
it would not if they were in this device's page cache.
"""

from __future__ import annotations

import errno
import fcntl
import mmap
import os
import stat
import struct
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, contextmanager
from pathlib import Path

from storkit.core.errors import NotFound

_BLKDISCARD = 0x1277
_BLKZEROOUT = 0x127F
_STEP = 256 << 20
_CHUNK = 4 << 20

Progress = Callable[[int], None]
"""Called with the bytes done."""


@contextmanager
def opened(path: str, write: bool = False) -> Iterator[int]:
    """A descriptor that goes past the page cache (O_DIRECT)."""
    descriptor = os.open(path, (os.O_RDWR if write else os.O_RDONLY) | os.O_DIRECT | os.O_CLOEXEC)
    try:
        yield descriptor
    finally:
        os.close(descriptor)


def device_size(path: str) -> int:
    """The size of a block device in bytes. Raises NotFound: there is no such block device."""
    try:
        descriptor = os.open(path, os.O_RDONLY | os.O_CLOEXEC)
    except FileNotFoundError:
        raise NotFound(f"there is no device {path}", "lsblk") from None
    try:
        if not stat.S_ISBLK(os.fstat(descriptor).st_mode):
            raise NotFound(f"{path} is not a block device", f"ls -l {path}")
        return os.lseek(descriptor, 0, os.SEEK_END)
    finally:
        os.close(descriptor)


def zero(descriptor: int, start: int, end: int, progress: Progress = lambda done: None) -> None:
    """Make the bytes from `start` to `end` read as zeros, by the device itself where it can (BLKZEROOUT)."""
    _steps(descriptor, _BLKZEROOUT, start, end, progress)
    os.fsync(descriptor)


def clear_thin(descriptor: int, start: int, end: int) -> None:
    """As `zero` for a volume of a thin pool: whole chunks go back to the pool, after which they read as zeros."""
    grain = _discard_granularity(descriptor)
    head, tail = (-(-start // grain) * grain, end // grain * grain) if grain else (end, end)
    if head < tail:
        _steps(descriptor, _BLKDISCARD, head, tail)
        zero(descriptor, start, head)
        zero(descriptor, tail, end)
    else:
        zero(descriptor, start, end)


def copy(source: str, targets: Sequence[str], length: int, progress: Progress = lambda done: None) -> None:
    """Copy the first `length` bytes of a device to others, reading it once; blocks of zeros are zeroed there.

    `length` is whole sectors; the last one may be filled up with what follows in the source. Durable when it returns.
    """
    with ExitStack() as stack:
        file = stack.enter_context(opened(source))
        copies = [stack.enter_context(opened(target, write=True)) for target in targets]
        buffer = stack.enter_context(mmap.mmap(-1, _CHUNK))
        zeros = bytes(_CHUNK)
        for start in range(0, length, _CHUNK):
            wanted = min(_CHUNK, length - start)
            got = os.preadv(file, [memoryview(buffer)[:wanted]], start)
            if got != wanted:
                raise OSError(errno.EIO, f"{source} ends at {start + got} of {length} bytes")
            blank = buffer[:wanted] == zeros[:wanted]
            for target in copies:
                if blank:
                    _steps(target, _BLKZEROOUT, start, start + wanted)
                elif os.pwritev(target, [memoryview(buffer)[:wanted]], start) != wanted:
                    raise OSError(errno.EIO, "a block device took less than it was given")
            progress(start + wanted)
        for target in copies:
            os.fsync(target)


def _steps(descriptor: int, request: int, start: int, end: int, progress: Progress = lambda done: None) -> None:
    """A request of {start, length}, in pieces that can be interrupted between."""
    for at in range(start, end, _STEP):
        fcntl.ioctl(descriptor, request, struct.pack("QQ", at, min(_STEP, end - at)))
        progress(min(at + _STEP, end) - start)


def _discard_granularity(descriptor: int) -> int:
    """Bytes; 0 if the device discards nothing."""
    number = os.fstat(descriptor).st_rdev
    queue = Path(f"/sys/dev/block/{os.major(number)}:{os.minor(number)}/queue")
    if int((queue / "discard_max_bytes").read_text()) == 0:
        return 0
    return int((queue / "discard_granularity").read_text())
