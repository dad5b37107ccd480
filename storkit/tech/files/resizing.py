"""Another size for a volume that is a file."""

from __future__ import annotations

from dataclasses import replace

from storkit.core import holds
from storkit.core.errors import Conflict, StorkitError
from storkit.core.model import Volume, closed
from storkit.core.units import exact_size, format_size
from storkit.tech.files import volumefile
from storkit.tech.files.sidecar import Sidecar, VolumeDirectory


def problems(directory: VolumeDirectory, volume: Volume, sidecar: Sidecar, shrink: bool) -> list[StorkitError]:
    """Why a volume, as its sidecar has it, cannot have the size of `volume`."""
    old = sidecar.volume
    found: list[StorkitError] = holds.held(old, "resized")
    if old.kind != "disk":
        hint = f"clone it larger: storkit volume clone {old.name} NEW --size {exact_size(volume.size)}"
        found.append(Conflict(f"volume {old.name} is a {old.kind}, which is never changed", hint))
    if why := closed(old):
        found.append(Conflict(why, "wait for it"))
    found += directory.needed([sidecar], "resized")
    if volume.size < old.size and not shrink:
        found.append(
            Conflict(
                f"volume {old.name} has {format_size(old.size)}: making it {format_size(volume.size)} cuts off "
                "what lies beyond",
                "shrink the file system in it first, then give --shrink twice",
            )
        )
    return found


def served_problems(volume: Volume, sidecar: Sidecar) -> list[StorkitError]:
    """Why a volume cannot get the size of `volume` under those who have it open."""
    if volume.size >= sidecar.volume.size:
        return []
    message = f"volume {sidecar.volume.name} is in use and cannot become smaller"
    return [Conflict(message, "stop its guest first")]


def resize(directory: VolumeDirectory, sidecar: Sidecar, size: int) -> None:
    """The sidecar never promises more than the file holds, so that a kill in between is harmless."""
    path = directory.data(sidecar.volume.name, sidecar.volume.format)
    changed = replace(sidecar, volume=replace(sidecar.volume, size=size))
    if size >= sidecar.volume.size:
        volumefile.resize(path, sidecar.volume.format, size, shrink=True)
        volumefile.flush(path)
        directory.write([changed])
        return
    directory.write([changed])
    try:
        volumefile.resize(path, sidecar.volume.format, size, shrink=True)
    except StorkitError:
        directory.write([sidecar])
        raise
    volumefile.flush(path)
