"""Guests as their hypervisors have them."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Literal

from storkit.core.identities import (
    Count,
    GuestName,
    HostName,
    Line,
    MaybePath,
    MaybeUuid,
    Uuid,
    VolumeName,
    Word,
    Words,
)
from storkit.core.model.secret import Secret


@dataclass(frozen=True, slots=True)
class Switched:
    """What was measured of a guest that went on with the copy of its disk."""

    stall_ms: Count
    """For how many milliseconds it stood still."""


MirrorState = Literal["none", "copying", "switched"]
"""copying: a guest writes a volume, and fills its copy. switched: it uses the copy alone, or did so when it ended."""
GuestStatus = Literal["stopped", "running", "paused", "incoming", "arrived", "migrated", "starting", "unknown"]
"""starting: a command is just starting it, or ending it. arrived: whole, and waiting for `resume`; it has never run
here. migrated: the rest of a guest that has moved away. unknown: it does not answer, so it may still run."""


@dataclass(frozen=True, slots=True)
class Original:
    """A guest as its hypervisor keeps it, without storkit."""

    name: GuestName
    document: Words
    """In the hypervisor's own language, with names in the place of its passwords; empty: it runs, and its hypervisor
    keeps no document of it."""
    status: GuestStatus
    secrets: dict[Word, Secret] = field(default_factory=dict)
    """The passwords, by these names."""
    processes: list[Count] = field(default_factory=list)
    """Those that have its disks open, if it runs."""
    before: Words = ""
    """Of a guest of storkit's that somebody has changed: what the hypervisor had made of what storkit gave it, in the
    form of `document` (Hypervisor.edited)."""
    pinned: Words = ""
    """Why one that runs could not leave its host before its next stop; empty: it could."""
    uuid: MaybeUuid = ""
    """Of one without a document: what it runs with."""
    places: dict[Word, Words] = field(default_factory=dict)
    """Of one without a document: where it has its disks, by what it calls them."""


ALIVE: frozenset[GuestStatus] = frozenset(("running", "paused"))
"""Of a guest that a host has, whether or not it stands still: it writes there, or may at any moment."""


@dataclass(frozen=True, slots=True)
class GuestState:
    """What a hypervisor says of one guest on one host."""

    name: GuestName
    uuid: Uuid
    host: HostName
    hypervisor: Word
    status: GuestStatus
    pid: Count = 0
    migration: Line = ""
    """The hypervisor's own word for a migration under way or ended (QEMU: query-migrate's status)."""
    machine: Word = ""
    """The versioned machine type it runs with: the destination must use the same."""
    volumes: dict[Uuid, VolumeName] = field(default_factory=dict)
    """Volume UUID to name, as attached to the guest."""
    reason: Words = ""
    """Why it is paused, where that was nobody's wish: a disk without room, a disk that fails. Of one that runs: what
    moves it away, where the destination may run it by now."""
    edited: bool = False
    """Somebody has changed its configuration there since storkit wrote it (Hypervisor.edited)."""
    pinned: Words = ""
    """Why it cannot leave the host before its next stop; empty: it can."""
    fixed: Words = ""
    """Why its disks cannot be moved under it before its next stop; empty: they can, as far as its hypervisor can."""


@dataclass(frozen=True, slots=True)
class Saved:
    """What the memory of a sleeping guest says of itself: whose it is, and of which bytes of its disks."""

    guest: Uuid
    name: GuestName
    hold: Uuid
    """The id of the holds on its disks."""
    generations: dict[Uuid, Count]
    """Volume to its generation, of the disks that the guest writes."""
    hypervisor: Word
    fingerprint: dict[Words, Words]
    """What the host that wakes it must have alike (Hypervisor.fingerprint)."""
    machine: Word = ""
    paused: bool = False
    """It stood still before it was saved, and will do so afterwards."""
    since: Line = ""
    version: Line = ""
    """The hypervisor's, where it was saved."""
    file: MaybePath = ""
    """Where it was saved."""
    size: Count = 0
    """Of the hypervisor's own part of the file, in bytes."""
    used: bool = False
    """The guest has woken up by it: it has run since, and its disks are others."""


@dataclass(frozen=True, slots=True)
class MigrationResult:
    """What the hypervisor measured of a finished migration, in milliseconds and bytes."""

    total_ms: Count
    downtime_ms: Count | None
    """None: the hypervisor does not say."""
    setup_ms: Count = 0
    transferred: Count = 0
