"""The guests of one host: what Xen has of them now, by xl's own lists, and what storkit has kept of those that it made.

    STATE/xl/NAME/guest.json     the guest's record, its disks on this host
    STATE/xl/NAME/guest.cfg      what `xl create` reads
    STATE/xl/NAME/arriving       a mark: the guest is to arrive here since this boot, and has not been let go on
    STATE/xl/NAME/reading        a mark: its memory is being read from a file since this boot
    STATE/xl/NAME/sent.log       what xl said of the last migration from here
    STATE/xl/NAME/received.log   what xl said of the last migration to here
    RUN/xl/NAME/                 key, address and lock of a migration; what a save has come to (saving.py)

Where a guest runs is told by `xl list` alone, and by its UUID where storkit has a record. Nothing of it outlives a
reboot: a guest without a domain does not run.
"""

from __future__ import annotations

import json
import os
import re
from collections.abc import Iterable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from storkit.core.errors import ServiceUnreachable, StorkitError, Unsafe
from storkit.core.guest import Guest
from storkit.core.model import GuestStatus, check_name
from storkit.hypervisors._machine import taken_disks
from storkit.hypervisors._qemu.definition import Definition, load
from storkit.hypervisors._xl import toolstack
from storkit.hypervisors._xl.processes import XlProcess, xl_processes
from storkit.hypervisors._xl.toolstack import XenDomain
from storkit.system.block import devmapper
from storkit.system.files import make_private, write_atomic

CONFIG = "guest.cfg"
ALONE = "its disks are open in Xen's backend, beside which nobody else may have them open"
"""Why a domain that was taken as it runs cannot leave its host before its next stop."""
SAVED = "saved"
"""The mark of a guest whose memory has been written to a file (saving.py)."""
_ARRIVING, _READING = "arriving", "reading"
_ORDER: tuple[GuestStatus, ...] = ("running", "paused", "unknown", "starting", "arrived", "incoming", "migrated")
_ENDED = {
    "c": "it has crashed, and Xen keeps it",
    "w": "its watchdog has ended it, and Xen keeps it",
    "s": "it was suspended by an xl that has ended",
}
"""Why a domain that is shut down stands still for ever; those that reboot or power off are on their way."""
_NO_CONFIG = {"config": {"c_info": {"type": ""}}}
"""Of a domain that is just being built xl has none, and leaves it out."""
_UUID = r"[0-9a-f]{8}(?:-[0-9a-f]{4}){3}-[0-9a-f]{12}"


@dataclass(frozen=True, slots=True)
class DomainConfig:
    """What a domain was started with."""

    type: str
    """pv, pvh or hvm; empty: it is just being built."""
    volumes: dict[str, str]
    """UUID to name: those of its disks that are storkit's."""


@dataclass(frozen=True, slots=True)
class SeenDomain:
    """One domain of a guest, and what that makes of the guest."""

    domain: XenDomain
    status: GuestStatus
    migration: str = ""
    reason: str = ""

    @property
    def dead(self) -> bool:
        """Whether it stands still for good."""
        return self.domain.ended not in ("", "s")


@dataclass(frozen=True, slots=True)
class XenGuest:
    """A guest on this host."""

    name: str
    uuid: str
    status: GuestStatus
    record: Definition | None = None
    seen: list[SeenDomain] = field(default_factory=list)
    """Its domains. Of one that moves within a host, or comes back to where its rest is, there are two."""

    @property
    def idle(self) -> bool:
        return self.status in ("stopped", "migrated")

    @property
    def first(self) -> SeenDomain | None:
        """The domain that its status is of."""
        return self.seen[0] if self.seen else None

    def of(self, *statuses: GuestStatus) -> list[XenDomain]:
        """Its domains that are one of these."""
        return [one.domain for one in self.seen if one.status in statuses]


@dataclass(frozen=True, slots=True)
class XenGuests:
    """The guests of one host. `base` is where their records are, `run` where their migrations' keys are."""

    base: Path
    run: Path

    def look(self, names: list[str] | None) -> list[XenGuest]:
        """storkit's guests, all or those of `names`; of `names`, those that somebody else has started as well.

        If xl does not answer, guests with a record are unknown. Raises ServiceUnreachable if it does not and one of
        `names` has none here: it may run.
        """
        wanted = self._recorded() if names is None else names
        records = {name: record for name in wanted if (record := self.record(name))}
        if not toolstack.is_dom0():
            return [XenGuest(name, record.guest.uuid, "stopped", record) for name, record in records.items()]
        try:
            domains = [domain for domain in toolstack.domains() if not domain.dying]
            return [found for name in wanted if (found := self._one(name, records.get(name), domains))]
        except StorkitError as error:
            if len(records) < len(wanted):
                raise ServiceUnreachable(f"xl does not answer here: {toolstack.reason(error)}", error.hint) from error
            return [XenGuest(name, record.guest.uuid, "unknown", record) for name, record in records.items()]

    def one(self, name: str) -> XenGuest | None:
        """What is known of a guest."""
        return next(iter(self.look([check_name("guest", name)])), None)

    def foreign(self, guest: Guest) -> list[XenDomain]:
        """The domains of this guest's name that are not it."""
        return [d for d in toolstack.domains() if not d.dying and d.guest == guest.name and d.uuid != guest.uuid]

    def taken(self, guest: Guest) -> list[str]:
        """Which disks of a guest others have that are on this host."""
        volumes = {disk.uuid for disk in guest.disks if disk.uuid}
        others = [name for name in self._recorded() if name != guest.name and self._shares(name, volumes)]
        return [
            line
            for other in (self.look(others) if others else [])
            if other.record and not other.idle
            for line in taken_disks(guest, other.record.guest, other.status)
        ]

    def _shares(self, name: str, volumes: Iterable[str]) -> bool:
        record = self.record(name)
        return record is not None and any(disk.uuid in volumes for disk in record.guest.disks)

    # --- what is kept

    def record(self, name: str) -> Definition | None:
        try:
            return load(self.directory(name))
        except FileNotFoundError:
            return None

    def directory(self, name: str) -> Path:
        return self.base / check_name("guest", name)

    def config(self, name: str) -> Path:
        """What `xl create` reads."""
        return self.directory(name) / CONFIG

    def bringers(self, name: str, among: list[XlProcess] | None = None) -> list[XlProcess]:
        """The processes, of all or of these, that build the guest's domain, or would build it anew."""
        processes = xl_processes() if among is None else among
        return [process for process in processes if process.brings(name, self.config(name))]

    def moving(self, name: str) -> Path:
        """The directory of a migration's key."""
        return self.run / check_name("guest", name)

    def expect(self, name: str, memory: bool = False) -> None:
        """Mark the guest as one that is to arrive here; with `memory`, as one whose memory is read from a file, which
        has arrived only once it is marked without."""
        write_atomic(self._mark(name, _READING if memory else _ARRIVING), _boot())
        if not memory:
            self._mark(name, _READING).unlink(missing_ok=True)

    def expected(self, name: str) -> bool:
        """Whether it is to arrive, and has not been let go on."""
        return self._marked(name, _ARRIVING) or self.reading(name)

    def reading(self, name: str) -> bool:
        """Whether its memory is being read from a file, or was when that was cut short."""
        return self._marked(name, _READING)

    def forget_arrival(self, name: str) -> None:
        for mark in (_ARRIVING, _READING):
            self._mark(name, mark).unlink(missing_ok=True)

    def make(self, name: str) -> None:
        """The directories of a guest."""
        make_private(self.directory(name))
        make_private(self.moving(name))

    def _mark(self, name: str, mark: str) -> Path:
        return self.directory(name) / mark

    def _marked(self, name: str, mark: str) -> bool:
        try:
            return self._mark(name, mark).read_text() == _boot()
        except FileNotFoundError:
            return False

    def _recorded(self) -> list[str]:
        return sorted(entry.name for entry in self.base.iterdir()) if self.base.is_dir() else []

    # --- what there is

    def _one(self, name: str, record: Definition | None, domains: list[XenDomain]) -> XenGuest | None:
        uuid = record.guest.uuid if record else ""
        mine = [one for one in domains if one.uuid == uuid or (one.guest == name and self._has_disks(one, record))]
        if not mine and not record:
            return None
        processes = xl_processes()
        bringers = self.bringers(name, processes)
        building = any(not process.watches for process in bringers)
        seen = [self._seen(name, domain, processes, building) for domain in mine]
        seen.sort(key=lambda one: _ORDER.index(one.status))
        if seen:
            return XenGuest(name, seen[0].domain.uuid, seen[0].status, record, seen)
        assert record
        if self.reading(name):
            return XenGuest(name, record.guest.uuid, "incoming", record)
        # xl takes the domain of a guest that reboots apart, waits two seconds, and builds it anew.
        status: GuestStatus = "starting" if bringers else "incoming" if self.expected(name) else "stopped"
        return XenGuest(name, record.guest.uuid, status, record)

    def _has_disks(self, domain: XenDomain, record: Definition | None) -> bool:
        """Whether a domain has a disk of the guest's, or, where that has no record, of anybody's in storkit.

        A configuration without a UUID has another one at each `xl create`: this tells it from a stranger of its name.
        """
        volumes = self.config_of(domain).volumes
        return any(disk.uuid in volumes for disk in record.guest.disks) if record else bool(volumes)

    def config_of(self, domain: XenDomain) -> DomainConfig:
        """What a domain was started with."""
        kind, paths = parse_config(toolstack.xl("list", "-l", str(domain.id)))
        volumes = {uuid: Path(path).name for path in paths if (uuid := _volume(path, self.run.parent))}
        return DomainConfig(kind, volumes)

    def _seen(self, name: str, domain: XenDomain, processes: list[XlProcess], building: bool) -> SeenDomain:
        if domain.incoming:
            received = any(process.receives and process.guest in ("", name) for process in processes)
            # Its xl has ended before it was told that it may run: all of it is here, or it never will be.
            return SeenDomain(domain, "arrived" if not received and toolstack.launched(domain.id) else "incoming", "in")
        sender = next((process for process in processes if process.sends(domain.guest, domain.id)), None)
        if domain.ended == "s" and sender:
            # It runs on here by itself if its migration fails now; a save ends it.
            said = f"xl migrate, process {sender.pid}" if domain.away else ""
            return SeenDomain(domain, "running" if sender.verb == "migrate" else "starting", "out", said)
        if domain.ended and domain.away:
            return SeenDomain(domain, "migrated")
        if domain.ended:
            reason = _ENDED.get(domain.ended, "")
            return SeenDomain(domain, "paused" if reason else "starting", reason=reason)
        if domain.paused and domain.seconds:
            # whoever let it go on, and whatever mark is left: it has run here
            saved = (self.moving(name) / SAVED).exists()
            return SeenDomain(domain, "paused", reason="its memory has been saved" if saved else "")
        if domain.paused and self.reading(name):
            return SeenDomain(domain, "incoming", "in")
        if domain.paused:
            expected = self.expected(name)
            if building or not toolstack.launched(domain.id):  # the xl that built it may have been killed
                return SeenDomain(domain, "incoming" if expected and not building else "starting")
            return SeenDomain(domain, "arrived" if expected else "paused")
        return SeenDomain(domain, "running", "out" if sender else "")


def parse_config(text: str) -> tuple[str, list[str]]:
    """The type and the paths of the disks in the JSON of `xl list -l ID`. Raises Unsafe: it is not understood."""
    try:
        config = (json.loads(text) or [_NO_CONFIG])[-1]["config"]
        disks = [disk for disk in config.get("disks", []) if isinstance(disk.get("pdev_path"), str)]
        return str(config["c_info"]["type"]), [_path(disk) for disk in disks]
    except (ValueError, LookupError, TypeError, AttributeError) as error:
        raise Unsafe(f"xl list -l says what storkit does not understand: {error}", "xl list -l") from error


def _path(disk: dict[str, Any]) -> str:
    """Where a disk is: with our script its path is a volume's name."""
    ours = Path(disk.get("script") or "").name == toolstack.SCRIPT
    return f"/dev/storkit/{disk['pdev_path']}" if ours else str(disk["pdev_path"])


def _volume(path: str, run: Path) -> str:
    """The UUID of the volume behind a disk's path; empty: it is none of storkit's. No file system of a server's is
    asked, which may be away: a file is below RUN, in a directory of its volume's UUID."""
    try:
        there = Path(path) if Path(path).is_relative_to(run) else Path(path).readlink()
        if there.is_relative_to(run):
            return next((part for part in there.relative_to(run).parts if re.fullmatch(_UUID, part)), "")
    except OSError:
        pass  # no link
    try:
        number = os.stat(path).st_rdev
        text = Path(f"/sys/dev/block/{os.major(number)}:{os.minor(number)}/dm/uuid").read_text()
    except OSError:
        return ""
    found = re.fullmatch(rf"{re.escape(devmapper.PREFIX)}({_UUID})-.*", text.strip())
    return found[1] if found else ""


def _boot() -> str:
    return Path("/proc/sys/kernel/random/boot_id").read_text().strip()


def silent(name: str, what: str) -> Unsafe:
    """The error of what is not done to a guest, since it is not known where it is."""
    return Unsafe(f"guest {name} cannot be {what}: xl does not answer here", "xl list; systemctl status xen")
