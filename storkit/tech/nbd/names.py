"""What hosts were granted: one 0600 JSON file per volume, from which its servers can be started again at any time.

Grants say what should be; what is, the servers are asked. The names on the wire, the files' places and the marks of
fenced hosts are decided here as well.
"""

from __future__ import annotations

import fcntl
import os
import time
from collections.abc import Iterable, Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field
from pathlib import Path

from storkit.core.backend import Site
from storkit.core.errors import Conflict
from storkit.core.identities import ClientName, Port, Word
from storkit.core.model import Volume
from storkit.system.files import make_private
from storkit.system.timeouts import scaled
from storkit.tech.grants import GrantFiles, short, slug

GUARD_TIMEOUT = scaled(30.0)


@dataclass(slots=True)
class NbdClientGrant:
    """One client's grant."""

    same_machine: bool
    port: Port = 0
    """The TCP port of the client's front, kept so that the front comes back where the client looks for it."""
    nonce: Word = ""
    """Part of the export's name: a guest that was cut off and tries to reconnect, with old data in its memory, is never
    let in by a later grant, nor by another volume of the same name."""
    sources: list[str] = field(default_factory=list)
    """The IP addresses that a client on another machine comes from: the kernel lets no other reach its port. Empty:
    any, where the client's address was not known."""


@dataclass(slots=True)
class NbdGrant:
    """Who may use a volume, and who may write it."""

    volume: Volume
    clients: dict[ClientName, NbdClientGrant] = field(default_factory=dict)
    writers: list[ClientName] = field(default_factory=list)
    epoch: int = 0
    """That of the last command that changed it (storkit.tech.grants)."""

    def export_name(self, client: str) -> str:
        """The NBD export name of this grant's client."""
        return export_name(self.volume.name, client, self.clients[client].nonce)

    def rights(self) -> dict[str, bool]:
        """Client to whether it may write."""
        return {client: client in self.writers for client in self.clients}


def export_name(volume: str, client: str, nonce: str = "") -> str:
    """The NBD export name of a volume for one client: each client has an export of its own, new with each grant."""
    return f"{volume}@{slug(client)}" + (f"+{nonce}" if nonce else "")


class NbdGrantStore(GrantFiles[NbdGrant]):
    """The grants of one host."""

    transport, title, kind = "nbd", "NBD", NbdGrant

    def __init__(self, site: Site) -> None:
        super().__init__(site)
        self._guards = site.run / "nbd"
        self._keys = site.state / "nbd" / "keys"

    def keys(self, uuid: str, client: str = "") -> Path:
        """Where the pre-shared keys of a volume's clients are, or that of one client."""
        directory = self._keys / uuid
        return directory / short(client) if client else directory

    @contextmanager
    def guard(self, uuids: Iterable[str]) -> Iterator[None]:
        """Keep other commands from changing the servers of these volumes meanwhile. Raises Conflict after 30 s."""
        make_private(self._guards)
        deadline = time.monotonic() + GUARD_TIMEOUT
        with ExitStack() as stack:
            for uuid in sorted(set(uuids)):
                stack.enter_context(_guard(self._guards / f"{short(uuid)}.guard", uuid, deadline))
            yield


@contextmanager
def _guard(path: Path, uuid: str, deadline: float) -> Iterator[None]:
    while True:
        descriptor = os.open(path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
        try:
            _lock(descriptor, uuid, deadline)
            try:
                current = path.stat().st_ino == os.fstat(descriptor).st_ino
            except FileNotFoundError:
                current = False
            if current:
                try:
                    yield
                finally:
                    path.unlink(missing_ok=True)
                return
            # The one who held it removed the file: lock the one that took its place.
        finally:
            os.close(descriptor)


def _lock(descriptor: int, uuid: str, deadline: float) -> None:
    while True:
        try:
            return fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            if time.monotonic() > deadline:
                raise Conflict(
                    f"another command is changing the exports of volume {uuid}",
                    "wait until it has ended, then try again",
                ) from None
            time.sleep(0.01)
