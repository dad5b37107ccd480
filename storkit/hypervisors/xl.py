"""Guests as domains of Xen, commanded through xl.

A migration goes from agent to agent (_xl/channel.py), and with `xl migrate-receive -p`: the guest stands still at the
destination until the source has given it up, which its domain's name there says (`NAME--migratedaway`).
"""

from __future__ import annotations

import json
import shutil
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import ClassVar

from storkit.core import codec
from storkit.core.backend import Hypervisor, Needs, path_setting
from storkit.core.errors import (
    CommandFailed,
    Conflict,
    NotFound,
    StorkitError,
    Unsafe,
    Unsupported,
    raise_problems,
)
from storkit.core.guest import Console, Guest, TakenGuest
from storkit.core.identities import Port, Seconds
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
from storkit.guests.limits import xen_type
from storkit.hypervisors import _door as door
from storkit.hypervisors import _saved as memory
from storkit.hypervisors._embedded import RECORD
from storkit.hypervisors._machine import (
    differences,
    digest,
    end_command,
    file_problems,
    force_command,
    look_command,
    refuse_retire,
    resume_command,
    with_secrets,
)
from storkit.hypervisors._nodes.bynode import ByNode
from storkit.hypervisors._qemu.definition import Definition
from storkit.hypervisors._xl import incoming, saving, toolstack
from storkit.hypervisors._xl.ending import CHANGE_TIMEOUT, XlEnding
from storkit.hypervisors._xl.guests import ALONE, CONFIG, XenGuest, XenGuests, silent
from storkit.hypervisors._xl.host import in_the_way, machine_problems
from storkit.hypervisors._xl.outgoing import XlSource
from storkit.hypervisors._xl.processes import GUEST
from storkit.hypervisors._xl.toolstack import PACKAGE, xl
from storkit.system.addresses import address_problem, own_address
from storkit.system.files import write_atomic
from storkit.system.sourcefilter import sources


@dataclass(frozen=True, slots=True)
class XlSettings:
    """The keys of [hypervisors.xl] in the inventory."""

    templates: str = path_setting()
    """A directory whose xl/guest.cfg.j2 is taken instead of the one that comes with storkit."""
    stall_timeout: Seconds = 120.0
    """Seconds without a byte sent after which a migration is given up."""
    migration_port: Port = 0
    """The TCP port to receive migrations on; 0: a free one."""


class Xl(ByNode, Hypervisor):
    """Guests of one host."""

    name: ClassVar[str] = "xl"
    takes_running = True
    tells = False
    needs: ClassVar[Needs] = Needs(tools={"xl": PACKAGE, "xenstore-ls": "xenstore-utils", "openssl": "openssl"})
    Settings: ClassVar[type] = XlSettings
    settings: XlSettings

    @property
    def _guests(self) -> XenGuests:
        return XenGuests(self.site.state.absolute() / "xl", self.site.run.absolute() / "xl")

    @property
    def _ending(self) -> XlEnding:
        return XlEnding(self._guests)

    def ready(self, serves: bool = False, attaches: bool = False) -> list[Finding]:
        if not toolstack.is_dom0():
            return [
                Finding("this machine does not run under Xen", f"apt install xen-system-amd64; boot {PACKAGE}'s Xen")
            ]
        try:
            toolstack.machine()
        except StorkitError as error:
            return [Finding(f"xl does not answer: {toolstack.reason(error)}", "xl info; systemctl status xen")]
        return []

    def find(self, guests: list[str] | None = None) -> list[GuestState]:
        """Of the domains in xl's list, and of records; of names that are asked for also those that xl was given by
        hand."""
        return [self._state(found) for found in self._guests.look(guests)]

    def check(self, guest: Guest, arrives: bool = False) -> list[str]:
        problems: list[str] = []
        if arrives and (wrong := address_problem(self.site.host, self.site.address)):
            problems.append(f"{wrong.message}: {wrong.hint}")
        problems += file_problems(guest)
        for nic in guest.nics:
            if not Path("/sys/class/net", nic.bridge, "bridge").exists():
                problems.append(f"there is no bridge {nic.bridge} here: ip link add {nic.bridge} type bridge")
        try:
            if not toolstack.is_dom0():
                return [*problems, f"this machine does not run under Xen: boot it with Xen, of {PACKAGE}"]
            problems += [in_the_way(domain) for domain in self._guests.foreign(guest)]
            problems += self._guests.taken(guest)
            found = self._guests.one(guest.name)
            problems += machine_problems(guest, arrives, running=found is not None and not found.idle)
        except StorkitError as error:
            problems.append(f"{toolstack.reason(error)}: {error.hint}" if error.hint else toolstack.reason(error))
        return problems

    def fingerprint(self, guest: Guest) -> dict[str, str]:
        """What must be alike. That a guest does not come to an older Xen, or to a processor that lacks what it has
        seen, Xen's own stream sees to."""
        found = self._guests.one(guest.name)
        started = found.record.guest if found and found.record and found.of(*ALIVE) else None
        changed = differences(started, guest) if started else ""
        if found and found.first and found.status == "paused":
            because = f" ({found.first.reason})" if found.first.reason else ""
            raise Conflict(
                f"guest {guest.name} is paused here{because}, and Xen moves and saves a guest only while it runs",
                force_command(guest.name) if found.first.dead else resume_command(guest.name),
            )
        return {
            "definition": f"changed in {changed} since it was started" if changed else "as recorded",
            "type": xen_type(guest),
            "kernel": digest(guest.boot.kernel),
            "initrd": digest(guest.boot.initrd),
        }

    def define(self, guest: Guest, disks: list[DiskSource], machine: str = "", secrets: Secrets = None) -> str:
        directory, before = self._guests.directory(guest.name), self._guests.record(guest.name)
        raise_problems([Conflict(in_the_way(one), f"xl list -v {one.id}") for one in self._guests.foreign(guest)])
        found = self._guests.one(guest.name)
        if found and not found.idle:
            if before and (before.guest, before.disks) == (guest, disks):
                return str(directory / CONFIG)
            if found.record or found.uuid != guest.uuid:
                what = "another guest of that name" if found.uuid != guest.uuid else "it"
                raise Conflict(
                    f"guest {guest.name} cannot be defined: {what} is {found.status} here",
                    end_command(guest.name, found.status),
                )
        definition = Definition(guest, disks, f"{xen_type(guest)}-{toolstack.machine().version}", "", guest.machine)
        text = with_secrets(self.name, self._render(definition), secrets)
        self._guests.make(guest.name)
        write_atomic(directory / CONFIG, text)
        # The record last: without it there is none.
        write_atomic(directory / RECORD, json.dumps(codec.dump(definition), indent=1) + "\n")
        return str(directory / CONFIG)

    def originals(self, names: list[str], process: int = 0) -> list[Original]:
        from storkit.hypervisors._xl import adopting

        return adopting.originals(self._guests, names)

    def take(self, taken: list[TakenGuest]) -> list[str]:
        from storkit.hypervisors._xl import adopting

        domains = [adopting.refuse_to_take(self.site.run, each.guest) for each in taken]
        for each, domain in zip(taken, domains, strict=True):
            if each.disks:
                self.define(each.guest, each.disks, secrets=each.secrets)
            self._guests.make(each.guest.name)
            machine = f"{xen_type(each.guest)}-{toolstack.machine().version}"
            adopting.take(self._guests.directory(each.guest.name), domain, each, machine)
        return [str(self._guests.config(each.guest.name)) for each in taken]

    def give_back(self, guest: Guest, secrets: Secrets = None) -> None:
        from storkit.hypervisors._xl import adopting

        adopting.give_back(self._guests, guest)

    def undefine(self, name: str) -> None:
        found = self._guests.one(name)
        if found and not found.idle:
            raise Conflict(f"guest {name} is {found.status} here", end_command(name, found.status))
        shutil.rmtree(self._guests.directory(name), ignore_errors=True)
        shutil.rmtree(self._guests.moving(name), ignore_errors=True)

    def start(self, name: str) -> GuestState:
        found = self._one(name)
        if found.status == "unknown":
            raise silent(name, "started")
        if found.status == "starting" or (found.seen and found.status not in ("running", "paused", "migrated")):
            raise Conflict(f"guest {name} cannot start here: it is {found.status}", look_command(name))
        if found.idle or not found.seen:
            self._check_disks(found)
            self._ending.end(name, "migrated")
            try:
                # By its name the xl that stays to watch the domain is known when that reboots.
                xl("create", str(self._guests.config(name)), timeout=CHANGE_TIMEOUT, env={GUEST: name})
            except CommandFailed:
                if self._one(name).status != "running":  # another command was faster
                    raise
            self._guests.forget_arrival(name)
            self._source(name).forget()
            saving.XlSave(self._guests, name).forget()
        return self.find([name])[0]

    def stop(self, name: str, force: bool = False, timeout: float = 60.0) -> None:
        found = self._guests.one(name)
        if found is None or found.idle:
            return
        if found.status == "unknown":
            raise silent(name, "ended")
        if force or found.status in ("incoming", "arrived"):
            self._source(name).cancel()
            self._ending.stop_receiving(name)
            self._ending.stop_building(name)
            self._ending.end(name)
            self._guests.forget_arrival(name)
            saving.XlSave(self._guests, name).forget()
            return
        self._ending.shut_down(found, timeout)
        self._guests.forget_arrival(name)

    @classmethod
    def leads_to(cls, uri: str) -> str:
        from storkit.hypervisors._xl.outgoing import parse_uri

        return parse_uri(uri)[0]

    def receive(self, name: str, same_machine: bool, source: str = "", told: str = "") -> str:
        if same_machine:
            raise Unsupported(
                "two hosts that are one machine have one Xen, where the guest is already",
                "choose a host on another machine",
            )
        address = own_address(self.site.host, self.site.address)
        found = self._one(name)
        if found.status not in ("stopped", "migrated", "incoming"):
            raise Conflict(f"guest {name} cannot be received here: it is {found.status} here", look_command(name))
        self._check_disks(found)
        self._ending.end(name, "migrated")
        directory = self._guests.moving(name)
        self._guests.make(name)
        self._source(name).forget()
        self._guests.expect(name)
        if found.of("incoming"):
            return f"xl:{address}:0"  # it is on its way already: nobody has to find the port any more
        incoming.forget(directory)
        incoming.new_key(directory)
        log = self._guests.directory(name) / incoming.LOG
        log.unlink(missing_ok=True)
        expected = door.Expected(
            address,
            self.settings.migration_port,
            tuple(sources(source, told)),
            door.TLS_HELLO,
            "set migration_port of hypervisors.xl to another, or to 0",
        )
        return "xl:" + door.open_door(directory, expected, partial(incoming.take, name, directory, log))

    def credential(self, name: str) -> Credential | None:
        return incoming.read_key(self._guests.moving(name))

    def send(self, name: str, uri: str, credential: Credential | None = None) -> MigrationResult:
        return self._source(name).send(uri, credential, self.settings.stall_timeout)

    def resume(self, name: str, run: bool = True) -> None:
        if run and self._goes_on(name):
            return
        found = self._one(name)
        if found.status == "incoming":
            # The source has let go of it: what it waits for does not come any more.
            self._ending.stop_receiving(name)
            found = self._one(name)
        if found.status not in ("running", "paused", "arrived") or found.first is None or found.first.dead:
            raise Unsafe(f"guest {name} cannot go on here: it is {found.status}", look_command(name))
        domain = found.first.domain
        if domain.incoming:
            xl("rename", str(domain.id), name)
        # The mark goes last: until then it has arrived, whoever is killed here. Once it runs, its seconds tell that.
        if run and found.status != "running":
            toolstack.go_on(domain)
        self._guests.forget_arrival(name)
        incoming.forget_key(self._guests.moving(name))

    def _goes_on(self, name: str) -> bool:
        """Let a guest go on that has just come to this very process, whose xl has said all that is to be known. It
        stands still meanwhile, and each further command of xl's is a part of its downtime."""
        if not incoming.came(self._guests.moving(name)) or name.isdecimal():
            return False
        try:
            xl("unpause", name)
        except StorkitError:
            return False  # somebody has ended it, or has done the same
        self._guests.forget_arrival(name)
        incoming.forget_key(self._guests.moving(name))
        return True

    def pause(self, name: str) -> GuestState:
        found = self._one(name)
        if found.status not in ALIVE or not found.first:
            raise Conflict(f"guest {name} does not run here: it is {found.status}", look_command(name))
        if found.status == "running":
            toolstack.xl("pause", str(found.first.domain.id))
        return self.find([name])[0]

    def wake(self, name: str) -> GuestState:
        found = self._one(name)
        if found.status not in ALIVE:
            raise Conflict(f"guest {name} does not stand still here: it is {found.status}", look_command(name))
        if found.status == "paused" and found.first:
            if found.first.dead:
                raise Conflict(f"guest {name} cannot go on: {found.first.reason}", force_command(name))
            saving.XlSave(self._guests, name).forget()
            toolstack.go_on(found.first.domain)
        return self.find([name])[0]

    def save(self, name: str, saved: Saved, file: str = "") -> Saved:
        return saving.save(self.site, self._guests, name, saved, file, self.settings.stall_timeout)

    def unsave(self, name: str, saved: Saved, file: str = "") -> None:
        saving.unsave(self.site, self._guests, name, saved, file)

    def saved(self, name: str, file: str = "") -> Saved:
        return memory.read(memory.place(self.site, name, file))

    def load(self, name: str, hold: str, file: str = "") -> None:
        path = memory.place(self.site, name, file)
        memory.refuse_other(memory.read(path), name, hold)
        found = self._one(name)
        if found.status == "arrived":
            return
        if found.status not in ("stopped", "migrated", "incoming"):
            raise Conflict(f"guest {name} cannot wake up here: it is {found.status} here", look_command(name))
        self._check_disks(found)
        self._ending.give_up_arrival(name)  # killed while it was read
        self._guests.make(name)
        try:
            saving.load(self._guests, name, path, found.record.disks if found.record else [])
        except StorkitError:
            self._ending.give_up_arrival(name)
            raise
        self._source(name).forget()

    def spend(self, name: str, guest: str, file: str = "") -> None:
        memory.spend(memory.place(self.site, name, file), not file, name, guest)

    def console(self, name: str) -> Console:
        if (found := self._one(name)).first is None:
            raise NotFound(f"guest {name} does not run here", look_command(name))
        return Console("program", ["xl", "console", found.name])

    def messages(self, name: str) -> str:
        """What xl said of the guest's arrival here."""
        log = self._guests.directory(name) / incoming.LOG
        return log.read_text(errors="replace").replace("\r", "\n").strip() if log.exists() else ""

    def cancel(self, name: str) -> None:
        source = self._source(check_name("guest", name))
        source.cancel()
        if found := self._guests.one(name):
            source.let_go_on(found)  # perhaps an xl that was killed has suspended it
        if (found := self._guests.one(name)) and found.status == "running":
            self._guests.forget_arrival(name)  # whoever let it go on: it has not just arrived

    def retire(self, name: str) -> None:
        found = self._guests.one(name)
        if found:
            refuse_retire(name, found.status)
        self._ending.stop_receiving(name)
        self._ending.give_up_arrival(name)
        incoming.forget_key(self._guests.moving(name))

    # --- parts

    def _state(self, found: XenGuest) -> GuestState:
        volumes, machine, pinned = dict[str, str](), "", ""
        if found.record:
            volumes = {disk.uuid: disk.volume for disk in found.record.guest.disks if disk.uuid}
            machine = found.record.machine
            pinned = ALONE if len(found.record.disks) < len(found.record.guest.disks) and not found.idle else ""
        elif found.first:
            config = self._guests.config_of(found.first.domain)
            volumes = config.volumes
            machine = f"{config.type}-{toolstack.machine().version}" if config.type else ""
        return GuestState(
            name=found.name,
            uuid=found.uuid,
            host=self.site.host,
            hypervisor=self.name,
            status=found.status,
            migration=found.first.migration if found.first else "",
            machine=machine,
            volumes=volumes,
            reason=found.first.reason if found.first else "",
            pinned=pinned,
        )

    def _render(self, definition: Definition) -> str:
        from storkit.guests.place import Place
        from storkit.guests.render import render

        templates = [Path(self.settings.templates)] if self.settings.templates else []
        return render(definition.guest, definition.disks, self.name, Place(machine=definition.machine), templates)

    def _source(self, name: str) -> XlSource:
        return XlSource(self._guests, name, self.site.progress)

    def _one(self, name: str) -> XenGuest:
        found = self._guests.one(name)
        if found is None:
            raise NotFound(f"guest {name} is not defined on {self.site.host}", f"storkit guest start {name}")
        return found

    def _check_disks(self, found: XenGuest) -> None:
        taken = self._guests.taken(found.record.guest) if found.record else []
        if taken:
            raise Unsafe(f"guest {found.name} cannot be here: {'; '.join(taken)}", look_command(found.name))
