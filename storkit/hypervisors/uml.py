"""Guests under User-Mode Linux: a kernel that is an ordinary process, and needs neither root nor virtualisation.

A guest that runs stays where it is: its memory can neither be moved nor saved. It is stopped, and started elsewhere.

STATE/uml/NAME/guest.json      the guest's record, its disks on this host
STATE/uml/NAME/args            the program and its arguments, one a line
STATE/uml/NAME/log             what its processes said since it was last started
RUN/uml-HASH/                  lock, pid file, management console (see _uml/kernel.py)
"""

from __future__ import annotations

import os
import socket
import time
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import ClassVar

from storkit.core.backend import Hypervisor, Needs, path_setting, program_setting
from storkit.core.errors import (
    CommandFailed,
    Conflict,
    NotFound,
    StorkitError,
    TimedOut,
    Unsafe,
    Unsupported,
    collected,
    raise_problems,
)
from storkit.core.guest import Console, Guest
from storkit.core.model import (
    ALIVE,
    Credential,
    DiskSource,
    Finding,
    GuestState,
    GuestStatus,
    MigrationResult,
    Secrets,
    check_name,
)
from storkit.core.units import format_size
from storkit.hypervisors._embedded import Embedded
from storkit.hypervisors._machine import (
    PRESS_AGAIN,
    file_problems,
    force_command,
    look_command,
    memory_problems,
    refuse_retire,
    refuse_shutdown,
    stop_command,
)
from storkit.hypervisors._uml import definition as definitions
from storkit.hypervisors._uml import disks as shown
from storkit.hypervisors._uml import terminal
from storkit.hypervisors._uml.definition import UmlDefinition
from storkit.hypervisors._uml.kernel import MEMORY, START_TIMEOUT, Kernel, ask, end_of, kernel, namespaces
from storkit.system.qemu import storagedaemon
from storkit.system.run import run, which

PACKAGE = "user-mode-linux"
FUSE = Path("/dev/fuse")


@dataclass(frozen=True, slots=True)
class UmlSettings:
    """The keys of [hypervisors.uml] in the inventory."""

    binary: str = program_setting("linux.uml")
    """The program, which is the guests' kernel as well."""
    templates: str = path_setting()
    """A directory whose uml/guest.args.j2 is taken instead of the one that comes with storkit."""


class Uml(Embedded[UmlDefinition], Hypervisor):
    """Guests of one host."""

    name: ClassVar[str] = "uml"
    moves: ClassVar[bool] = False
    needs: ClassVar[Needs] = Needs(tools={"linux.uml": PACKAGE, "unshare": "util-linux", "setsid": "util-linux"})
    Settings: ClassVar[type] = UmlSettings
    settings: UmlSettings

    def ready(self, serves: bool = False, attaches: bool = False) -> list[Finding]:
        problems: list[StorkitError] = []
        with collected(problems):
            self._program()
        with collected(problems):
            _refuse_without_namespaces()
        found = [Finding(each.message, each.hint) for each in problems]
        return found + [Finding(each.message, each.hint, warning=True) for each in _fuse_problems("NBD and qcow2")]

    def find(self, guests: list[str] | None = None) -> list[GuestState]:
        known = {name: self._definition(name) for name in self._names(guests)}
        answers = ask(self._process(name) for name in known)
        return [self._state(definition.guest, answers[name]) for name, definition in known.items()]

    def check(self, guest: Guest, arrives: bool = False) -> list[str]:
        problems: list[StorkitError] = []
        with collected(problems):
            self._program()
        with collected(problems):
            _refuse_without_namespaces()
        with collected(problems):
            self._refuse_another_kernel(guest)
        problems += _record_problems(guest)
        found = [": ".join(filter(None, (each.message, each.hint))) for each in problems]
        found += file_problems(guest)
        if guest.console and not os.access(Path(guest.console).parent, os.W_OK | os.X_OK):
            found.append(f"the console's directory {Path(guest.console).parent} is missing or not writable here")
        found += _route_problems(guest)
        found += self._taken(guest)
        if not self._process(guest.name).alive():
            found += memory_problems(guest)
            found += _room_problems(guest)
        return found

    def define(self, guest: Guest, disks: list[DiskSource], machine: str = "", secrets: Secrets = None) -> str:
        check_name("guest", guest.name)
        directory = self._directory(guest.name)
        here = self._process(guest.name)
        if here.alive():
            before = self._definition(guest.name)
            if (before.guest, before.disks) == (guest, disks):
                return str(directory / definitions.START)
            what = "another guest of that name" if before.guest.uuid != guest.uuid else "it"
            raise Conflict(f"guest {guest.name} cannot be defined: {what} runs here", stop_command(guest.name))
        self._refuse_another_kernel(guest)
        _refuse_without_fuse(disks)
        templates = [Path(self.settings.templates)] if self.settings.templates else []
        return str(definitions.save(directory, UmlDefinition(guest, disks), here, templates))

    def start(self, name: str) -> GuestState:
        definition = self._definition(name)
        here = self._process(name)
        if (taken := self._taken(definition.guest)) and not here.alive():
            raise Unsafe(f"guest {name} cannot be here: {'; '.join(taken)}", look_command(name))
        deadline = time.monotonic() + START_TIMEOUT
        while not self._launch(here, definition):
            state = self._one(name)
            if state.status in ALIVE:
                return state
            if time.monotonic() > deadline:
                raise TimedOut(f"guest {name} has a process here that does not answer", force_command(name))
            time.sleep(0.02)  # another command is starting it, and its kernel does not answer yet
        if (state := self._one(name)).status == "stopped":
            raise self._ended(definition.guest)
        return state

    def stop(self, name: str, force: bool = False, timeout: float = 60.0) -> None:
        check_name("guest", name)
        here = self._process(name)
        if not here.alive():
            return here.forget()
        if force:
            here.kill()
            return here.forget()
        deadline = time.monotonic() + timeout
        refuse_shutdown(name, self._status(here))
        while True:
            here.shut_down()
            if here.wait(min(PRESS_AGAIN, max(0.0, deadline - time.monotonic()))):
                return here.forget()
            if time.monotonic() >= deadline:
                here.link(self._program())  # when it reboots, it is of its own
                raise TimedOut(f"guest {name} did not shut down within {timeout:g} seconds", force_command(name))

    def receive(self, name: str, same_machine: bool, source: str = "", told: str = "") -> str:
        raise _stays(name)

    def send(self, name: str, uri: str, credential: Credential | None = None) -> MigrationResult:
        raise _stays(name)

    def resume(self, name: str, run: bool = True) -> None:
        if self._one(name).status not in ALIVE:
            raise _stays(name)

    def console(self, name: str) -> Console:
        here = self._process(check_name("guest", name))
        if not (pid := here.pid()):
            raise NotFound(f"guest {name} does not run here", look_command(name))
        if place := terminal.find(pid):
            return Console("program", terminal.program(name, place))
        message = f"no program in guest {name} has opened its tty1, where its console would be"
        raise Conflict(message, "have a getty there (docs/console.md); what it has said: storkit guest show")

    def messages(self, name: str) -> str:
        """The end of what the guest's processes and its console said since its last start here."""
        definition = self._definition(name)
        console = [Path(definition.guest.console)] if definition.guest.console else []
        return end_of(self._directory(name) / definitions.LOG, *console)

    def retire(self, name: str) -> None:
        here = self._process(check_name("guest", name))
        if here.alive():
            refuse_retire(name, self._status(here))
        here.forget()

    def _launch(self, here: Kernel, definition: UmlDefinition) -> bool:
        """Start the kernel; False if it lives already."""
        from storkit.guests.render import read_args

        lock = here.try_lock()
        if lock is None:
            return False
        directory = self._directory(here.name)
        log = directory / definitions.LOG
        guest = definition.guest
        try:
            words = read_args((directory / definitions.START).read_text())[1:]
            for number, source in enumerate(definition.disks):
                if not shown.opened_by_itself(source):
                    shown.mountpoint(here.directory, number).touch(0o600)
            daemon = shown.daemon_arguments(here.directory, guest, definition.disks)
            here.launch(self._program(), words, daemon, log, guest.console, lock)
        except CommandFailed:
            raise self._ended(guest) from None
        finally:
            lock.release()
        return True

    def _ended(self, guest: Guest) -> CommandFailed:
        """It was started, and is no more: what it said."""
        hint = f"its arguments are in {self._directory(guest.name) / definitions.START}"
        return CommandFailed([self.settings.binary], 1, self.messages(guest.name), hint=hint)

    def _program(self) -> str:
        found = which(self.settings.binary)
        if found is None:
            message = f"User-Mode Linux's program {self.settings.binary} is not there"
            raise Unsupported(message, f"apt install {PACKAGE}")
        return found

    def _refuse_another_kernel(self, guest: Guest) -> None:
        """The kernel is a program that this host runs: that is the host's own to say, and no record's."""
        if guest.boot.kernel and which(guest.boot.kernel) != which(self.settings.binary):
            message = f"boot.kernel {guest.boot.kernel} is not this host's User-Mode Linux, {self.settings.binary}"
            raise Unsupported(message, "leave boot.kernel out, or set binary of hypervisors.uml")

    def _status(self, here: Kernel) -> GuestStatus:
        return ask([here])[here.name]

    def _status_of(self, name: str) -> GuestStatus:
        return self._status(self._process(name))

    def _state(self, guest: Guest, status: GuestStatus) -> GuestState:
        return GuestState(
            name=guest.name,
            uuid=guest.uuid,
            host=self.site.host,
            hypervisor=self.name,
            status=status,
            pid=self._process(guest.name).pid(),
            volumes={disk.uuid: disk.volume for disk in guest.disks if disk.uuid},
        )

    def _process(self, name: str) -> Kernel:
        return kernel(self.site, check_name("guest", name))

    def _load(self, directory: Path) -> UmlDefinition:
        return definitions.load(directory)


def _stays(name: str) -> StorkitError:
    message = f"guest {name} runs under User-Mode Linux, whose guests cannot be moved while they run"
    return Unsupported(message, f"{stop_command(name)}, then: storkit guest start {name} --on HOST")


def _refuse_without_namespaces() -> None:
    """Raise Unsupported if this user cannot make the namespaces that a guest lives in: it is tried."""
    try:
        run(["unshare", *namespaces(), "true"], package="util-linux")
    except CommandFailed as error:
        message = f"this host lets this user make no namespaces: {error.stderr.strip()}"
        hint = "sysctl kernel.unprivileged_userns_clone kernel.apparmor_restrict_unprivileged_userns user"
        raise Unsupported(message, f"see: {hint}") from None


def _refuse_without_fuse(disks: Iterable[DiskSource]) -> None:
    """Raise Unsupported if there is a disk that User-Mode Linux cannot open itself, and this host cannot show it."""
    helped = {source.protocol or source.format for source in disks if not shown.opened_by_itself(source)}
    raise_problems(_fuse_problems(" and ".join(sorted(helped))) if helped else [])


def _fuse_problems(what: str) -> list[StorkitError]:
    """Why this host cannot show disks of these kinds as files."""
    problems: list[StorkitError] = []
    if which(storagedaemon.PROGRAM) is None:
        message = f"User-Mode Linux opens no {what} itself, and {storagedaemon.PROGRAM} is not there, which does it"
        problems.append(Unsupported(message, f"apt install {storagedaemon.PACKAGE}"))
    if not os.access(FUSE, os.R_OK | os.W_OK):
        message = f"User-Mode Linux opens no {what} itself, and {FUSE} is missing or not open to this user"
        hint = 'modprobe fuse; or use a raw file or device: iSCSI, NFS, or attach = "kernel" for nbd'
        problems.append(Unsupported(message, hint))
    return problems


def _record_problems(guest: Guest) -> list[StorkitError]:
    """What User-Mode Linux cannot do of a record, wherever its disks will be."""
    from storkit.guests.limits import limits
    from storkit.guests.place import Place

    anywhere = [DiskSource("block", f"/dev/storkit/{disk.volume}") for disk in guest.disks]
    return limits(guest, anywhere, Uml.name, Place())


def _route_problems(guest: Guest) -> list[str]:
    """Whether this host takes part in the multicast groups of the guest's cards: it is tried as the guest will."""
    for nic in guest.nics:
        if nic.kind == "group":
            address = nic.group.rpartition(":")[0]
            with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as joined:
                try:
                    member = socket.inet_aton(address) + socket.inet_aton("0.0.0.0")
                    joined.setsockopt(socket.IPPROTO_IP, socket.IP_ADD_MEMBERSHIP, member)
                except OSError as error:
                    return [f"no route leads to {address}, {error.strerror}: ip route add 224.0.0.0/4 dev lo"]
    return []


def _room_problems(guest: Guest) -> list[str]:
    """Whether the file that is the guest's memory has room."""
    if not MEMORY.is_dir():
        return []
    there = os.statvfs(MEMORY)
    room = there.f_bavail * there.f_frsize
    if room >= guest.memory:
        return []
    return [
        f"{format_size(guest.memory)} of memory are wanted, and {MEMORY} has room for {format_size(room)}:"
        f" mount -o remount,size=SIZE {MEMORY}"
    ]
