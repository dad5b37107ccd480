"""A journal that cannot be written stops its plan before the next step acts, and stays readable."""

from __future__ import annotations

import os
import resource
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, ClassVar

import pytest

from storkit.core.errors import NOTHING_CHANGED, Conflict, StepFailed, StorkitError, Unsafe
from storkit.core.inventory import HostConfig, Inventory
from storkit.hosts.connections import Connections
from storkit.plans import verbs
from storkit.plans.engine import Engine
from storkit.plans.journal import KEPT, Journals, new_id
from storkit.plans.plan import Plan, Stages, Step
from storkit.plans.verb import BlindVerb, Run, step


@contextmanager
def largest_file(size: int) -> Iterator[None]:
    """Let no file grow beyond `size` bytes (setrlimit(2)): a write across the limit is cut short, as on a full disk."""
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (size, hard))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))


def test_line_cut_short_is_an_error_and_leaves_no_trace(tmp_path: Path) -> None:
    journals = Journals(tmp_path)
    journal = journals.create(Plan("p", "try", [], []))
    journal.start("1.1", None)
    size = journal.path.stat().st_size
    with largest_file(size + 10), pytest.raises(Conflict, match="no space left"):
        journal.start("2.1", {"some": "thing"})
    assert journal.path.stat().st_size == size
    journal.done("1.1", 1)
    journal.close()
    assert list(journals.read("p").started) == ["1.1"]


def test_a_plan_is_carried_out_by_one_command(tmp_path: Path) -> None:
    journals = Journals(tmp_path)
    journal = journals.create(Plan("p", "try", [], []))
    with pytest.raises(Conflict, match="carried out by another command"):
        journals.reopen("p")
    journal.close()
    journals.reopen("p").close()


@pytest.mark.parametrize("damage", ["bytes", "directory", "fifo", "device"])
def test_a_journal_that_is_none_is_damaged_and_stops_no_other_plan(tmp_path: Path, damage: str) -> None:
    """And it is not waited for: a FIFO has no end, and /dev/zero none either."""
    journals = Journals(tmp_path)
    path = tmp_path / "20000101-000000-00000.jsonl"
    if damage == "bytes":
        path.write_bytes(b'{"plan": "\xff\xfe"}\n')
    elif damage == "directory":
        path.mkdir()
    elif damage == "fifo":
        os.mkfifo(path)
    else:
        path.symlink_to("/dev/zero")
    with pytest.raises(Unsafe, match=r"damaged|should be a file"):
        journals.read(path.stem)
    for number in range(KEPT + 2):
        journal = journals.create(Plan(f"p{number:03}", "try", [], []))
        journal.end("completed")
        journal.close()
    assert path.stem in journals.ids() and len(journals.ids()) <= KEPT + 2


def test_another_command_may_have_removed_an_old_journal(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Two commands begin at the same moment, and both tidy up."""
    journals = Journals(tmp_path)
    there = [f"gone{number:03}" for number in range(KEPT + 5)]
    monkeypatch.setattr(journals, "ids", lambda: there)
    journals.create(Plan("p", "try", [], [])).close()
    assert journals.read("p").plan.title == "try"


@dataclass(frozen=True)
class Note(BlindVerb):
    verb: ClassVar[str] = "note"
    log: ClassVar[list[str]] = []

    def act(self, run: Run, step: Step) -> Any:
        self.log.append(step.title)


def plan_of(*titles: str) -> Plan:
    stages = Stages()
    for title in titles:
        stages.then(step(Note(), "h", "none", title))
    return Plan(new_id(), "a test", stages.stages, [])


def test_wherever_the_disk_fills_nothing_was_changed_or_the_plan_goes_on(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """At every length of the journal: an error that says that nothing was changed, or one that names the plan."""
    log = Note.log
    monkeypatch.setitem(verbs.VERBS, "note", Note)
    engine = Engine(Connections(Inventory({"h": HostConfig("h", f"local:{tmp_path}/h")}, {})), tmp_path / "state")
    whole = plan_of("one", "two")
    engine.run(whole)
    length = (engine.journals.directory / f"{whole.id}.jsonl").stat().st_size
    seen = set()
    for limit in range(0, length, 13):
        log.clear()
        plan = plan_of("one", "two")
        with largest_file(limit), pytest.raises(StorkitError) as caught:
            engine.run(plan)
        error = caught.value
        seen.add(type(error).__name__)
        if isinstance(error, StepFailed):
            assert f"storkit plan resume {plan.id}" in error.hint and "journal cannot be written" in error.message
            engine.resume(plan.id)
            assert {"one", "two"} <= set(log) and engine.journals.read(plan.id).end == "completed"
        else:
            assert error.left == NOTHING_CHANGED and log == [], limit
            assert plan.id not in engine.journals.ids() or engine.journals.read(plan.id).end == "never begun"
    assert {"StepFailed", "NotWritten"} <= seen
