"""Volumes as image files: what speaks against it, and how each format is written."""

from __future__ import annotations

import os
from pathlib import Path

from storkit.core.errors import Conflict, StorkitError, Unsupported, UsageError, raise_problems
from storkit.core.model import Volume, closed
from storkit.tech.images.headers import FORMATS


def refuse(volume: Volume, final: Path, format: str, compress: bool) -> None:
    """Raise what is wrong with an export to a file, all at once, before anything is written."""
    problems: list[StorkitError] = []
    if format not in FORMATS:
        problems.append(UsageError(f"{format!r} is not a format to export to", f"known: {', '.join(FORMATS)}"))
    elif compress and format not in ("qcow2", "vmdk"):
        problems.append(UsageError(f"{format} images are not compressed", "leave --compress out, or choose qcow2"))
    if not final.parent.is_dir():
        problems.append(UsageError(f"there is no directory {final.parent}", f"mkdir -p {final.parent}"))
    if volume.kind == "tree":
        message = f"volume {volume.name} is a tree, and no image of a disk"
        problems.append(Unsupported(message, f"on {volume.host}: tar --xattrs --acls -C {volume.path} -cf FILE ."))
    if os.path.lexists(final):
        problems.append(Conflict(f"{final} exists already", "choose another name, or remove it"))
    if why := closed(volume):
        problems.append(Conflict(why, "wait for it"))
    if not volume.path:
        problems.append(Unsupported(f"volume {volume.name} has no path on its host", "copy it by its guest"))
    raise_problems(problems)


def options(format: str, compress: bool) -> list[str]:
    """The options of `qemu-img convert`."""
    if format == "vmdk" and compress:
        return ["-c", "-o", "subformat=streamOptimized"]
    if format == "vpc":
        return ["-o", "force_size=on"]  # otherwise the disk grows to whole cylinders
    return ["-c"] if compress else []
