"""What a host keeps of the copies that its guests fill: a file for each disk, by the volume's UUID.

It says, after the death of whoever copied, and after a power cut, which of the two is the disk.
"""

from __future__ import annotations

import json
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Generic, Protocol, TypeVar

from storkit.core import codec
from storkit.system import locks
from storkit.system.files import make_private, read_json, write_atomic
from storkit.system.timeouts import scaled

LOCK_TIMEOUT = scaled(60.0)


class CopyNote(Protocol):
    """What is kept of one copy."""

    @property
    def disk(self) -> str:
        """The volume's UUID."""


N = TypeVar("N", bound=CopyNote)


class CopyNotes(Generic[N]):
    """The notes of one kind in a directory."""

    def __init__(self, directory: Path, kind: type[N]) -> None:
        self._directory, self._kind = directory, kind

    def read(self, disk: str) -> N | None:
        """The note of a disk. Raises StorkitError: it is damaged."""
        path = self._path(disk)
        try:
            return codec.load(self._kind, read_json(path, "what is kept of a copy"), str(path))
        except FileNotFoundError:
            return None

    def keep(self, known: N) -> N:
        """Keep a note, durably; the same note."""
        write_atomic(self._path(known.disk), json.dumps(codec.dump(known)))
        return known

    def forget(self, disk: str) -> None:
        self._path(disk).unlink(missing_ok=True)

    @contextmanager
    def locked(self, disk: str) -> Iterator[None]:
        """Nobody else is at this copy. A command that was killed may be for some moments."""
        make_private(self._directory)
        lock = locks.acquire(self._directory / f"{disk}.lock", "this guest's copy", wait=LOCK_TIMEOUT)
        try:
            yield
        finally:
            lock.release(remove=True)

    def _path(self, disk: str) -> Path:
        return self._directory / f"{disk}.json"
