"""Volumes of a directory made of other ones: by shared blocks, as an overlay, or as a copy."""

from __future__ import annotations

import os
from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager
from dataclasses import replace

from storkit.core.backend import Site
from storkit.core.errors import Conflict, StorkitError, UsageError, raise_problems
from storkit.core.model import Volume, closed
from storkit.core.units import exact_size, format_size
from storkit.system import files, locks
from storkit.tech.files import clonefile, managed, volumefile
from storkit.tech.files.sidecar import VERSION, Sidecar, VolumeDirectory
from storkit.tech.images import qcow2

Locked = Callable[[str], AbstractContextManager[VolumeDirectory]]


class _NoReflink(Exception):
    """This file system does not share blocks between these files."""


def make(directory: VolumeDirectory, made: Sequence[Sidecar], fill: Callable[[Volume, int], None]) -> None:
    """Make each volume's file by `fill`, then all of them volumes; on any error nothing of them is left."""
    try:
        for sidecar in made:
            volume = sidecar.volume
            making = directory.making(volume.name, volume.format)
            descriptor = files.open_plain(making, os.O_RDWR | os.O_CREAT | os.O_EXCL)
            try:
                fill(volume, descriptor)
                os.fchmod(descriptor, volumefile.mode(volume))
            finally:
                os.close(descriptor)
        directory.publish(made)
    except BaseException:
        for sidecar in made:
            directory.discard(sidecar.volume.name, mine=True)
        raise


def problems(directory: VolumeDirectory, old: Volume, volumes: Sequence[Volume]) -> list[StorkitError]:
    """Why volumes of these sizes cannot be made of another one."""
    found: list[StorkitError] = []
    for volume in volumes:
        if 0 < volume.size < old.size:
            message = f"volume {volume.name} of {format_size(volume.size)} is smaller than {old.name}, its source"
            found.append(UsageError(message, f"make it {exact_size(old.size)} or larger"))
    if why := closed(old):
        found.append(Conflict(why, "wait for that, or run it again: storkit plan list"))
    if volumefile.disk_size(directory.data(old.name, old.format), old.format) != old.size:
        hint = f"run it again: storkit volume resize {old.name} SIZE"
        found.append(Conflict(f"a resize of volume {old.name} was interrupted", hint))
    return found


def by_reflink(directory: VolumeDirectory, origin: Sidecar, file: int, todo: Sequence[Volume]) -> bool:
    """Make volumes that share the blocks of `file`, the origin's; False if the file system shares none."""
    # One of another size is resized once; the others of that size share its blocks.
    templates: dict[int, int] = {origin.volume.size: file}
    format = origin.volume.format

    def fill(volume: Volume, descriptor: int) -> None:
        if not clonefile.reflink(templates.get(volume.size, file), descriptor):
            raise _NoReflink
        if volume.size not in templates:
            volumefile.resize(directory.making(volume.name, format), format, volume.size)
            templates[volume.size] = os.dup(descriptor)

    made = [replace(origin, volume=derived(origin, volume, format, "reflink")) for volume in todo]
    try:
        make(directory, made, fill)
    except _NoReflink:
        return False
    finally:
        for size, descriptor in templates.items():
            if size != origin.volume.size:
                os.close(descriptor)
    return True


def by_overlay(directory: VolumeDirectory, origin: Sidecar, todo: Sequence[Volume], format: str) -> bool:
    """Make volumes that stand on a golden image; False if they are none that can, or that the pool's `format` lets."""
    old = origin.volume
    wished = not format and all(volume.format == "qcow2" for volume in todo)
    if old.kind == "disk" or not (format == "qcow2" or wished):
        return False
    if any(volume.kind == "snapshot" or volume.size > qcow2.MAX_SIZE for volume in todo):
        return False
    backing = directory.data(old.name, old.format).name
    layouts = {size: qcow2.empty(size, backing, old.format) for size in {volume.size for volume in todo}}
    made = [Sidecar(VERSION, derived(origin, volume, "qcow2", "overlay"), backing=old.uuid) for volume in todo]

    def fill(volume: Volume, descriptor: int) -> None:
        layouts[volume.size].write(descriptor)

    make(directory, made, fill)
    return True


def claim(
    site: Site, directory: VolumeDirectory, verb: str, origin: Sidecar, todo: Sequence[Volume]
) -> list[locks.Lock | managed.Used]:
    """Locks that hold the names of volumes being copied, and the source against being written."""
    clonefile.allow_open_files(len(todo) + 100)
    holder = f"{verb} of {origin.volume.name} (pid {os.getpid()})"
    held: list[locks.Lock | managed.Used] = []
    try:
        if origin.volume.kind == "disk":
            held.append(managed.use(site, directory.whole(origin), shared=True))
        for volume in todo:
            held.append(locks.acquire(directory.claim(volume.name), f"volume {volume.name}", holder=holder))
    except BaseException:
        for lock in held:
            lock.release()
        for volume in todo:
            directory.discard(volume.name)
        raise
    return held


def by_copy(
    site: Site, directory: VolumeDirectory, origin: Sidecar, file: int, todo: Sequence[Volume], locked: Locked
) -> None:
    """Make volumes that are copies, without the holes. `locked` takes the directory's lock again to publish them."""
    made = [replace(origin, volume=derived(origin, volume, origin.volume.format, "copy")) for volume in todo]
    length = os.fstat(file).st_size
    try:
        for number, sidecar in enumerate(made):
            _copy(site, directory, sidecar.volume, file, length, number / len(made), 1 / len(made))
        with locked("clone"):
            there, damaged = directory.look(None)
            if origin.backing and all(other.volume.uuid != origin.backing for other in there):
                raise_problems(list(damaged.values()))  # it may be one of them
                raise Conflict(f"what volume {origin.volume.name} stands on was deleted while it was copied")
            directory.publish(made)
    except BaseException as error:
        for sidecar in made:
            directory.discard(sidecar.volume.name, mine=True)
        if isinstance(error, OSError):
            raise files.explain(error, directory.path) from error
        raise


def _copy(
    site: Site, directory: VolumeDirectory, volume: Volume, file: int, length: int, before: float, share: float
) -> None:
    making = directory.making(volume.name, volume.format)
    target = files.open_plain(making, os.O_RDWR | os.O_CREAT | os.O_EXCL)
    try:

        def progress(done: int) -> None:
            site.progress(before + share * done / length, f"copying to {volume.name}")

        clonefile.copy_sparse(file, target, length, progress)
    finally:
        os.close(target)
    volumefile.resize(making, volume.format, volume.size)
    files.change_mode(making, volumefile.mode(volume))


def fresh(volume: Volume, format: str, made: str) -> Volume:
    """The volume as its sidecar has it."""
    import datetime

    now = datetime.datetime.now(datetime.UTC).strftime("%Y-%m-%dT%H:%M:%SZ")
    named = replace(volume, host="", pool="", path="", hold=None, was="", checksum="")
    return replace(named, format=format, made=made, created=volume.created or now)


def derived(origin: Sidecar, volume: Volume, format: str, made: str) -> Volume:
    return replace(fresh(volume, format, made), origin=origin.volume.uuid)
