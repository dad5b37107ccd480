"""Files that are never half written: temporary file, fsync, rename, fsync of the directory (rename(2), fsync(2))."""

from __future__ import annotations

import ctypes
import json
import os
import stat
from collections.abc import Iterable
from pathlib import Path
from typing import Any

from storkit.core.errors import Conflict, StorkitError, Unsafe

PARTIAL = ".partial"
"""The suffix of files that are being made: what carries it is no volume and no record, and may be removed."""


def write_atomic(path: Path, content: str | bytes, mode: int = 0o600) -> None:
    """Replace `path` by `content`: whoever reads it sees the old or the new, also after a power cut."""
    partial = path.with_name(path.name + PARTIAL)
    write_new(partial, content, mode, durable=True)
    partial.rename(path)
    sync_directory(path.parent)


def write_many(files: Iterable[tuple[Path, str]], mode: int = 0o600) -> None:
    """As `write_atomic` for many files of one directory, with one flush of the file system for all (syncfs(2)).

    A file that has been written to before this call, on the same file system, is durable as well when it returns.
    """
    pairs = [(path, path.with_name(path.name + PARTIAL), content) for path, content in files]
    if not pairs:
        return
    directory = pairs[0][0].parent
    for _, partial, content in pairs:
        write_new(partial, content, mode)
    sync_filesystem(directory)
    for path, partial, _ in pairs:
        partial.rename(path)
    sync_directory(directory)


def write_new(path: Path, content: str | bytes, mode: int = 0o600, *, durable: bool = False) -> None:
    """Write a file from its start, removing it again if it cannot be written whole (ENOSPC is a Conflict)."""
    data = content.encode() if isinstance(content, str) else content
    descriptor = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_TRUNC | os.O_CLOEXEC, mode)
    try:
        view = memoryview(data)
        while view:
            view = view[os.write(descriptor, view) :]
        if durable:
            os.fsync(descriptor)
    except OSError as error:
        path.unlink(missing_ok=True)
        raise explain(error, path) from error
    finally:
        os.close(descriptor)


def read_json(path: Path, what: str) -> Any:
    """The JSON value in a file. Raises Unsafe, naming the file, if it is not JSON; FileNotFoundError if it is gone."""
    try:
        return json.loads(path.read_bytes())
    except ValueError as error:
        raise Unsafe(
            f"{what} {path} is damaged: {error}",
            "restore it from a backup, or move it away once you know what it held",
        ) from error


def kind(mode: int) -> str:
    """What a file of this mode (stat(2)) is, in words."""
    kinds = {
        stat.S_IFREG: "a file",
        stat.S_IFDIR: "a directory",
        stat.S_IFLNK: "a symbolic link",
        stat.S_IFIFO: "a FIFO",
        stat.S_IFSOCK: "a socket",
    }
    return kinds.get(stat.S_IFMT(mode), "a device")


def sync_directory(path: Path) -> None:
    """Make renames and removals in a directory durable."""
    descriptor = os.open(path, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def sync_filesystem(path: Path) -> None:
    """Flush the file system that `path` is on (syncfs(2)), which reports write errors since Linux 5.8."""
    descriptor = os.open(path, os.O_RDONLY | os.O_CLOEXEC)
    try:
        if ctypes.CDLL(None, use_errno=True).syncfs(descriptor) != 0:
            number = ctypes.get_errno()
            raise explain(OSError(number, os.strerror(number)), path)
    finally:
        os.close(descriptor)


def make_private(path: Path) -> Path:
    """A directory that only its owner can enter; made, with its parents, if it is missing."""
    path.mkdir(mode=0o700, parents=True, exist_ok=True)
    return path


def explain(error: OSError, path: Path) -> StorkitError:
    """An operating system error on a file, as one line with a hint."""
    import errno

    if error.errno in (errno.ENOSPC, errno.EDQUOT):
        return Conflict(f"no space left for {path}", f"free some, or choose another pool: df -h {path.parent}")
    if error.errno in (errno.EACCES, errno.EPERM, errno.EROFS):
        return Conflict(f"{path} cannot be changed: {error.strerror}", "check its owner, or run storkit as root")
    return Conflict(f"{path}: {error.strerror}", "check the file system it is on")
