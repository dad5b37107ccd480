"""qemu-storage-daemon(1) as a background server: started, found again, stopped, and never mistaken for another process.

A daemon is known by its pid file and by a lock file. The locked descriptor is taken before the fork and inherited, so
the lock is held from before the daemon exists until it is gone, whatever becomes of the command that started it. A pid
alone proves nothing: the process must carry the pid file's path in its arguments, and is signalled through a pidfd.
"""

from __future__ import annotations

import os
import resource
import select
import signal
import socket
import time
from collections.abc import Sequence
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path

from storkit.core.errors import Conflict, TimedOut, Unsupported
from storkit.system import locks
from storkit.system.run import run
from storkit.system.sourcefilter import only_from
from storkit.system.timeouts import scaled

PROGRAM = "qemu-storage-daemon"
PACKAGE = "qemu-system-common"
SOCKET_PATH_MAX = 107
"""Bytes in the path of a Unix socket: sun_path has 108, one of them NUL (unix(7))."""
STOP_TIMEOUT = scaled(120.0)
"""Seconds, half of them for ending by itself: closing an image flushes all that was written to it."""
_ACCEPTS = 1 << 16
"""A socket that listens, among the flags of /proc/net/unix (__SO_ACCEPTCON)."""
_TICK = 0.005


@dataclass(frozen=True, slots=True)
class Daemon:
    """One storage daemon, running or not."""

    what: str
    """For messages: `the NBD server of volume web1`."""
    pidfile: Path
    lock: Path

    def start(self, arguments: Sequence[str], held: locks.Lock, descriptors: Sequence[int]) -> None:
        """Start it; when this returns it is serving. It inherits `held`, the lock on `self.lock`, and `descriptors`.

        Raises CommandFailed with its stderr.
        """
        passed = [held.descriptor, *descriptors]
        for descriptor in passed:
            os.set_inheritable(descriptor, True)
        run([PROGRAM, "--daemonize", "--pidfile", self.pidfile, *arguments], pass_fds=passed, package=PACKAGE)
        if found := self._find():
            # Each connection, also one that never says anything, takes a descriptor; by default there are 1,024.
            _, most = resource.getrlimit(resource.RLIMIT_NOFILE)
            with suppress(OSError):
                resource.prlimit(found[0], resource.RLIMIT_NOFILE, (most, most))
            os.close(found[1])

    def running(self) -> bool:
        """Whether its process is there, or about to be."""
        return locks.held(self.lock)

    def process(self) -> int:
        """Its pid; 0 if it does not run."""
        found = self._find()
        if found is None:
            return 0
        os.close(found[1])
        return found[0]

    def arguments(self) -> list[str]:
        """Its command line; empty if it does not run."""
        found = self._find()
        if found is None:
            return []
        os.close(found[1])
        return found[2]

    def stop(self, *, kill: bool = False, timeout: float = STOP_TIMEOUT) -> None:
        """End it and wait until the kernel has closed its files; gone already is fine.

        A daemon that is asked to end flushes and closes its images; with `kill`, or if it does not end in half of
        `timeout` seconds, it is killed. Raises TimedOut: not even that worked (its storage hangs).
        """
        deadline = time.monotonic() + timeout
        polite = deadline if kill else time.monotonic() + timeout / 2
        asked = False
        while self.running():
            if time.monotonic() > deadline:
                raise TimedOut(f"{self.what} does not end", f"see what it waits for: fuser -v {self.lock}")
            found = self._find()
            if found is None:
                # It is being started by a command that was killed, or its last descriptor is just being closed.
                time.sleep(_TICK)
                continue
            _, handle, _ = found
            try:
                force = kill or time.monotonic() >= polite
                if force or not asked:
                    with suppress(ProcessLookupError):
                        signal.pidfd_send_signal(handle, signal.SIGKILL if force else signal.SIGTERM)
                    asked = True
                until = deadline if force else polite
                select.select([handle], [], [], max(0.0, until - time.monotonic()))
            finally:
                os.close(handle)
        self.pidfile.unlink(missing_ok=True)

    def _find(self) -> tuple[int, int, list[str]] | None:
        """Its pid, a pidfd and its arguments."""
        try:
            pid = int(self.pidfile.read_text())
            handle = os.pidfd_open(pid)
        except (OSError, ValueError):
            return None
        # The pidfd was opened first: if the pid is reused from here on, the signal goes to nobody.
        with suppress(OSError):
            arguments = Path(f"/proc/{pid}/cmdline").read_bytes().decode(errors="replace").split("\0")[:-1]
            if str(self.pidfile) in arguments:
                return pid, handle, arguments
        os.close(handle)
        return None


def listen_unix(path: Path) -> socket.socket:
    """A listening Unix socket in place of whatever lay at `path`; the caller holds the lock of the server it is for."""
    check_socket_path(path)
    path.unlink(missing_ok=True)
    listener = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
    try:
        listener.bind(str(path))
        listener.listen(128)
    except OSError:
        listener.close()
        raise
    return listener


def listening_sockets() -> set[str]:
    """The Unix sockets that somebody listens at, as the kernel has them (proc(5)): nobody is connected to."""
    found = set()
    for line in Path("/proc/net/unix").read_text(errors="surrogateescape").splitlines()[1:]:
        words = line.split(maxsplit=7)
        if len(words) == 8 and int(words[3], 16) & _ACCEPTS:
            found.add(words[7])
    return found


def check_socket_path(path: Path) -> None:
    """Raise Unsupported if `path` is too long for a Unix socket."""
    length = len(os.fsencode(path))
    if length > SOCKET_PATH_MAX:
        raise Unsupported(
            f"{path} is {length} bytes long, and a Unix socket's path has {SOCKET_PATH_MAX} at most",
            "choose a shorter state directory for this host",
        )


def listen_tcp(
    address: str,
    first: int,
    last: int,
    preferred: int = 0,
    *,
    sources: Sequence[str] = (),
    widen: str = "widen port_first and port_last of nbd",
) -> socket.socket:
    """A socket that listens at `address` on `preferred`, or else on a free port from `first` to `last`. Only `sources`
    (IP addresses) can reach it, or everyone if none is named. `widen` is the hint if no port is free.

    QEMU does not set TCP_NODELAY on the connections it accepts (47 requests a second at depth 2 over loopback); they
    inherit it from here. Raises Conflict: the address is not this host's, or no port is free.
    """
    hint = "set the host's address in the inventory to one of: ip -br address"
    try:
        family, *_, where = socket.getaddrinfo(address, first, type=socket.SOCK_STREAM, flags=socket.AI_PASSIVE)[0]
    except OSError as error:
        raise Conflict(f"{address} is no address: {error.strerror}", hint) from error
    for port in [preferred] * bool(preferred) + list(range(first, last + 1)):
        listener = socket.socket(family, socket.SOCK_STREAM)
        try:
            listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            listener.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
            listener.bind((where[0], port, *where[2:]))
            if sources:
                only_from(listener, sources)
            listener.listen(128)
        except OSError as error:
            listener.close()
            if error.errno != 98:  # EADDRINUSE
                raise Conflict(f"{address} port {port} cannot be listened on: {error.strerror}", hint) from error
        else:
            return listener
    ports = f"no port from {first} to {last}" if first < last else f"port {first} is not"
    raise Conflict(f"{ports} is free on {address}" if first < last else f"{ports} free on {address}", widen)
