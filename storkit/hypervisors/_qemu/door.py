"""The TCP port that a host receives a guest at.

QEMU itself is not let near the network: it takes the first connection that comes for the migration, and waits for its
first words in its main loop. An idle connection (a port scan) made the destination deaf so, and the source, whose
handshake nobody answered, stopped its guest. So storkit accepts: only from the source's address, in the kernel, and
only a connection whose first words are a migration's, within seconds. QEMU gets that one by its descriptor
(QMP `getfd`), and makes its TLS handshake without waiting: the descriptor does not block.

The thread that accepts lives as long as the agent. Whoever carries a plan on after that asks `receive` again.
"""

from __future__ import annotations

import selectors
import socket
import threading
import time
from collections.abc import Sequence
from contextlib import suppress
from pathlib import Path

from storkit.core.errors import NotFound, StorkitError
from storkit.system.qemu import qmp
from storkit.system.qemu.storagedaemon import listen_tcp
from storkit.system.timeouts import scaled

TLS_HELLO = b"\x16\x03"
"""How a TLS client begins: a handshake record of version 3.x (RFC 8446, 5.1)."""
PLAIN_HELLO = b"QEVM"
"""How QEMU's migration stream begins (QEMU_VM_FILE_MAGIC)."""
FIRST_WORDS_TIMEOUT = scaled(5.0)
"""Seconds that a connection has for them; a source says them at once."""
MOST_WAITING = 64
"""Connections that have said nothing yet. One more, and the oldest is closed: who floods closes but its own."""

_doors: dict[Path, IncomingDoor] = {}
_opening = threading.Lock()


def open_door(monitor: Path, address: str, port: int, sources: Sequence[str], hello: bytes) -> str:
    """Listen for the source of the guest whose QEMU has this monitor; the URI to send to.

    Asked again by the same process, the answer is the same. `port` 0 is any. Raises Conflict: it cannot be listened on.
    """
    with _opening:
        door = _doors.get(monitor)
        if door is None or not door.fits(address, port, sources, hello):
            if door is not None:
                door.close()
            door = _doors[monitor] = IncomingDoor(monitor, address, port, sources, hello)
        return door.uri


def close_door(monitor: Path) -> None:
    """Stop listening for the guest with this monitor."""
    with _opening:
        door = _doors.pop(monitor, None)
        if door is not None:
            door.close()


class IncomingDoor:
    """One listening port, and the thread that waits at it."""

    def __init__(self, monitor: Path, address: str, port: int, sources: Sequence[str], hello: bytes) -> None:
        self._monitor, self._asked, self._hello = monitor, (address, port, tuple(sources)), hello
        self._listener = listen_tcp(
            address, port, port, sources=sources, widen="set migration_port of hypervisors.qemu to another, or to 0"
        )
        self._listener.setblocking(False)
        shown = f"[{address}]" if ":" in address else address
        self.uri = f"tcp:{shown}:{self._listener.getsockname()[1]}"
        self._waiting: dict[socket.socket, float] = {}
        self._thread = threading.Thread(target=self._wait, name="migration-port", daemon=True)
        self._thread.start()

    def fits(self, address: str, port: int, sources: Sequence[str], hello: bytes) -> bool:
        """Whether it is open, and listens as is asked for."""
        return self._thread.is_alive() and (self._asked, self._hello) == ((address, port, tuple(sources)), hello)

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
        connection.setsockopt(socket.SOL_SOCKET, socket.SO_RCVLOWAT, len(self._hello))
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
            return connection.recv(len(self._hello), socket.MSG_PEEK) == self._hello
        except OSError:
            return False

    def _hand_over(self, connection: socket.socket) -> bool:
        """Give QEMU the connection; False: it did not take it, and may take another."""
        import asyncio

        connection.setsockopt(socket.SOL_SOCKET, socket.SO_RCVLOWAT, 1)
        try:
            asyncio.run(_give(self._monitor, connection))
        except NotFound:
            return True  # QEMU has ended
        except StorkitError:
            return False
        return True


async def _give(monitor: Path, connection: socket.socket) -> None:
    async with qmp.connect(monitor) as qemu:
        await qemu.send_socket(connection, "incoming")
        await qemu.execute("migrate-incoming", {"uri": "fd:incoming"})
