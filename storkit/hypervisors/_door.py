"""The TCP port that a host receives a guest at.

A hypervisor itself is not let near the network: QEMU takes the first connection that comes for the migration, and
waits for its first words in its main loop. An idle connection (a port scan) made the destination deaf so, and the
source, whose handshake nobody answered, stopped its guest. So storkit accepts: only from the source's address, in the
kernel, and only a connection whose first words are a migration's, within seconds. That one is handed over.

The thread that accepts lives as long as the agent. Whoever carries a plan on after that asks `receive` again.
"""

from __future__ import annotations

import selectors
import socket
import threading
import time
from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path

from storkit.system.qemu.storagedaemon import listen_tcp
from storkit.system.timeouts import scaled

TLS_HELLO = b"\x16\x03"
"""How a TLS client begins: a handshake record of version 3.x (RFC 8446, 5.1)."""
FIRST_WORDS_TIMEOUT = scaled(5.0)
"""Seconds that a connection has for them; a source says them at once."""
MOST_WAITING = 64
"""Connections that have said nothing yet. One more, and the oldest is closed: who floods closes but its own."""

Take = Callable[[socket.socket], bool]
"""Given a connection. True: it is taken, or nobody waits for one any more; False: another may be."""


@dataclass(frozen=True, slots=True)
class Expected:
    """Where to listen, and for whom."""

    address: str
    port: int
    """0: a free one."""
    sources: tuple[str, ...]
    """IP addresses."""
    hello: bytes
    """How a connection must begin."""
    widen: str
    """What to do about a port that is not free."""


_doors: dict[Path, IncomingDoor] = {}
_opening = threading.Lock()


def open_door(key: Path, expected: Expected, take: Take) -> str:
    """Listen for the source of the guest whose path this is (any path that is the guest's own); the ADDRESS:PORT to
    send to.

    Expected again by the same process, the answer is the same. Raises Conflict: it cannot be listened on.
    """
    with _opening:
        door = _doors.get(key)
        if door is None or not door.fits(expected):
            if door is not None:
                door.close()
            door = _doors[key] = IncomingDoor(expected, take)
        return door.at


def close_door(key: Path) -> None:
    """Stop listening for this guest."""
    with _opening:
        door = _doors.pop(key, None)
        if door is not None:
            door.close()


class IncomingDoor:
    """One listening port, and the thread that waits at it."""

    def __init__(self, expected: Expected, take: Take) -> None:
        self._expected, self._take = expected, take
        self._listener = listen_tcp(
            expected.address, expected.port, expected.port, sources=expected.sources, widen=expected.widen
        )
        self._listener.setblocking(False)
        shown = f"[{expected.address}]" if ":" in expected.address else expected.address
        self.at = f"{shown}:{self._listener.getsockname()[1]}"
        self._waiting: dict[socket.socket, float] = {}
        self._thread = threading.Thread(target=self._wait, name="migration-port", daemon=True)
        self._thread.start()

    def fits(self, expected: Expected) -> bool:
        """Whether it is open, and listens as is expected for."""
        return self._thread.is_alive() and self._expected == expected

    def close(self) -> None:
        """Stop listening, and wait until the thread has ended."""
        with suppress(OSError):
            self._listener.shutdown(socket.SHUT_RDWR)  # wakes the thread
        self._thread.join()

    def _wait(self) -> None:
        with selectors.DefaultSelector() as selector, self._listener:
            selector.register(self._listener, selectors.EVENT_READ)
            try:
                while not self._step(selector):
                    pass
            finally:
                for connection in self._waiting:
                    connection.close()

    def _step(self, selector: selectors.BaseSelector) -> bool:
        """Wait for one event, and act on it. True: a connection has been handed over, or nobody waits for one."""
        soonest = min(self._waiting.values(), default=None)
        for key, _ in selector.select(None if soonest is None else max(0.0, soonest - time.monotonic())):
            if key.fileobj is self._listener:
                if not self._accept(selector):
                    return True
                continue
            connection = key.fileobj
            assert isinstance(connection, socket.socket)
            if self._greets(connection) and (ended := self._hand_over(connection)):
                return ended
            self._drop(selector, connection)
        for connection, deadline in list(self._waiting.items()):
            if deadline <= time.monotonic():
                self._drop(selector, connection)
        return False

    def _accept(self, selector: selectors.BaseSelector) -> bool:
        try:
            connection, _ = self._listener.accept()
        except (BlockingIOError, ConnectionAbortedError):
            return True
        except OSError:
            return False  # closed
        connection.setblocking(False)
        # Readable once all of the first words are there, or the other end has closed.
        connection.setsockopt(socket.SOL_SOCKET, socket.SO_RCVLOWAT, len(self._expected.hello))
        if len(self._waiting) >= MOST_WAITING:
            self._drop(selector, next(iter(self._waiting)))
        self._waiting[connection] = time.monotonic() + FIRST_WORDS_TIMEOUT
        selector.register(connection, selectors.EVENT_READ)
        return True

    def _drop(self, selector: selectors.BaseSelector, connection: socket.socket) -> None:
        if connection in self._waiting:
            del self._waiting[connection]
            selector.unregister(connection)
            connection.close()

    def _greets(self, connection: socket.socket) -> bool:
        try:
            return connection.recv(len(self._expected.hello), socket.MSG_PEEK) == self._expected.hello
        except OSError:
            return False

    def _hand_over(self, connection: socket.socket) -> bool:
        connection.setsockopt(socket.SOL_SOCKET, socket.SO_RCVLOWAT, 1)
        return self._take(connection)
