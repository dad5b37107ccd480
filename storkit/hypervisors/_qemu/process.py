"""One guest's QEMU process on one host: its lock, its sockets, its start and its end.

The process inherits a locked descriptor (flock(2)), so the kernel itself says whether it lives: also when it hangs,
when it was killed, and when whoever started it was killed half way. Nothing else is believed, a pid file least of all.
"""

from __future__ import annotations

import hashlib
import os
import select
import shutil
import signal
import time
from collections.abc import Sequence
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path

from storkit.core.backend import Site
from storkit.core.errors import Conflict, StorkitError, TimedOut
from storkit.core.model import GuestStatus
from storkit.system import locks
from storkit.system.files import make_private
from storkit.system.qemu import qmp
from storkit.system.run import run
from storkit.system.timeouts import scaled

START_TIMEOUT = scaled(60.0)
"""Seconds for QEMU to open its disks and be ready; an NBD server that does not answer is what takes long."""

ASK_TIMEOUT = scaled(2.0)
"""Seconds after which a guest that does not answer is `unknown`."""
QUIT_TIMEOUT = scaled(10.0)
"""Seconds for QEMU to write its caches back and end, before it is killed."""
KILL_TIMEOUT = scaled(10.0)
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
class Process:
    """The process of the guest `name`, alive or not. `directory` is short: 107 bytes for a socket's path (unix(7))."""

    name: str
    directory: Path

    @property
    def lock(self) -> Path:
        return self.directory / "lock"

    @property
    def monitor(self) -> Path:
        """For whoever asks or commands."""
        return self.directory / "qmp"

    @property
    def migration(self) -> Path:
        """A monitor of its own for the command that watches a migration: a monitor serves one client at a time."""
        return self.directory / "move"

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

    @property
    def pidfile(self) -> Path:
        return self.directory / "pid"

    def alive(self) -> bool:
        """Whether the process, or a command that is starting it, exists."""
        for _ in range(4):
            if not locks.held(self.lock):
                return False
            if self.pid():
                return True
            # It is being started; or somebody else asks the same question, which takes the lock for an instant.
            time.sleep(0.001)
        return True

    def pid(self) -> int:
        """The pid; 0 if there is no process, or it is only just starting."""
        try:
            pid = int(self.pidfile.read_text())
            lock = self.lock.stat()
        except (OSError, ValueError):
            return 0
        return pid if _has_open(pid, lock) else 0

    def starting(self) -> bool:
        """Whether a command is only just starting it, so that its monitor need not answer yet; asked of one that lives.

        Who starts it has the lock open until QEMU is ready, and is named as the one that took it.
        """
        try:
            lock = self.lock.stat()
        except FileNotFoundError:
            return False
        return not self.pid() or any(_has_open(pid, lock) for pid in _takers(lock.st_ino))

    def try_lock(self) -> locks.Lock | None:
        """The right to start the process; None while it lives."""
        make_private(self.directory)
        while True:
            try:
                lock = locks.acquire(self.lock, f"guest {self.name}", holder=f"QEMU of guest {self.name}")
            except Conflict:
                if self.alive():
                    return None
                continue
            if _is(lock.descriptor, self.lock):
                return lock
            lock.release()  # it was removed between open and flock
            make_private(self.directory)

    def launch(self, argv: Sequence[str], lock: locks.Lock, *, receives: bool = False) -> None:
        """Start QEMU, which must have -daemonize: it reports what fails on stderr before it lets go of us.

        Raises CommandFailed with QEMU's own words; nothing is left running then.
        """
        self._sweep()
        if receives:
            self.arriving.touch(0o600)
        os.set_inheritable(lock.descriptor, True)
        run(argv, timeout=START_TIMEOUT, package="qemu-system-x86", pass_fds=[lock.descriptor])

    def wait(self, timeout: float) -> bool:
        """Wait until the process has ended; False if it has not after `timeout` seconds."""
        deadline = time.monotonic() + timeout
        pid = self.pid()
        with suppress(ProcessLookupError):
            descriptor = os.pidfd_open(pid) if pid else -1
            if descriptor >= 0:
                try:
                    poll = select.poll()
                    poll.register(descriptor, select.POLLIN)
                    if self.pid() == pid and not poll.poll(max(0, int(timeout * 1000))):
                        return False
                finally:
                    os.close(descriptor)
        while self.alive():
            # The pid is not known yet (it is starting), or its last descriptors are being closed.
            if time.monotonic() > deadline:
                return False
            time.sleep(0.005)
        return True

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

    def kill(self, timeout: float = KILL_TIMEOUT) -> None:
        """SIGKILL, and wait for the end. The pidfd makes sure that it hits no other process."""
        pid = self.pid()
        if pid:
            with suppress(ProcessLookupError):
                descriptor = os.pidfd_open(pid)
                try:
                    if self.pid() == pid:
                        signal.pidfd_send_signal(descriptor, signal.SIGKILL)
                finally:
                    os.close(descriptor)
        if not self.wait(timeout):
            raise TimedOut(
                f"guest {self.name}'s process {pid or ''} does not end even when killed: it waits for a disk",
                "bring its storage back, or restart the host",
            )

    def forget(self) -> None:
        """Remove what a process that has ended left behind. Raises Conflict while it lives."""
        if not self.directory.exists():
            return
        lock = self.try_lock()
        if lock is None:
            raise Conflict(f"guest {self.name} runs here", f"storkit guest stop {self.name}")
        try:
            shutil.rmtree(self.directory)
        finally:
            lock.release()

    def _sweep(self) -> None:
        for path in (self.monitor, self.migration, self.incoming, self.pidfile, self.arriving, self.saving):
            path.unlink(missing_ok=True)


def process(site: Site, name: str) -> Process:
    """The process of the guest `name` on the host `site`."""
    digest = hashlib.sha256(name.encode()).hexdigest()[:12]
    return Process(name, site.run.absolute() / f"qemu-{digest}")


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


def _takers(inode: int) -> list[int]:
    """The processes that took the locks (flock) that are held on files of this number, alive or not: others may have
    inherited them (/proc/locks, proc(5))."""
    words = [line.split() for line in Path("/proc/locks").read_text().splitlines()]
    return [int(w[4]) for w in words if w[1] == "FLOCK" and w[5].rpartition(":")[2] == str(inode)]


def _is(descriptor: int, path: Path) -> bool:
    try:
        return os.path.samestat(os.fstat(descriptor), path.stat())
    except FileNotFoundError:
        return False


def _has_open(pid: int, wanted: os.stat_result) -> bool:
    try:
        for entry in os.scandir(f"/proc/{pid}/fd"):
            with suppress(OSError):
                if os.path.samestat(entry.stat(), wanted):
                    return True
    except OSError:
        return False
    return False
