"""What hosts were granted: one 0600 JSON file per volume, from which its servers can be started again at any time.

Grants say what should be; what is, the servers are asked. The names on the wire, the files' places and the marks of
fenced hosts are decided here as well.
"""

from __future__ import annotations

import fcntl
import hashlib
import os
import re
import time
from collections.abc import Iterable, Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field
from pathlib import Path

from storkit.core import codec
from storkit.core.backend import Site
from storkit.core.errors import Conflict, StorkitError, Unsafe
from storkit.core.model import Volume
from storkit.system.files import PARTIAL, make_private, read_json, sync_directory, write_atomic, write_many

GUARD_TIMEOUT = 30.0


@dataclass(slots=True)
class Granted:
    """One client's grant."""

    same_machine: bool
    port: int = 0
    """The TCP port of the client's front, kept so that the front comes back where the client looks for it."""
    nonce: str = ""
    """Part of the export's name: a guest that was cut off and tries to reconnect, with old data in its memory, is never
    let in by a later grant, nor by another volume of the same name."""


@dataclass(slots=True)
class Grant:
    """Who may use a volume, and who may write it."""

    volume: Volume
    clients: dict[str, Granted] = field(default_factory=dict)
    writers: list[str] = field(default_factory=list)

    def export_name(self, client: str) -> str:
        """The NBD export name of this grant's client."""
        return export_name(self.volume.name, client, self.clients[client].nonce)

    def rights(self) -> dict[str, bool]:
        """Client to whether it may write."""
        return {client: client in self.writers for client in self.clients}


def short(text: str) -> str:
    """A short stand-in for `text` in socket paths and ids."""
    return hashlib.sha256(text.encode()).hexdigest()[:12]


def slug(client: str) -> str:
    """A host's name as it may stand in URIs and file names. '~' is in no name, so no two hosts get the same one."""
    clean = re.sub(r"[^A-Za-z0-9._-]+", "-", client).strip("-.")[:40]
    return client if clean == client else f"{clean}~{short(client)}"


def export_name(volume: str, client: str, nonce: str = "") -> str:
    """The NBD export name of a volume for one client: each client has an export of its own, new with each grant."""
    return f"{volume}@{slug(client)}" + (f"+{nonce}" if nonce else "")


class Grants:
    """The grants of one host."""

    def __init__(self, site: Site) -> None:
        self._directory = site.state / "nbd"
        self._guards = site.run / "nbd"

    def path(self, uuid: str) -> Path:
        return self._directory / f"{uuid}.json"

    def keys(self, uuid: str, client: str = "") -> Path:
        """Where the pre-shared keys of a volume's clients are, or that of one client."""
        directory = self._directory / "keys" / uuid
        return directory / short(client) if client else directory

    def find(self, uuids: Iterable[str] | None = None) -> tuple[list[Grant], list[StorkitError]]:
        """The grants of these volumes (None: all), by volume name, and what is wrong with those that are damaged."""
        if uuids is None:
            uuids = [path.stem for path in self._directory.glob("*.json")]
        found: list[Grant] = []
        problems: list[StorkitError] = []
        for uuid in uuids:
            path = self.path(uuid)
            try:
                found.append(_load(path))
            except FileNotFoundError:
                continue
            except StorkitError as error:
                problems.append(error)
        return sorted(found, key=lambda grant: (grant.volume.name, grant.volume.uuid)), problems

    def save(self, grants: Iterable[Grant]) -> None:
        make_private(self._directory)
        write_many((self.path(grant.volume.uuid), codec_text(grant)) for grant in grants)

    def forget(self, uuid: str) -> None:
        path = self.path(uuid)
        for file in (path, path.with_name(path.name + PARTIAL)):
            file.unlink(missing_ok=True)
        if self._directory.is_dir():
            sync_directory(self._directory)

    @contextmanager
    def guard(self, uuids: Iterable[str]) -> Iterator[None]:
        """Keep other commands from changing the servers of these volumes meanwhile. Raises Conflict after 30 s."""
        make_private(self._guards)
        deadline = time.monotonic() + GUARD_TIMEOUT
        with ExitStack() as stack:
            for uuid in sorted(set(uuids)):
                stack.enter_context(_guard(self._guards / f"{short(uuid)}.guard", uuid, deadline))
            yield

    def fence(self, client: str) -> None:
        directory = make_private(self._directory / "fenced")
        write_atomic(directory / slug(client), client + "\n")

    def unfence(self, client: str) -> None:
        (self._directory / "fenced" / slug(client)).unlink(missing_ok=True)

    def fenced(self, client: str) -> bool:
        return (self._directory / "fenced" / slug(client)).exists()


def codec_text(record: object) -> str:
    """A record as the text of its file, secrets included: for 0600 files."""
    import json

    return json.dumps(codec.dump(record, reveal=True), indent=1, sort_keys=True) + "\n"


def _load(path: Path) -> Grant:
    data = read_json(path, "the NBD grant")
    try:
        grant = codec.load(Grant, data, str(path))
    except StorkitError as error:
        problem = getattr(error, "problems", [error])[0]
        raise Unsafe(
            f"the NBD grant {path} is damaged: {problem.message}", "move it away once you know what it held"
        ) from error
    if grant.volume.uuid != path.stem:
        raise Unsafe(f"the NBD grant {path} is that of another volume, {grant.volume.uuid}", "move it away")
    return grant


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
