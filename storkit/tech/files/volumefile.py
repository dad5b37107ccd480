"""What a volume's file holds, in either format: empty ones, their size, and getting them to the disk."""

from __future__ import annotations

import os
from pathlib import Path

from storkit.core.errors import Conflict, NotFound, StorkitError, Unsafe, Unsupported, UsageError
from storkit.core.model import Volume
from storkit.core.units import MAX_SIZE, SECTOR, format_size
from storkit.system import files
from storkit.system.run import run
from storkit.system.timeouts import scaled
from storkit.tech.images import qcow2

FORMATS = ("raw", "qcow2", "tree")
"""What the name of a volume's file, or of a tree's directory, ends in."""


def make_empty(descriptor: int, format: str, size: int) -> None:
    """Turn an open file into an empty disk of `size` bytes that reads as zeros. Raises OSError (ENOSPC)."""
    os.ftruncate(descriptor, 0)
    if format == "qcow2":
        qcow2.empty(size).write(descriptor)
    else:
        os.ftruncate(descriptor, size)


def disk_size(path: Path, format: str) -> int:
    """The size of the disk in a file, in bytes. Raises Unsafe: the file is damaged; OSError."""
    descriptor = files.open_plain(path, os.O_RDONLY)
    try:
        if format == "raw":
            return os.fstat(descriptor).st_size
        head = os.pread(descriptor, qcow2.CLUSTER, 0)
    finally:
        os.close(descriptor)
    try:
        return qcow2.parse(head).size
    except ValueError as error:
        raise Unsafe(f"{path} is damaged: {error}", f"qemu-img check {path}") from error


def allocated(path: Path) -> int:
    """The bytes that a file takes on the disk; blocks shared with others count. Raises Conflict: it is gone."""
    try:
        return path.lstat().st_blocks * 512
    except OSError as error:
        raise files.explain(error, path) from error


def resize(path: Path, format: str, size: int, shrink: bool = False) -> None:
    """Give the disk in a file `size` bytes; nothing to do if it has them. qemu-img(1) does it for qcow2.

    Raises CommandFailed: qcow2 with internal snapshots, or a smaller size without `shrink`.
    """
    now = disk_size(path, format)
    if now == size:
        return
    if format == "raw":
        files.set_length(path, size)
        return
    option = ["--shrink"] if shrink and size < now else []
    run(
        ["qemu-img", "resize", "-q", "-f", format, *option, str(path), str(size)],
        package="qemu-utils",
        timeout=scaled(600),
    )


def chain(path: Path, format: str) -> list[Path]:
    """A volume's file and the files that it stands on, all in one directory.

    Raises NotFound, Conflict: one is gone, or damaged. Unsupported: one is elsewhere.
    """
    found = [path]
    while format == "qcow2":
        try:
            descriptor = files.open_plain(found[-1], os.O_RDONLY)
            try:
                header = qcow2.parse(os.pread(descriptor, qcow2.CLUSTER, 0))
            finally:
                os.close(descriptor)
        except FileNotFoundError:
            raise NotFound(f"{path} stands on {found[-1]}, which is gone", f"qemu-img info {path}") from None
        except ValueError as error:
            raise Conflict(f"{found[-1]} is damaged: {error}", f"qemu-img check {found[-1]}") from error
        if not header.backing:
            break
        if "/" in header.backing or len(found) > 32:
            raise Unsupported(f"{path} stands on {header.backing}, outside of its pool", f"qemu-img info {path}")
        found.append(path.parent / header.backing)
        format = header.backing_format or "raw"
    return found


def flush(path: Path) -> None:
    """Wait until a file is on the disk (fsync(2)); it works through any descriptor, whoever wrote."""
    descriptor = files.open_plain(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def mode(volume: Volume) -> int:
    """The permissions of a volume's file: an image or a snapshot is never written."""
    return 0o600 if volume.kind == "disk" else 0o400


def size_problems(volume: Volume, format: str) -> list[StorkitError]:
    """What is wrong with the size of a volume that is to be made or resized in this format."""
    if format == "tree":
        return []
    limit = qcow2.MAX_SIZE if format == "qcow2" else MAX_SIZE
    if volume.size <= 0:
        return [UsageError(f"volume {volume.name} cannot have {volume.size} bytes", "give a size above zero")]
    if volume.size > limit:
        return [UsageError(f"volume {volume.name}: {format} holds {format_size(limit)} at most", "make it smaller")]
    if volume.size % SECTOR:
        message = f"volume {volume.name}: {volume.size} bytes are not whole {SECTOR}-byte sectors"
        return [UsageError(message, f"make it {-(-volume.size // SECTOR) * SECTOR} bytes")]
    return []
