"""One guest's process on one host, of whatever hypervisor: its lock, its pid file, its end.

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
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import ClassVar

from storkit.core.backend import Site
from storkit.core.errors import Conflict, TimedOut
from storkit.system import locks
from storkit.system.files import make_private
from storkit.system.timeouts import scaled

KILL_TIMEOUT = scaled(10.0)


@dataclass(frozen=True, slots=True)
class GuestProcess:
    """The process of the guest `name`, alive or not. `directory` is short: 107 bytes for a socket's path (unix(7))."""

    kind: ClassVar[str]
    """What it is, for who is told that it holds the lock."""
    name: str
    directory: Path

    @property
    def lock(self) -> Path:
        return self.directory / "lock"

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
        """Whether a command is only just starting it, so that it need not answer yet; asked of one that lives.

        Who starts it has the lock open until it is ready, and is named as the one that took it.
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
                lock = locks.acquire(self.lock, f"guest {self.name}", holder=f"{self.kind} of guest {self.name}")
            except Conflict:
                if self.alive():
                    return None
                continue
            if _is(lock.descriptor, self.lock):
                return lock
            lock.release()  # it was removed between open and flock
            make_private(self.directory)

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


def run_directory(site: Site, kind: str, name: str) -> Path:
    """Where a guest's process has its lock and sockets on the host `site`: short, whatever the guest's name is."""
    digest = hashlib.sha256(name.encode()).hexdigest()[:12]
    return site.run.absolute() / f"{kind}-{digest}"


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
