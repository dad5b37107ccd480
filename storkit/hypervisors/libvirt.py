"""Guests as domains of libvirt's QEMU driver, commanded through virsh."""

from __future__ import annotations

import json
import os
import shutil
import time
from dataclasses import dataclass, replace
from pathlib import Path
from typing import ClassVar, Literal

from storkit.core import codec
from storkit.core.backend import Hypervisor, Needs, path_setting, program_setting
from storkit.core.errors import (
    CommandFailed,
    Conflict,
    NotFound,
    StorkitError,
    TimedOut,
    Unsafe,
    Unsupported,
    raise_problems,
)
from storkit.core.guest import Console, Guest, TakenGuest
from storkit.core.identities import Count, Seconds
from storkit.core.model import (
    ALIVE,
    Credential,
    DiskSource,
    Finding,
    GuestState,
    MigrationResult,
    Original,
    Saved,
    Secrets,
    check_name,
)
from storkit.hypervisors import _paused as paused
from storkit.hypervisors import _saved as memory
from storkit.hypervisors._embedded import RECORD
from storkit.hypervisors._guestagent import ByAgent, Way
from storkit.hypervisors._libvirt import adopting, domainlog, host, inside, saving
from storkit.hypervisors._libvirt import domain as domains
from storkit.hypervisors._libvirt.domain import Domain
from storkit.hypervisors._libvirt.guests import WRITTEN, XML, Guests, KnownGuest
from storkit.hypervisors._libvirt.migration import LibvirtLimits, MigrationRoute, Source, parse_route
from storkit.hypervisors._libvirt.virsh import ASK_TIMEOUT, PACKAGE, Virsh, parse_blocks
from storkit.hypervisors._machine import (
    DEFAULT_MACHINE,
    PRESS_AGAIN,
    end_command,
    file_problems,
    fingerprint,
    force_command,
    look_command,
    memory_problems,
    refuse_retire,
    refuse_shutdown,
    with_secrets,
)
from storkit.hypervisors._nodes.bynode import ByNode
from storkit.hypervisors._qemu.definition import Definition
from storkit.system.addresses import address_problem, own_address
from storkit.system.files import make_private, write_atomic
from storkit.system.timeouts import scaled

START_TIMEOUT = scaled(180.0)
"""Seconds for QEMU to open its disks and be ready. libvirt first asks a QEMU that it does not know what it can do."""


@dataclass(frozen=True, slots=True)
class LibvirtSettings:
    """The keys of [hypervisors.libvirt] in the inventory."""

    uri: str = program_setting("qemu:///system")
    """libvirt on the host itself."""
    migrate_uri: str = program_setting("qemu+ssh://{address}/system")
    """How another host's libvirtd reaches this one; `{address}` is the host's address in the inventory."""
    channel: Literal["tunnelled", "tls", "plain"] = "tunnelled"
    """How a guest's memory travels: inside the libvirtds' connection, or from QEMU to QEMU, encrypted with the
    certificates of qemu.conf (migrate_tls_x509_cert_dir), or in the clear."""
    accel: Literal["", "kvm", "tcg"] = ""
    """Empty: KVM where the host has it. Both hosts of a migration need the same."""
    templates: str = path_setting()
    """A directory whose libvirt/guest.xml.j2 is taken instead of the one that comes with storkit."""
    downtime_limit: Count = 300
    """Milliseconds that a guest may stand still in a migration's switchover, without the step that lets it go on."""
    bandwidth: Count = 0
    """Bytes a second that a migration may take, rounded up to whole MiB; 0: no limit."""
    stall_timeout: Seconds = 120.0
    """Seconds without a byte sent after which a migration is given up."""


class Libvirt(ByAgent, ByNode, Hypervisor):
    """Guests of one host."""

    name: ClassVar[str] = "libvirt"
    reconnects = False
    keeps: ClassVar[bool] = True
    needs: ClassVar[Needs] = Needs(tools={"virsh": PACKAGE})
    Settings: ClassVar[type] = LibvirtSettings
    settings: LibvirtSettings

    @property
    def _virsh(self) -> Virsh:
        return Virsh(self.settings.uri)

    @property
    def _guests(self) -> Guests:
        return Guests(self._virsh, self.site.state.absolute() / "libvirt")

    def ready(self, serves: bool = False, attaches: bool = False) -> list[Finding]:
        try:
            self._virsh("hostname", timeout=ASK_TIMEOUT)
        except (StorkitError, OSError) as error:
            hint = error.hint if isinstance(error, StorkitError) else ""
            message = f"libvirt does not answer: {error}"
            return [Finding(message, hint or f"virsh -c {self.settings.uri} hostname; systemctl status libvirtd")]
        return []

    def find(self, guests: list[str] | None = None) -> list[GuestState]:
        """Of domains that have storkit's mark, and of records. A libvirtd that does not answer: all are unknown."""
        return [
            GuestState(
                name=known.name,
                uuid=known.uuid,
                host=self.site.host,
                hypervisor=self.name,
                status=known.status,
                migration=known.migration,
                machine=known.machine,
                volumes=known.volumes,
                reason=known.reason,
                edited=bool(known.edited),
            )
            for known in self._guests.look(guests)[0]
        ]

    def check(self, guest: Guest, arrives: bool = False) -> list[str]:
        problems: list[str] = []
        if arrives and (wrong := address_problem(self.site.host, self.site.address)):
            problems.append(f"{wrong.message}: {wrong.hint}")
        known, foreign = self._guests.look([guest.name], guest.uuid)
        try:
            offer = host.offered(self._virsh, guest.machine or DEFAULT_MACHINE, self.settings.accel)
            problem = host.processor_problem(self._virsh, guest.cpu, offer)
            problems += [problem] if problem else []
        except StorkitError as error:
            problems.append(f"{error.message}: {error.hint}" if error.hint else error.message)
        problems += [_in_the_way(one) for one in foreign]
        problems += self._guests.taken(guest)
        problems += file_problems(guest)
        if guest.console and not Path(guest.console).parent.is_dir():
            problems.append(f"the console's directory {Path(guest.console).parent} is missing here")
        for nic in guest.nics:
            if not Path("/sys/class/net", nic.bridge, "bridge").exists():
                problems.append(f"there is no bridge {nic.bridge} here: ip link add {nic.bridge} type bridge")
        if all(one.idle for one in known):
            problems += memory_problems(guest)
        return problems

    def fingerprint(self, guest: Guest) -> dict[str, str]:
        """What must be alike. Versions of libvirt and QEMU need not be: a versioned machine type is the same in all,
        and libvirt itself compares the processor that the guest was started with before anything moves."""
        before, known = self._guests.record(guest.name), self._guests.one(guest.name)
        offer = host.offered(self._virsh, guest.machine or DEFAULT_MACHINE, self.settings.accel)
        started = before.guest if before and known and not known.idle else None
        native = offer.virttype == "kvm" and guest.cpu == "host"
        return fingerprint(guest, started, offer.virttype, offer.machine, native)

    def define(self, guest: Guest, disks: list[DiskSource], machine: str = "", secrets: Secrets = None) -> str:
        before = self._guests.record(guest.name)
        known, foreign = self._guests.look([guest.name], guest.uuid)
        raise_problems([Conflict(_in_the_way(one), f"virsh dumpxml {one.uuid}") for one in foreign])
        old = next((one for one in known if one.defined), None)
        if old and not old.idle:
            if before and (before.guest, before.disks) == (guest, disks) and machine in ("", before.machine):
                return str(self._guests.directory(guest.name) / XML)
            what = "another guest of that name" if old.uuid != guest.uuid else "it"
            raise Conflict(
                f"guest {guest.name} cannot be defined: {what} is {old.status} here",
                end_command(guest.name, old.status),
            )
        self._guests.set_aside(old)
        if old and old.uuid != guest.uuid:
            self._virsh("undefine", old.uuid, host.variables(before.guest if before else None))
        return self._keep([TakenGuest(guest, disks, secrets)], machine)[0]

    def strangers(self) -> list[str]:
        return adopting.strangers(self._virsh)

    def originals(self, names: list[str], process: int = 0) -> list[Original]:
        return adopting.originals(self._virsh, names)

    def edited(self, name: str) -> list[Original]:
        known = self._guests.one(name)
        return [adopting.changed(known, self._guests.written(name))] if known and known.edited else []

    def note(self, guest: Guest, seen: str, secrets: Secrets = None) -> None:
        known, before = self._one(guest.name), self._guests.record(guest.name)
        if before is None or not known.edited or adopting.changed(known, known.edited).document != seen:
            message = f"guest {guest.name} was changed again in libvirt here"
            raise Conflict(message, f"storkit guest diff {guest.name}")
        self._write(replace(before, guest=guest), secrets)
        write_atomic(self._guests.directory(guest.name) / WRITTEN, known.edited)

    def take(self, taken: list[TakenGuest]) -> list[str]:
        guests = [each.guest for each in taken]
        running = adopting.refuse_to_take(self._virsh, self._guests, guests, self.site.run)
        files = self._keep(taken, "")
        for guest in running:
            adopting.mark_running(self._virsh, guest)
        return files

    def give_back(self, guest: Guest, secrets: Secrets = None) -> None:
        self._guests.set_aside(self._guests.one(guest.name))
        adopting.give_back(self._virsh, self._guests, guest, secrets)

    def _keep(self, wanted: list[TakenGuest], machine: str) -> list[str]:
        """Define domains, whatever libvirt has of their UUIDs. `machine` pins the machine type."""
        records = {each.guest.uuid: self._guests.record(each.guest.name) for each in wanted}
        offers: dict[str, host.Offered] = {}
        disks = [disk for each in wanted for disk in each.disks]
        user = host.qemu_user(self._virsh, disks)
        host.let_in(user, disks, (self.site.run, self.site.dev))
        raise_problems(host.disk_problems(user, disks))
        files: dict[str, Path] = {}
        for each in wanted:
            guest, before = each.guest, records[each.guest.uuid]
            pinned = before if before and (before.guest.uuid, before.asked) == (guest.uuid, guest.machine) else None
            asked = machine or (pinned.machine if pinned else "") or guest.machine or DEFAULT_MACHINE
            if asked not in offers:
                offers[asked] = host.offered(self._virsh, asked, self.settings.accel)
            offer = offers[asked]
            self._write(Definition(guest, each.disks, offer.machine, offer.virttype, guest.machine), each.secrets)
            files[guest.uuid] = self._guests.directory(guest.name) / XML
        try:
            self._virsh.define(files)
        except StorkitError:
            has = {domain.uuid for domain in map(domains.read, self._virsh.kept(list(files))) if domain.ours}
            for uuid in files.keys() - has:
                if records[uuid] is None:
                    shutil.rmtree(files[uuid].parent)
            raise
        for text in self._virsh.kept([each.guest.uuid for each in wanted if each.guest.document]):
            write_atomic(files[domains.read(text).uuid].parent / WRITTEN, text)
        return [str(files[each.guest.uuid]) for each in wanted]

    def _write(self, definition: Definition, secrets: Secrets) -> None:
        directory = self._guests.directory(definition.guest.name)
        xml = self._render(definition)
        make_private(directory)
        write_atomic(directory / XML, with_secrets(self.name, xml, secrets))
        # The record first: of every domain that storkit has made it can say that it may run, if libvirtd is silent.
        write_atomic(directory / RECORD, json.dumps(codec.dump(definition), indent=1) + "\n")

    def undefine(self, name: str) -> None:
        known = self._guests.one(name)
        if known and not known.idle:
            raise Conflict(f"guest {name} is {known.status} here", end_command(name, known.status))
        self._guests.set_aside(known)
        if known and known.defined:
            before = self._guests.record(name)
            self._virsh("undefine", known.uuid, host.variables(before.guest if before else None))
        shutil.rmtree(self._guests.directory(name), ignore_errors=True)

    def start(self, name: str) -> GuestState:
        known = self._one(name)
        if known.status in ("incoming", "arrived", "starting", "unknown"):
            raise Conflict(f"guest {name} cannot start here: it is {known.status}", look_command(name))
        if known.status not in ALIVE:
            self._check_disks(name)
            if known.saved:
                raise Conflict(
                    f"guest {name} has its memory saved from an earlier run, which may be older than its disks",
                    f"virsh managedsave-remove {name}; or, if its disks were not used since: virsh start {name}",
                )
            self._guests.arriving(name).unlink(missing_ok=True)
            try:
                self._virsh("start", known.uuid, timeout=START_TIMEOUT)
            except CommandFailed:
                if self._one(name).status != "running":  # another command was faster
                    raise
        return self.find([name])[0]

    def stop(self, name: str, force: bool = False, timeout: float = 60.0) -> None:
        deadline = time.monotonic() + timeout
        known = self._guests.one(name)
        if known is None or known.idle:
            return
        if force or known.status in ("incoming", "arrived"):
            self._destroy(known)
            return
        refuse_shutdown(name, known.status)
        while self._guests.active(known):
            if time.monotonic() >= deadline:
                raise TimedOut(f"guest {name} did not shut down within {timeout:g} seconds", force_command(name))
            self._press(known, min(PRESS_AGAIN, max(1.0, deadline - time.monotonic())))

    @classmethod
    def leads_to(cls, uri: str) -> str:
        from storkit.hypervisors._libvirt.migration import route_address

        return route_address(uri)

    def receive(self, name: str, same_machine: bool, source: str = "", told: str = "") -> str:
        if same_machine:
            raise Unsupported(
                "libvirt cannot migrate a guest to the libvirtd that it is with", "choose a host on another machine"
            )
        address = self.site.address
        own_address(self.site.host, address)
        known = self._one(name)
        if not known.idle and known.status not in ("incoming", "arrived"):
            raise Conflict(f"guest {name} cannot be received here: it is {known.status} here", look_command(name))
        self._check_disks(name)
        self._guests.arriving(name).touch(0o600)
        shown = f"[{address}]" if ":" in address else address
        sources = domains.sources((self._guests.directory(name) / XML).read_text())
        return str(MigrationRoute(self.settings.migrate_uri.replace("{address}", shown), f"tcp://{shown}", sources))

    def send(self, name: str, uri: str, credential: Credential | None = None) -> MigrationResult:
        settings = self.settings
        limits = LibvirtLimits(settings.channel, settings.downtime_limit, settings.bandwidth, settings.stall_timeout)
        known, to = self._one(name), parse_route(uri, self.settings.migrate_uri)
        if known.status not in ("running", "paused", "migrated"):
            raise Conflict(f"guest {name} is {known.status} here", look_command(name))
        directory = self._guests.directory(name)
        defined = (directory / XML).read_text()
        return self._source(known).send(to, limits, directory / "moving.xml", defined, known.status == "migrated")

    def resume(self, name: str, run: bool = True) -> None:
        known = self._one(name)
        if known.status not in ("running", "paused", "arrived"):
            raise Unsafe(f"guest {name} cannot go on here: it is {known.status}", look_command(name))
        # The mark goes first: a guest that runs is never taken for one that has yet to be let go on.
        self._guests.arriving(name).unlink(missing_ok=True)
        if run and known.status != "running":
            self._virsh("resume", known.uuid)

    def grow(self, name: str, disk: str, size: int) -> bool:
        known, record = self._one(name), self._guests.record(name)
        assert record is not None  # it is defined
        mine = [source for each, source in zip(record.guest.disks, record.disks, strict=True) if each.uuid == disk]
        for target, source in parse_blocks(self._virsh("domblklist", known.uuid)):
            if any(source in (each.path, each.export) for each in mine):
                try:
                    self._virsh("blockresize", known.uuid, target, f"{size}B")
                except CommandFailed:
                    return False  # an NBD disk of QEMU's own that has made no request since its server began anew
                return True
        return False

    def pause(self, name: str) -> GuestState:
        known, state = self._one(name), self.find([name])[0]
        if not paused.asleep(state):
            self._virsh("suspend", known.uuid)
        return self.find([name])[0]

    def wake(self, name: str) -> GuestState:
        known, state = self._one(name), self.find([name])[0]
        if paused.asleep(state):
            self._virsh("resume", known.uuid)
            deadline = time.monotonic() + paused.FAILS_AGAIN
            while time.monotonic() < deadline:  # virsh may begin to wait too late for an event
                state = self.find([name])[0]
                if paused.asleep(state):
                    raise paused.still(state)
                time.sleep(0.05)
        return state

    def save(self, name: str, saved: Saved, file: str = "") -> Saved:
        return saving.save(self.site, self._guests, name, saved, file)

    def unsave(self, name: str, saved: Saved, file: str = "") -> None:
        saving.unsave(self.site, self._guests, name, saved, file)

    def saved(self, name: str, file: str = "") -> Saved:
        return memory.read(memory.place(self.site, name, file))

    def load(self, name: str, hold: str, file: str = "") -> None:
        path = memory.place(self.site, name, file)
        memory.refuse_other(memory.read(path), name, hold)
        known = self._one(name)
        if known.status == "arrived":
            return
        if known.status == "incoming":  # killed while it was read
            self._destroy(known)
        elif not known.idle:
            raise Conflict(f"guest {name} cannot wake up here: it is {known.status} here", look_command(name))
        self._check_disks(name)
        saving.load(self._guests, known, path)

    def spend(self, name: str, guest: str, file: str = "") -> None:
        memory.spend(memory.place(self.site, name, file), not file, name, guest)

    def console(self, name: str) -> Console:
        known = self._one(name)
        if not self._guests.active(known):
            raise NotFound(f"guest {name} does not run here", look_command(name))
        return Console("program", ["virsh", "-c", self.settings.uri, "console", known.uuid])

    def _way(self, name: str) -> Way:
        return inside.way(self._virsh, name, self._one(name).uuid)

    def messages(self, name: str) -> str:
        """The end of libvirt's log of the guest, since it was last started here or began to arrive."""
        system = self.settings.uri.endswith("/system")
        cache = Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache")
        directory = Path("/var/log/libvirt/qemu") if system else cache / "libvirt/qemu/log"
        log = directory / f"{check_name('guest', name)}.log"
        return domainlog.last_messages(log.read_text(errors="replace")) if log.exists() else ""

    def cancel(self, name: str) -> None:
        known = self._guests.one(name)
        if known and known.status in ALIVE:
            self._source(known).cancel()

    def retire(self, name: str) -> None:
        known = self._guests.one(name)
        if known:
            refuse_retire(name, known.status)
        if known and not known.idle:
            self._destroy(known)
        self._guests.arriving(name).unlink(missing_ok=True)

    def _render(self, definition: Definition) -> str:
        from storkit.guests.place import Place
        from storkit.guests.render import render

        place = Place(accel="kvm" if definition.accel == "kvm" else "tcg", machine=definition.machine)
        templates = [Path(self.settings.templates)] if self.settings.templates else []
        text = render(definition.guest, definition.disks, "libvirt", place, templates)
        return domains.marked(text, definition.guest)

    def _press(self, known: KnownGuest, seconds: float) -> None:
        """Press the power button, and wait for the guest to end, no longer than `seconds`."""
        until = time.monotonic() + seconds
        # In one process: an event that came before anybody listens would be waited for in vain.
        words = [f"shutdown {known.uuid} --mode acpi"]
        while self._guests.active(known) and (left := until - time.monotonic()) > 0:
            wait = max(1, round(left))
            self._virsh.batch([*words, f"event {known.uuid} --event lifecycle --timeout {wait}"], timeout=wait + 30)
            words = []

    def _destroy(self, known: KnownGuest) -> None:
        try:
            self._virsh("destroy", known.uuid)
        except CommandFailed:
            if self._guests.active(known):
                raise
        self._guests.arriving(known.name).unlink(missing_ok=True)

    def _source(self, known: KnownGuest) -> Source:
        return Source(self._virsh, known.name, known.uuid, self.site.progress)

    def _one(self, name: str) -> KnownGuest:
        known = self._guests.one(name)
        if known is None or not known.defined:
            raise NotFound(f"guest {name} is not defined on {self.site.host}", f"storkit guest start {name}")
        return known

    def _check_disks(self, name: str) -> None:
        record = self._guests.record(name)
        taken = self._guests.taken(record.guest) if record else []
        if taken:
            raise Unsafe(f"guest {name} cannot be here: {'; '.join(taken)}", look_command(name))


def _in_the_way(domain: Domain) -> str:
    there = f"libvirt here has a domain {domain.name} ({domain.uuid})"
    return f"{there} that is not this guest: virsh domrename {domain.uuid} NEW-NAME moves it away"
