"""The guests of one host: what libvirt says of its domains, and what storkit has kept of those that it made.

STATE/libvirt/NAME/guest.json   the guest's record, its disks on this host, its pinned machine type
STATE/libvirt/NAME/domain.xml   the domain as it was defined, with storkit's mark (see domain.py)
STATE/libvirt/NAME/written.xml  what libvirt has made of that, for guests with a document: if it has something else now,
                                somebody has changed it there
STATE/libvirt/NAME/arriving     a mark: the guest is to arrive here, and has not been let go on
STATE/libvirt/NAME/saving       the id of the last sleep that was begun here (see saving.py)
"""

from __future__ import annotations

import time
from collections.abc import Collection
from dataclasses import dataclass, field, replace
from pathlib import Path

from storkit.core.errors import StorkitError
from storkit.core.guest import Guest
from storkit.core.model import GuestStatus, check_name
from storkit.hypervisors._libvirt import domain as domains
from storkit.hypervisors._libvirt.domain import Domain
from storkit.hypervisors._libvirt.virsh import (
    BY_ERROR,
    BY_MIGRATION,
    NO_STATE,
    PAUSED,
    REASONS,
    RUNNING,
    STARTING_UP,
    State,
    Virsh,
)
from storkit.hypervisors._machine import end_command
from storkit.hypervisors._paused import because
from storkit.hypervisors._qemu.definition import Definition, load
from storkit.system.files import make_private, write_atomic

XML = "domain.xml"
WRITTEN = "written.xml"
WHOLE = "whole"
"""What the mark `arriving` says of a guest whose memory was read from a file to its end."""


@dataclass(frozen=True, slots=True)
class KnownGuest:
    """A guest of storkit's on this host."""

    name: str
    uuid: str
    status: GuestStatus
    machine: str = ""
    volumes: dict[str, str] = field(default_factory=dict)
    """UUID to name."""
    migration: str = ""
    defined: bool = True
    """Whether libvirt has the domain; otherwise there is only a record."""
    saved: bool = False
    """Whether it would start from memory that was saved."""
    reason: str = ""
    """Why it is paused, where nobody wanted it."""
    edited: str = ""
    """What it would be started with the next time, where somebody has changed that."""

    @property
    def idle(self) -> bool:
        return self.status in ("stopped", "migrated")


@dataclass(frozen=True, slots=True)
class Guests:
    """The guests of one host. `base` is where their records are."""

    virsh: Virsh
    base: Path

    def look(self, names: list[str] | None, uuid: str = "") -> tuple[list[KnownGuest], list[Domain]]:
        """storkit's guests, all or those of `names`; and the domains of these names, or this UUID, that are not its.

        One virsh process, a second for domains without a record, and one for each guest in a migration's switchover. If
        libvirtd does not answer, the guests with a record are unknown.
        """
        records = {name: record for name in self._recorded(names) if (record := self.record(name))}
        ids = {record.guest.uuid: name for name, record in records.items()}
        written = {record.guest.uuid: text for name, record in records.items() if (text := self.written(name))}
        try:
            seen = self.virsh.look(list(ids), list(written))
            more = [one for one, name in seen.names.items() if names is None or name in names or one == uuid]
            others = self.virsh.definitions([one for one in more if one not in ids])
            found = {one.uuid: one for one in map(domains.read, [*reversed(seen.xml), *others])}  # the first of each
            kept = {one.uuid: xml for xml in seen.xml if (one := domains.read(xml)).uuid in written}  # the last
        except StorkitError:
            return [_recorded(record, "unknown", defined=True) for record in records.values()], []
        known: dict[str, KnownGuest] = {}
        foreign: list[Domain] = []
        for one in found.values():
            name = ids.get(one.uuid, one.name)
            running = one.uuid in ids and one.uuid in seen.states and seen.states[one.uuid].active
            # One that runs has its mark a moment later than its definition, and loses it a moment later.
            if not (one.ours or running) or (names is not None and name not in names):
                foreign.append(one)
            elif one.uuid in seen.states:
                known[name] = self._known(name, one, seen.states[one.uuid], one.uuid in seen.saved)
                if one.uuid in kept and kept[one.uuid] != written[one.uuid]:
                    known[name] = replace(known[name], edited=kept[one.uuid])
        for name, record in records.items():
            known.setdefault(name, _recorded(record, "stopped", defined=False))
        return [known[name] for name in sorted(known)], foreign

    def one(self, name: str) -> KnownGuest | None:
        """What is known of a guest."""
        return next(iter(self.look([check_name("guest", name)])[0]), None)

    def taken(self, guest: Guest) -> list[str]:
        """Which disks of a guest another guest of this host has, other than to read them both: the storage side takes
        both for this host, which may write."""
        readonly = {disk.uuid: disk.readonly for disk in guest.disks if disk.uuid}
        names = [name for name in self._recorded(None) if name != guest.name and self._shares(name, readonly)]
        taken: list[str] = []
        for other in self.look(names)[0] if names else []:
            record = self.record(other.name)
            reads = {disk.uuid for disk in record.guest.disks if disk.readonly} if record else set()
            taken += [
                f"volume {volume} is in use by guest {other.name} here: {end_command(other.name, other.status)}"
                for uuid, volume in other.volumes.items()
                if not other.idle and uuid in readonly and not (readonly[uuid] and uuid in reads)
            ]
        return taken

    def _shares(self, name: str, volumes: Collection[str]) -> bool:
        record = self.record(name)
        return record is not None and any(disk.uuid in volumes for disk in record.guest.disks)

    def active(self, known: KnownGuest) -> bool:
        """Whether the guest has a process now."""
        state = self.virsh.states().get(known.uuid)
        return state is not None and state.active

    def record(self, name: str) -> Definition | None:
        try:
            return load(self.directory(name))
        except FileNotFoundError:
            return None

    def written(self, name: str) -> str:
        """What libvirt had made of a guest's document when it was given it; empty: it has none, or nobody noted it."""
        try:
            return (self.directory(name) / WRITTEN).read_text()
        except FileNotFoundError:
            return ""

    def set_aside(self, known: KnownGuest | None) -> None:
        """Keep what somebody has changed in libvirt, where storkit is about to end it or to write over it."""
        if known and known.edited:
            directory = make_private(self.base.with_name("libvirt-edited"))
            stamp = time.strftime("%Y%m%dT%H%M%SZ", time.gmtime())
            write_atomic(directory / f"{known.name}-{stamp}.xml", known.edited + "\n")

    def directory(self, name: str) -> Path:
        return self.base / check_name("guest", name)

    def arriving(self, name: str) -> Path:
        return self.directory(name) / "arriving"

    def _recorded(self, names: list[str] | None) -> list[str]:
        if names is None:
            return sorted(entry.name for entry in self.base.iterdir()) if self.base.is_dir() else []
        return names

    def _known(self, name: str, one: Domain, state: State, saved: bool) -> KnownGuest:
        status = self._status(name, one.uuid, state)
        migration = "in" if status in ("incoming", "arrived") else ""
        if status == "running" and state.state == PAUSED:
            migration = "out"
        reason = REASONS.get(state.reason, "") if status == "paused" else ""
        if status == "paused" and state.reason == BY_ERROR:
            reason = because({f"disk {disk}": room for disk, room in self.virsh.disk_errors(one.uuid).items()})
        return KnownGuest(name, one.uuid, status, one.machine, one.volumes, migration, saved=saved, reason=reason)

    def _status(self, name: str, uuid: str, state: State) -> GuestStatus:
        arriving = self.arriving(name)
        if not state.active:
            return "migrated" if state.migrated else "stopped"
        if state.state == NO_STATE:
            return "unknown"
        if state.state in RUNNING:
            # Whoever let it go on: if it is paused from now on, it has not just arrived.
            arriving.unlink(missing_ok=True)
            return "running"
        if (state.state, state.reason) == (PAUSED, STARTING_UP):
            return "incoming" if arriving.exists() else "starting"
        if (state.state, state.reason) == (PAUSED, BY_MIGRATION):
            job = self.virsh.job(uuid)
            if job and job.outgoing:
                # Paused for the switchover, and it runs on here by itself if that fails.
                return "running"
            if not arriving.exists():
                return "paused"
            # So libvirt calls what it has read from a file as well, once it is whole.
            return "arrived" if arriving.read_text() == WHOLE else "incoming"
        return "arrived" if arriving.exists() else "paused"


def _recorded(record: Definition, status: GuestStatus, *, defined: bool) -> KnownGuest:
    guest = record.guest
    volumes = {disk.uuid: disk.volume for disk in guest.disks if disk.uuid}
    return KnownGuest(guest.name, guest.uuid, status, record.machine, volumes, defined=defined)
