"""The journal: what a plan is about to do, before it is done; what it did, after.

One file a plan, `plans/ID.jsonl` below the coordinator's state directory, a JSON object a line, each line on the disk
(fsync) before the next thing happens:

    {"plan": {...}}                     the whole plan
    {"start": "2.1", "before": ...}     a step is about to run; what its `find` saw
    {"done": "2.1", "result": ...}      it has ended well
    {"failed": "2.1", "error": {...}}   it has failed
    {"undo": "2.1"} {"undone": "2.1"}   the same for rollback; "done" again: its undo failed, and it stands
    {"end": "completed"}                or "rolled back": nothing is left to do

All but the first also have "time", in seconds since 1970, by the coordinator's clock.

A kill can cut the last line short: a last line without its newline was never written. Damage anywhere else is Unsafe.
"""

from __future__ import annotations

import errno
import fcntl
import json
import os
import time
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Self

from storkit.core import codec
from storkit.core.errors import Conflict, NotFound, Unsafe
from storkit.plans.plan import Plan
from storkit.system import files
from storkit.system.ownership import keep_state

LOOKED_AT = 0.2
"""Seconds that a command waits for a journal: whoever asks whether its plan runs locks it for a moment."""
LARGEST = 1 << 30
"""Bytes of a journal: a plan of thousands of volumes has a few MiB."""
KEPT = 50
"""How many ended plans are kept for `plan list`."""


@dataclass
class Record:
    """What a journal says of a plan."""

    plan: Plan
    started: dict[str, Any] = field(default_factory=dict)
    """Step id to what `find` saw before the step first ran."""
    done: dict[str, Any] = field(default_factory=dict)
    failed: dict[str, Any] = field(default_factory=dict)
    undone: set[str] = field(default_factory=set)
    undoing: set[str] = field(default_factory=set)
    """Steps whose undo was begun, and of which nobody knows how it ended: `resume` carries them out again, since going
    on as if they stood would rest on what may be gone."""
    end: str = ""

    @property
    def standing(self) -> set[str]:
        """The steps that are done, and were not taken back, not even perhaps."""
        return self.done.keys() - self.undone - self.undoing

    def start(self, step: str, before: Any) -> None:
        """A step starts: for the first time, again after a kill, or anew after it was undone."""
        if step in self.undone:
            self.undone.discard(step)
            self.started.pop(step, None)
            self.done.pop(step, None)
        if step in self.undoing:
            self.undoing.discard(step)
            self.done.pop(step, None)
        self.started.setdefault(step, before)
        self.failed.pop(step, None)

    def finish(self, step: str, result: Any) -> None:
        """A step has ended well, or stands although it was to be taken back."""
        self.done[step] = result
        self.undoing.discard(step)

    def take_back(self, step: str) -> None:
        """A step was undone."""
        self.undone.add(step)
        self.undoing.discard(step)

    running: bool = False
    """Whether a command is carrying it out now."""

    @property
    def status(self) -> str:
        if self.end:
            return self.end
        if self.running:
            return "rolling back" if self.undone or self.undoing else "running"
        return "failed" if self.failed else "interrupted"


class NotWritten(Conflict):
    """A journal takes no more lines. What they would have announced must not be done."""


class Journal:
    """The open journal of one plan."""

    def __init__(self, path: Path, record: Record) -> None:
        self.path = path
        self.record = record
        with files.explained(path):
            self._descriptor = os.open(path, os.O_WRONLY | os.O_APPEND | os.O_CREAT | os.O_CLOEXEC, 0o600)
        deadline = time.monotonic() + LOOKED_AT
        while True:
            try:
                fcntl.flock(self._descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
                return
            except BlockingIOError:
                if time.monotonic() < deadline:
                    time.sleep(0.01)
                    continue
            os.close(self._descriptor)
            raise Conflict(
                f"plan {record.plan.id} ({record.plan.title}) is being carried out by another command",
                "wait until that has ended",
            )

    def start(self, step: str, before: Any) -> None:
        self._append({"start": step, "before": before})
        self.record.start(step, before)

    def done(self, step: str, result: Any) -> None:
        self.record.finish(step, result)
        self._append({"done": step, "result": result})

    def failed(self, step: str, error: dict[str, Any]) -> None:
        self.record.failed[step] = error
        self._append({"failed": step, "error": error})

    def undo(self, step: str) -> None:
        self._append({"undo": step})
        self.record.undoing.add(step)

    def stands(self, step: str) -> None:
        """The undo of a step has failed, and has left it as it was."""
        if step in self.record.done:
            self.done(step, self.record.done[step])

    def undone(self, step: str) -> None:
        self.record.take_back(step)
        self._append({"undone": step})

    def end(self, how: str) -> None:
        self.record.end = how
        self._append({"end": how})

    def close(self) -> None:
        os.close(self._descriptor)

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *error: object) -> None:
        self.close()

    def _append(self, entry: dict[str, Any]) -> None:
        """Raises NotWritten, with the journal as it was, if the line cannot be written whole (a full disk)."""
        line = json.dumps({**entry, "time": round(time.time(), 3)}).encode() + b"\n"
        before = os.fstat(self._descriptor).st_size
        try:
            if os.write(self._descriptor, line) != len(line):
                raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
            os.fsync(self._descriptor)
        except OSError as error:
            with suppress(OSError):
                os.ftruncate(self._descriptor, before)
            reason = files.explain(error, self.path)
            raise NotWritten(f"the plan's journal cannot be written: {reason.message}", reason.hint) from error


class Unwritten(Journal):
    """The journal of a plan that only asks: there is nothing to resume, so nothing is kept."""

    def __init__(self, plan: Plan) -> None:
        self.record = Record(plan)

    def close(self) -> None:
        pass

    def _append(self, entry: dict[str, Any]) -> None:
        pass


class Journals:
    """The plans of one coordinator."""

    def __init__(self, directory: Path) -> None:
        self.directory = directory

    def create(self, plan: Plan) -> Journal:
        """A new journal, durable with its plan."""
        path = self._path(plan.id)
        with files.explained(self.directory):
            keep_state(self.directory.parent)
            files.make_private(self.directory)
            self._prune()
            files.write_atomic(path, json.dumps({"plan": codec.dump(plan)}) + "\n")
        return Journal(path, Record(plan))

    def reopen(self, plan: str) -> Journal:
        """The journal of an earlier plan, to go on with. Raises NotFound; Unsafe if it is damaged."""
        path = self._path(plan)
        journal = Journal(path, self.read(plan))
        try:
            # Read again: whoever had it open until now may have gone on.
            journal.record = self.read(plan)
            whole = path.read_bytes()
            if not whole.endswith(b"\n"):
                os.truncate(path, whole.rfind(b"\n") + 1)
        except BaseException:
            journal.close()
            raise
        return journal

    def read(self, plan: str) -> Record:
        """What the journal of a plan says."""
        path = self._path(plan)
        try:
            data = files.read_plain(path, LARGEST)
        except OSError:
            known = ", ".join(sorted(self.ids())[-3:]) or "none"
            raise NotFound(f"there is no plan {plan!r} on this host", f"storkit plan list; the last: {known}") from None
        *lines, _cut_short = data.split(b"\n")
        record: Record | None = None
        for number, line in enumerate(lines, 1):
            try:
                entry = json.loads(line)
                if record is None:
                    record = Record(codec.load(Plan, entry["plan"], str(path)))
                else:
                    _apply(record, entry)
            except Exception as error:
                raise Unsafe(
                    f"the journal {path} is damaged at line {number}: {error}",
                    "compare it with `storkit status`; then move it away, and `storkit migrate cleanup` its guest",
                ) from error
        if record is None:
            raise Unsafe(f"the journal {path} is empty", "nothing was begun: remove the file")
        record.running = not record.end and _locked(path)
        return record

    def ids(self) -> list[str]:
        """The plans there are, oldest first."""
        return sorted(path.stem for path in self.directory.glob("*.jsonl"))

    def _path(self, plan: str) -> Path:
        if "/" in plan or "\0" in plan or plan.startswith("."):
            raise NotFound(f"there is no plan {plan!r}", "storkit plan list")
        return self.directory / f"{plan}.jsonl"

    def _prune(self) -> None:
        ids = self.ids()
        for plan in ids[: max(0, len(ids) - KEPT)]:
            path = self._path(plan)
            with suppress(OSError, Unsafe):  # another command has removed it meanwhile, or it is nothing of ours
                descriptor = files.open_plain(path, os.O_RDONLY)
                with os.fdopen(descriptor, "rb") as file:
                    file.seek(max(0, os.fstat(descriptor).st_size - 64))
                    ended = b'{"end": ' in file.read()
                if ended:
                    path.unlink()


def new_id() -> str:
    """A plan's id: its time in UTC to the millisecond, and two hex digits that keep two of one millisecond apart."""
    now = time.time()
    return time.strftime("%Y%m%d-%H%M%S", time.gmtime(now)) + f"-{int(now * 1000) % 1000:03d}{os.urandom(1).hex()}"


def _locked(path: Path) -> bool:
    """Whether a command has the journal open to write."""
    with path.open("rb") as file:
        try:
            fcntl.flock(file, fcntl.LOCK_SH | fcntl.LOCK_NB)
        except BlockingIOError:
            return True
    return False


def _apply(record: Record, entry: dict[str, Any]) -> None:
    match entry:
        case {"start": step, "before": before}:
            record.start(step, before)
        case {"done": step, "result": result}:
            record.finish(step, result)
        case {"failed": step, "error": error}:
            record.failed[step] = error
        case {"undo": step}:
            record.undoing.add(step)
        case {"undone": step}:
            record.take_back(step)
        case {"end": how}:
            record.end = how
        case _:
            raise ValueError(f"unknown entry {sorted(entry)}")
