"""Logical volumes made, and what is in them: zeros, or what another one holds."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

from storkit.core.backend import Site
from storkit.core.errors import CommandFailed
from storkit.core.model import Volume
from storkit.system import locks
from storkit.system.block import blockdevice
from storkit.tech.lvm import tools
from storkit.tech.lvm.tools import VolumeGroup

_BLOCK = 4096
_NEW = ["-y", "-ky", "-K", "-ay"]
"""Of lvcreate: never activated by others (see `tools.activate`), but by this command."""


def new(vg: str, thinpool: str, volume: Volume, batch: str) -> list[str]:
    """The command that makes a volume's logical volume."""
    command = ["lvcreate", *_NEW, *tools.add_tags(volume, batch)]
    if thinpool:
        return [*command, "-V", f"{volume.size}b", "-T", f"{vg}/{thinpool}", "-n", volume.name]
    # Nothing is wiped at its start: all of it is zeroed.
    return [*command, "-Wn", "-Zn", "-L", f"{volume.size}b", "-n", volume.name, vg]


def share(vg: str, old: Volume, size: int, volume: Volume, batch: str) -> list[list[str]]:
    """A thin snapshot, grown to the size of a larger clone. `size` is that of the logical volume it is of."""
    mode = "rw" if volume.kind == "disk" else "r"
    tags = tools.add_tags(volume, batch)
    commands = [["lvcreate", *_NEW, "-s", "-p", mode, *tags, "-n", volume.name, f"{vg}/{old.name}"]]
    if volume.size > size:
        commands.append(["lvextend", "-y", "-L", f"{volume.size}b", f"{vg}/{volume.name}"])
    return commands


def zero(site: Site, group: VolumeGroup, made: Sequence[Volume]) -> None:
    """Write zeros over all of the logical volumes of new thick volumes."""
    total, before = sum(volume.size for volume in made), 0
    for volume in made:

        def progress(done: int, before: int = before, name: str = volume.name) -> None:
            site.progress(min(1.0, (before + done) / total), f"zeroing {name}")

        with blockdevice.opened(tools.path(group.name, volume.name), write=True) as device:
            blockdevice.zero(device, 0, group.extents(volume.size), progress)
        before += volume.size


def copy(site: Site, group: VolumeGroup, old: Volume, made: Sequence[Volume]) -> None:
    """Write the content of a volume into the logical volumes of new ones, and zeros over the rest of these."""
    names = made[0].name + (f" and {len(made) - 1} more" if len(made) > 1 else "")

    # Whole blocks, of a device with blocks of 4 KiB as well: the logical volume is whole extents.
    length = -(-old.size // _BLOCK) * _BLOCK

    def progress(done: int) -> None:
        site.progress(done / length, f"copying {old.name} to {names}")

    targets = [tools.path(group.name, volume.name) for volume in made]
    blockdevice.copy(tools.path(group.name, old.name), targets, length, progress)
    for volume in made:
        with blockdevice.opened(tools.path(group.name, volume.name), write=True) as device:
            blockdevice.zero(device, old.size, group.extents(volume.size))


def resize(lock: locks.Lock, group: VolumeGroup, old: Volume, size: int, thin: bool) -> None:
    """Give a logical volume another size.

    The tag never promises more than is there and reads as it should, so that a kill in between is harmless.
    """
    lv, end, target = group.lvs[old.name], group.extents(size), f"{group.name}/{old.name}"
    retag = ["lvchange", "-y", *tools.change_tags(old, replace(old, size=size)), target]
    tools.activate([old])
    if size > old.size:
        if end > lv.size:
            tools.change(group.name, lock, ["lvextend", "-y", "-L", f"{size}b", target])
        clear(group.name, old, old.size, end, thin)
        tools.change(group.name, lock, retag)
        return
    tools.change(group.name, lock, retag)
    clear(group.name, old, size, lv.size, thin)
    if end < lv.size:
        command = ["lvreduce", "-y", "-L", f"{size}b", target]
        try:
            tools.change(group.name, lock, [*command, "--fs", "ignore"])
        except CommandFailed as failure:  # of LVM before 2.03.17, which never looks at the file system
            if "unrecognized option" not in failure.stderr and "parsing" not in failure.stderr:
                raise
            tools.change(group.name, lock, command)


def clear(vg: str, volume: Volume, start: int, end: int, thin: bool) -> None:
    """Let a part of a logical volume read as zeros."""
    with blockdevice.opened(tools.path(vg, volume.name), write=True) as device:
        if thin:
            blockdevice.clear_thin(device, start, end)
        else:
            blockdevice.zero(device, start, end)
