"""The content of volumes written over: by an image, or by what they were when a snapshot was made.

A volume is marked as importing meanwhile, so that nothing uses it; a write that was cut short starts anew.
"""

from __future__ import annotations

import os
from pathlib import Path

from storkit.core.backend import Site
from storkit.core.errors import Conflict, Unsafe, UsageError, raise_problems
from storkit.core.model import IMPORTING, Volume
from storkit.core.units import format_size
from storkit.system import files, locks
from storkit.system.block import blockdevice
from storkit.system.qemu import imagelocks
from storkit.tech import strangers
from storkit.tech.files import volumefile
from storkit.tech.images import qemuimg


def refill(site: Site, volume: Volume, source: Volume) -> None:
    """Give a volume the content of another one (storkit.images.refill)."""
    if volume.made != IMPORTING:
        raise Unsafe(f"volume {volume.name} is in use: its content is not written over", "storkit volume restore")
    if volume.size < source.size:
        message = f"volume {volume.name} of {format_size(volume.size)} is smaller than {source.name}"
        raise UsageError(message, f"storkit volume resize {volume.name} {source.size}B")
    use = locks.use_lock(site.run, volume.uuid)
    lock = locks.acquire(use, f"volume {volume.name}", holder=f"restore from {source.name}")
    try:
        raise_problems([each.refuse(site.host) for each in strangers.find(site.run, [volume])])
        if not files.is_device(Path(volume.path)):
            with imagelocks.held([Path(volume.path)], f"volume {volume.name}", writes=True, deadline=0.0):
                pass  # no other QEMU has it: qemu-img sees that only when the file is empty
        required = qemuimg.required(Path(source.path), source.format)
        write(site, volume, qemuimg.node(source.format, source.path), required, f"restoring from {source.name} to")
    finally:
        lock.release(remove=True)


def write(site: Site, volume: Volume, source: str, required: int, what: str) -> None:
    """Write what a node of qemu-img's shows over a volume, durably; what lies beyond its end reads as zeros.
    `required`: the bytes that this takes. Raises Conflict: there is no room."""
    target = Path(volume.path)
    arguments = ["-n", "--target-image-opts", "-S", "64k"]

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
            qemuimg.convert([*arguments, "--target-is-zero", source, into], volume.size, target, progress, [descriptor])
            os.fsync(descriptor)
        finally:
            os.close(descriptor)
        return
    qemuimg.convert([*arguments, source, qemuimg.target_options(volume.format, target)], volume.size, target, progress)
    with blockdevice.opened(str(target)) as device:
        os.fsync(device)
