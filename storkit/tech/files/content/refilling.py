"""The content of volumes written over: by an image, by what they were when a snapshot was made, by what they hold in
another pool.

A volume is marked as importing meanwhile, so that nothing uses it; a write that was cut short starts anew.
"""

from __future__ import annotations

import os
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path

from storkit.core.backend import Site
from storkit.core.errors import Conflict, Unsafe, UsageError, raise_problems
from storkit.core.model import IMPORTING, Attachment, Volume
from storkit.core.units import format_size
from storkit.system import files
from storkit.system.block import blockdevice
from storkit.system.qemu import imagelocks
from storkit.tech import strangers
from storkit.tech.files import managed, volumefile
from storkit.tech.images import qemuimg
from storkit.tech.images.attached import opened


def refill(site: Site, volume: Volume, source: Volume, rate: int = 0) -> None:
    """Give a volume the content of another one (storkit.images.refill)."""
    _refuse(volume, source.name, source.size)
    moved = volume.uuid == source.uuid
    what = "copying" if moved else f"restoring from {source.name} to"
    with _alone(site, volume, f"move from pool {source.pool}" if moved else f"restore from {source.name}"):
        shown = qemuimg.node(source.format, source.path)
        required = qemuimg.required(qemuimg.node(source.format, source.path, alone=True))
        write(site, volume, shown, required, what, rate=rate)


def pull(site: Site, volume: Volume, attached: Attachment, rate: int = 0) -> None:
    """Give a volume the content of an attachment of this host (storkit.images.pull)."""
    _refuse(volume, attached.volume, attached.size)
    if volume.uuid != attached.uuid:
        raise Unsafe(f"volume {volume.name} is not a copy of {attached.volume}", "storkit volume show")
    source = opened(attached)
    with _alone(site, volume, f"move by {attached.transport}"):
        required = qemuimg.required(source.node, source.objects)
        write(site, volume, source.node, required, "copying", source.objects, rate)


def _refuse(volume: Volume, source: str, size: int) -> None:
    """Raise what keeps a volume from getting the content of `source`, which has this size."""
    if volume.made != IMPORTING:
        raise Unsafe(f"volume {volume.name} is in use: its content is not written over", "storkit volume show")
    if volume.size < size:
        message = f"volume {volume.name} of {format_size(volume.size)} is smaller than {source}"
        raise UsageError(message, f"storkit volume resize {volume.name} {size}B")


@contextmanager
def _alone(site: Site, volume: Volume, holder: str) -> Iterator[None]:
    """Nobody else has the volume open while the context lasts. Raises Conflict."""
    lock = managed.use(site, volume, holder=holder)
    try:
        raise_problems([each.refuse(site.host) for each in strangers.find(site.run, [volume])])
        if not files.is_device(Path(volume.path)):
            with imagelocks.held([Path(volume.path)], f"volume {volume.name}", writes=True, deadline=0.0):
                pass  # no other QEMU has it: qemu-img sees that only when the file is empty
        yield
    finally:
        lock.release(remove=True)


def write(
    site: Site, volume: Volume, source: str, required: int, what: str, objects: Sequence[str] = (), rate: int = 0
) -> None:
    """Write what a node of qemu-img's shows over a volume, durably; what lies beyond its end reads as zeros.
    `required`: the bytes that this takes; `objects`: the words for what the node names; `rate`: bytes a second at most,
    0: as many as there can be. Raises Conflict: there is no room."""
    target = Path(volume.path)
    arguments = ["-n", "--target-image-opts", "-S", "64k", *objects]

    def progress(part: float) -> None:
        site.progress(part, f"{what} {volume.name}")

    if not files.is_device(target):
        room = os.statvfs(target.parent)
        if required > room.f_bavail * room.f_frsize + volumefile.allocated(target):
            needed = format_size(required)
            raise Conflict(f"no room for {volume.name}: it takes {needed}", f"free some: df -h {target.parent}")
        # Emptied first, by storkit: what an attempt before this one left would show through.
        descriptor = files.open_plain(target, os.O_RDWR)
        try:
            volumefile.make_empty(descriptor, volume.format, volume.size)
            into = qemuimg.target_options(volume.format, Path(files.by_descriptor(descriptor)))
            qemuimg.convert(
                [*arguments, "--target-is-zero", source, into], volume.size, target, progress, [descriptor], rate
            )
            os.fsync(descriptor)
        finally:
            os.close(descriptor)
        return
    qemuimg.convert(
        [*arguments, source, qemuimg.target_options(volume.format, target)], volume.size, target, progress, rate=rate
    )
    with blockdevice.opened(str(target)) as device:
        os.fsync(device)
