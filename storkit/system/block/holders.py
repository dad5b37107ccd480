"""Who stands on a block device of this host: maps, arrays, loop devices, mounts, swap, by sysfs and proc alone.

What others have made on a volume's device keeps it, also where they have no process: take the device away, and their
map is left without a path, with whatever they had not written. So who detaches looks here first, and says what is to be
taken away before, from the top down, by which commands.
"""

from __future__ import annotations

import os
import re
import shlex
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path

from storkit.core.errors import Conflict

SYS, PROC = Path("/sys"), Path("/proc")
OURS = "STORKIT-"
"""How the device-mapper UUIDs of storkit's own nodes begin."""


@dataclass(frozen=True, slots=True)
class Holder:
    """Somebody else's thing on a device."""

    what: str
    device: str
    """What it stands on."""
    remove: str
    """The command that takes it away."""


def find(devices: Iterable[str], *, through: bool = True, sys: Path = SYS, proc: Path = PROC) -> list[Holder]:
    """What others have on these devices (paths), on their partitions and, unless told otherwise, on storkit's own nodes
    `through` which they are used: each after what stands on it."""
    found: dict[Holder, None] = {}
    for device in devices:
        if name := kernel_name(device, sys):
            found |= dict.fromkeys(_above(name, _Look(through, sys, proc), frozenset()))
    return list(found)


@dataclass(frozen=True, slots=True)
class _Look:
    through: bool
    sys: Path
    proc: Path


def kernel_name(device: str, sys: Path = SYS) -> str:
    """What sysfs calls a device: `/dev/mapper/x` is `dm-3`. Empty: there is none."""
    name = device.removeprefix("/dev/")
    if (sys / "class/block" / name).exists():
        return name
    try:
        number = os.stat(device).st_rdev
        return (sys / f"dev/block/{os.major(number)}:{os.minor(number)}").resolve(strict=True).name
    except OSError:
        return ""


def nodes_on(name: str, sys: Path = SYS) -> list[str]:
    """Device-mapper's names of the nodes that stand on a device of sysfs, storkit's own included."""
    return [mapped(each.name, sys)[0] for each in (sys / "class/block" / name).glob("holders/*")]


def mapped(name: str, sys: Path = SYS) -> tuple[str, str]:
    """Device-mapper's name and UUID of a device of sysfs; empty if it is none of its nodes."""
    entry = sys / "class/block" / name / "dm"
    return _read(entry / "name"), _read(entry / "uuid")


def conflict(volume: str, host: str, held: list[Holder]) -> Conflict:
    """Why a volume's device cannot be taken away, or used; the hint is what to type."""
    who = " and ".join(f"{holder.what} on {holder.device}" for holder in held)
    return Conflict(f"volume {volume} is in use on {host}: by {who}", "; ".join(holder.remove for holder in held))


def on_file(path: str, sys: Path = SYS, proc: Path = PROC) -> list[Holder]:
    """The loop devices that have a file (losetup(8)), each after what stands on it."""
    loops = _loops({path}, sys)
    return [one for name in loops for one in (*find([f"/dev/{name}"], sys=sys, proc=proc), _loop(name, path))]


def swap_on(path: str, proc: Path = PROC) -> list[Holder]:
    """The swap in a file, if it is in use."""
    files = [line.split()[0] for line in _read(proc / "swaps").splitlines()[1:]]
    return [Holder("swap", path, f"swapoff {shlex.quote(path)}")] if path in files else []


def _above(name: str, look: _Look, seen: frozenset[str]) -> Iterator[Holder]:
    if name in seen:
        return
    seen |= {name}
    blocks = look.sys / "class/block"
    entry = blocks / name
    for part in sorted(partition.parent.name for partition in entry.glob("*/partition")):
        yield from _above(part, look, seen)
    for holder in sorted(each.name for each in entry.glob("holders/*")):
        ours = _read(blocks / holder / "dm/uuid").startswith(OURS)
        if not ours or look.through:
            yield from _above(holder, look, seen)
        if not ours:
            yield _describe(holder, f"/dev/{name}", look.sys)
    names = {f"/dev/{name}"}
    if mapped := _read(entry / "dm/name"):
        names.add(f"/dev/mapper/{mapped}")
    for loop in _loops(names, look.sys):
        yield from _above(loop, look, seen)
        yield _loop(loop, f"/dev/{name}")
    yield from _mounts(names, _read(entry / "dev"), look.proc)


def _describe(name: str, device: str, sys: Path) -> Holder:
    entry = sys / "class/block" / name
    uuid, mapped = _read(entry / "dm/uuid"), _read(entry / "dm/name")
    quoted = shlex.quote(mapped)
    if uuid.startswith("LVM-"):
        group = volume_group(mapped)
        return Holder(f"LVM's volume group {group}", device, f"vgchange -an {shlex.quote(group)}")
    if uuid.startswith("mpath-"):
        return Holder(f"the multipath map {mapped}", device, f"multipath -f {quoted}")
    if uuid.startswith("CRYPT-"):
        return Holder(f"the encrypted device {mapped}", device, f"cryptsetup close {quoted}")
    if mapped:
        return Holder(f"the device-mapper node {mapped}", device, f"dmsetup remove {quoted}")
    if (entry / "md").is_dir():
        return Holder(f"the md array {name}", device, f"mdadm --stop /dev/{name}")
    if (entry / "bcache").exists():
        return Holder(f"the cache device {name}", device, f"echo 1 > /sys/block/{name}/bcache/stop")
    return Holder(f"the device {name}", device, f"see what made it: lsblk -s /dev/{name}")


def volume_group(mapped: str) -> str:
    """The volume group in device-mapper's name of a logical volume: VG-LV, where a hyphen in either is doubled."""
    match = re.match(r"((?:[^-]|--)*)-", mapped)
    return match[1].replace("--", "-") if match else mapped


def _loops(files: set[str], sys: Path) -> list[str]:
    return sorted(
        entry.parent.parent.name
        for entry in (sys / "class/block").glob("loop*/loop/backing_file")
        if _read(entry) in files
    )


def _loop(name: str, device: str) -> Holder:
    return Holder(f"the loop device {name}", device, f"losetup -d /dev/{name}")


def _mounts(names: set[str], number: str, proc: Path) -> Iterator[Holder]:
    device = min(names)
    for line in _read(proc / "self/mountinfo").splitlines():
        head, _, tail = line.partition(" - ")
        words = head.split()
        # of a file system over several devices the number is none of theirs
        if len(words) > 4 and (words[2] == number or (tail.split()[1:2] and tail.split()[1] in names)):
            point = re.sub(r"\\([0-7]{3})", lambda match: chr(int(match[1], 8)), words[4])
            yield Holder(f"the mount {point}", device, f"umount {shlex.quote(point)}")
    for line in _read(proc / "swaps").splitlines()[1:]:
        if (file := line.split()[0]) in names:
            yield Holder("swap", device, f"swapoff {file}")


def _read(path: Path) -> str:
    try:
        return path.read_text(errors="surrogateescape").strip()
    except OSError:
        return ""
