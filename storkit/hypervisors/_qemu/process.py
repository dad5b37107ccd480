"""One guest's QEMU process on one host: its sockets, its start, and what it says of itself."""

from __future__ import annotations

import os
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import ClassVar

from storkit.core.backend import Site
from storkit.core.errors import StorkitError
from storkit.core.model import GuestStatus
from storkit.hypervisors._process import GuestProcess, run_directory
from storkit.hypervisors._qemu import adopted
from storkit.hypervisors._qemu.adopted import Adopted
from storkit.system import locks
from storkit.system.qemu import qmp
from storkit.system.run import run
from storkit.system.timeouts import scaled

START_TIMEOUT = scaled(60.0)
"""Seconds for QEMU to open its disks and be ready; an NBD server that does not answer is what takes long."""

ASK_TIMEOUT = scaled(2.0)
"""Seconds after which a guest that does not answer is `unknown`."""
QUIT_TIMEOUT = scaled(10.0)
"""Seconds for QEMU to write its caches back and end, before it is killed."""
STATUS: dict[str, GuestStatus] = {
    "running": "running",
    "inmigrate": "incoming",
    "postmigrate": "migrated",
    # Paused for the switchover, and it runs on here by itself if that fails.
    "finish-migrate": "running",
}
"""QEMU's run states (QMP RunState); all others stand still until someone acts: paused."""


IO_ERROR = "io-error"
"""The run state of a guest that a disk's error has stopped (werror=stop, rerror=stop)."""


@dataclass(frozen=True, slots=True)
class Answer:
    """What a process says of itself."""

    status: GuestStatus
    migration: str = ""
    said: str = ""
    """QEMU's own run state."""
    failed: dict[str, bool] = field(default_factory=dict)
    """Where a disk's error stopped it: the devices that failed, and whether for want of room."""


@dataclass(frozen=True, slots=True)
class Process(GuestProcess):
    """The QEMU of the guest `name`, alive or not."""

    kind: ClassVar[str] = "QEMU"

    @property
    def note(self) -> Path:
        """By which a process is known that storkit has not started (_qemu/adopted.py)."""
        return self.directory / "adopted"

    @property
    def adopted(self) -> Adopted | None:
        """The process, if storkit has not started it."""
        return adopted.read(self.note)

    def alive(self) -> bool:
        return self.adopted is not None or GuestProcess.alive(self)

    def pid(self) -> int:
        found = self.adopted
        return found.pid if found else GuestProcess.pid(self)

    def starting(self) -> bool:
        return self.adopted is None and GuestProcess.starting(self)

    def try_lock(self) -> locks.Lock | None:
        return None if self.adopted else GuestProcess.try_lock(self)

    @property
    def monitor(self) -> Path:
        """For whoever asks or commands."""
        return self._adopted_socket() or self.own_monitor

    @property
    def migration(self) -> Path:
        """A monitor of its own for the command that watches a migration: a monitor serves one client at a time. A
        process that was adopted has one for all."""
        return self._adopted_socket() or self.own_migration

    @property
    def own_monitor(self) -> Path:
        """Of a process that storkit starts, as `own_migration`."""
        return self.directory / "qmp"

    @property
    def own_migration(self) -> Path:
        return self.directory / "move"

    def _adopted_socket(self) -> Path | None:
        found = self.adopted
        return found.socket() if found else None

    @property
    def console(self) -> Path:
        """The guest's first serial port, both ways; one client at a time, as all of QEMU's sockets."""
        return self.directory / "console"

    @property
    def agent(self) -> Path:
        """Of the port that leads to the guest's agent, as `console`."""
        return self.directory / "agent"

    @property
    def incoming(self) -> Path:
        return self.directory / "in"

    @property
    def arriving(self) -> Path:
        """A mark: this process was started to receive the guest, and has not been let go on."""
        return self.directory / "arriving"

    @property
    def saving(self) -> Path:
        """Stands while a guest is saved, and after: its memory is in a file, and it stands still. What has saved it
        knows it by this mark, which holds the id of its sleep, from one that has migrated away."""
        return self.directory / "saving"

    @property
    def keys(self) -> Path:
        """A migration's pre-shared key, 0700."""
        return self.directory / "tls"

    def launch(self, argv: Sequence[str], lock: locks.Lock, *, receives: bool = False) -> None:
        """Start QEMU, which must have -daemonize: it reports what fails on stderr before it lets go of us.

        Raises CommandFailed with QEMU's own words; nothing is left running then.
        """
        self._sweep()
        if receives:
            self.arriving.touch(0o600)
        os.set_inheritable(lock.descriptor, True)
        run(argv, timeout=START_TIMEOUT, package="qemu-system-x86", pass_fds=[lock.descriptor])

    def command(self, command: str) -> None:
        """Give QEMU a command of its monitor; that it ends by it, before it has answered, is fine."""
        try:
            qmp.call(self.monitor, command, timeout=ASK_TIMEOUT)
        except qmp.Lost:
            if not self.wait(QUIT_TIMEOUT):
                raise

    def end(self) -> None:
        """Have QEMU quit, or kill it where it does not, and forget it."""
        try:
            self.command("quit")
        except StorkitError:
            self.kill()
        else:
            if not self.wait(QUIT_TIMEOUT):
                self.kill()
        self.forget()

    def _sweep(self) -> None:
        sockets = (self.own_monitor, self.own_migration, self.console, self.agent, self.incoming)
        for path in (self.note, *sockets, self.pidfile, self.arriving, self.saving):
            path.unlink(missing_ok=True)


def process(site: Site, name: str) -> Process:
    """The process of the guest `name` on the host `site`."""
    return Process(name, run_directory(site, "qemu", name))


def ask(processes: Sequence[Process]) -> dict[str, Answer]:
    """What all these processes say of themselves, by guest, asked at the same time.

    One that lives and does not answer is `starting` or `unknown`. No library is loaded where none lives.
    """
    alive = [one for one in processes if one.alive()]
    answers = {one.name: Answer("stopped") for one in processes}
    if alive:
        import asyncio

        async def ask_all() -> list[Answer]:
            return await asyncio.gather(*(_ask(one) for one in alive))

        answers.update(zip([one.name for one in alive], asyncio.run(ask_all()), strict=True))
    return answers


async def _ask(process: Process) -> Answer:
    found = process.adopted
    if found and not found.monitor:
        return Answer("running")  # or paused: it cannot be asked, and either writes
    starting = process.starting()  # before it is asked: it may be ready a moment after it has not answered
    try:
        async with qmp.connect(process.monitor, timeout=ASK_TIMEOUT) as qemu:
            runs = await qemu.execute("query-status", timeout=ASK_TIMEOUT)
            moves = await qemu.execute("query-migrate", timeout=ASK_TIMEOUT)
            status = STATUS.get(runs["status"], "paused")
            if status == "paused" and process.arriving.exists():
                status = "arrived"
            if status == "migrated" and process.saving.exists():
                status = "paused"
            failed = await failed_disks(qemu) if runs["status"] == IO_ERROR else {}
            return Answer(status, moves.get("status", ""), runs["status"], failed)
    except StorkitError:
        if not process.alive():
            return Answer("stopped")
        return Answer("starting" if starting else "unknown")


async def failed_disks(qemu: qmp.Monitor) -> dict[str, bool]:
    """The devices whose errors have stopped a guest, and whether each had no room (QMP query-block, io-status)."""
    blocks = await qemu.execute("query-block", timeout=ASK_TIMEOUT)
    bad = {block.get("qdev") or block.get("device", ""): block.get("io-status", "ok") for block in blocks}
    return {
        # /machine/peripheral/ID/virtio-backend, and ID where a device has no backend of its own.
        path.removeprefix("/machine/peripheral/").partition("/")[0]: status == "nospace"
        for path, status in bad.items()
        if status != "ok"
    }
