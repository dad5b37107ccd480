"""Logical volumes that are there become volumes of a pool by their tags, and are given back by losing them.

Tags come first, and say what the logical volume was called (`storkit.was`); the name is taken back before they go. So
whoever goes on after a kill finds it by the volume's UUID, under either name.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

from storkit.core.errors import (
    Conflict,
    NotFound,
    StorkitError,
    Unsafe,
    Unsupported,
    UsageError,
    collected,
    raise_problems,
)
from storkit.core.identities import check_name
from storkit.core.model import Adoptable, Existing, Volume
from storkit.system.block import holders, reading
from storkit.system.locks import Lock
from storkit.tech import occupied
from storkit.tech.images import headers
from storkit.tech.lvm import checks, tools
from storkit.tech.lvm.tools import LogicalVolume, VolumeGroup

ADOPTED = "adopted"
"""How a volume came to be that was there before (Volume.made)."""
_DISKS = "-mMrRVoO"
"""lv_attr's first letter of what can be a disk: plain, mirrored, RAID, thin, and those that snapshots stand on."""
_OTHERS = {
    "s": "a snapshot", "S": "a snapshot that is merged", "t": "a thin pool", "p": "being moved (pvmove)",
    "C": "one with a cache",
}  # fmt: skip


def adoptable(group: VolumeGroup, thinpool: str, found: Sequence[Existing], host: str) -> list[Adoptable]:
    """What logical volumes would be; raises everything that speaks against it."""
    seen: list[Adoptable] = []
    problems: list[StorkitError] = []
    for each in found:
        with collected(problems):
            lv = _examine(group, thinpool, each, host)
            name = re.sub(r"[^A-Za-z0-9._-]", "-", lv.name)
            seen.append(Adoptable(each.place, name, lv.size, "raw", moved=False))
    raise_problems(problems)
    return seen


def adopt(
    group: VolumeGroup, lock: Lock, thinpool: str, volumes: Sequence[Volume], found: Sequence[Existing], host: str
) -> VolumeGroup:
    """Make volumes of logical volumes, as they are but for what LVM says of them; the volume group afterwards."""
    problems: list[StorkitError] = []
    pairs: list[tuple[Volume, LogicalVolume]] = []
    new: list[tuple[Volume, LogicalVolume]] = []
    for volume, existing in zip(volumes, found, strict=True):
        with collected(problems):
            check_name("volume", volume.name)
            lv = _of(group, volume)
            if lv is None:
                lv = _examine(group, thinpool, existing, host)
                was = tools.path(group.name, lv.name)
                new.append((replace(volume, size=lv.size, was=was, made=ADOPTED), lv))
                problems += checks.request_problems(new[-1][0], group.name)
            pairs.append((volume, lv))
            if volume.name != lv.name and volume.name in group.lvs:
                message = f"{tools.path(group.name, volume.name)} is in the way: there is a logical volume of that name"
                problems.append(Conflict(message, "choose another name"))
    problems += _twice(pairs)
    raise_problems(problems)
    commands = [["lvchange", "-y", *_added(volume), f"{group.name}/{lv.name}"] for volume, lv in new]
    commands += [["lvrename", group.name, lv.name, volume.name] for volume, lv in pairs if lv.name != volume.name]
    after, said = tools.batch(group.name, lock, commands) if commands else (group, "")
    missing = [volume.name for volume in volumes if (lv := _of(after, volume)) is None or lv.name != volume.name]
    if missing:
        done = [lv for volume, _ in new if (lv := _of(after, volume))]
        tools.batch(group.name, lock, [command for lv in done for command in _undoing(group.name, lv)])
        raise Conflict(f"{', '.join(missing)} could not be adopted: {said}", f"lvs -o+lv_tags {group.name}")
    return after


def disown(group: VolumeGroup, lock: Lock, volumes: Sequence[Volume], refusals: Sequence[StorkitError]) -> list[str]:
    """Give logical volumes back; where each is, or nothing where there is no such volume."""
    problems = list(refusals)
    places: list[str] = []
    gone: list[LogicalVolume] = []
    for volume in volumes:
        places.append("")
        if lv := _of(group, volume):
            problems += checks.needed(group, lv.name, "given back")
            with collected(problems):
                places[-1] = _old_place(group, lv)
            gone.append(lv)
    raise_problems(problems)
    commands = [command for lv in gone for command in _undoing(group.name, lv)]
    after, said = tools.batch(group.name, lock, commands) if commands else (group, "")
    if left := [lv.name for volume in volumes if (lv := _of(after, volume))]:
        raise Conflict(f"{', '.join(left)} could not be given back: {said}", f"lvs -o+lv_tags {group.name}")
    return places


def _examine(group: VolumeGroup, thinpool: str, existing: Existing, host: str) -> LogicalVolume:
    """The logical volume, once nothing speaks against adopting it; raises everything that does."""
    lv = _named(group, existing.place)
    path = tools.path(group.name, lv.name)
    problems: list[StorkitError] = []
    if lv.tags:
        whose = f"is volume {lv.name} already" if group.exists(lv) else "is being made into a volume"
        problems.append(Conflict(f"{path} {whose}", f"storkit volume show {lv.name}"))
    elif lv.attr[0] not in _DISKS:
        what = _OTHERS.get(lv.attr[0], "a part of another logical volume")
        problems.append(Unsupported(f"{path} is no disk of its own, but {what}", f"lvs -a {group.name}"))
    elif lv.pool != thinpool:
        where = f"in thin pool {lv.pool}" if lv.pool else "in no thin pool"
        wanted = f"those of thin pool {thinpool}" if thinpool else "thick ones"
        problems.append(Conflict(f"{path} is {where}, and this pool has {wanted}", "name a pool that has it: --pool"))
    elif not lv.pool:
        problems += checks.needed(group, lv.name, "adopted")
    if lv.readonly:
        problems.append(Conflict(f"{path} is read-only", f"lvchange -p rw {group.name}/{lv.name}"))
    if lv.health == "p":
        problems.append(tools.incomplete(lv, group.missing))
    if existing.format not in ("", "raw"):
        message = f"{path} holds {existing.format}, as its guest has it: volumes of LVM are raw"
        problems.append(Unsupported(message, f"storkit volume import {path} NAME makes a copy that is"))
    if not lv.active:
        problems.append(Conflict(f"{path} is not active, so that nobody can look into it", f"lvchange -ay -K {path}"))
    elif lv.attr[0] in _DISKS:
        problems += [*_image(path), *occupied.problems(path, existing, host)]
    raise_problems(problems)
    return lv


def _named(group: VolumeGroup, place: str) -> LogicalVolume:
    """The logical volume that `VG/LV`, or a path of its device, names. Raises NotFound."""
    words = place.removeprefix("/dev/").split("/")
    name = words[1] if len(words) == 2 and words[0] == group.name else ""
    if not name and place.startswith("/dev/"):
        mapped, _ = holders.mapped(holders.kernel_name(place))
        name = next((each for each in group.lvs if mapped and mapped == _mapped(group.name, each)), "")
    if name not in group.lvs:
        raise NotFound(f"{place} is no logical volume of volume group {group.name}", f"lvs {group.name}")
    return group.lvs[name]


def _mapped(vg: str, lv: str) -> str:
    """Device-mapper's name of a logical volume."""
    return f"{vg.replace('-', '--')}-{lv.replace('-', '--')}"


def _of(group: VolumeGroup, volume: Volume) -> LogicalVolume | None:
    """The logical volume that has the UUID of a volume, whatever it is called; None: there is none."""
    return next((lv for lv in group.lvs.values() if lv.tags.get("uuid") == volume.uuid), None)


def _image(path: str) -> list[StorkitError]:
    """Whether a logical volume holds an image: as a raw disk it would be another one."""
    (head,) = reading.read(path, reading.PROBE).blocks
    format = headers.recognise(headers.View(head, -1))
    if format != "qcow2":
        return []
    hint = f"storkit volume import {path} NAME makes a volume of it"
    return [Unsafe(f"{path} holds {format}: volumes of LVM are raw", hint)]


def _added(volume: Volume) -> list[str]:
    return [word for key, value in tools.tags_of(volume).items() for word in ("--addtag", tools.tag(key, value))]


def _undoing(vg: str, lv: LogicalVolume) -> list[list[str]]:
    """The commands that give a logical volume back."""
    old = Path(lv.tags.get("was", "")).name or lv.name
    tags = [word for key, value in lv.tags.items() for word in ("--deltag", tools.tag(key, value))]
    renamed = [["lvrename", vg, lv.name, old]] if old != lv.name else []
    return [*renamed, ["lvchange", "-y", *tags, f"{vg}/{old}"]]


def _old_place(group: VolumeGroup, lv: LogicalVolume) -> str:
    """Where a logical volume is once it is given back. Raises Conflict: another has its name."""
    old = Path(lv.tags.get("was", "")).name or lv.name
    place = tools.path(group.name, old)
    if old != lv.name and old in group.lvs:
        raise Conflict(f"{place}, as volume {lv.name} was called, is taken", f"lvrename {group.name} {old} NEW")
    return place


def _twice(pairs: Sequence[tuple[Volume, LogicalVolume]]) -> list[StorkitError]:
    names, places = [volume.name for volume, _ in pairs], [lv.name for _, lv in pairs]
    return [
        UsageError(f"{each} is named twice", "adopt each logical volume once, each under its own name")
        for each in dict.fromkeys([*names, *places])
        if names.count(each) > 1 or places.count(each) > 1
    ]
