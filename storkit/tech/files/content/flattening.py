"""Clones that stand on a golden image, made to stand on nothing: the whole disk is written beside the overlay, and
takes its place by one rename. The sidecar goes last. Killed before that, the volume is said to stand on what it needs
no longer, which does no harm; the same command again finds that only the sidecar is left to do."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator, Sequence
from contextlib import AbstractContextManager, ExitStack, contextmanager
from dataclasses import replace
from pathlib import Path

from storkit.core.backend import Site
from storkit.core.errors import StorkitError, raise_problems
from storkit.core.model import Volume
from storkit.system import files, locks
from storkit.tech.files import managed, volumefile
from storkit.tech.files.sidecar import Sidecar, VolumeDirectory
from storkit.tech.images import qemuimg

FLATTENED = "flattened"
"""`made` of a volume that was an overlay."""


def flatten(
    site: Site,
    locked: Callable[[], AbstractContextManager[VolumeDirectory]],
    volumes: Sequence[Volume],
    busy: Callable[[Sequence[Sidecar]], list[StorkitError]],
) -> None:
    """Make volumes stand on nothing, one after the other (storkit.core.contracts.pools). `locked` holds the lock of
    their directory; `busy` says why volumes are in use."""
    with ExitStack() as stack:
        with locked() as directory:
            todo = [sidecar for sidecar in directory.known(volumes) if sidecar.backing]
            raise_problems(busy(todo))
            for sidecar in todo:
                stack.enter_context(_owned(site, directory, directory.whole(sidecar)))
        # To write a whole disk takes long: the directory is free for others, what is written is this command's.
        for number, sidecar in enumerate(todo):
            name, before = sidecar.volume.name, number

            def progress(part: float, name: str = name, before: int = before) -> None:
                site.progress((before + part) / len(todo), f"flattening {name}")

            _write(directory, sidecar.volume, progress)
            with locked():
                _publish(directory, *directory.known([sidecar.volume]))


@contextmanager
def _owned(site: Site, directory: VolumeDirectory, volume: Volume) -> Iterator[None]:
    """A volume that nobody else uses, deletes or makes anew meanwhile; what was not finished is gone afterwards."""
    what, holder = f"volume {volume.name}", f"flatten of {volume.name} (pid {os.getpid()})"
    with ExitStack() as stack:
        stack.callback(managed.use(site, volume, holder=holder, within=directory).release)
        stack.callback(locks.acquire(directory.claim(volume.name), what, holder=holder).release)
        stack.callback(directory.discard, volume.name, mine=True)
        yield


def _write(directory: VolumeDirectory, volume: Volume, progress: Callable[[float], None]) -> None:
    """Write the whole disk of an overlay under its `making` name, durable. Nothing to do if its file is whole already.

    Raises Conflict: no room, or what it stands on is damaged; NotFound: that is gone.
    """
    path = directory.data(volume.name, volume.format)
    if len(volumefile.chain(path, volume.format)) == 1:
        return
    making = directory.making(volume.name, volume.format)
    descriptor = files.open_plain(making, os.O_RDWR | os.O_CREAT | os.O_EXCL)
    try:
        volumefile.make_empty(descriptor, volume.format, volume.size)
        into = qemuimg.target_options(volume.format, Path(files.by_descriptor(descriptor)))
        words = ["-n", "--target-image-opts", "--target-is-zero", "-S", "64k", qemuimg.node(volume.format, path), into]
        qemuimg.convert(words, volume.size, path, progress, [descriptor])
        os.fchmod(descriptor, volumefile.mode(volume))
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def _publish(directory: VolumeDirectory, sidecar: Sidecar) -> None:
    """Put what `_write` has made in the overlay's place. The directory's lock must be held."""
    volume = sidecar.volume
    making = directory.making(volume.name, volume.format)
    if making.exists():
        making.replace(directory.data(volume.name, volume.format))
        files.sync_directory(directory.path)
    directory.write([replace(sidecar, volume=replace(volume, made=FLATTENED), backing="")])
