"""Where a directory pool is: whether it is the place that it was, and nobody else's."""

from __future__ import annotations

from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path

from storkit.core.errors import NotFound, StorkitError, Unsafe
from storkit.core.identities import check_name
from storkit.system import files, ownership
from storkit.tech.files.sidecar import VolumeDirectory


@dataclass(frozen=True, slots=True)
class PoolPlace:
    """The directory of one pool."""

    path: Path
    pool: str
    state: Path
    """The host's state directory."""
    given: bool
    """False: the pool's own directory, below the state directory, which is made when it is needed."""
    others_write: bool

    def exists(self) -> bool:
        """Whether the directory is there; False only for one that is still to be made.

        Raises NotFound: its file system does not seem to be mounted. Unsafe: others may write it.
        """
        if self.path.is_dir():
            if not self.others_write and (why := ownership.exposed(self.path)):
                hint = f"{why.hint}; or, if they are to write there: others_write = true in [pools.{self.pool}]"
                raise Unsafe(f"pool {self.pool} is not used: {why.message}", hint)
            if self._looks_unmounted():
                message = f"directory {self.path} of pool {self.pool} is empty, and was in use before"
                lock = VolumeDirectory(self.path).lock
                raise NotFound(message, f"{self._mount()}; to begin anew in it: touch {lock}")
            return True
        if self.given:
            # Not made here: it may be the place of a file system that is not mounted.
            raise NotFound(f"there is no directory {self.path} for pool {self.pool}", self._mount())
        return False

    def remember(self) -> None:
        """Note, before the directory is changed, that the pool is in use there."""
        if self.given and not (self._used.exists() and files.read_plain(self._used) == bytes(self.path)):
            files.make_private(self._used.parent)
            files.write_atomic(self._used, bytes(self.path))

    def recognize(self, directory: str) -> None:
        """See that a directory of several managers is the one that this host has seen there before, if any; a record of
        managers is remembered from the first look. `directory`: the id in that record; empty: there is none.

        Raises NotFound: there was one before. Unsafe: it is another directory.
        """
        known, _, path = files.read_plain(self._seen).partition(b"\n") if self._seen.exists() else (b"", b"", b"")
        if known and path == bytes(self.path):
            if not directory:
                message = f"directory {self.path} of pool {self.pool} has no record of its managers, and had one before"
                raise NotFound(message, self._mount())
            if known.decode(errors="replace") != directory:
                message = f"directory {self.path} of pool {self.pool} is another one than before"
                raise Unsafe(message, f"{self._mount()}; if the pool is a new one: rm {self._seen}")
        elif directory:
            with suppress(OSError, StorkitError):  # who looks is not kept from it by a full disk
                files.make_private(self._seen.parent)
                files.write_atomic(self._seen, directory.encode() + b"\n" + bytes(self.path))

    @property
    def _seen(self) -> Path:
        return self.state / "shared-pools" / check_name("pool", self.pool)

    @property
    def _used(self) -> Path:
        return self.state / "pools" / check_name("pool", self.pool)

    def _looks_unmounted(self) -> bool:
        """Whether the directory was in use, and now is as one that a file system is to be mounted on."""
        if not (self.given and self._used.exists() and files.read_plain(self._used) == bytes(self.path)):
            return False
        # A command that begins in it at this moment makes the lock first: looked for before, it could be missed.
        directory = VolumeDirectory(self.path)
        return not directory.lock.exists() and not directory.names()

    def _mount(self) -> str:
        return f"is its file system mounted? findmnt -T {self.path}; mount {self.path}"
