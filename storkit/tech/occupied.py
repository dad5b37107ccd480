"""Who has existing bytes, a file or a device, that are to become a volume: what is mounted or open, and what they are a
part of. A table of partitions, a file system and encryption are what a guest's disk holds, and no obstacle.
"""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

from storkit.core.errors import Conflict, StorkitError, Unsafe
from storkit.core.model import Existing
from storkit.system import openers
from storkit.system.block import holders, udev
from storkit.system.run import run
from storkit.tech import strangers

_PARTS = {
    "LVM2_member": "a physical volume of LVM",
    "LVM1_member": "a physical volume of LVM",
    "linux_raid_member": "a member of an md array",
    "ddf_raid_member": "a member of a DDF array",
    "isw_raid_member": "a member of an Intel array",
    "zfs_member": "a member of a ZFS pool",
    "bcache": "a part of a bcache device",
    "drbd": "a DRBD device's disk",
    "ceph_bluestore": "a disk of Ceph",
    "VMFS_volume_member": "a part of a VMFS volume",
    "swap": "swap space",
    "swsuspend": "swap space with a machine's memory in it",
}
"""What libblkid calls what it finds at the start of a disk (blkid(8)), where others know the disk by it."""


def problems(path: str, existing: Existing, host: str) -> list[StorkitError]:
    """What speaks against making a volume of the file or block device `path`, which is there."""
    found = list(_used(path, existing, host))
    if found and Path(path).is_block_device() and udev.runs():  # udevd looks at a device that was written to
        udev.settle()
        found = list(_used(path, existing, host))
    return found + list(_part(path, existing))


def _used(path: str, existing: Existing, host: str) -> Iterator[StorkitError]:
    device = Path(path).is_block_device()
    everybody = openers.find([path])
    opened = [each for each in everybody[path] if each.pid not in existing.processes]
    things = holders.find([path], through=False) if device else [*holders.on_file(path), *holders.swap_on(path)]
    if opened:
        who = " and ".join(map(str, opened))
        pids = ",".join(str(each.pid) for each in opened)
        yield Conflict(f"{path} is open on {host}: by {who}", f"see what it is, and end it: ps -fp {pids}")
    for thing in things:
        yield Conflict(f"{path} is in use on {host}: by {thing.what} on {thing.device}", thing.remove)
    cached = [each for each in everybody[path] if each.pid in existing.processes and each.writes and not each.direct]
    if device and cached:
        # Its last writes may come from the page cache of the device when it has ended, and others write. Of a file
        # there is one cache, which whoever serves it reads and writes through as well.
        message = f"{path} is written by {cached[0]} through the page cache of {host}"
        yield Conflict(
            message, "shut its guest down, and adopt it then; or give its disk cache='none', and start it anew"
        )
    if device and not opened and not things and strangers.unseen([path], everybody):
        hint = f"see what it is: dmsetup info {path}; targetcli ls /backstores"
        yield Conflict(f"{path} is open on {host}, by something in the kernel", hint)


def _part(path: str, existing: Existing) -> Iterator[StorkitError]:
    if existing.in_guest:
        return
    # 2: nothing is known of it; 8: it looks like several things, as a disk may.
    said = run(["blkid", "-p", "-s", "TYPE", "-o", "value", "--", path], ok=(0, 2, 8), package="util-linux").stdout
    if what := _PARTS.get(said.strip()):
        hint = f"take it out of what it is a part of: wipefs {path} shows it; or adopt the guest whose disk it is"
        yield Unsafe(f"{path} is {what}", hint)
