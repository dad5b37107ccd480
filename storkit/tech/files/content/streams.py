"""Disk images from standard input and to standard output, kept as a file on the way: whole, or not at all."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Protocol

from storkit.core.errors import Conflict, StorkitError, UsageError
from storkit.core.units import format_size
from storkit.system import files, locks
from storkit.tech.files import clonefile
from storkit.tech.files.sidecar import SPOOL

_CHUNK = 1 << 20
_KEEP_FREE = 64 << 20


def place(state: Path) -> Path:
    """A new name for a stream below `state`, where what killed commands left is removed first."""
    directory = files.make_private(state / SPOOL)
    for old in directory.glob(f"*{files.PARTIAL}"):
        if not locks.held(old):
            old.unlink(missing_ok=True)
    return directory / f"stream-{os.getpid()}-{os.urandom(4).hex()}{files.PARTIAL}"


class Readable(Protocol):
    """What is read to its end."""

    def read(self, size: int, /) -> bytes:
        """At most so many bytes; none at the end."""


def spool(stream: Readable, state: Path, limit: int) -> Path:
    """Keep a stream as a file below `state` until it is imported; the caller removes it.

    Raises Conflict: no room; UsageError: more than `limit` bytes.
    """
    path = place(state)
    lock = locks.acquire(path, str(path), holder=f"import (pid {os.getpid()})")
    try:
        os.ftruncate(lock.descriptor, 0)
        write_sparse(path, lock.descriptor, iter(lambda: stream.read(_CHUNK), b""), limit)
    except BaseException:
        path.unlink(missing_ok=True)
        lock.release()
        raise
    _kept.append(lock)
    return path


_kept: list[locks.Lock] = []
"""Spooled streams stay locked for the life of this process, so that nobody takes them for leftovers."""


def pour(path: Path, size: int, descriptor: int) -> None:
    """Write a file of `size` bytes, which is removed first, to an open descriptor.

    Raises Conflict: the file is gone or has another size, or there is no room; StorkitError: whoever read it went away.
    """
    try:
        source = os.open(path, os.O_RDONLY | os.O_CLOEXEC)
    except OSError as error:
        raise files.explain(error, path) from error
    try:
        path.unlink()
        written = 0
        while piece := os.read(source, _CHUNK):
            view = memoryview(piece)
            while view:
                count = os.write(descriptor, view)
                written += count
                view = view[count:]
        if written != size:
            raise Conflict(f"{path} has {written} bytes instead of {size}", "export it again")
    except BrokenPipeError:
        message = f"whoever read standard output went away after {written} of {size} bytes"
        raise StorkitError(message, "what was read is no whole image: export it again") from None
    except OSError as error:
        raise files.explain(error, Path("standard output")) from error
    finally:
        os.close(source)


def too_large(path: Path, what: str, limit: int) -> StorkitError:
    return UsageError(f"{path}: {what}, and {format_size(limit)} is the limit", "set the limit with --max-size")


def write_sparse(
    path: Path, descriptor: int, pieces: Iterator[bytes], limit: int, progress: Callable[[int], None] | None = None
) -> None:
    """Write a stream without its zeros, stopping before the file system is full."""
    offset = checked = 0
    try:
        for piece in pieces:
            if offset + len(piece) > limit:
                raise too_large(path, f"more than {format_size(limit)}", limit)
            if offset >= checked:
                room = os.fstatvfs(descriptor)
                if room.f_bavail * room.f_frsize < _KEEP_FREE:
                    raise Conflict(f"no space left for {path}", f"free some: df -h {path.parent}")
                checked = offset + _KEEP_FREE // 4
            clonefile.write_sparse(descriptor, piece, offset)
            offset += len(piece)
            if progress is not None:
                progress(offset)
        os.ftruncate(descriptor, offset)
    except OSError as error:
        raise files.explain(error, path) from error
