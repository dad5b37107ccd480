"""Copies of a file by the cheapest means its file system has: shared blocks, or the data without the holes.

FICLONE is ioctl_ficlone(2), holes are SEEK_DATA and SEEK_HOLE of lseek(2), the copy is copy_file_range(2).
"""

from __future__ import annotations

import errno
import fcntl
import os
from collections.abc import Callable, Iterator

FICLONE = 0x40049409
CHUNK = 16 << 20
_NO_REFLINK = {errno.EOPNOTSUPP, errno.ENOTTY, errno.EXDEV, errno.EINVAL, errno.ENOSYS, errno.ETXTBSY}
_NO_COPY_RANGE = {errno.EOPNOTSUPP, errno.EXDEV, errno.EINVAL, errno.ENOSYS, errno.EPERM}


def reflink(source: int, target: int) -> bool:
    """Make the open file `target` share all blocks of `source`; False where the file system cannot.

    One moment of `source`, also while it is being written: the kernel locks the file for the length of the call.
    Raises OSError for everything else (ENOSPC).
    """
    try:
        fcntl.ioctl(target, FICLONE, source)
    except OSError as error:
        if error.errno in _NO_REFLINK:
            return False
        raise
    return True


def extents(descriptor: int, size: int) -> Iterator[tuple[int, int]]:
    """The (start, end) of each stretch of data below `size`; all of it where the file system knows no holes."""
    position = 0
    while position < size:
        try:
            start = os.lseek(descriptor, position, os.SEEK_DATA)
        except OSError as error:
            if error.errno == errno.ENXIO:
                return
            if error.errno != errno.EINVAL:
                raise
            yield position, size
            return
        if start >= size:
            return
        end = min(os.lseek(descriptor, start, os.SEEK_HOLE), size)
        yield start, end
        position = end


def copy_sparse(source: int, target: int, size: int, progress: Callable[[int], None] | None = None) -> None:
    """Copy `size` bytes to the empty file `target`, leaving its holes holes.

    `progress` gets the offset that has been reached. Raises OSError (ENOSPC, EIO).
    """
    os.ftruncate(target, size)
    in_kernel = True
    for start, end in extents(source, size):
        position = start
        while position < end:
            length = min(CHUNK, end - position)
            copied = 0
            if in_kernel:
                try:
                    copied = os.copy_file_range(source, target, length, position, position)
                except OSError as error:
                    if error.errno not in _NO_COPY_RANGE:
                        raise
                    in_kernel = False
                    continue
            else:
                copied = _copy_range(source, target, min(length, 1 << 20), position)
            if copied == 0:  # the source was truncated meanwhile: what is missing reads as zeros
                break
            position += copied
            if progress is not None:
                progress(position)


def _copy_range(source: int, target: int, length: int, position: int) -> int:
    data = os.pread(source, length, position)
    write_sparse(target, data, position)
    return len(data)


def write_sparse(target: int, data: bytes, position: int, block: int = 65536) -> None:
    """Write `data` at `position` of a file that reads as zeros there, skipping blocks of zeros.

    Blocks count from `position`. The caller sets the file's length (ftruncate) if it may end in zeros.
    """
    zeros = bytes(block)
    view = memoryview(data)
    run = 0
    for start in range(0, len(data) + block, block):
        piece = data[start : start + block]
        if piece and piece != zeros[: len(piece)]:
            continue
        _write_all(target, view[run:start], position + run)
        run = start + len(piece)


def _write_all(target: int, view: memoryview, position: int) -> None:
    while view:
        written = os.pwrite(target, view, position)
        view = view[written:]
        position += written


def allow_open_files(count: int) -> None:
    """Raise this process's soft limit of open files (getrlimit(2)) if `count` is above it."""
    import resource

    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    if soft < count:
        limit = count if hard == resource.RLIM_INFINITY else min(count, hard)
        resource.setrlimit(resource.RLIMIT_NOFILE, (limit, hard))
