"""The nbdkit process of one volume and one client: its arguments, its start, its end."""

from __future__ import annotations

import os
import time
from collections.abc import Sequence
from contextlib import suppress
from dataclasses import dataclass, field
from typing import ClassVar

from storkit.core.backend import Site
from storkit.core.errors import CommandFailed, Conflict, TimedOut
from storkit.core.identities import ClientName, Port, Word
from storkit.core.model import Volume
from storkit.system import locks
from storkit.system.files import make_private, write_atomic
from storkit.system.qemu.storagedaemon import Daemon, listen_tcp
from storkit.system.run import run
from storkit.system.timeouts import scaled
from storkit.tech.athand import at_hand
from storkit.tech.grants import short_digest
from storkit.tech.nbd.names import export_name

PSK_USER = "storkit"
READONLY = "--readonly"
START_TIMEOUT = scaled(10.0)
"""Seconds for a process to write its pid, and for the locks of one that was killed to go with it."""


@dataclass(slots=True)
class NbdkitClient:
    """What one client was granted."""

    same_machine: bool
    nonce: Word = ""
    """Part of the export's name: who was cut off with old data in its memory is not let in by a later grant."""
    port: Port = 0
    """The TCP port of its process, kept so that it comes back where the client looks for it."""


@dataclass(slots=True)
class NbdkitGrant:
    """Who may use a volume, and who may write it."""

    transport: ClassVar[str] = "nbdkit"
    title: ClassVar[str] = "nbdkit"

    volume: Volume
    clients: dict[ClientName, NbdkitClient] = field(default_factory=dict)
    writers: list[ClientName] = field(default_factory=list)
    epoch: int = 0
    generation: int = 0
    instance: Word = ""
    """Drawn for each grant: the servers of two copies of one disk are never taken for one."""

    @property
    def identity(self) -> str:
        """What all processes of the volume say of themselves."""
        return f"storkit:{self.volume.uuid}:{self.instance}"


@dataclass(frozen=True, slots=True)
class Process(Daemon):
    """An nbdkit, known by its pid file and its lock as storkit's own daemons are."""

    def start(self, arguments: Sequence[str], held: locks.Lock, descriptors: Sequence[int]) -> None:
        """Start it; when this returns it listens. Raises CommandFailed with its stderr; TimedOut."""
        self.pidfile.unlink(missing_ok=True)
        passed = [held.descriptor, *descriptors]
        for descriptor in passed:
            os.set_inheritable(descriptor, True)
        run(["nbdkit", "--pidfile", self.pidfile, *arguments], pass_fds=passed, package="nbdkit")
        deadline = time.monotonic() + START_TIMEOUT
        while not self.process():  # it listens before it leaves its parent, and writes its pid a moment after
            if time.monotonic() > deadline:
                raise TimedOut(f"{self.what} did not write its pid", f"look for it: fuser -v {self.lock}")
            time.sleep(0.005)


class ClientServer:
    """One client's process: what it is, and how to bring it to what was granted."""

    def __init__(self, site: Site, grant: NbdkitGrant, client: str = "", key: str = "") -> None:
        """`key` names a process of a client that has no grant any more."""
        self.site, self.grant, self.client, self.volume = site, grant, client, grant.volume
        self.key = key or short_digest(client)
        directory = site.run / "nbdkit"
        stem = f"{short_digest(self.volume.uuid)}.{self.key}"
        # A socket's path has room for little: this name is as short as it can be, and still that of one process.
        self.socket = directory / f"{short_digest(self.volume.uuid + self.key)}.sock"
        what = f"the nbdkit of volume {self.volume.name}" + (f" for {client}" if client else "")
        self.process = Process(what, directory / f"{stem}.pid", directory / f"{stem}.lock")
        self.keys = site.state / "nbdkit" / "keys" / self.volume.uuid / self.key

    @property
    def granted(self) -> NbdkitClient:
        return self.grant.clients[self.client]

    @property
    def name(self) -> str:
        """Of the export, on the wire."""
        return export_name(self.volume.name, self.client, self.granted.nonce)

    def writes(self) -> bool | None:
        """Whether what runs lets its client write; None: nothing runs, or it is just being started or ended."""
        words = self.process.arguments() if self.process.running() else []
        return READONLY not in words if words else None

    def arguments(self) -> list[str]:
        """Of nbdkit(1), nbdkit-exportname-filter(1) and nbdkit-ip-filter(1)."""
        granted = self.granted
        words = [] if self.client in self.grant.writers else [READONLY]
        words += ["--filter=exportname"]
        of_filters = [f"exportname={self.name}", "exportname-strict=true", "exportname-list=explicit"]
        of_filters += [f"exportdesc=fixed:{self.grant.identity}"]
        if granted.same_machine:
            words += ["--unix", str(self.socket)]
        else:
            words += ["--ipaddr", self.site.address, "--port", str(granted.port)]
            # Who has the key is let in, from wherever: nbdkit 1.32's filter `ip` understands no IPv4 address.
            words += ["--tls=require", f"--tls-psk={self.keys}"]
        return [*words, "file", f"file={self.volume.path}", *of_filters]

    def _label(self) -> str:
        """What no argument says: the size that its client was told."""
        return f"{self.process.what}, {self.volume.size} bytes"

    def is_right(self) -> bool:
        """Whether what runs is what was granted."""
        if not self.process.running() or self.process.lock.read_text() != self._label():
            return False
        return self.process.arguments()[3:] == self.arguments()

    def start(self, ports: range) -> bool:
        """Have exactly what was granted run. Whether its port is another one now, which is to be saved."""
        if self.is_right():
            return False
        self.stop()
        make_private(self.process.lock.parent)
        before = self.granted.port
        what = f"volume {self.volume.name}"
        at_hand([self.volume])
        use = locks.acquire(
            locks.use_lock(self.site.run, self.volume.uuid), what, shared=True, holder=what, wait=START_TIMEOUT
        )
        try:
            own = locks.acquire(self.process.lock, what, holder=self._label(), wait=START_TIMEOUT)
            try:
                self._start(own, use, ports)
            finally:
                own.release()
        finally:
            use.release()
        return self.granted.port != before

    def _start(self, own: locks.Lock, use: locks.Lock, ports: range) -> None:
        if self.granted.same_machine:
            return self.process.start(self.arguments(), own, [use.descriptor])
        if not self.keys.exists():
            for directory in reversed(self.keys.parents[:2]):
                make_private(directory)
            write_atomic(self.keys, f"{PSK_USER}:{os.urandom(32).hex()}\n")
        for _ in range(8):
            widen = "widen port_first and port_last of nbdkit"
            with listen_tcp(self.site.address, ports.start, ports.stop - 1, self.granted.port, widen=widen) as free:
                self.granted.port = free.getsockname()[1]
            try:
                return self.process.start(self.arguments(), own, [use.descriptor])
            except CommandFailed as error:  # another took the port meanwhile
                if "in use" not in error.stderr:
                    raise
        raise Conflict(f"the ports of nbdkit on {self.site.address} are taken again and again", "ss -ltn")

    def secret(self) -> str:
        """The client's key, in hexadecimal."""
        return self.keys.read_text().strip().partition(":")[2]

    def stop(self) -> None:
        """End it, and wait: nothing that it was asked to write can reach the disk afterwards, and nothing that it said
        was flushed is lost: it keeps nothing in its own memory. So one that hangs is ended like any other."""
        self.process.stop(kill=True)
        self.socket.unlink(missing_ok=True)

    def remove(self) -> None:
        """End it, and forget it; with the last of a volume also that the volume is in use."""
        self.stop()
        with suppress(Conflict):
            locks.acquire(locks.use_lock(self.site.run, self.volume.uuid), "the volume").release(remove=True)
        self.process.pidfile.unlink(missing_ok=True)
        self.process.lock.unlink(missing_ok=True)
        self.keys.unlink(missing_ok=True)
        for directory in self.keys.parents[:2]:
            with suppress(OSError):
                directory.rmdir()


def all_of(site: Site, grant: NbdkitGrant) -> list[ClientServer]:
    """The processes that a volume has or had, whoever they are for; of one that a reboot has ended its key is left."""
    named = {short_digest(client): client for client in grant.clients}
    uuid = grant.volume.uuid
    found = {path.name.split(".")[1] for path in (site.run / "nbdkit").glob(f"{short_digest(uuid)}.*.lock")}
    found |= {path.name for path in (site.state / "nbdkit" / "keys" / uuid).glob("*")}
    return [ClientServer(site, grant, named.get(key, ""), key) for key in sorted(found)]
