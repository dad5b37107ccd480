"""The one door to QEMU's monitors (QMP): QEMU itself and qemu-storage-daemon, through the `qemu.qmp` library.

    async with connect(socket) as qmp:
        with qmp.events("MIGRATION") as events:
            await qmp.execute("migrate", {"uri": uri})
            event = await events.next(timeout=30)

    status = call(socket, "query-status")       # one command, without asyncio

A monitor serves one client at a time; others wait in its listen queue. So connect for as long as the work takes and
no longer, and give whatever watches for minutes a monitor of its own. QMP: qemu.readthedocs.io/en/v7.2.0/interop/.
"""

from __future__ import annotations

from collections.abc import AsyncIterator, Iterator
from contextlib import asynccontextmanager, contextmanager, suppress
from pathlib import Path
from typing import TYPE_CHECKING, Any

from storkit.core.errors import CommandFailed, NotFound, TimedOut
from storkit.system.timeouts import scaled

if TYPE_CHECKING:
    import socket

    from qemu.qmp import EventListener, QMPClient

TIMEOUT = scaled(10.0)
"""Seconds for one command, or for the greeting: a monitor answers in milliseconds unless its process hangs."""


class Refused(CommandFailed):
    """The server answered with an error; `reason` is its text (QMP: `desc`)."""

    def __init__(self, command: str, reason: str, hint: str = "") -> None:
        super().__init__([f"QMP {command}"], 1, reason, hint=hint)
        self.reason = reason


class Lost(CommandFailed):
    """The connection ended before the answer: the server's process has ended, or is about to."""

    def __init__(self, what: str) -> None:
        super().__init__([f"QMP {what}"], 1, "the connection was lost: the server's process has ended")


class Events:
    """The events of the given names since the listener was opened, in order."""

    def __init__(self, client: QMPClient, listener: EventListener, names: tuple[str, ...]) -> None:
        self._client = client
        self._listener = listener
        self._what = " or ".join(names) or "event"

    async def next(self, timeout: float) -> dict[str, Any]:
        """The next event: {"event": NAME, "data": {...}, "timestamp": {...}}.

        Raises TimedOut after `timeout` seconds, Lost if the server has gone (events it sent before are given first).
        """
        import asyncio

        if not self._listener.empty():
            return dict(await self._listener.get())
        got = asyncio.ensure_future(self._listener.get())
        gone = asyncio.ensure_future(_gone(self._client))
        try:
            await asyncio.wait({got, gone}, timeout=timeout, return_when=asyncio.FIRST_COMPLETED)
            if got.done():
                return dict(got.result())
            if gone.done():
                raise Lost(self._what)
            raise TimedOut(f"no {self._what} came within {timeout:g} seconds")
        finally:
            for task in (got, gone):
                task.cancel()
            await asyncio.gather(got, gone, return_exceptions=True)


class Monitor:
    """A connection to one monitor."""

    def __init__(self, client: QMPClient) -> None:
        self._client = client

    async def send_socket(self, connection: socket.socket, name: str) -> None:
        """Give the server a copy of a socket, which commands on this monitor can name `fd:NAME`. It does not block."""
        self._client.send_fd_scm(connection.fileno())
        await self.execute("getfd", {"fdname": name})
        # QEMU makes what it receives block (tcp_chr_recv in char-socket.c); both copies have this flag in common.
        connection.setblocking(False)

    async def send_file(self, descriptor: int, name: str) -> None:
        """Give the server a copy of an open file, which commands on this monitor can name `fd:NAME`."""
        self._client.send_fd_scm(descriptor)
        await self.execute("getfd", {"fdname": name})

    async def execute(
        self, command: str, arguments: dict[str, Any] | None = None, *, timeout: float = TIMEOUT, hint: str = ""
    ) -> Any:
        """What the command returns. Raises Refused with the server's reason, TimedOut, or Lost."""
        import asyncio

        from qemu.qmp import ExecInterruptedError, ExecuteError, QMPError

        try:
            return await asyncio.wait_for(self._client.execute(command, arguments), timeout)
        except ExecuteError as error:
            raise Refused(command, str(error), hint) from None
        except TimeoutError:
            raise TimedOut(f"QMP {command} was not answered within {timeout:g} seconds", hint) from None
        except (ExecInterruptedError, QMPError, OSError, EOFError):
            raise Lost(command) from None

    @contextmanager
    def events(self, *names: str) -> Iterator[Events]:
        """Collect events of these names (none: all) from now on; to be opened before the command that causes them."""
        with self._client.listener(names or None) as listener:
            yield Events(self._client, listener, names)

    async def gone(self, timeout: float) -> None:
        """Wait until the server closes the connection (after `quit`). Raises TimedOut."""
        import asyncio

        try:
            await asyncio.wait_for(_gone(self._client), timeout)
        except TimeoutError:
            raise TimedOut(f"the server did not end within {timeout:g} seconds") from None


@asynccontextmanager
async def connect(path: Path, *, timeout: float = TIMEOUT) -> AsyncIterator[Monitor]:
    """A connection to the monitor that listens at `path`.

    Raises NotFound: nobody listens there. TimedOut: it takes connections and does not greet (stopped or hanging).
    """
    import asyncio
    import logging

    from qemu.qmp import QMPClient, QMPError

    # The library reports through logging what it raises as well; unheard, that would reach people's stderr.
    logger = logging.getLogger("qemu.qmp")
    if not logger.handlers:
        logger.addHandler(logging.NullHandler())
    client = QMPClient()

    async def greet() -> None:
        await client.connect(await _connected(path))

    try:
        await asyncio.wait_for(greet(), timeout)
    except TimeoutError:
        raise TimedOut(f"{path} does not answer within {timeout:g} seconds") from None
    except (FileNotFoundError, ConnectionRefusedError):
        raise NotFound(f"nothing listens on {path}") from None
    except (QMPError, OSError, EOFError):
        raise Lost(f"greeting on {path}") from None
    try:
        yield Monitor(client)
    finally:
        with suppress(QMPError, OSError, EOFError):
            await client.disconnect()


def call(
    path: Path, command: str, arguments: dict[str, Any] | None = None, *, timeout: float = TIMEOUT, hint: str = ""
) -> Any:
    """Connect, run one command, disconnect: for code that is not asynchronous. Raises as `connect` and `execute`."""
    import asyncio

    async def once() -> Any:
        async with connect(path, timeout=timeout) as qmp:
            return await qmp.execute(command, arguments, timeout=timeout, hint=hint)

    return asyncio.run(once())


async def _connected(path: Path) -> socket.socket:
    """A connected socket.

    QEMU's listen queue holds one client. When it is full, connect(2) of a non-blocking Unix socket says EAGAIN, which
    asyncio takes for a connection on its way: the first read would then fail with EINVAL.
    """
    import asyncio
    import socket

    connection = socket.socket(socket.AF_UNIX)
    try:
        connection.setblocking(False)
        while True:
            try:
                connection.connect(str(path))
                return connection
            except BlockingIOError:
                await asyncio.sleep(0.002)
    except BaseException:
        connection.close()
        raise


async def _gone(client: QMPClient) -> None:
    from qemu.qmp import Runstate

    while client.runstate == Runstate.RUNNING:
        await client.runstate_changed()
