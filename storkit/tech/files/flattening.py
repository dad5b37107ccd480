"""Clones that stand on a golden image, made to stand on nothing: the whole disk is written beside the overlay, and
takes its place by one rename. The sidecar goes last. Killed before that, the volume is said to stand on what it needs
no longer, which does no harm; the same command again finds that only the sidecar is left to do."""

from __future__ import annotations

import os
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

from storkit.core.model import Volume
from storkit.system import files
from storkit.tech.files import volumefile
from storkit.tech.files.sidecar import Sidecar, VolumeDirectory
from storkit.tech.images import qemuimg

FLATTENED = "flattened"
"""`made` of a volume that was an overlay."""


def write(directory: VolumeDirectory, volume: Volume, progress: Callable[[float], None]) -> None:
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


def publish(directory: VolumeDirectory, sidecar: Sidecar) -> None:
    """Put what `write` has made in the overlay's place. The directory's lock must be held."""
    volume = sidecar.volume
    making = directory.making(volume.name, volume.format)
    if making.exists():
        making.replace(directory.data(volume.name, volume.format))
        files.sync_directory(directory.path)
    directory.write([replace(sidecar, volume=replace(volume, made=FLATTENED), backing="")])
