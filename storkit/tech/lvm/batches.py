"""Logical volumes made in batches: all of a batch become volumes at one moment, and none is left of one that failed.

While a batch is made, the volume group has a tag `storkit.making=HOST:BATCH`, and its maker holds a lock of that name.
Once the lock is free and the tag still there, the maker was killed: the next command removes what it made.
"""

from __future__ import annotations

import os
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, suppress
from pathlib import Path

from storkit.core.errors import CommandFailed, StorkitError
from storkit.core.model import Volume
from storkit.system import files, locks
from storkit.system.locks import Lock
from storkit.system.timeouts import scaled
from storkit.tech.lvm import tools
from storkit.tech.lvm.tools import VolumeGroup

_WAIT = scaled(300.0)
"""Seconds to wait for another command that changes the volume group."""


class Batches:
    """The batches of one volume group that are made on one host."""

    def __init__(self, pool: str, vg: str, host: str, run: Path) -> None:
        self.pool, self.vg, self.host, self.directory = pool, vg, host, run / "lvm"

    @contextmanager
    def locked(self, what: str, *, only_removes: bool = False) -> Iterator[tuple[Lock, VolumeGroup]]:
        """The volume group, which no other command of this host changes meanwhile, cleared of what was killed.

        Raises Conflict: it lacks a disk. Logical volumes can be removed all the same (`only_removes`).
        """
        files.make_private(self.directory)
        path, holder = self.directory / f"{self.vg}.lock", f"{what} (pid {os.getpid()})"
        lock = locks.acquire(path, f"volume group {self.vg}", holder=holder, wait=_WAIT)
        try:
            group = tools.read(self.vg)
            if group.missing and not only_removes:
                raise tools.lacking(f"pool {self.pool}, volume group {self.vg},", self.vg, group.missing)
            dead = [batch for batch, host in group.making.items() if host == self.host and not self._lives(batch)]
            for batch in dead:
                self.discard(lock, batch)
            yield lock, tools.read(self.vg) if dead else group
        finally:
            lock.release()

    @contextmanager
    def claimed(self, what: str) -> Iterator[str]:
        """The name of a new batch, locked for as long as its maker lives."""
        batch = os.urandom(6).hex()
        lock = locks.acquire(self._claim(batch), f"batch {batch}", holder=f"{what} (pid {os.getpid()})")
        try:
            yield batch
        finally:
            lock.release(remove=True)

    def carve(self, lock: Lock, batch: str, made: Sequence[Volume], commands: Sequence[Sequence[str]]) -> None:
        """Make the logical volumes of a batch by `commands`, in one process; all, or none is left."""
        try:
            group, said = tools.batch(self.vg, lock, [["vgchange", "--addtag", self._tag(batch), self.vg], *commands])
            there = {lv.name: lv for lv in group.batch(batch)}
            for volume in made:
                lv = there.get(volume.name)
                if batch not in group.making or lv is None or lv.size < volume.size or not lv.active:
                    raise tools.explain(CommandFailed(["lvcreate", volume.name], 5, said), self.vg)
        except BaseException:
            with suppress(StorkitError):  # what is left then, the next command finds
                self.discard(lock, batch)
            raise

    def publish(self, lock: Lock, batch: str, *first: Sequence[str]) -> VolumeGroup:
        """All volumes of the batch exist from now on; the volume group. `first`: commands that come before."""
        command = ["vgchange", "--deltag", self._tag(batch), self.vg]
        group, said = tools.batch(self.vg, lock, [*first, command])
        if batch in group.making:
            raise tools.explain(CommandFailed(command, 5, said), self.vg)
        return group

    def discard(self, lock: Lock, batch: str) -> None:
        """Remove what there is of a batch, and then its tag."""
        group = tools.read(self.vg)
        self.remove(lock, [lv.name for lv in group.batch(batch)])
        if batch in group.making:
            tools.change(self.vg, lock, ["vgchange", "--deltag", self._tag(batch), self.vg])

    def remove(self, lock: Lock, names: Sequence[str]) -> None:
        """Remove logical volumes; the extents of thick ones are discarded."""
        if names:
            argv = ["lvremove", "-y", "--config", "devices{issue_discards=1}"]
            tools.change(self.vg, lock, [*argv, *(f"{self.vg}/{name}" for name in names)])

    def _tag(self, batch: str) -> str:
        return f"{tools.MAKING}{self.host}:{batch}"

    def _claim(self, batch: str) -> Path:
        return self.directory / f"batch-{batch}.lock"

    def _lives(self, batch: str) -> bool:
        return locks.held(self._claim(batch))
