"""Live migration of QEMU over QMP: the waiting side, the sending side, and what is asked of both.

QEMU decides alone who runs: the source lets go only when everything has been sent, waits for the destination's word on
the return path, and runs on by itself if that does not come (qemu.readthedocs.io, devel/migration). So after a failure
the source is only looked at, never told to go on: that could make two of one guest.
"""

from __future__ import annotations

import secrets
import socket
import time
from collections.abc import Callable
from contextlib import ExitStack, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

from storkit.core.errors import (
    CommandFailed,
    Conflict,
    NotFound,
    ServiceUnreachable,
    StorkitError,
    TimedOut,
    Unsafe,
    UsageError,
)
from storkit.core.model import Credential, MigrationResult, Secret
from storkit.system.files import make_private, write_atomic
from storkit.system.qemu import qmp
from storkit.system.qemu.tls import DH_PARAMETERS
from storkit.system.timeouts import scaled

SETTLE_TIMEOUT = scaled(10.0)
"""Seconds that the source gets, once a migration has ended, to resume or to reach
`postmigrate`; QEMU takes milliseconds."""
CONNECT_TIMEOUT = scaled(10.0)
HANDSHAKE_TIMEOUT = scaled(10.0)
"""Seconds for the destination's port to take the connection, and for its QEMU to answer."""
PLAIN_HELLO = b"QEVM"
"""How QEMU's migration stream begins (QEMU_VM_FILE_MAGIC)."""
TICK = 0.2
ACTIVE = frozenset({"setup", "active", "device", "pre-switchover", "wait-unplug", "cancelling", "postcopy-active"})
HERE = ("running", "paused", "io-error")
"""Run states of a guest that is whole here: one that a disk's error has stopped moves as it is, with its requests."""
TLS_ID = "storkit-tls"
KEYS = "keys.psk"
USER = "storkit"
_HINT = "see that no firewall is between; a host is let in from the address that the inventory has for it"


@dataclass(frozen=True, slots=True)
class QemuLimits:
    """What a migration may take."""

    downtime: int
    """Milliseconds."""
    bandwidth: int
    """Bytes a second; 0: no limit."""
    stall: float
    """Seconds without a byte sent after which it is given up."""


@dataclass(frozen=True, slots=True)
class Tls:
    """Credentials for migration between machines: a directory as QEMU's tls-creds objects take it (qemu(1))."""

    kind: str
    directory: str
    user: str = ""
    """psk: whose key; empty: QEMU's default, `qemu`."""

    def object(self, endpoint: str) -> dict[str, Any]:
        return {
            "qom-type": f"tls-creds-{self.kind}",
            "id": TLS_ID,
            "dir": self.directory,
            "endpoint": endpoint,
            **({"verify-peer": True} if self.kind == "x509" else {}),
            **({"username": self.user} if self.user and endpoint == "client" else {}),
        }


def new_key(directory: Path) -> Tls:
    """A pre-shared key for one migration, made at the destination; the one there is, if it was made already."""
    make_private(directory)
    if not (directory / KEYS).exists():
        # Without it QEMU searches for a prime at every start, for up to two seconds.
        write_atomic(directory / "dh-params.pem", DH_PARAMETERS)
        write_atomic(directory / KEYS, f"{USER}:{secrets.token_hex(32)}\n")
    return Tls("psk", str(directory), USER)


def read_key(directory: Path) -> Credential | None:
    """The key of the migration that is awaited, for its source."""
    path = directory / KEYS
    if not path.exists():
        return None
    user, _, key = path.read_text().strip().partition(":")
    return Credential("psk", user, Secret(key))


def write_key(directory: Path, credential: Credential) -> Tls:
    """Keep the key that the destination gave, where QEMU reads it. Raises UsageError: it gave none, or no user's."""
    if credential.secret is None or not credential.user or ":" in credential.user:
        raise UsageError("the destination's credential has no user with a key", "storkit host check")
    make_private(directory)
    write_atomic(directory / KEYS, f"{credential.user}:{credential.secret.reveal()}\n")
    return Tls("psk", str(directory), credential.user)


async def listen(monitor: Path, uri: str) -> None:
    """Make a QEMU that was started with `-incoming defer` listen at a Unix socket; done already is fine."""
    async with qmp.connect(monitor) as qemu:
        status = await qemu.execute("query-migrate")
        # A QEMU that listens and has not been called says no more of it than its address.
        if "socket-address" not in status and status.get("status", "none") == "none":
            await _capabilities(qemu, {"events": True, "late-block-activate": True})
            await qemu.execute("migrate-incoming", {"uri": uri})


async def expect(monitor: Path, tls: Tls | None) -> bool:
    """Get a QEMU that was started with `-incoming defer` ready to be handed a connection; False: it has one."""
    async with qmp.connect(monitor) as qemu:
        if (await qemu.execute("query-migrate")).get("status", "none") != "none":
            return False
        await _capabilities(qemu, {"events": True, "late-block-activate": True})
        if tls:
            await _credentials(qemu, tls, "server")
        return True


def take(monitor: Path, connection: socket.socket) -> bool:
    """Give a QEMU that expects a migration its connection, by the descriptor (QMP `getfd`): it makes its TLS handshake
    without waiting, since the descriptor does not block. False: it did not take it, and may take another."""
    import asyncio

    async def give() -> None:
        async with qmp.connect(monitor) as qemu:
            await qemu.send_socket(connection, "incoming")
            await qemu.execute("migrate-incoming", {"uri": "fd:incoming"})

    try:
        asyncio.run(give())
    except NotFound:
        return True  # QEMU has ended
    except StorkitError:
        return False
    return True


async def send(
    monitor: Path,
    name: str,
    uri: str,
    limits: QemuLimits,
    tls: Tls | None,
    progress: Callable[[float, str], None],
) -> MigrationResult:
    """Migrate to `uri`, or go on waiting for the migration under way, or report the one that ended well.

    Raises CommandFailed with QEMU's reason, TimedOut if nothing moves any more; the guest runs here then.
    """
    async with qmp.connect(monitor, timeout=limits.stall) as qemu:
        with qemu.events("MIGRATION") as events:
            runs = (await qemu.execute("query-status"))["status"]
            status = await qemu.execute("query-migrate")
            if runs == "postmigrate" and status.get("status") == "completed":
                return _result(status)
            if runs in ("inmigrate", "postmigrate"):
                raise Conflict(f"guest {name} does not run here: {runs}", f"storkit migrate status {name}")
            with ExitStack() as stack:
                if status.get("status") not in ACTIVE:
                    connection = stack.enter_context(await _connected(uri)) if uri.startswith("tcp:") else None
                    await _begin(qemu, uri, limits, tls, connection)
                    if connection:
                        await _greeted(qemu, events, name, connection)
                stack.close()
                return await _wait(qemu, events, name, limits, progress)


async def go_on(monitor: Path, mark: Path, name: str, run: bool) -> None:
    """Let an arrived guest run, which stands still until then: one connection, two questions.

    QEMU takes a `cont` that comes too early for leave to run as soon as the guest has arrived: hence the question.
    """
    async with qmp.connect(monitor) as qemu:
        runs = (await qemu.execute("query-status"))["status"]
        if runs not in HERE:
            raise Unsafe(f"guest {name} cannot go on here: QEMU says {runs}", f"storkit migrate status {name}")
        # The mark goes first: a guest that runs is never taken for one that has yet to be let go on.
        mark.unlink(missing_ok=True)
        if run and runs != "running":
            await qemu.execute("cont")


async def _connected(uri: str) -> socket.socket:
    """A connection to the destination's port, which does not block: QEMU would stop its guest while it waits for the
    other end's part of the TLS handshake, which never comes from an end that hangs.

    Raises ServiceUnreachable: nothing listens there, or not for this host.
    """
    import asyncio

    parts = urlsplit(f"//{uri.removeprefix('tcp:')}")
    where = f"{parts.hostname} port {parts.port}"
    try:
        _, writer = await asyncio.wait_for(asyncio.open_connection(parts.hostname, parts.port), CONNECT_TIMEOUT)
    except TimeoutError:
        raise ServiceUnreachable(f"{where} does not answer", _HINT) from None
    except OSError as error:
        raise ServiceUnreachable(f"{where} cannot be connected to: {error.strerror or error}", _HINT) from None
    connection: socket.socket = writer.get_extra_info("socket").dup()
    writer.close()
    connection.setblocking(False)
    connection.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
    return connection


async def _greeted(qemu: qmp.Monitor, events: qmp.Events, name: str, connection: socket.socket) -> None:
    """Wait until the TLS handshake is over, and the migration has begun or failed. Raises TimedOut.

    QEMU cannot call the handshake off: it ends when the connection does.
    """
    deadline = time.monotonic() + HANDSHAKE_TIMEOUT
    while (status := await qemu.execute("query-migrate")).get("status") == "setup" and not status.get("ram"):
        if time.monotonic() > deadline:
            connection.shutdown(socket.SHUT_RDWR)
            await _ended(qemu)
            raise TimedOut(f"the destination of guest {name} takes the connection and says nothing", _HINT)
        with suppress(TimedOut):
            await events.next(TICK / 10)


async def _begin(
    qemu: qmp.Monitor, uri: str, limits: QemuLimits, tls: Tls | None, connection: socket.socket | None
) -> None:
    await _capabilities(qemu, {"events": True, "late-block-activate": True, "return-path": True, "auto-converge": True})
    parameters: dict[str, Any] = {"downtime-limit": limits.downtime, "max-bandwidth": limits.bandwidth}
    if tls and uri.startswith("tcp:"):
        await _credentials(qemu, tls, "client")
        parameters["tls-hostname"] = urlsplit(f"//{uri.removeprefix('tcp:')}").hostname or ""
    else:
        parameters["tls-creds"] = ""
    await qemu.execute("migrate-set-parameters", parameters)
    if connection:
        await qemu.send_socket(connection, "outgoing")
        uri = "fd:outgoing"
    await qemu.execute("migrate", {"uri": uri})


async def _wait(
    qemu: qmp.Monitor,
    events: qmp.Events,
    name: str,
    limits: QemuLimits,
    progress: Callable[[float, str], None],
) -> MigrationResult:
    moved, sent = time.monotonic(), -1
    while True:
        status = await qemu.execute("query-migrate")
        state = status.get("status")
        if state == "completed":
            # The times are there only when the run state says so too (migration_iteration_finish in QEMU).
            await _runstate(qemu, lambda runs: runs == "postmigrate")
            progress(1.0, f"{name} has moved")
            return _result(await qemu.execute("query-migrate"))
        if state not in ACTIVE:
            await _failed(qemu, name, status)
        ram = status.get("ram", {})
        if ram.get("transferred", 0) != sent:
            moved, sent = time.monotonic(), ram.get("transferred", 0)
        _report(ram, progress)
        if time.monotonic() - moved > limits.stall:
            await _stalled(qemu, events, name, limits.stall)
        await _news(events)


async def _news(events: qmp.Events) -> None:
    """Wait until a migration has ended, for better or worse, or TICK has passed: questions hold QEMU's main loop up."""
    deadline = time.monotonic() + TICK
    with suppress(TimedOut):
        while (left := deadline - time.monotonic()) > 0:
            event = await events.next(left)
            if event["data"]["status"] not in ACTIVE:
                return


def _report(ram: dict[str, Any], progress: Callable[[float, str], None]) -> None:
    total, remaining = ram.get("total", 0), ram.get("remaining", 0)
    if total:
        rate = ram.get("mbps", 0) / 8
        progress(min(0.99, 1 - remaining / total), f"{(total - remaining) >> 20} of {total >> 20} MiB, {rate:.0f} MB/s")


async def _failed(qemu: qmp.Monitor, name: str, status: dict[str, Any]) -> None:
    """Raise what went wrong, once the guest is seen to run here again."""
    reason = status.get("error-desc") or f"it was {status.get('status', 'lost')}"
    runs = await _runstate(qemu, lambda state: state not in ("finish-migrate", "colo"))
    if runs not in HERE:
        raise Unsafe(
            f"the migration of guest {name} failed ({reason}), and it is {runs} here",
            f"storkit migrate status {name}",
        )
    hint = f"guest {name} is still {runs} here; QEMU's log at the destination may say more: STATE/qemu/{name}/log"
    raise CommandFailed(["QMP migrate"], 1, reason, hint=hint)


async def _stalled(qemu: qmp.Monitor, events: qmp.Events, name: str, stall: float) -> None:
    """Give up a migration that does not move, if the source still runs.

    In the switchover, with the source paused, the destination may be about to run: no cancelling then.
    """
    if (await qemu.execute("query-status"))["status"] != "running":
        raise TimedOut(
            f"guest {name} is paused here, waiting for {stall:g} seconds for the destination's word",
            "stop the destination's process, and it runs on here; or wait: run the same command again",
        )
    await qemu.execute("migrate_cancel")
    deadline = time.monotonic() + SETTLE_TIMEOUT
    while (await qemu.execute("query-migrate")).get("status") == "cancelling" and time.monotonic() < deadline:
        with_event = max(0.0, min(TICK, deadline - time.monotonic()))
        try:
            await events.next(with_event)
        except TimedOut:
            continue
    raise TimedOut(
        f"the migration of guest {name} sent nothing for {stall:g} seconds and was cancelled; it runs here",
        "check the destination, then run the same command again",
    )


async def cancel(monitor: Path, name: str) -> None:
    """Call off an outgoing migration, and wait until it has failed or is complete. Raises TimedOut."""
    async with qmp.connect(monitor) as qemu:
        if (await qemu.execute("query-status"))["status"] == "inmigrate":
            return
        if (await qemu.execute("query-migrate")).get("status") in ACTIVE:
            await qemu.execute("migrate_cancel")
            if not await _ended(qemu):
                raise TimedOut(f"the migration of guest {name} does not end", f"storkit migrate status {name}")
            # The run state follows a little later.
            await _runstate(qemu, lambda state: state != "finish-migrate")


async def _ended(qemu: qmp.Monitor) -> bool:
    import asyncio

    deadline = time.monotonic() + SETTLE_TIMEOUT
    while (await qemu.execute("query-migrate")).get("status") in ACTIVE:
        if time.monotonic() > deadline:
            return False
        await asyncio.sleep(0.01)
    return True


async def _runstate(qemu: qmp.Monitor, good: Callable[[str], bool]) -> str:
    """QEMU's run state, once it is `good` or SETTLE_TIMEOUT has passed. Not every change of it has an event."""
    import asyncio

    deadline = time.monotonic() + SETTLE_TIMEOUT
    while True:
        state = str((await qemu.execute("query-status"))["status"])
        if good(state) or time.monotonic() > deadline:
            return state
        await asyncio.sleep(0.003)


async def _capabilities(qemu: qmp.Monitor, wanted: dict[str, bool]) -> None:
    capabilities = [{"capability": name, "state": state} for name, state in wanted.items()]
    await qemu.execute("migrate-set-capabilities", {"capabilities": capabilities})


async def _credentials(qemu: qmp.Monitor, tls: Tls, endpoint: str) -> None:
    with suppress(StorkitError):
        await qemu.execute("object-del", {"id": TLS_ID})
    await qemu.execute("object-add", tls.object(endpoint))
    await qemu.execute("migrate-set-parameters", {"tls-creds": TLS_ID})


def _result(status: dict[str, Any]) -> MigrationResult:
    return MigrationResult(
        total_ms=status.get("total-time", 0),
        downtime_ms=status.get("downtime", 0),
        setup_ms=status.get("setup-time", 0),
        transferred=status.get("ram", {}).get("transferred", 0),
    )
