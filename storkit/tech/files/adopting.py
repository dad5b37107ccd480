"""Files that are there become volumes of a directory, and are given back: a sidecar is written or removed, and the file
renamed. Not a byte of it is copied, and in no case is it removed.

The sidecar comes first, and names the file's place: a file that is not under its volume's name yet, or any more, is
found there by whoever goes on after a kill. So it is the other way round with what `sidecar.publish` makes, whose rest
is removed.
"""

from __future__ import annotations

import os
import re
import stat
from collections.abc import Sequence
from contextlib import suppress
from dataclasses import dataclass, replace
from pathlib import Path

from storkit.core.errors import (
    Conflict,
    NotFound,
    StorkitError,
    Unsafe,
    Unsupported,
    UsageError,
    collected,
    raise_problems,
)
from storkit.core.identities import check_name, check_path, check_uuid
from storkit.core.model import Adoptable, Existing, Volume, closed
from storkit.core.units import SECTOR
from storkit.system import files, ownership
from storkit.tech import occupied
from storkit.tech.files import managed
from storkit.tech.files.sidecar import VERSION, Sidecar, VolumeDirectory, other_volume, rename_new
from storkit.tech.files.volumefile import FORMATS
from storkit.tech.images import headers, qcow2

ADOPTED = "adopted"
"""How a volume came to be that was there before (Volume.made)."""
_BEGUN = ".storkit.adopting"
"""A sidecar until it is whole. Under the name that `sidecar.publish` gives it, a rest of it would say that the file is
one that was being made, and is to be removed."""
_FLATTEN = "make one file of it, without them: qemu-img convert -O qcow2 {0} NEW, then adopt NEW"


@dataclass(frozen=True, slots=True)
class File:
    """A file that can become a volume."""

    path: Path
    format: str
    size: int
    identity: tuple[int, int]
    """Device and inode number."""


def examine(existing: Existing, directory: Path, host: str) -> File:
    """The file, once nothing speaks against adopting it into `directory`; raises everything that does.

    NotFound: it is no file at all, so another pool may know it.
    """
    path = _path(existing)
    there = path.lstat()
    if stat.S_ISLNK(there.st_mode):
        raise Unsafe(f"{path} is a symbolic link, to {os.path.realpath(path)}", "name the file itself")
    if stat.S_ISBLK(there.st_mode):
        raise NotFound(f"{path} is a device, and no file", "name a pool that it is in: --pool")
    if not stat.S_ISREG(there.st_mode):
        raise UsageError(f"{path} is {files.kind(there.st_mode)}, and no file of a disk", f"ls -l {path}")
    problems: list[StorkitError] = _standing(path, there, directory, existing)
    found = File(path, "", 0, (there.st_dev, there.st_ino))
    with collected(problems):
        found = _content(path, existing, found.identity)
    problems += occupied.problems(str(path), existing, host)
    raise_problems(problems)
    return found


def adoptable(found: File, existing: Existing, directory: Path) -> Adoptable:
    """What a file would be as a volume in `directory`."""
    name = found.path.stem if found.path.suffix[1:] in ("raw", "img", "qcow2", "qcow", "disk") else found.path.name
    moved = found.path.parent != Path(os.path.realpath(directory))
    return Adoptable(existing.place, re.sub(r"[^A-Za-z0-9._-]", "-", name), found.size, found.format, moved)


def adopt(
    directory: VolumeDirectory, volumes: Sequence[Volume], found: Sequence[Existing], made: Sequence[Volume], host: str
) -> None:
    """Make volumes of files; `made` are the volumes as their sidecars have them, but for what the files say. The lock
    of the directory is held."""
    problems: list[StorkitError] = []
    todo: list[tuple[Sidecar, File]] = []
    begun: list[Sidecar] = []
    opened = {volume.uuid for volume, existing in zip(volumes, found, strict=True) if existing.processes}
    for volume, existing, fresh in zip(volumes, found, made, strict=True):
        with collected(problems):
            check_uuid(volume.uuid)
            sidecar = directory.read(check_name("volume", volume.name))
            if sidecar is not None and sidecar.volume.uuid == volume.uuid:
                begun.append(sidecar)
                continue
            file = examine(existing, directory.path, host)
            known = replace(fresh, size=file.size, format=file.format, was=str(file.path))
            _refuse_taken(directory, known, file, sidecar)
            todo.append((Sidecar(VERSION, known), file))
    problems += _twice([sidecar.volume for sidecar, _ in todo])
    raise_problems(problems)
    try:
        for sidecar, file in todo:
            _begin(directory, sidecar)
            _move(directory, sidecar, file)
    except BaseException:
        for sidecar, _ in todo:
            if directory.sidecar(sidecar.volume.name).exists():
                with suppress(StorkitError, OSError):
                    _give_back(directory, sidecar)
        raise
    for sidecar in begun:
        _move(directory, sidecar)
    for sidecar in [*begun, *(each for each, _ in todo)]:
        if sidecar.volume.uuid in opened:
            _keep_old_name(directory, sidecar)


def disown(directory: VolumeDirectory, volumes: Sequence[Volume], refusals: Sequence[StorkitError] = ()) -> list[str]:
    """Give files back; where each is, or nothing where there is no such volume. The lock of the directory is held."""
    problems = list(refusals)
    places: list[str] = []
    gone: list[Sidecar] = []
    for volume in volumes:
        places.append("")
        with collected(problems):
            sidecar = directory.read(check_name("volume", volume.name))
            if sidecar is None or other_volume(volume, sidecar):
                continue
            data = directory.data(volume.name, sidecar.volume.format)
            places[-1] = sidecar.volume.was or str(data)
            problems += _kept(sidecar.volume, data)
            gone.append(sidecar)
    problems += directory.needed(gone, "given back")
    raise_problems(problems)
    for sidecar in gone:
        _give_back(directory, sidecar)
    return places


def remove_old_name(directory: VolumeDirectory, volume: Volume) -> None:
    """Remove the name that a volume's file had before, if it has it still."""
    if _has_old_name(directory, volume):
        Path(volume.was).unlink()


def _keep_old_name(directory: VolumeDirectory, sidecar: Sidecar) -> None:
    """Let a file have its old name as well: QEMU, which has it open, opens it anew by that when it lets go of its right
    to write (`auto-read-only` of its block nodes), and does not let go where it finds nothing. A symbolic link would
    not do: its user may not enter the pool's directory."""
    old, data = Path(sidecar.volume.was), directory.data(sidecar.volume.name, sidecar.volume.format)
    if not _same(old, data) and not os.path.lexists(old):
        old.hardlink_to(data)


def _has_old_name(directory: VolumeDirectory, volume: Volume) -> bool:
    old, data = Path(volume.was), directory.data(volume.name, volume.format)
    with suppress(OSError):
        return bool(volume.was) and not _same(old, data) and os.path.samestat(old.lstat(), data.lstat())
    return False


def _path(existing: Existing) -> Path:
    """The path of a file, no symbolic link on the way to it. Raises NotFound."""
    place = existing.place
    with suppress(UsageError):
        check_path(place)
        path = Path(os.path.realpath(Path(place).parent)) / Path(place).name
        if os.path.lexists(path):
            return path
        raise NotFound(f"there is no file {path}", "name the file on the pool's host")
    raise NotFound(f"{place!r} is no path of a file", "name it from / on, without '..'")


def _standing(path: Path, there: os.stat_result, directory: Path, existing: Existing) -> list[StorkitError]:
    """What speaks against a file by where it is, whose it is, and what is beside it."""
    found: list[StorkitError] = []
    real = Path(os.path.realpath(directory))
    if there.st_nlink > 1:
        hint = f"find the other names, and remove them: find {path.parent} -xdev -samefile {path}"
        found.append(Conflict(f"{path} has {there.st_nlink} names (hard links)", hint))
    if there.st_mode & 0o022:
        found.append(Unsafe(f"{path} may be written by others than its owner", f"chmod go-w {path}"))
    if there.st_uid not in (0, os.geteuid()) and not existing.in_guest:
        message = f"{path} belongs to user {there.st_uid}, who may write it whatever storkit says"
        found.append(Unsafe(message, f"chown root: {path}; or adopt the guest whose disk it is"))
    if path.suffix[1:] in FORMATS and (path.with_suffix(".json").exists()):
        with suppress(StorkitError):
            if VolumeDirectory(path.parent).read(path.stem):
                pool = "" if path.parent == real else f" of another pool, in {path.parent}"
                found.append(
                    Conflict(f"{path} is volume {path.stem} already{pool}", f"storkit volume show {path.stem}")
                )
    with collected(found):
        if managed.read(path.parent):
            hint = "make a copy: storkit volume import"
            found.append(Conflict(f"{path} lies in a directory that several managers share", hint))
    if path.name.startswith(".") or path.name.endswith(files.PARTIAL):
        found.append(Conflict(f"{path} is being made, or hidden", "give it a name of its own first: mv"))
    if path.parent != real:
        place = next(each for each in (real, *real.parents) if each.exists())
        if there.st_dev != place.stat().st_dev:
            message = f"{path} is on another file system than the pool's directory {directory}: it would be copied"
            found.append(Conflict(message, f"copy it: storkit volume import {path} NAME; or name another --pool"))
        elif why := ownership.exposed(path.parent):
            found.append(Unsafe(f"{path} is not taken: {why.message}", why.hint))
    return found


def _content(path: Path, existing: Existing, identity: tuple[int, int]) -> File:
    """What the file holds. Raises everything that keeps it from being a volume's."""
    descriptor = files.open_plain(path, os.O_RDONLY)
    try:
        size = os.lseek(descriptor, 0, os.SEEK_END)
        view = headers.View(
            os.pread(descriptor, headers.HEAD, 0),
            size,
            os.pread(descriptor, SECTOR, max(0, size - SECTOR)),
            lambda offset, length: os.pread(descriptor, length, offset),
        )
    except OSError as error:
        raise files.explain(error, path) from error
    finally:
        os.close(descriptor)
    format = headers.recognise(view)
    if format not in ("raw", "qcow2"):
        raise Unsupported(f"{path} is {format}, and volumes are raw or qcow2", f"storkit volume import {path} NAME")
    if existing.format and existing.format != format:
        message = f"{path} is {format} by its content, and its guest takes it for {existing.format}"
        raise Unsafe(message, f"see what it is: qemu-img info {path}")
    findings = headers.examine(view, format, str(path))
    if format == "qcow2":
        _refuse_parts(path, view, findings)
    disk = size if format == "raw" else findings.virtual_size
    if disk % SECTOR:
        whole = -(-disk // SECTOR) * SECTOR
        hint = f"make it longer: qemu-img resize -f {format} {path} {whole}"
        findings.problems.append(UsageError(f"{path}: {disk} bytes are not whole {SECTOR}-byte sectors", hint))
    raise_problems(findings.problems)
    return File(path, format, disk, identity)


def _refuse_parts(path: Path, view: headers.View, findings: headers.Findings) -> None:
    for problem in findings.problems:
        if isinstance(problem, Unsafe):  # it stands on another file: an import would want it flat, and so do we
            problem.hint = _FLATTEN.format(path)
    with suppress(ValueError):
        if count := qcow2.parse(view.head).snapshots:
            message = f"{path}: the image has internal snapshots ({count})"
            findings.problems.append(Unsupported(message, _FLATTEN.format(path)))


def _refuse_taken(directory: VolumeDirectory, volume: Volume, file: File, sidecar: Sidecar | None) -> None:
    """Raise Conflict if the name is not free for this file."""
    if sidecar is not None:
        hint = f"choose another name, or look at it: storkit volume show {volume.name}"
        raise Conflict(f"volume {volume.name} exists already in {directory.path}", hint)
    target = directory.data(volume.name, volume.format)
    own = file.path.name if file.path.parent == Path(os.path.realpath(directory.path)) else ""
    present = {entry.name for entry in os.scandir(directory.path)} - {own}
    if way := directory.taken(volume.name, present):
        raise Conflict(way, f"choose another name than {target.stem}")


def _twice(volumes: Sequence[Volume]) -> list[StorkitError]:
    names, places = [each.name for each in volumes], [each.was for each in volumes]
    return [
        UsageError(f"{each} is named twice", "adopt each file once, each under its own name")
        for each in dict.fromkeys([*names, *places])
        if names.count(each) > 1 or places.count(each) > 1
    ]


def _begin(directory: VolumeDirectory, sidecar: Sidecar) -> None:
    begun = directory.path / _BEGUN
    files.write_new(begun, directory.text(sidecar), durable=True)
    rename_new(begun, directory.sidecar(sidecar.volume.name))
    files.sync_directory(directory.path)


def _move(directory: VolumeDirectory, sidecar: Sidecar, file: File | None = None) -> None:
    """Give a file its volume's name. Raises Unsafe, and lets it be: it is not the one that was looked at."""
    source, target = Path(sidecar.volume.was), directory.data(sidecar.volume.name, sidecar.volume.format)
    if _same(source, target):
        return
    if not os.path.lexists(target):
        rename_new(source, target)
        there = target.lstat()
        if file is not None and (there.st_dev, there.st_ino) != file.identity:
            rename_new(target, source)
            raise Unsafe(f"{source} is not the file any more that was looked at", "see who changes it")
    files.sync_directory(target.parent)
    files.sync_directory(source.parent)


def _give_back(directory: VolumeDirectory, sidecar: Sidecar) -> None:
    """Bring a file to its old place, then remove the sidecar."""
    data = directory.data(sidecar.volume.name, sidecar.volume.format)
    old = Path(sidecar.volume.was) if sidecar.volume.was else data
    remove_old_name(directory, sidecar.volume)
    if not _same(old, data) and os.path.lexists(data):
        rename_new(data, old)
        files.sync_directory(old.parent)
    directory.sidecar(sidecar.volume.name).unlink(missing_ok=True)
    files.sync_directory(directory.path)


def _same(one: Path, other: Path) -> bool:
    """Whether two paths are one name: none of them need be there."""
    return one.name == other.name and os.path.realpath(one.parent) == os.path.realpath(other.parent)


def _kept(volume: Volume, data: Path) -> list[StorkitError]:
    """What keeps a volume from being given back."""
    if volume.kind == "tree":
        hint = f"its files are in {data}: cp -a, then storkit volume delete {volume.name}"
        return [Unsupported(f"volume {volume.name} is a tree, which is not given back", hint)]
    if why := closed(volume):
        return [Conflict(why, "storkit plan list")]
    old = Path(volume.was) if volume.was else data
    if _same(old, data) or not os.path.lexists(data):
        return []
    if os.path.lexists(old) and not os.path.samestat(old.lstat(), data.lstat()):
        return [Conflict(f"{old}, where volume {volume.name} was, is taken", f"move it away: mv {old} ...")]
    if not old.parent.is_dir():
        return [NotFound(f"the directory {old.parent}, where volume {volume.name} was, is gone", f"mkdir {old.parent}")]
    return []
