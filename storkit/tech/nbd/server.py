"""The servers of one volume at its home host.

One storage daemon opens the image, holds the volume's use lock and QEMU's locks on the image, and offers one NBD export
per client host on a Unix socket: the right to write is a property of the export. For a client on another machine a
second daemon, its front, takes TLS connections on a TCP port of that client's own and passes them on to the client's
export: so a key opens one export and no other.

Order matters everywhere below: a front dies before its export is deleted, and an export that may write is deleted, with
its connections, before another one may write. BLOCK_EXPORT_DELETED comes when the last request has been completed.
"""

from __future__ import annotations

import json
import os
import time
from collections.abc import Callable, Iterable
from contextlib import AbstractContextManager, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal, TypeVar

from storkit.core.backend import Site, path_setting, word_setting
from storkit.core.errors import (
    CommandFailed,
    Conflict,
    NotFound,
    StorkitError,
    Unsafe,
    Unsupported,
    UsageError,
    raise_problems,
)
from storkit.system import locks, openers
from storkit.system.files import make_private, remove_tree, write_atomic
from storkit.system.qemu import imagelocks, qmp
from storkit.system.qemu.storagedaemon import Daemon, check_socket_path, listen_tcp, listen_unix
from storkit.system.qemu.tls import DH_PARAMETERS
from storkit.system.timeouts import scaled
from storkit.tech.athand import at_hand
from storkit.tech.files import managed, volumefile
from storkit.tech.grants import short_digest
from storkit.tech.nbd import wire
from storkit.tech.nbd.arguments import check_x509, front_arguments, image_node, x509_authorization
from storkit.tech.nbd.names import NbdClientGrant, NbdGrant

T = TypeVar("T")

PRIORITY = "NORMAL:-CHACHA20-POLY1305"
"""For GnuTLS: with AES alone, hardware does the work, and a stream is more than twice as fast."""
PSK_USER = "storkit"
PLAIN_TCP = "unencrypted and unauthenticated"
X509_SERVER_FILES = ("ca-cert.pem", "server-cert.pem", "server-key.pem")
DYING_TIMEOUT = scaled(5.0)
"""Seconds that a killed server gets to let go of its lock."""
_QMP_TIMEOUT = scaled(30.0)


@dataclass(frozen=True)
class NbdSettings:
    """What the inventory may set for the transport `nbd`."""

    attach: Literal["qemu", "kernel"] = "qemu"
    """qemu: QEMU opens the export itself, in user space. kernel: hosts have it as a block device. Change it only while
    nothing is attached."""
    port_first: int = 10809
    port_last: int = 11808
    """TCP ports for clients on other machines, one for each volume and client."""
    tls: Literal["psk", "x509"] = "psk"
    tls_dir: str = path_setting()
    """x509: ca-cert.pem with server-cert.pem, server-key.pem (storage host) or client-cert.pem, client-key.pem
    (client host; its common name is the host's name)."""
    plain_tcp: str = word_setting()
    """TCP without TLS, for networks that are separate and trusted: only if this says what it is, word for word."""
    cache: Literal["writeback", "none"] = "writeback"
    """writeback: through the page cache, flushed when the guest flushes. none: O_DIRECT."""
    aio: Literal["auto", "io_uring", "threads", "native"] = "auto"
    """How the server does its I/O; auto: io_uring where the kernel lets it, otherwise threads."""
    keepalive_time: int = 30
    """Seconds of silence after which a client host probes its connections, those of other programs included
    (storkit/tech/nbd/keepalive.py); 0: as that host has it."""

    def __post_init__(self) -> None:
        problems: list[StorkitError] = []
        if not 0 < self.port_first <= self.port_last < 65536:
            problems.append(UsageError(f"nbd: ports {self.port_first} to {self.port_last} are no range"))
        if self.keepalive_time < 0:
            problems.append(UsageError(f"nbd: keepalive_time = {self.keepalive_time} is no time", "seconds, or 0"))
        if self.plain_tcp not in ("", PLAIN_TCP):
            hint = f'if you mean it, write exactly: plain_tcp = "{PLAIN_TCP}"'
            problems.append(UsageError(f"nbd: plain_tcp does not say what it does: {self.plain_tcp!r}", hint))
        if self.tls == "x509" and not self.tls_dir:
            problems.append(UsageError("nbd: tls = x509 needs tls_dir", "name the directory with ca-cert.pem"))
        if self.aio == "native" and self.cache != "none":
            problems.append(UsageError("nbd: aio = native needs cache = none", 'set cache = "none" or another aio'))
        raise_problems(problems)


class VolumeServer:
    """The servers of one volume: what they are, and how to bring them to what was granted."""

    def __init__(
        self, site: Site, settings: NbdSettings, grant: NbdGrant, save: Callable[[Iterable[NbdGrant]], None]
    ) -> None:
        """`save` keeps a grant that has got the port of a front."""
        self.site = site
        self.settings = settings
        self.grant = grant
        self.volume = grant.volume
        self._save = save
        self._run = site.run / "nbd"
        self._stem = short_digest(self.volume.uuid)
        self.socket = self._run / f"{self._stem}.sock"
        self._monitor = self._run / f"{self._stem}.qmp"
        self._unlocked = self._run / f"{self._stem}.unlocked"
        """The descriptors that the server has of its images, where it has no locks on them yet."""
        self.daemon = Daemon(
            f"the NBD server of volume {self.volume.name}",
            self._run / f"{self._stem}.pid",
            locks.use_lock(site.run, self.volume.uuid),
        )

    def check(self) -> None:
        """Raise what stands in the way of serving the volume here."""
        check_socket_path(self.socket)
        if self.settings.tls == "x509" and any(not granted.same_machine for granted in self.grant.clients.values()):
            check_x509(Path(self.settings.tls_dir), X509_SERVER_FILES)
        if self.volume.format not in ("raw", "qcow2"):
            raise UsageError(f"volume {self.volume.name} has format {self.volume.format!r}; nbd serves raw and qcow2")
        at_hand([self.volume])
        if not Path(self.volume.path).exists():
            raise Conflict(f"volume {self.volume.name}: {self.volume.path} does not exist", "storkit volume list")

    def refuse_held(self) -> None:
        """Raise Conflict if another QEMU has the image in use; the storage daemon keeps them away while it runs."""
        if not self.daemon.running():
            with self._image_locks(time.monotonic() + DYING_TIMEOUT):
                pass

    def _image_locks(self, deadline: float) -> AbstractContextManager[list[int]]:
        """The locks that keep every other QEMU of this host away from the image, and from what it stands on."""
        what = f"volume {self.volume.name}"
        known = openers.earlier(self.site.run, self.volume.uuid)
        if known and self.volume.format == "raw":  # of any other format two QEMUs would each have tables of their own
            return imagelocks.beside(self._images(), what, known)
        return imagelocks.held(self._images(), what, writes=self.volume.kind == "disk", deadline=deadline)

    def _images(self) -> list[Path]:
        return volumefile.chain(Path(self.volume.path), self.volume.format)

    def _lock_images(self) -> None:
        """Take QEMU's locks for a server that was started beside its guest's own process, once that has ended."""
        found = self.daemon.process() if self._unlocked.exists() else 0
        if not found or openers.earlier(self.site.run, self.volume.uuid):
            return
        descriptors = [int(each) for each in self._unlocked.read_text().split()]
        writes = self.volume.kind == "disk"
        with suppress(Unsupported):  # strangers are looked for all the same (storkit.tech.strangers)
            imagelocks.lock(found, descriptors, self._images(), f"volume {self.volume.name}", writes=writes)
            self._unlocked.unlink()

    def start(self) -> None:
        """Start the storage daemon if it does not run.

        Raises Conflict: something else has the volume in use, or the image is not what the volume's record says.
        """
        make_private(self._run)
        at_hand([self.volume])
        deadline = time.monotonic() + DYING_TIMEOUT
        while True:
            try:
                lock = locks.acquire(
                    self.daemon.lock, f"volume {self.volume.name}", holder=f"{self.daemon.what}\n", wait=0.02
                )
                break
            except Conflict:
                if self._listening() and self.daemon.arguments():
                    return self._lock_images()
                # One that was killed keeps lock and sockets for a moment; one that is being started has no pid yet.
                if time.monotonic() > deadline:
                    raise
        try:
            with (
                managed.serving(self.site, self.volume) as shared,
                self._image_locks(deadline) as image,
                listen_unix(self.socket) as nbd,
                listen_unix(self._monitor) as monitor,
            ):
                self._unlocked.unlink(missing_ok=True)
                if openers.earlier(self.site.run, self.volume.uuid):
                    write_atomic(self._unlocked, " ".join(map(str, image)))
                self._launch(lock, [*image, *shared], nbd.fileno(), monitor.fileno())
        finally:
            lock.release()

    def _launch(self, lock: locks.Lock, image: list[int], nbd: int, monitor: int) -> None:
        choices = ("io_uring", "threads") if self.settings.aio == "auto" else (self.settings.aio,)
        for aio in choices:
            node = "n" + os.urandom(8).hex()
            arguments = [
                *("--chardev", f"socket,id=qmp,fd={monitor},server=on,wait=off", "--monitor", "qmp"),
                *("--nbd-server", json.dumps({"addr": {"type": "fd", "str": str(nbd)}})),
                *("--blockdev", json.dumps(image_node(self.volume, node, self.settings.cache, aio))),
            ]
            try:
                self.daemon.start(arguments, lock, [nbd, monitor, *image])
                return
            except CommandFailed as error:
                if aio == choices[-1] or "io_uring" not in error.stderr.replace(json.dumps(aio), ""):
                    raise

    def serves(self) -> bool:
        """Whether the storage daemon is there to be told anything."""
        return self._listening() or bool(self.daemon.arguments())

    async def take(self) -> None:
        """Take all that is not granted, or granted otherwise. When this returns, no request of it is under way.

        One that has died has nothing to take. Raises TimedOut: the daemon hangs. Lost, NotFound: it cannot be told.
        """
        import asyncio

        try:
            async with qmp.connect(self._monitor, timeout=_QMP_TIMEOUT) as monitor:
                granted, live = self._granted(), await self._live(monitor)
                for name in sorted(live, reverse=True):  # rw before ro
                    if name not in granted or live[name]:
                        await asyncio.to_thread(self._front(name.split(".")[1]).stop, kill=True)
                        await self._delete(monitor, name)
        except (qmp.Lost, NotFound):
            if not await asyncio.to_thread(self._dies):
                raise

    async def enlarge(self) -> None:
        """End the exports, which keep the size that they began with, and make the image as large as the volume if it is
        smaller. No request of an export is under way then."""
        async with qmp.connect(self._monitor, timeout=_QMP_TIMEOUT) as monitor:
            await self._enlarge(monitor)

    async def _enlarge(self, monitor: qmp.Monitor) -> None:
        import asyncio

        for name in sorted(await self._live(monitor), reverse=True):
            await asyncio.to_thread(self._front(name.split(".")[1]).stop, kill=True)
            await self._delete(monitor, name)
        node, size = await self._image(monitor)
        if size < self.volume.size:  # an export shares its node with nobody who does this
            wanted = {"node-name": node, "size": self.volume.size}
            await monitor.execute("block_resize", wanted, timeout=_QMP_TIMEOUT)

    def _dies(self) -> bool:
        """Whether the daemon, which has closed its monitor, ends. The kernel closes its files one by one; the lock goes
        when it can write no more, and never before."""
        try:
            locks.acquire(self.daemon.lock, f"volume {self.volume.name}", wait=DYING_TIMEOUT).release()
        except Conflict:
            return False
        return True

    async def give(self) -> None:
        """Give what is granted and not there; what is right already is left alone.

        Raises Conflict: the image has another size than the volume. TimedOut, Lost: the daemon hangs or has died.
        """
        async with qmp.connect(self._monitor, timeout=_QMP_TIMEOUT) as monitor:
            node, live = await self._node(monitor), await self._live(monitor)
            for name, client in self._granted().items():
                if name not in live:
                    arguments = {
                        "type": "nbd",
                        "id": name,
                        "node-name": node,
                        "name": self.grant.export_name(client),
                        "writable": client in self.grant.writers,
                        # What a guest was told is written must be so for whoever serves it next, whatever becomes of
                        # this host: a guest that goes on would never write it again.
                        "writethrough": self.volume.term > 0,
                        "description": f"storkit:{self.volume.uuid}:{node[1:]}",
                    }
                    await monitor.execute("block-export-add", arguments, timeout=_QMP_TIMEOUT)

    def _granted(self) -> dict[str, str]:
        """QEMU's ids of the exports that there should be: to the client of each."""
        grant = self.grant
        return {export_id(name, name in grant.writers, it.nonce): name for name, it in grant.clients.items()}

    async def _live(self, monitor: qmp.Monitor) -> dict[str, bool]:
        """QEMU's ids of the exports that there are, and whether each is about to end."""
        exports = await monitor.execute("query-block-exports")
        return {str(export["id"]): bool(export["shutting-down"]) for export in exports}

    async def _node(self, monitor: qmp.Monitor) -> str:
        """The name of the image's node. Raises Conflict: it has another size than the volume."""
        name, size = await self._image(monitor)
        if size != self.volume.size:
            raise Conflict(
                f"{self.volume.path} holds {size} bytes, and volume {self.volume.name} has {self.volume.size}",
                f"storkit volume resize {self.volume.name} {size}B",
            )
        return name

    async def _image(self, monitor: qmp.Monitor) -> tuple[str, int]:
        """The name of the image's node, `n` and the nonce of this run of the server; and its size in bytes."""
        for node in await monitor.execute("query-named-block-nodes", {"flat": True}):
            name = str(node["node-name"])
            if not name.startswith("#"):
                return name, int(node["image"]["virtual-size"])
        raise Unsafe(f"{self.daemon.what} has no image open", "storkit host restore")

    async def _delete(self, monitor: qmp.Monitor, name: str) -> None:
        """Delete an export with its connections, and wait until none of its requests is under way."""
        with monitor.events("BLOCK_EXPORT_DELETED") as events:
            exports = {export["id"]: export for export in await monitor.execute("query-block-exports")}
            if name not in exports:
                return
            if not exports[name]["shutting-down"]:  # as it is after an earlier attempt that took too long
                await monitor.execute("block-export-del", {"id": name, "mode": "hard"})
            while (await events.next(_QMP_TIMEOUT))["data"]["id"] != name:
                pass

    # Fronts, for clients that come over the network.

    def _front(self, key: str) -> Daemon:
        stem = f"{self._stem}.{key}"
        what = f"the TLS front of volume {self.volume.name}"
        return Daemon(what, self._run / f"{stem}.pid", self._run / f"{stem}.lock")

    def front_runs(self, client: str) -> bool:
        return self._front(short_digest(client)).running()

    def start_fronts(self) -> None:
        """Start the fronts that are missing, or that are not what was granted; their ports are put into the grant."""
        for client, granted in self.grant.clients.items():
            if not granted.same_machine:
                self._start_front(client, granted)

    def _start_front(self, client: str, granted: NbdClientGrant) -> None:
        name = self.grant.export_name(client)
        inner = wire.ask(str(self.socket), name)
        tls, words = self._tls_arguments(client), front_arguments(self.socket, inner)
        front = self._front(short_digest(client))
        # Which addresses its port takes is no argument of the daemon: its lock's file says so.
        label = f"{front.what}, for {' '.join(granted.sources) or 'any address'}"
        if {*tls, *words} <= set(front.arguments()) and front.running() and front.lock.read_text() == label:
            return
        front.stop(kill=True)
        lock = locks.acquire(front.lock, front.what, holder=label)
        first, last = self.settings.port_first, self.settings.port_last
        try:
            with listen_tcp(self.site.address, first, last, granted.port, sources=granted.sources) as listener:
                port = listener.getsockname()[1]
                if port != granted.port:
                    granted.port = port
                    self._save([self.grant])
                # No limit: QEMU's own, 100, would let idle connections keep the client out. It drops them after 10 s.
                server: dict[str, Any] = {
                    "addr": {"type": "fd", "str": str(listener.fileno())}, "max-connections": 0,
                }  # fmt: skip
                if not self.settings.plain_tcp:
                    server["tls-creds"] = "tls0"
                    if self.settings.tls == "x509":
                        server["tls-authz"] = "authz0"
                # The daemon takes its arguments in their order.
                front.start([*tls, "--nbd-server", json.dumps(server), *words], lock, [listener.fileno()])
        finally:
            lock.release()

    def _tls_arguments(self, client: str) -> list[str]:
        if self.settings.plain_tcp:
            return []
        creds: dict[str, Any] = {"qom-type": f"tls-creds-{self.settings.tls}", "id": "tls0", "endpoint": "server"}
        creds |= {"dir": str(self._credentials(client)), "priority": PRIORITY}
        if self.settings.tls == "psk":
            return ["--object", json.dumps(creds)]
        creds["verify-peer"] = True
        return ["--object", json.dumps(creds), "--object", json.dumps(x509_authorization(client))]

    def _keys(self, client: str = "") -> Path:
        """Where the pre-shared keys of the volume's clients are, or that of one client."""
        directory = self.site.state / "nbd" / "keys" / self.volume.uuid
        return directory / short_digest(client) if client else directory

    def _credentials(self, client: str) -> Path:
        """The directory with what the front needs for TLS; what is missing in it is made."""
        directory = self._keys(client)
        for private in (*reversed(directory.parents[:3]), directory):
            make_private(private)
        for file in X509_SERVER_FILES if self.settings.tls == "x509" else ():
            link, target = directory / file, Path(self.settings.tls_dir).absolute() / file
            if not link.is_symlink() or link.readlink() != target:
                link.unlink(missing_ok=True)
                link.symlink_to(target)
        made = {"dh-params.pem": DH_PARAMETERS}
        if self.settings.tls == "psk":
            made["keys.psk"] = f"{PSK_USER}:{os.urandom(32).hex()}\n"
        for file, content in made.items():
            if not (directory / file).exists():
                write_atomic(directory / file, content)
        return directory

    def key(self, client: str) -> str:
        """The client's pre-shared key, in hexadecimal."""
        return (self._credentials(client) / "keys.psk").read_text().strip().partition(":")[2]

    # The end.

    def drop_others(self) -> None:
        """Stop the fronts of those who have none by the grant, and delete the keys of those who have nothing."""
        remote = {short_digest(client) for client, granted in self.grant.clients.items() if not granted.same_machine}
        for path in self._run.glob(f"{self._stem}.*.lock"):
            key = path.name.split(".")[1]
            if key not in remote:
                self._front(key).stop(kill=True)
                path.unlink(missing_ok=True)
        for directory in self._keys().glob("*"):
            if directory.name not in remote:
                remove_tree(directory)

    def stop(self, *, kill: bool = False) -> None:
        """End the server: every connection is cut, the image is flushed and closed, its sockets are removed."""
        if self.serves():
            self.daemon.stop(kill=kill)
        for path in (self.daemon.pidfile, self.socket, self._monitor, self._unlocked):
            path.unlink(missing_ok=True)
        with suppress(Conflict):
            locks.acquire(self.daemon.lock, self.volume.name).release(remove=True)
        with suppress(OSError):
            self._keys().rmdir()

    def _listening(self) -> bool:
        """Whether any process has our socket open for listening, without waiting for it to say anything."""
        import socket

        with socket.socket(socket.AF_UNIX, socket.SOCK_STREAM) as probe:
            try:
                probe.connect(str(self.socket))
            except OSError:
                return False
        return True


def export_id(client: str, write: bool, nonce: str) -> str:
    """QEMU's id of a client's export. It says whether it may write, and under which name: query-block-exports does
    not."""
    return f"{'rw' if write else 'ro'}.{short_digest(client)}.{nonce}"
