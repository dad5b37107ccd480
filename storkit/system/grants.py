"""What a transport has granted: one 0600 JSON file per volume, and the marks of hosts that were fenced.

Grants say what should be; what is, the servers are asked. Each transport has a kind of grant of its own, a dataclass
that names the volume, its clients and its writers.
"""

from __future__ import annotations

import hashlib
import re
from collections.abc import Iterable
from pathlib import Path
from typing import ClassVar, Generic, Protocol, TypeVar

from storkit.core import codec
from storkit.core.backend import Site
from storkit.core.errors import StorkitError, Unsafe
from storkit.core.model import Volume
from storkit.system.files import PARTIAL, make_private, read_json, sync_directory, write_atomic, write_many


class VolumeGrant(Protocol):
    """What every kind of grant has."""

    @property
    def volume(self) -> Volume: ...


G = TypeVar("G", bound=VolumeGrant)


class GrantFiles(Generic[G]):
    """The grants of one transport on one host."""

    transport: ClassVar[str]
    title: ClassVar[str]
    """What messages call the transport."""
    kind: type[G]

    def __init__(self, site: Site) -> None:
        self._directory = site.state / self.transport
        self._marks = self._directory / "fenced"

    def path(self, uuid: str) -> Path:
        return self._directory / f"{uuid}.json"

    def find(self, uuids: Iterable[str] | None = None) -> tuple[list[G], list[StorkitError]]:
        """The grants of these volumes (None: all), by volume name, and what is wrong with those that are damaged."""
        if uuids is None:
            uuids = [path.stem for path in self._directory.glob("*.json")]
        found: list[G] = []
        problems: list[StorkitError] = []
        for uuid in dict.fromkeys(uuids):
            try:
                found.append(self._load(self.path(uuid)))
            except FileNotFoundError:
                continue
            except StorkitError as error:
                problems.append(error)
        return sorted(found, key=lambda grant: (grant.volume.name, grant.volume.uuid)), problems

    def save(self, grants: Iterable[G]) -> None:
        make_private(self._directory)
        write_many((self.path(grant.volume.uuid), codec.text(grant)) for grant in grants)

    def forget(self, uuids: Iterable[str]) -> None:
        for path in map(self.path, uuids):
            for file in (path, path.with_name(path.name + PARTIAL)):
                file.unlink(missing_ok=True)
        if self._directory.is_dir():
            sync_directory(self._directory)

    def fence(self, client: str) -> None:
        write_atomic(make_private(self._marks) / slug(client), client + "\n")

    def unfence(self, client: str) -> None:
        (self._marks / slug(client)).unlink(missing_ok=True)
        if self._marks.is_dir():
            sync_directory(self._marks)

    def fenced(self, client: str) -> bool:
        return (self._marks / slug(client)).exists()

    def _load(self, path: Path) -> G:
        data = read_json(path, f"the {self.title} grant")
        try:
            grant = codec.load(self.kind, data, str(path))
        except StorkitError as error:
            problem = getattr(error, "problems", [error])[0]
            hint = "move it away once you know what it held"
            raise Unsafe(f"the {self.title} grant {path} is damaged: {problem.message}", hint) from error
        if grant.volume.uuid != path.stem:
            raise Unsafe(
                f"the {self.title} grant {path} is that of another volume, {grant.volume.uuid}", "move it away"
            )
        return grant


def short(text: str) -> str:
    """A short stand-in for `text` in socket paths and ids."""
    return hashlib.sha256(text.encode()).hexdigest()[:12]


def slug(client: str) -> str:
    """A host's name as it may stand in URIs and file names. '~' is in no name, so no two hosts get the same one."""
    clean = re.sub(r"[^A-Za-z0-9._-]+", "-", client).strip("-.")[:40]
    return client if clean == client else f"{clean}~{short(client)}"
