"""What keeps two coordinators off one volume: locks that die with their holder, and marks of unfinished plans.

Both are held on the volume's home host. A lock (flock) excludes commands that run at the same time. A mark is a file
that outlives a killed command: until its plan is resumed or rolled back, no other command may change its volumes.
"""

from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import Path

from storkit.core import codec
from storkit.core.backend import Site
from storkit.core.errors import Conflict, Problems, Unsafe, UsageError, in_a_line
from storkit.core.host import Claim
from storkit.core.identities import Line, Words
from storkit.system import files, locks
from storkit.system.timeouts import scaled


@dataclass(frozen=True, slots=True)
class Mark:
    """A plan that has not ended, and what it changes."""

    plan: Line
    names: list[Line]
    title: Words
    coordinator: Words
    """The machine where it was begun."""


class Guard:
    """The locks and marks of one host."""

    def __init__(self, site: Site) -> None:
        # Made when something is written: who only looks needs neither.
        self._locks = site.run / "locks"
        self._marks = site.state / "pending"
        self._epoch = site.state / "epoch"

    def lock(
        self,
        claims: list[Claim],
        holder: str,
        plan: str = "",
        over_marks: bool = False,
        titles: dict[str, str] | None = None,
        patience: float = 0.0,
    ) -> tuple[list[locks.Lock], list[str]]:
        """Take every claim or none, and see that no unfinished plan other than `plan` has marked any of the names.

        `titles` are what messages call the names; `patience`: for how many seconds to wait for whoever has one.

        With `over_marks`, such marks are removed instead: the second result names their plans.

        Raises Conflict with the holder, or with the command that ends the unfinished plan.
        """
        taken: list[locks.Lock] = []
        given_up: list[str] = []
        with files.explained(self._locks):
            files.make_private(self._locks)
        try:
            for claim in claims:
                for name in sorted(claim.names):
                    path = self._locks / f"{_file_name(name)}.lock"
                    title = (titles or {}).get(name, name)
                    with files.explained(path):
                        taken.append(locks.acquire(path, title, shared=claim.shared, holder=holder, wait=patience))
            wanted = {name for claim in claims for name in claim.names}
            for mark in self.marks():
                if mark.plan != plan and wanted & set(mark.names):
                    name = mark.plan
                    if over_marks:
                        self.unmark(name)
                        given_up.append(name)
                        continue
                    raise Conflict(
                        f"plan {name} ({mark.title}) was begun on {mark.coordinator} and has not ended",
                        f"storkit plan resume {name}, or storkit plan rollback {name}",
                    )
        except BaseException:
            for lock in taken:
                lock.release(remove=True)
            raise
        return taken, given_up

    def epoch(self) -> int:
        """A number for a command that changes rights, larger than all that this host has given before. It is drawn once
        the command has its lock; `fence`, which must do without one, draws it by itself."""
        with files.explained(self._locks.parent):
            files.make_private(self._locks.parent)  # it may be the first thing that storkit does since the host's boot
            lock = locks.acquire(self._locks.parent / "epoch.lock", "the count of commands", wait=scaled(30))
        try:
            number = 1 + (int(self._epoch.read_text() or 0) if self._epoch.exists() else 0)
            files.write_atomic(self._epoch, f"{number}\n")
            return number
        except ValueError:
            hint = "write a number into it that is larger than any epoch in the grants beside it"
            raise Unsafe(f"{self._epoch} is damaged: it has no number", hint) from None
        finally:
            lock.release(remove=True)

    def mark(self, plan: str, names: list[str], title: str, coordinator: str) -> None:
        """Say, durably, that `plan` is under way for these names."""
        record = codec.dump(Mark(plan, names, title, coordinator))
        with files.explained(self._marks):
            files.make_private(self._marks)
            files.write_atomic(self._path(plan), json.dumps(record))

    def marked(self, plan: str) -> bool:
        """Whether the mark of `plan` is there."""
        return self._path(plan).exists()

    def unmark(self, plan: str) -> None:
        """The plan has ended, or was rolled back."""
        with files.explained(self._marks):
            self._path(plan).unlink(missing_ok=True)

    def marks(self) -> list[Mark]:
        """The marks of unfinished plans. Raises Unsafe: one is damaged, and nobody knows what it marks."""
        found: list[Mark] = []
        for path in sorted(self._marks.glob("*.json")):
            try:
                found.append(codec.load(Mark, files.read_json(path, "the mark"), strict=False))
            except FileNotFoundError:
                continue  # its plan has ended meanwhile
            except (UsageError, Problems) as error:
                hint = f"cat {path}; storkit plan list where it was begun; move it away once that plan has ended"
                raise Unsafe(f"the mark {path} is damaged: {in_a_line(error)}", hint) from None
        return found

    def _path(self, plan: str) -> Path:
        return self._marks / f"{_file_name(plan)}.json"


def _file_name(name: str) -> str:
    return name.replace("/", "%").replace(":", "-")
