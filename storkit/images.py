"""Disk images in and out: look at one, refuse what is hostile or damaged, fill a volume from it, export a volume.

An image is told apart by its magic number and its header is read here first (storkit.tech.images.headers);
qemu-img sees it afterwards with its format named, its memory and time limited, and no backing file. A volume is filled
while it is marked as importing, so that nothing can use it before its size, content and checksum have been checked.
"""

from __future__ import annotations

import os
import stat
from collections.abc import Iterator
from contextlib import ExitStack, closing, contextmanager
from dataclasses import replace
from pathlib import Path

from storkit.core.backend import Site
from storkit.core.errors import (
    NotFound,
    StorkitError,
    Unsafe,
    Unsupported,
    UsageError,
    raise_problems,
)
from storkit.core.imagefiles import Examined, FileToLay, ImageFile, ImageInfo, Inside, Laid, Piece
from storkit.core.model import IMPORTING, Attachment, Volume
from storkit.core.units import SECTOR, format_size
from storkit.system import files, locks
from storkit.tech.athand import at_hand
from storkit.tech.files import managed
from storkit.tech.files.content import refilling, streams
from storkit.tech.files.sidecar import SPOOL, rename_new
from storkit.tech.images import checksums, exporting, headers, qemuimg, unpack

_CHUNK = 1 << 20
_NAMED = {".qcow2": "qcow2", ".vmdk": "vmdk", ".vhd": "vpc", ".vpc": "vpc", ".vdi": "vdi", ".vhdx": "vhdx"}
"""What the ends of file names promise: a vpc image that lost its footer looks like a raw disk."""


def inspect(site: Site, source: str, format: str = "", checksum: str = "", max_size: int = 0) -> ImageInfo:
    """What is in the image file `source` on this host; nothing is changed.

    `format` is asked for only where a file must be taken as raw though it looks like something else. `checksum` is
    `sha256:HEX` or `sha512:HEX` of the file as it is. Raises, together: NotFound; UsageError: damaged, truncated,
    too large (`max_size`, or 64 TiB), wrong checksum; Unsafe: it points to other files; Unsupported.
    """
    limit = max_size or headers.MAX_SIZE
    digest = checksums.parse(checksum)
    if format and format not in headers.FORMATS:
        known = ", ".join(headers.FORMATS)
        raise UsageError(f"{format!r} is not a format of disk images that can be imported", f"known: {known}")
    with _opened(source) as (path, file), files.explained(path):
        kind = unpack.compression(os.pread(file, 16, 0))
        if kind:
            info = _inspect_compressed(site, path, file, kind, format, limit)
        else:
            info = _inspect_plain(path, file, format, limit)
        if digest:
            checksums.verify(site, path, file, *digest)
    return info


def fill(site: Site, volume: Volume, source: str, format: str = "", checksum: str = "", max_size: int = 0) -> ImageInfo:
    """Write the image `source` into `volume`, which must be marked as importing; it starts anew when called again.

    What lies beyond the image's end reads as zeros. Raises as `inspect`, and Conflict: no room, or the volume is in
    use; Unsafe: the file was changed meanwhile, or the volume is not one that is being imported.
    """
    if volume.made != IMPORTING:
        raise Unsafe(f"volume {volume.name} is not being imported: its content is not written over", "use a new name")
    if not volume.path:
        raise UsageError(f"volume {volume.name} has no path on {site.host}", "its pool cannot be filled from an image")
    at_hand([volume])
    lock = managed.use(site, volume, holder="image import")
    try:
        with _opened(source) as (path, file):
            before = _fingerprint(file)
            with files.explained(path):
                kind = unpack.compression(os.pread(file, 16, 0))
                if kind and (wanted := checksums.parse(checksum)):
                    checksums.verify(site, path, file, *wanted)
            if kind:
                info = _fill_unpacked(site, volume, path, kind, format, max_size or headers.MAX_SIZE)
            else:
                info = inspect(site, source, format, checksum, max_size)
                _convert_in(site, volume, path, info)
            if _fingerprint(file) != before:
                raise Unsafe(f"{path} was changed while it was imported", "import it again when nobody writes it")
    finally:
        lock.release(remove=True)
    return info


def refill(site: Site, volumes: list[Volume], rate: int = 0) -> None:
    """Give the first of two volumes, which must be marked as importing, the content of the second."""
    at_hand(volumes)
    volume, source = volumes
    refilling.refill(site, volume, source, rate)


def pull(site: Site, volume: Volume, attached: Attachment, rate: int = 0) -> None:
    """Give a volume, which must be marked as importing, the content of one of another host that is attached here."""
    at_hand([volume])
    refilling.pull(site, volume, attached, rate)


def digest(site: Site, volume: Volume) -> str:
    """What a volume that nobody writes holds, in a line that is the same for every copy of it."""
    from storkit.tech.files.content import digesting

    at_hand([volume])
    return digesting.digest(site, volume)


def export_image(site: Site, volume: Volume, file: str, format: str = "qcow2", compress: bool = False) -> ImageFile:
    """Write a volume to a new image file, whole or not at all. Returns the file and its size in bytes.

    Raises Conflict: the file exists, the volume is in use, or there is no room; UsageError: the format cannot be
    compressed, or no directory for the file.
    """
    at_hand([volume])
    final = Path(file).absolute()
    exporting.refuse(volume, final, format, compress)
    partial = final.with_name(final.name + files.PARTIAL)
    with ExitStack() as stack:
        if volume.kind == "disk":
            stack.callback(managed.use(site, volume, shared=True).release)
        descriptor = stack.enter_context(_partial_file(partial, f"{final}"))
        arguments = [*exporting.options(format, compress), "-O", format, qemuimg.node(volume.format, volume.path)]

        def progress(part: float) -> None:
            site.progress(part, f"exporting {volume.name}")

        # By its descriptor: in a directory that others may write the name may be that of another file by now.
        qemuimg.convert([*arguments, files.by_descriptor(descriptor)], volume.size, partial, progress, [descriptor])
        os.fsync(descriptor)
        os.fchmod(descriptor, 0o600)
        rename_new(partial, final)
        files.sync_directory(final.parent)
        found = os.fstat(descriptor)
        if not os.path.samestat(found, final.lstat()):
            message = f"{final} is not what was written: another user has put something in its place"
            raise Unsafe(message, "export it to a directory that only you may write")
    return ImageFile(str(final), found.st_size)


def look_inside(site: Site, volume: Volume) -> Inside:
    """What in a volume makes one machine another than its clones; nothing is mounted."""
    from storkit.tech.files import changing

    at_hand([volume])
    return changing.look(site, volume)


def lay(site: Site, volume: Volume, inside: Inside, files: list[FileToLay]) -> list[Laid]:
    """Write files into the file system of a volume that nobody uses; where the slots lie."""
    from storkit.tech.files import changing

    at_hand([volume])
    return changing.lay(site, volume, inside, files)


def put_back(site: Site, volumes: list[Volume], inside: Inside, paths: list[str]) -> None:
    """Give files of the first of two volumes the content that they have in the second."""
    from storkit.tech.files import changing

    at_hand(volumes)
    volume, source = volumes
    changing.put_back(site, volume, source, inside, paths)


def examine(site: Site, volume: Volume) -> Examined:
    """All bytes of a volume that nobody writes, and the files that they are in."""
    from storkit.tech.files.content import examining

    at_hand([volume])
    return examining.examine(site, volume)


def write_in(site: Site, volumes: list[Volume], pieces: dict[str, list[Piece]]) -> None:
    """Write bytes at places of volumes that nobody uses, durably."""
    from storkit.tech.files import changing

    at_hand(volumes)
    changing.write_in(site, volumes, pieces)


# Looking


@contextmanager
def _opened(source: str) -> Iterator[tuple[Path, int]]:
    path = Path(source)
    try:
        file = os.open(path, os.O_RDONLY | os.O_CLOEXEC | os.O_NONBLOCK)
    except FileNotFoundError:
        raise NotFound(f"there is no file {path}", "name the image file on the pool's host") from None
    except OSError as error:
        raise UsageError(f"{path} cannot be read: {error.strerror}", "check its owner and permissions") from error
    try:
        mode = os.fstat(file).st_mode
        if stat.S_ISDIR(mode):
            raise UsageError(f"{path} is a directory, and no image of a disk", "a guest's root file system: --tree")
        if not (stat.S_ISREG(mode) or stat.S_ISBLK(mode)):
            raise UsageError(f"{path} is neither a file nor a block device", "give a stream on standard input, as -")
        yield path, file
    finally:
        os.close(file)


def _fingerprint(file: int) -> tuple[int, ...]:
    now = os.fstat(file)
    return now.st_dev, now.st_ino, now.st_size, now.st_mtime_ns, now.st_ctime_ns


def _inspect_plain(path: Path, file: int, format: str, limit: int) -> ImageInfo:
    size = os.lseek(file, 0, os.SEEK_END)
    view = headers.View(
        os.pread(file, headers.HEAD, 0),
        size,
        os.pread(file, 512, max(0, size - 512)),
        lambda offset, length: os.pread(file, length, offset),
    )
    found = format or headers.recognise(view)
    header = _examine(path, view, found, format, limit)
    details = qemuimg.info(path, found)
    seen = int(details["virtual-size"])
    if seen != header:
        raise Unsafe(f"{path} contradicts itself: a disk of {header} bytes, or of {seen}", "do not use this file")
    qemuimg.check(path, found, int(details.get("cluster-size", 0)))
    specific = details.get("format-specific", {}).get("data", {})
    padding = header - size if found == "raw" else 0
    return ImageInfo(
        str(path), found, "", size, header, qemuimg.required(qemuimg.node(found, path, alone=True)), specific, padding
    )


def _inspect_compressed(site: Site, path: Path, file: int, kind: str, format: str, limit: int) -> ImageInfo:
    """The header is enough for formats that have one; a raw image is unpacked once to know its size."""
    size = os.fstat(file).st_size
    head, total, data, tail = b"", 0, 0, b""
    zeros = bytes(_CHUNK)
    ended = True
    with closing(unpack.unpack(path, kind)) as pieces:
        for piece in pieces:
            if len(head) < headers.HEAD:
                head += piece
            total += len(piece)
            if total > limit:
                raise streams.too_large(path, f"more than {format_size(limit)} when unpacked", limit)
            data += len(piece) if piece != zeros[: len(piece)] else 0
            tail = (tail + piece)[-512:]
            site.progress(0.0, f"looking into {path.name}: {format_size(total)}")
            if len(head) >= headers.HEAD and headers.recognise(headers.View(head, -1)) != "raw":
                ended = format == "raw"
                if not ended:
                    break
    view = headers.View(head[: headers.HEAD], total if ended else -1, tail if ended else b"")
    found = format or headers.recognise(view)
    disk = _examine(path, view, found, format, limit)
    padding = disk - total if found == "raw" else 0
    return ImageInfo(str(path), found, kind, size, disk, data if ended else 0, padding=padding)


def _examine(path: Path, view: headers.View, found: str, format: str, limit: int) -> int:
    """The disk's size, if nothing speaks against the image."""
    if found not in headers.FORMATS:
        article = found if found.startswith(("a ", "an ")) or " " in found else f"a {found} image"
        hint = "unpack the image in it; or --tree, for a root file system" if "tar" in found else "convert it first"
        raise Unsupported(f"{path} is {article}, which cannot be imported", hint)
    looks = headers.recognise(view)
    if format not in ("", "raw") and looks != format:
        raise UsageError(f"{path} is not a {format} image: it looks like {looks}", "leave --format out")
    findings = headers.examine(view, found, str(path))
    if found == "raw" and not format:
        _doubt_raw(path, view, findings)
    size = -(-findings.virtual_size // SECTOR) * SECTOR
    if not findings.problems and size <= 0:
        findings.bad("the disk in it has no bytes")
    if size > limit:
        findings.problems.append(streams.too_large(path, f"a disk of {size} bytes", limit))
    raise_problems(findings.problems)
    return size


def _doubt_raw(path: Path, view: headers.View, findings: headers.Findings) -> None:
    """A file without a header is a raw disk only if nothing says that it is half of something, or something else."""
    if view.size > 0 and view.size % SECTOR:
        hint = "get the file again; if it is what you want, --format raw adds zeros up to a whole sector"
        findings.bad(f"{view.size} bytes are no whole number of sectors of {SECTOR} bytes, as a disk has", hint)
    suffix = Path(path.stem).suffix if path.suffix.lower() in unpack.SUFFIXES else path.suffix
    if kind := _NAMED.get(suffix.lower()):
        hint = "get the file again; if it is a raw disk in spite of its name, --format raw takes it as one"
        findings.bad(f"it is named like a {kind} image, and is none: damaged, or cut short", hint)


# Filling


def _fill_unpacked(site: Site, volume: Volume, path: Path, kind: str, format: str, limit: int) -> ImageInfo:
    with _spooled(site, volume, path, kind, format, limit) as spool:
        try:
            info = inspect(site, str(spool), format, "", limit)
        except StorkitError as error:
            # The spool is nobody's concern: the file that was given is what is wrong.
            for problem in error.each:
                problem.message = problem.message.replace(str(spool), str(path))
                problem.args = (problem.message,)
            raise
        _convert_in(site, volume, spool, info)
    return replace(info, source=str(path), compression=kind, file_size=path.stat().st_size)


def _convert_in(site: Site, volume: Volume, source: Path, info: ImageInfo) -> None:
    if volume.size < info.virtual_size:
        raise _too_small(volume, format_size(info.virtual_size))
    refilling.write(site, volume, qemuimg.node(info.format, source, alone=True), info.required, "importing")


@contextmanager
def _spooled(site: Site, volume: Volume, path: Path, kind: str, format: str, limit: int) -> Iterator[Path]:
    """The unpacked image while it is needed: beside the volume, or below the state directory for a device."""
    target = Path(volume.path)
    directory = files.make_private(site.state / SPOOL) if files.is_device(target) else target.parent
    partial = directory / f"{volume.name}.{SPOOL}{files.PARTIAL}"
    with _partial_file(partial, f"the import of {volume.name}") as descriptor:

        def progress(offset: int) -> None:
            site.progress(0.0, f"unpacking {path.name}: {format_size(offset)}")

        with closing(unpack.unpack(path, kind)) as pieces:
            streams.write_sparse(partial, descriptor, _fitting(volume, pieces, format), limit, progress)
        yield partial


def _fitting(volume: Volume, pieces: Iterator[bytes], format: str) -> Iterator[bytes]:
    """A raw disk is given up as soon as it is larger than its volume (one that turns out to be vpc has a footer)."""
    head, total = b"", 0
    for piece in pieces:
        if len(head) < headers.HEAD:
            head += piece
        total += len(piece)
        if total > volume.size + SECTOR and (format or headers.recognise(headers.View(head, -1))) == "raw":
            raise _too_small(volume, "more")
        yield piece


def _too_small(volume: Volume, wanted: str) -> StorkitError:
    message = f"volume {volume.name} of {format_size(volume.size)} is smaller than the image ({wanted})"
    return UsageError(message, f"import it anew: storkit volume delete {volume.name}, then import without --size")


@contextmanager
def _partial_file(path: Path, what: str) -> Iterator[int]:
    """A partial file of this process's own, gone afterwards: a dead one's is taken over, a living one's a Conflict."""
    try:
        lock = locks.acquire(path, what, holder=f"pid {os.getpid()}")
    except OSError as error:
        raise files.explain(error, path) from error
    try:
        os.ftruncate(lock.descriptor, 0)
        yield lock.descriptor
    finally:
        path.unlink(missing_ok=True)
        lock.release()


# Exporting
