"""What a transport has granted: one 0600 JSON file per volume, and the marks of hosts that were fenced.

Grants say what should be; what is, the servers are asked. Each transport has a kind of grant of its own, a dataclass
that names the volume, its clients and its writers.

A command may be held up for so long that others have acted since it was told to change a right: its host hung, or it
was stopped. Each carries its epoch (Site.epoch), larger than those of all before it; grants and marks keep that of the
last who changed them, and one that is larger refuses the late act. This is looked at under the same lock as the change
itself is made: who is stopped between the two holds the lock.
"""

from __future__ import annotations

import hashlib
import os
import re
from collections.abc import Container, Iterable, Iterator, Sequence
from contextlib import contextmanager
from copy import copy
from pathlib import Path
from typing import Any, ClassVar, Generic, Protocol, TypeVar

from storkit.core import holds
from storkit.core.backend import Site
from storkit.core.errors import NotFound, StorkitError, Unsafe, UsageError, raise_problems
from storkit.core.model import FILLING, Volume, closed
from storkit.system import locks
from storkit.system.files import make_private, read_plain, sync_directory, write_atomic
from storkit.system.timeouts import scaled
from storkit.tech.records import RecordFiles

_WAIT = scaled(30.0)


class VolumeGrant(Protocol):
    """What every kind of grant has: its dataclass is the transport's own, and adds what the transport needs."""

    transport: ClassVar[str]
    """The transport's name: that of the directory with its grants."""
    title: ClassVar[str]
    """What messages call the transport."""

    volume: Volume
    clients: dict[str, Any]
    writers: list[str]
    epoch: int
    generation: int
    """Of the right to write that was given last (HomeExports.set_writers)."""


G = TypeVar("G", bound=VolumeGrant)


class GrantStore(Generic[G]):
    """The grants of one transport on one host. `kind` is their dataclass."""

    def __init__(self, site: Site, kind: type[G]) -> None:
        self.transport, self.title = kind.transport, kind.title
        self._files = RecordFiles(site.state / self.transport, kind, f"the {self.title} grant")
        self._marks = site.state / self.transport / "fenced"
        self._unmarks = site.state / self.transport / "unfenced"
        self._locks = site.run
        self._host = site.host
        self._epoch = site.epoch

    def path(self, uuid: str) -> Path:
        return self._files.path(uuid)

    def find(self, uuids: Iterable[str] | None = None) -> tuple[list[G], list[StorkitError]]:
        """The grants of these volumes (None: of all) by volume name, and an error for each unreadable file."""
        records, problems = self._files.find(uuids)
        for uuid, grant in records.items():
            if grant.volume.uuid != uuid:
                message = f"the {self.title} grant {self.path(uuid)} is that of another volume, {grant.volume.uuid}"
                problems.append(Unsafe(message, "move it away"))
        mine = [grant for uuid, grant in records.items() if grant.volume.uuid == uuid]
        return sorted(mine, key=lambda grant: (grant.volume.name, grant.volume.uuid)), problems

    def save(self, grants: Iterable[G]) -> None:
        self._files.save({grant.volume.uuid: grant for grant in grants})

    def forget(self, uuids: Iterable[str]) -> None:
        self._files.forget(uuids)

    def admit(self, grants: Iterable[G]) -> None:
        """Let this command change these grants, before anything follows from them, and note its epoch in them, unsaved.

        Raises Unsafe: a later command has changed one of them.
        """
        changed = list(grants)
        raise_problems([_late(f"volume {it.volume.name}", self._host) for it in changed if self._is_late(it.epoch)])
        for grant in changed:
            grant.epoch = max(grant.epoch, self._epoch)

    def next_generation(self, grant: G, floor: int) -> int:
        """The generation of a right that is given now: more than those of all that were given before, also by a grant
        that has been forgotten, since the epoch is; and more than `floor`, which the volume's metadata keep."""
        return max(grant.generation + 1, floor + 1, self._epoch)

    def fence(self, client: str) -> None:
        """Raises Unsafe: a later command has let the host in again."""
        with self._marking(client):
            write_atomic(make_private(self._marks) / host_slug(client), f"{client}\n{self._epoch}\n")

    def unfence(self, client: str) -> None:
        """Raises Unsafe: a later command has fenced the host."""
        with self._marking(client):
            if self._epoch and self.fenced(client):
                write_atomic(make_private(self._unmarks) / host_slug(client), f"{client}\n{self._epoch}\n")
            (self._marks / host_slug(client)).unlink(missing_ok=True)
            if self._marks.is_dir():
                sync_directory(self._marks)

    @contextmanager
    def _marking(self, client: str) -> Iterator[None]:
        """One at a time. Raises Unsafe if a later command has fenced or unfenced this host."""
        path = make_private(self._locks) / f"{self.transport}-fence.lock"
        lock = locks.acquire(path, f"the fence of host {client}", holder=f"process {os.getpid()}", wait=_WAIT)
        try:
            if self._is_late(max(_epoch(directory / host_slug(client)) for directory in (self._marks, self._unmarks))):
                raise _late(f"the fence of host {client}", self._host)
            yield
        finally:
            lock.release(remove=True)

    def fenced(self, client: str) -> bool:
        return (self._marks / host_slug(client)).exists()

    def refused(self, clients: Iterable[str]) -> list[StorkitError]:
        """Why those of these clients that were fenced, also if only since this command began, get no export."""
        problems: list[StorkitError] = []
        for client in sorted(clients):
            if self.fenced(client):
                hint = f"once it is known to be harmless: storkit unfence {client}"
                problems.append(Unsafe(f"host {client} is fenced on {self._host}", hint))
            elif self._is_late(_epoch(self._unmarks / host_slug(client))):
                problems.append(_late(f"the fence of host {client}", self._host))
        return problems

    def _is_late(self, epoch: int) -> bool:
        return 0 < self._epoch < epoch

    def without_fenced(self, grant: G) -> G:
        """A grant as it is without the clients that were fenced."""
        return grant_without(grant, [name for name in grant.clients if self.fenced(name)])


def _late(what: str, host: str) -> StorkitError:
    message = f"{what} was changed on {host} by a later command, while this one was held up: it changes nothing there"
    return Unsafe(message, "storkit status")


def _epoch(mark: Path) -> int:
    """The epoch of the command that wrote a mark; 0: there is none, or it is from before there were epochs."""
    try:
        _, _, said = read_plain(mark).decode(errors="replace").partition("\n")
    except FileNotFoundError:
        return 0
    return int(said) if said.strip().isdecimal() else 0


def grant_without(grant: G, clients: Container[str]) -> G:
    """A copy of a grant in which these clients have nothing."""
    left = copy(grant)
    left.clients = {name: granted for name, granted in grant.clients.items() if name not in clients}
    left.writers = [name for name in grant.writers if name in left.clients]
    return left


def grants_of_client(grants: Iterable[G], volumes: Sequence[Volume], client: str) -> list[G]:
    """The grant of each volume to a client. Raises NotFound: some are not exported to it."""
    found = {grant.volume.uuid: grant for grant in grants if client in grant.clients}
    raise_problems([_not_exported(volume, client) for volume in volumes if volume.uuid not in found])
    return [found[volume.uuid] for volume in volumes]


def refused_writers(
    volume: Volume,
    grant: VolumeGrant | None,
    hosts: Sequence[str],
    kinds: Container[str],
    hold: str = "",
    fills: bool = False,
) -> Iterator[StorkitError]:
    """Why these hosts cannot be the writers of a volume, by its grant, if it has one; `kinds` are those that can be
    written, `hold` is the sleep that is to be ended; `fills`: they fill a copy."""
    if hosts and volume.kind not in kinds and (grant is None or grant.volume.kind not in kinds):
        hint = "storkit volume clone it, and use the clone"
        yield Unsafe(f"{volume.name} is a {volume.kind}: nobody writes it", hint)
    filled = fills and volume.made == FILLING and len(hosts) == 1
    if hosts and not filled and (why := closed(volume)):
        yield Unsafe(why, f"storkit volume show {volume.name}")
    gaining = [host for host in hosts if grant is None or host not in grant.writers]
    if hold:
        yield from holds.ended(volume, hold)
    elif gaining:
        yield from holds.held(volume, f"written by {', '.join(gaining)}")
    yield from (_not_exported(volume, host) for host in hosts if grant is None or host not in grant.clients)


def _not_exported(volume: Volume, client: str) -> StorkitError:
    hint = f"storkit attach {volume.name} --on {client}"
    return NotFound(f"volume {volume.name} is not exported to host {client}", hint)


def short_digest(text: str) -> str:
    """A short stand-in for `text` in socket paths and ids."""
    return hashlib.sha256(text.encode()).hexdigest()[:12]


def check_host_slug(text: str) -> str:
    """A host's name as `slug` makes it. Raises UsageError for anything else that a file could be named."""
    if not re.fullmatch(r"[A-Za-z0-9][A-Za-z0-9._-]{0,62}(~[0-9a-f]{12})?", text, re.ASCII):
        raise UsageError(f"{text!r} is no name of a record of a host")
    return text


def host_slug(client: str) -> str:
    """A host's name as it may stand in URIs and file names. '~' is in no name, so no two hosts get the same one."""
    clean = re.sub(r"[^A-Za-z0-9._-]+", "-", client).strip("-.")[:40]
    return client if clean == client else f"{clean}~{short_digest(client)}"
