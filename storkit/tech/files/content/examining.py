"""All bytes of a volume that nobody writes: their checksum as a guest reads them, and the files that hold them."""

from __future__ import annotations

import hashlib
import os
from collections.abc import Callable
from pathlib import Path

from storkit.core.backend import Site
from storkit.core.errors import StorkitError, UsageError
from storkit.core.imagefiles import Examined
from storkit.core.model import Volume
from storkit.system import files
from storkit.tech.files import clonefile, volumefile
from storkit.tech.files.changing import raw, shared
from storkit.tech.images import qemuimg

_CHUNK = 4 << 20


def examine(site: Site, volume: Volume) -> Examined:
    """What the bytes of a volume are (storkit.images.examine)."""
    damage: list[str] = []
    with shared(site, volume):
        path = Path(volume.path)
        if not files.is_device(path):
            damage = _damage(path, volume)
        if damage:  # its bytes would be those of what is left of it
            return Examined("", damage)

        def progress(done: int) -> None:
            site.progress(done / volume.size, f"reading {volume.name}")

        with raw(site, volume) as descriptor:
            return Examined(f"sha256:{digest(descriptor, volume.size, progress)}")


def digest(descriptor: int, size: int, progress: Callable[[int], None]) -> str:
    """SHA-256 of the first `size` bytes of an open file, in hexadecimal; holes are not read. `progress` gets how many
    bytes are done."""
    found, zeros, at = hashlib.sha256(), memoryview(bytes(_CHUNK)), 0
    for start, end in [*clonefile.extents(descriptor, size), (size, size)]:
        while at < end:
            length = min(_CHUNK, (start if at < start else end) - at)
            found.update(zeros[:length] if at < start else os.pread(descriptor, length, at))
            at += length
            progress(at)
    return found.hexdigest()


def _damage(path: Path, volume: Volume) -> list[str]:
    """What is wrong with a volume's file, and with those that it stands on."""
    try:
        size = volumefile.disk_size(path, volume.format)
        chain = volumefile.chain(path, volume.format)
    except StorkitError as error:
        return [error.message]
    found = [] if size == volume.size else [f"{path} has a disk of {size} bytes, not of {volume.size}"]
    for each in chain:
        try:
            qemuimg.check(each, each.suffix.removeprefix("."))
        except UsageError as error:
            found.append(error.message)
    return found
