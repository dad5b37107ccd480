"""Volumes that nobody uses yet, changed where their bytes lie: what makes a clone a machine of its own.

A raw file or a device is changed in place. A qcow2 file is made raw beside it, that is changed, and what has become
another there is written into the qcow2 file by qemu-io(1), as bytes at a place are.
"""

from __future__ import annotations

import base64
import errno
import hashlib
import os
import tempfile
from collections.abc import Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from pathlib import Path

from storkit.core.backend import Site
from storkit.core.errors import (
    CommandFailed,
    Conflict,
    StorkitError,
    Unsafe,
    UsageError,
    collected,
    raise_problems,
)
from storkit.core.imagefiles import FileToLay, Inside, Laid, Piece
from storkit.core.model import Secret, Volume
from storkit.system import files
from storkit.system.parallel import for_each_at_once
from storkit.system.run import run
from storkit.system.timeouts import scaled
from storkit.tech.files import managed, volumefile
from storkit.tech.images import ext4, qcow2, qemuimg

_AT_ONCE = 8
"""Files for one program: it has each piece of each open."""


def look(site: Site, volume: Volume) -> Inside:
    """What is in a volume (storkit.images.look_inside)."""
    with shared(site, volume), raw(site, volume) as descriptor:
        return ext4.look(descriptor, volume.size)


def lay(site: Site, volume: Volume, inside: Inside, laid: Sequence[FileToLay]) -> list[Laid]:
    """Lay files in a volume (storkit.images.lay). An image is never changed: it has what was laid before it was one."""
    if volume.kind != "disk":
        with raw(site, volume) as descriptor:
            return ext4.lay(descriptor, inside, laid, write=False)
    with _own(site, [volume]), raw(site, volume, write=True) as descriptor:
        return ext4.lay(descriptor, inside, laid, write=True)


def put_back(site: Site, volume: Volume, source: Volume, inside: Inside, paths: Sequence[str]) -> None:
    """Give files of a volume back what they are in another (storkit.images.put_back)."""
    with shared(site, source), raw(site, source) as old:
        wanted = ext4.read(old, inside, paths)
    with _own(site, [volume]), raw(site, volume, write=True) as descriptor:
        ext4.lay(descriptor, inside, wanted, write=True)


def write_in(site: Site, volumes: Sequence[Volume], pieces: Mapping[str, Sequence[Piece]]) -> None:
    """Write bytes into volumes (storkit.images.write_in)."""
    problems: list[StorkitError] = []
    for volume in volumes:
        for piece in pieces.get(volume.uuid, ()):
            if piece.offset + len(_bytes(piece)) > volume.size:
                message = f"volume {volume.name} ends before what is to be written at {piece.offset}"
                problems.append(Unsafe(message, "storkit volume show; then create the fleet anew"))
        if volume.kind != "disk":
            problems.append(Unsafe(f"volume {volume.name} is a golden image or a snapshot: nothing is written into it"))
    raise_problems(problems)
    wanted = [volume for volume in volumes if pieces.get(volume.uuid)]
    with _own(site, wanted):
        parts = [[volume] for volume in wanted if volume.format != "qcow2"]
        overlays = [volume for volume in wanted if volume.format == "qcow2"]
        parts += [overlays[at : at + _AT_ONCE] for at in range(0, len(overlays), _AT_ONCE)]
        for_each_at_once(lambda part: _write(part, pieces), parts)
        for directory in {Path(volume.path).parent for volume in wanted if not files.is_device(Path(volume.path))}:
            files.sync_filesystem(directory)


def _write(volumes: Sequence[Volume], pieces: Mapping[str, Sequence[Piece]]) -> None:
    """Write bytes into volumes of one directory, all of them qcow2 files, or a single one that is raw."""
    if volumes[0].format == "qcow2":
        _write_qcow2([(Path(volume.path), pieces[volume.uuid]) for volume in volumes])
        return
    path = Path(volumes[0].path)
    with _opened(path, write=True) as descriptor:
        for piece in pieces[volumes[0].uuid]:
            data = _bytes(piece)
            if os.pwrite(descriptor, data, piece.offset) != len(data):
                raise Conflict(f"no space left to write into {path}", f"df -h {path.parent}")
        if files.is_device(path):
            os.fsync(descriptor)


def _write_qcow2(wanted: Sequence[tuple[Path, Sequence[Piece]]]) -> None:
    """By one qemu-io(1) for these files of one directory, which reads each piece from a file in memory."""
    parts: list[int] = []
    try:
        commands = []
        for path, pieces in wanted:
            # Its words have no quotes, and a volume's name no spaces, as its directory may have.
            commands.append(f"open -o driver=qcow2 {path.name}")
            for piece in pieces:
                data = _bytes(piece)
                parts.append(os.memfd_create("storkit"))
                os.write(parts[-1], data)
                commands.append(f"write -q -s {files.by_descriptor(parts[-1])} {piece.offset} {len(data)}")
            commands.append("close")
        done = run(
            ["env", "-C", wanted[0][0].parent, "qemu-io"], stdin="\n".join([*commands, "quit", ""]),
            timeout=scaled(60), package="qemu-utils", pass_fds=parts,
        )  # fmt: skip
    except CommandFailed as error:
        if os.strerror(errno.ENOSPC) not in error.stderr:
            raise
        directory = wanted[0][0].parent
        raise Conflict(f"no space left to write into clones in {directory}", f"free some: df -h {directory}") from None
    finally:
        for part in parts:
            os.close(part)
    if said := done.stdout.replace("qemu-io> ", "").strip():
        names = ", ".join(path.stem for path, _ in wanted)
        raise Conflict(f"what makes {names} machines of their own cannot be written: {said}")


def _bytes(piece: Piece) -> bytes:
    try:
        return base64.b64decode(piece.data.reveal(), validate=True)
    except ValueError:
        raise UsageError("a piece of a disk is no base64") from None


@contextmanager
def raw(site: Site, volume: Volume, write: bool = False) -> Iterator[int]:
    """A volume as an open raw disk; `write`: what is written into it is the volume's once the context ends well."""
    path = Path(volume.path)
    if not volume.path or volume.kind == "tree":
        raise UsageError(f"volume {volume.name} is no disk on {site.host}")
    if volume.format != "qcow2":
        with _opened(path, write) as descriptor:
            yield descriptor
        return
    # Without a name: two commands that look into one image do not meet, and a kill leaves nothing.
    with tempfile.TemporaryFile(dir=path.parent) as file:
        descriptor = file.fileno()
        os.ftruncate(descriptor, volume.size)
        arguments = ["-n", "--target-image-opts", "--target-is-zero", "-S", "4k", qemuimg.node("qcow2", path)]
        raw = qemuimg.target_options("raw", Path(files.by_descriptor(descriptor)))
        qemuimg.convert([*arguments, raw], volume.size, path, lambda part: None, [descriptor])
        before = _digests(descriptor) if write else {}
        yield descriptor
        if write:
            _write_qcow2([(path, _changed(descriptor, before))])
            volumefile.flush(path)


def _digests(raw: int) -> dict[int, bytes]:
    """What an open raw disk holds, by the offset of each cluster that is no hole."""
    return {offset: hashlib.blake2b(os.pread(raw, qcow2.CLUSTER, offset)).digest() for offset in _clusters(raw)}


def _clusters(raw: int) -> Iterator[int]:
    """The offsets of the clusters of an open file that hold data (lseek(2), SEEK_DATA)."""
    offset, size = 0, os.fstat(raw).st_size
    while offset < size:
        try:
            offset = os.lseek(raw, offset, os.SEEK_DATA) // qcow2.CLUSTER * qcow2.CLUSTER
        except OSError as error:
            if error.errno == errno.ENXIO:  # there is none after this
                return
            raise
        yield offset
        offset += qcow2.CLUSTER


def _changed(raw: int, before: Mapping[int, bytes]) -> list[Piece]:
    """The clusters of an open raw disk that are not as they were."""
    found = []
    for offset, digest in _digests(raw).items():
        if before.get(offset) != digest:
            data = os.pread(raw, qcow2.CLUSTER, offset)
            found.append(Piece(offset, Secret(base64.b64encode(data).decode())))
    return found


@contextmanager
def _opened(path: Path, write: bool) -> Iterator[int]:
    flags = (os.O_RDWR if write else os.O_RDONLY) | os.O_CLOEXEC
    descriptor = os.open(path, flags) if files.is_device(path) else files.open_plain(path, flags)
    try:
        yield descriptor
    finally:
        os.close(descriptor)


@contextmanager
def _own(site: Site, volumes: Sequence[Volume]) -> Iterator[None]:
    """Volumes that nobody else uses while the context lasts. Raises all Conflicts together."""
    problems: list[StorkitError] = []
    with ExitStack() as stack:
        for volume in volumes:
            with collected(problems):
                lock = managed.use(site, volume, holder="its maker")
                stack.callback(lock.release, remove=True)
        raise_problems(problems)
        yield


@contextmanager
def shared(site: Site, volume: Volume) -> Iterator[None]:
    if volume.kind != "disk":
        yield
        return
    lock = managed.use(site, volume, shared=True)
    try:
        yield
    finally:
        lock.release()
