"""Volumes, what pools hold and how full they are, and the words that say what a volume is just now."""

from __future__ import annotations

from dataclasses import dataclass, field, replace
from typing import Literal

from storkit.core.identities import (
    Count,
    GuestName,
    HostName,
    Line,
    MaybeHost,
    MaybePath,
    MaybePool,
    MaybeUuid,
    PoolName,
    Size,
    Uuid,
    VolumeName,
    Word,
    Words,
)

VolumeKind = Literal["disk", "image", "snapshot", "tree"]
"""disk: a guest writes it. image: golden, never written, cloned. snapshot: one moment of a disk, never written.
tree: a directory, a guest's root file system; the guest itself mounts it over the network."""


@dataclass(frozen=True, slots=True)
class VolumeHold:
    """What a sleeping guest has of its disk: no host is given the right to write it until the guest wakes up."""

    guest: Uuid
    name: GuestName
    id: Uuid
    """Of this one sleep, and of the memory image that belongs to it."""
    generation: Count
    """The volume's when the memory was saved: a memory of another generation is not that of these bytes."""
    since: Line
    host: HostName
    """Where the memory was saved, and in which file."""
    file: Line


@dataclass(frozen=True, slots=True)
class Volume:
    """One disk, named, with a UUID that is its identity on every wire."""

    name: VolumeName
    uuid: Uuid
    size: Size
    pool: MaybePool = ""
    host: MaybeHost = ""
    """The home host: where the pool is and where the volume's locks are held."""
    kind: VolumeKind = "disk"
    format: Word = ""
    """How the bytes lie at home (raw, qcow2, ...); on every wire a volume is raw."""
    path: MaybePath = ""
    """Where the bytes lie on the home host."""
    origin: MaybeUuid = ""
    """The UUID of the volume this one was cloned or snapshotted from."""
    made: Line = ""
    """How it came to be: created, imported, reflink, overlay, copy, flattened."""
    created: Line = ""
    hold: VolumeHold | None = None
    """The sleep of its guest; None: nobody sleeps on it."""
    generation: Count = 0
    """No right to write it has had a smaller number than this (see Export.generation): that of its last hold."""
    was: Line = ""
    """Of a volume that was adopted: where its bytes lay before, to which they are given back; empty: it was made."""
    checksum: Line = ""
    """`sha256:HEX` of an image's bytes as a guest reads them, when it was sealed; empty: none was taken."""
    manager: MaybeHost = ""
    """Of a pool with several managers: the one that serves it; empty: none does."""
    term: Count = 0
    """How often that has changed, which a manager that was away tells its own by; 0: its pool has one host."""


def closed(volume: Volume) -> str:
    """Why nothing uses a volume now, in a few words; empty: it is what its name says."""
    return {
        IMPORTING: f"the import of volume {volume.name} has not ended",
        MOVING: f"volume {volume.name} is being moved to another pool",
        FILLING: f"volume {volume.name} is a copy that its guest has not filled",
        MIRRORING: f"volume {volume.name} is being moved to another pool under its guest",
        SWITCHING: f"volume {volume.name} is being moved to another pool under its guest, which switches",
    }.get(volume.made, "")


def closes(old: Volume, new: Volume) -> bool:
    """Whether nobody may have a volume open that gets the word `new.made`. The words of a move under a guest are for
    volumes that their guest has: nobody else gets them."""
    live = (MIRRORING, SWITCHING)
    return bool(closed(new)) and new.made not in live and (not closed(old) or old.made in live)


def relabelled(old: Volume, new: Volume) -> Volume:
    """A volume with what a relabel changes of it."""
    return replace(old, kind=new.kind, made=new.made, origin=new.origin, checksum=new.checksum)


@dataclass(frozen=True, slots=True)
class Existing:
    """Bytes of a host that are no volume yet: a file, or a logical volume."""

    place: Line
    """The file's path; VG/LV, or a path of the logical volume's device."""
    format: Word = ""
    """What its guest takes it for; empty: what it says itself."""
    in_guest: bool = False
    """A guest has it as its disk: what is in it is the guest's, also a part of an array or a group of its own."""
    processes: list[Count] = field(default_factory=list)
    """The guest's own, which may have it open."""


@dataclass(frozen=True, slots=True)
class Adoptable:
    """What existing bytes would be as a volume."""

    place: Line
    name: Words
    """What they are called where they lie."""
    size: Size
    format: Word
    moved: bool
    """Whether they would get another place; otherwise they lie in the pool already."""


@dataclass(frozen=True, slots=True)
class Damaged:
    """A volume that is there and cannot be trusted: its metadata or its file are not as storkit left them.

    It keeps its name taken. Every command that needs it is refused; others go on.
    """

    name: Words
    pool: PoolName
    host: HostName
    message: Words
    hint: Words = ""


@dataclass(frozen=True, slots=True)
class PoolContent:
    """What a pool holds, each in the order of the names."""

    volumes: list[Volume]
    damaged: list[Damaged] = field(default_factory=list)
    directory: MaybeUuid = ""
    """Which directory its managers share, where it has several; empty: nothing was made in it yet."""
    barred: list[HostName] = field(default_factory=list)
    """The managers that serve nothing of it until they are let in again."""


@dataclass(frozen=True, slots=True)
class Usage:
    """How full a pool is, in bytes."""

    pool: PoolName
    host: HostName
    total: Count
    free: Count
    provisioned: Count
    """The sum of the sizes that volumes could grow to."""
    allocated: Count
    warnings: list[Words] = field(default_factory=list)
    held: dict[VolumeName, VolumeHold] = field(default_factory=dict)
    """The volumes on which guests sleep."""
    metadata: Count | None = None
    """How full a thin pool's metadata is, in percent; None: the pool has none."""
    used: dict[VolumeName, Count] = field(default_factory=dict)
    """The bytes that each volume takes by itself, where they were asked for."""


IMPORTING = "importing"
"""`made` of a volume whose content is not yet, or not wholly, in it: nothing uses it."""
MOVING = "moving"
"""`made` of a volume that has been copied to another pool, while it is made sure that the copy is the same: nothing
uses it, and it is the disk until the copy is open."""
MIRRORING = "mirroring"
"""`made` of a volume that is copied to another pool by the guest that writes it: it is the disk."""
SWITCHING = "switching"
"""`made` of a volume whose guest writes it and its copy, until it is told to use the copy alone: the host where the
guest runs knows whether it does so by now (HypervisorVerbs.mirrored), and nobody else."""
MIRRORED = frozenset((MIRRORING, SWITCHING))
LEAVING = MIRRORED | {MOVING}
"""`made` of a volume that another pool has a copy of, which is not open."""
MOVED = "moved"
"""`made` of a volume that has come from another pool."""
FILLING = "filling"
"""`made` of a copy that one guest fills, whose host alone may write it (`fills` of TransportVerbs.set_writers)."""
