"""Guests as plain QEMU processes, commanded over QMP: needs no daemon, and no root either.

STATE/qemu/NAME/guest.json      the guest's record, its disks on this host, its pinned machine type
STATE/qemu/NAME/args            the arguments it starts with, one a line; args.incoming: to receive a migration
RUN/qemu-HASH/                  lock, monitors, pid file of the process (see _qemu/process.py)
"""

from __future__ import annotations

import os
import time
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, ClassVar

from storkit.core.backend import Hypervisor, Needs
from storkit.core.errors import (
    CommandFailed,
    Conflict,
    NotFound,
    StorkitError,
    TimedOut,
    Unsupported,
)
from storkit.core.guest import Console, Guest, TakenGuest
from storkit.core.model import (
    ALIVE,
    DiskSource,
    Finding,
    GuestState,
    GuestStatus,
    MirrorState,
    Original,
    Secrets,
    Switched,
    check_name,
)
from storkit.hypervisors import _paused as paused
from storkit.hypervisors._embedded import RECORD
from storkit.hypervisors._guestagent import ByAgent, Way
from storkit.hypervisors._machine import (
    DEFAULT_MACHINE,
    PRESS_AGAIN,
    file_problems,
    fingerprint,
    force_command,
    look_command,
    memory_problems,
    refuse_shutdown,
    stop_command,
)
from storkit.hypervisors._nodes.bynode import ByNode
from storkit.hypervisors._qemu import definition as definitions
from storkit.hypervisors._qemu import host, inside, ports
from storkit.hypervisors._qemu.definition import Definition
from storkit.hypervisors._qemu.movable import Movable
from storkit.hypervisors._qemu.process import START_TIMEOUT, Answer, Process, ask, process
from storkit.hypervisors._qemu.settings import QemuSettings
from storkit.system.addresses import address_problem
from storkit.system.run import which

if TYPE_CHECKING:
    from storkit.hypervisors._qemu.mirroring import Mirrors


class Qemu(Movable, ByAgent, ByNode, Hypervisor):
    """Guests of one host."""

    name: ClassVar[str] = "qemu"
    takes_running = True
    needs: ClassVar[Needs] = Needs(tools={"qemu-system-x86_64": host.PACKAGE})
    Settings: ClassVar[type] = QemuSettings
    settings: QemuSettings

    def ready(self, serves: bool = False, attaches: bool = False) -> list[Finding]:
        found: list[Finding] = []
        if which(self.settings.binary) is None:
            message = f"QEMU's program {self.settings.binary} is not there"
            found.append(Finding(message, f"apt install {host.PACKAGE}"))
        if self.settings.accel == "kvm" and not os.access("/dev/kvm", os.R_OK | os.W_OK):
            message = "accel is set to kvm, and /dev/kvm is missing or not open to this user"
            found.append(Finding(message, "ls -l /dev/kvm; modprobe kvm_intel || modprobe kvm_amd"))
        return found

    def find(self, guests: list[str] | None = None) -> list[GuestState]:
        known = {name: self._definition(name) for name in self._names(guests)}
        answers = ask([self._process(name) for name in known])
        return [self._state(definition, answers[name]) for name, definition in known.items()]

    def check(self, guest: Guest, arrives: bool = False) -> list[str]:
        problems: list[str] = []
        if arrives and (wrong := address_problem(self.site.host, self.site.address)):
            problems.append(f"{wrong.message}: {wrong.hint}")
        try:
            machine = guest.machine or DEFAULT_MACHINE
            if machine not in host.machines(self.site, self.settings.binary):
                problems.append(f"QEMU here has no machine type {machine!r}: {self.settings.binary} -machine help")
        except StorkitError as error:
            problems.append(f"{error.message}: {error.hint}")
        problems += file_problems(guest)
        problems += definitions.document_problems(guest, self.settings.binary)
        if guest.boot.firmware == "uefi" and not guest.document and host.firmware() is None:
            problems.append("no UEFI firmware is installed here: apt install ovmf")
        if guest.console and not os.access(Path(guest.console).parent, os.W_OK | os.X_OK):
            problems.append(f"the console's directory {Path(guest.console).parent} is missing or not writable here")
        if self.settings.accel == "kvm" and not os.access("/dev/kvm", os.R_OK | os.W_OK):
            problems.append("accel is set to kvm, and /dev/kvm is missing or not open to this user")
        problems += self._taken(guest)
        if not self._process(guest.name).alive():
            problems += memory_problems(guest)
        return problems

    def fingerprint(self, guest: Guest) -> dict[str, str]:
        """What must be alike. QEMU's own version need not be: a versioned machine type is the same in all of them."""
        accel, started = self._accel(guest), None
        if self._process(guest.name).alive():
            definition = self._definition(guest.name)
            accel, started = definition.accel, definition.guest
        # Named processor models are the same everywhere; these two are whatever the host has.
        native = accel == "kvm" and guest.cpu.partition(",")[0] in ("host", "max")
        return fingerprint(guest, started, accel, self._machine(guest, ""), native)

    def define(self, guest: Guest, disks: list[DiskSource], machine: str = "", secrets: Secrets = None) -> str:
        check_name("guest", guest.name)
        directory = self._directory(guest.name)
        here = self._process(guest.name)
        if here.alive():
            before = self._definition(guest.name)
            if (before.guest, before.disks) == (guest, disks) and machine in ("", before.machine):
                return str(directory / definitions.START)
            if before.guest.uuid == guest.uuid and self._has_switched(before.disks, disks, before.guest):
                # It goes on as it was started, and has its disk elsewhere: what it is started with next says so.
                definition = replace(before, disks=disks)
                return str(definitions.save(directory, definition, here, self._templates(), secrets or {}))
            what = "another guest of that name" if before.guest.uuid != guest.uuid else "it"
            raise Conflict(f"guest {guest.name} cannot be defined: {what} runs here", stop_command(guest.name))
        pinned = self._machine(guest, machine)
        definition = Definition(guest, disks, pinned, self._accel(guest), guest.machine)
        return str(definitions.save(directory, definition, here, self._templates(), secrets or {}))

    def _templates(self) -> list[Path]:
        return [Path(self.settings.templates)] if self.settings.templates else []

    def _has_switched(self, before: list[DiskSource], now: list[DiskSource], guest: Guest) -> bool:
        """Whether all disks that a guest has elsewhere now are there since it switched to them."""
        if len(before) != len(now):
            return False
        other = [disk.uuid for disk, old, new in zip(guest.disks, before, now, strict=True) if old != new]
        mirrors = self._mirrors()
        return bool(other) and all(uuid and mirrors.switched(uuid) for uuid in other)

    def originals(self, names: list[str], process: int = 0) -> list[Original]:
        from storkit.hypervisors._qemu import adopting

        return [adopting.original(name, process) for name in names]

    def take(self, taken: list[TakenGuest]) -> list[str]:
        return [self._take(each.guest, each.disks, each.secrets) for each in taken]

    def _take(self, guest: Guest, disks: list[DiskSource], secrets: Secrets) -> str:
        from storkit.hypervisors._qemu import adopting

        machine = adopting.machine(guest, self.site.run) or self._machine(guest, "")
        directory = self._directory(check_name("guest", guest.name))
        definition = Definition(guest, disks, machine, self._accel(guest), guest.machine)
        adopting.take(self.site, self._process(guest.name), directory, definition, self._templates(), secrets)
        return str(directory / RECORD)

    def give_back(self, guest: Guest, secrets: Secrets = None) -> None:
        from storkit.hypervisors._qemu import adopting

        adopting.give_back(self._process(guest.name), self._directory(guest.name), guest)

    def start(self, name: str) -> GuestState:
        self._check_disks(name)
        here = self._process(name)
        deadline = time.monotonic() + START_TIMEOUT
        while not self._launch(here, definitions.START):
            state = self._one(name)
            if state.status in ALIVE:
                return state
            if state.status in ("incoming", "arrived", "migrated"):
                raise Conflict(f"guest {name} cannot start here: it is {state.status}", look_command(name))
            if time.monotonic() > deadline:
                raise TimedOut(f"guest {name} has a process here that does not answer", force_command(name))
            time.sleep(0.02)  # another command is starting it, and its monitor does not listen yet
        return self._one(name)

    def stop(self, name: str, force: bool = False, timeout: float = 60.0) -> None:
        check_name("guest", name)
        here = self._process(name)
        if not here.alive():
            return here.forget()
        if force:
            return here.end()
        deadline = time.monotonic() + timeout
        if here.adopted:
            from storkit.hypervisors._qemu import adopting

            adopting.refuse_without_monitor(name, here)
        status = self._status(here)
        refuse_shutdown(name, status)
        if status in ("incoming", "arrived", "migrated"):
            return here.end()
        while True:
            here.command("system_powerdown")
            if here.wait(min(PRESS_AGAIN, max(0.0, deadline - time.monotonic()))):
                return here.forget()
            if time.monotonic() >= deadline:
                raise TimedOut(f"guest {name} did not shut down within {timeout:g} seconds", force_command(name))

    def pause(self, name: str) -> GuestState:
        if not paused.asleep(self._one(name)):
            self._process(name).command("stop")
        return self._one(name)

    def wake(self, name: str) -> GuestState:
        import asyncio

        from storkit.hypervisors._qemu import saving

        state = self._one(name)
        if paused.asleep(state):
            saving.forget(self._process(name))
            asyncio.run(paused.go_on(self._process(name).monitor))
            state = self._one(name)
            if paused.asleep(state):
                raise paused.still(state)
        return state

    def grow(self, name: str, disk: str, size: int) -> bool:
        import asyncio

        if self._process(name).adopted:  # it has the disk under the name that it had before it was adopted
            return False
        from storkit.hypervisors._qemu import growing

        return asyncio.run(growing.grow(self._process(name).monitor, self._definition(name), disk, size))

    def mirror(self, name: str, disk: str, copy: DiskSource, identity: str, rate: int = 0) -> None:
        if copy.kind == "block":
            return super().mirror(name, disk, copy, identity, rate)
        return self._mirrors().mirror(self._definition(name), disk, copy, identity, rate)

    def mirrored(self, disk: str) -> MirrorState:
        return super().mirrored(disk) if self._node_mirrors().has(disk) else self._mirrors().mirrored(disk)

    def switch(self, name: str, disk: str, identity: str) -> Switched:
        if self._node_mirrors().has(disk):
            return super().switch(name, disk, identity)
        return self._mirrors().switch(check_name("guest", name), disk, identity)

    def unmirror(self, name: str, disk: str, over: bool = False) -> None:
        super().unmirror(name, disk, over)
        self._mirrors().unmirror(disk, over)

    def _mirrors(self) -> Mirrors:
        from storkit.hypervisors._qemu import mirroring

        return mirroring.Mirrors(self.site, self._process, self.settings.stall_timeout)

    def console(self, name: str) -> Console:
        here = self._process(check_name("guest", name))
        if not here.alive():
            raise NotFound(f"guest {name} does not run here", look_command(name))
        if not here.console.exists():
            # Its document says where its console is, or it was started by a storkit that gave it none.
            message = f"guest {name} runs without a console of storkit's"
            raise Unsupported(message, "one without a document has it from its next start on")
        return Console("socket", [str(here.console)])

    def forwarded(self, guests: list[str]) -> dict[str, int]:
        found = {name: ports.ssh_port(self.site, self._definition(name).guest) for name in self._names(guests)}
        return {name: port for name, port in found.items() if port}

    def _way(self, name: str) -> Way:
        return inside.way(self._process(check_name("guest", name)))

    def _launch(self, here: Process, arguments: str) -> bool:
        """Start the process with the arguments of a file; False if it lives already."""
        from storkit.guests.render import read_args

        lock = here.try_lock()
        if lock is None:
            return False
        directory = self._directory(here.name)
        log = directory / definitions.LOG
        log.unlink(missing_ok=True)
        try:
            words = read_args((directory / arguments).read_text())
            here.launch([host.program(self.settings.binary), *words], lock, receives=arguments == definitions.RECEIVE)
        except CommandFailed as error:
            said = error.stderr or (log.read_text(errors="replace") if log.exists() else "")
            raise CommandFailed(
                [self.settings.binary], error.status, said, hint=f"its arguments are in {directory / arguments}"
            ) from None
        finally:
            lock.release()
        return True

    def _status(self, here: Process) -> GuestStatus:
        return ask([here])[here.name].status

    def _status_of(self, name: str) -> GuestStatus:
        return self._status(self._process(name))

    def _state(self, definition: Definition, answer: Answer) -> GuestState:
        guest, here = definition.guest, self._process(definition.guest.name)
        own = here.adopted
        return GuestState(
            name=guest.name,
            uuid=guest.uuid,
            host=self.site.host,
            hypervisor=self.name,
            status=answer.status,
            pid=here.pid(),
            migration=answer.migration,
            machine=definition.machine,
            volumes={disk.uuid: disk.volume for disk in guest.disks if disk.uuid},
            reason=paused.qemu_reason(guest, answer.said, answer.failed) if answer.status == "paused" else "",
            pinned=own.pinned if own else "",
            fixed="it was adopted while it ran, and goes on as it was" if own else "",
        )

    def _machine(self, guest: Guest, machine: str) -> str:
        """The versioned machine type: the one demanded, the one pinned before, or what the record's stands for now."""
        recorded = (self._directory(guest.name) / RECORD).exists()
        before = self._definition(guest.name) if recorded else None
        return definitions.machine_type(self.site, self.settings.binary, guest, machine, before)

    def _accel(self, guest: Guest) -> str:
        wanted = definitions.accelerator(guest) if guest.document else self.settings.accel
        return wanted or host.accelerator(self.site, self.settings.binary)

    def _process(self, name: str) -> Process:
        return process(self.site, check_name("guest", name))

    def _load(self, directory: Path) -> Definition:
        return definitions.load(directory)
