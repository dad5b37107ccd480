"""Plans, journal and engine, with verbs that only keep a list: what is written when, and what undoes what."""

from __future__ import annotations

import json
import os
from collections.abc import Iterator
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, ClassVar

import pytest

from storkit.core.errors import (
    Conflict,
    HostUnreachable,
    Interrupted,
    NotFound,
    Problems,
    ServiceUnreachable,
    StepFailed,
    StorkitError,
    Unsafe,
)
from storkit.core.inventory import HostConfig, Inventory
from storkit.hosts.connections import Connections
from storkit.plans import verbs
from storkit.plans.engine import Engine
from storkit.plans.journal import Journals, new_id
from storkit.plans.plan import Hold, Plan, Stages, Step
from storkit.plans.verb import Run, Verb, step


def error_of(kind: str) -> StorkitError:
    one: dict[str, StorkitError] = {
        "conflict": Conflict("no room", "make room"),
        "silent": HostUnreachable("gone", "look", host="h"),
        "peer": HostUnreachable("gone", "look", host="p"),
        "port": ServiceUnreachable("no answer", "look"),
    }
    return one[kind] if kind in one else Problems([one["conflict"], one["port"]])


@dataclass(frozen=True)
class Seen:
    seen: int


@dataclass(frozen=True)
class Note(Verb[Seen]):
    """Writes what happens to it into `log`, and fails once when told."""

    verb: ClassVar[str] = "note"
    log: ClassVar[list[str]] = []
    failed: ClassVar[set[str]] = set()
    blind: str = ""
    fail: str = ""
    stuck: bool = False
    moves: bool = False

    def guest_hosts(self, step: Step) -> set[str]:
        return super().guest_hosts(step) | ({"p"} if self.moves else set())

    def find(self, run: Run, step: Step) -> Seen:
        if self.blind:
            raise error_of(self.blind)
        return Seen(len(self.log))

    def act(self, run: Run, step: Step) -> str:
        if self.fail and step.title not in self.failed:
            self.failed.add(step.title)
            raise error_of(self.fail)
        self.log.append(f"do {step.title}")
        return step.title

    def undo(self, run: Run, step: Step, before: Seen) -> None:
        if self.stuck:
            raise Conflict("stuck", "")
        assert isinstance(before, Seen)
        self.log.append(f"undo {step.title}")


@dataclass(frozen=True)
class Gate(Note):
    verb: ClassVar[str] = "gate"
    barrier = True


@dataclass(frozen=True)
class Final(Note):
    verb: ClassVar[str] = "final"
    undoable = False


@dataclass(frozen=True)
class Stay(Final):
    verb: ClassVar[str] = "stay"

    def by_hand(self, step: Step) -> str:
        return "storkit back"

    def again(self, step: Step) -> str:
        return "storkit again"


@dataclass(frozen=True)
class Ask(Note):
    verb: ClassVar[str] = "ask"
    question = True


KINDS: dict[str, type[Note]] = {kind.verb: kind for kind in (Note, Gate, Final, Stay, Ask)}


@pytest.fixture
def log(monkeypatch: pytest.MonkeyPatch) -> Iterator[list[str]]:
    for name, kind in KINDS.items():
        monkeypatch.setitem(verbs.VERBS, name, kind)
    Note.log.clear()
    Note.failed.clear()
    yield Note.log


@pytest.fixture
def engine(tmp_path: Path) -> Engine:
    hosts = {"h": HostConfig("h", f"local:{tmp_path}/h")}
    return Engine(Connections(Inventory(hosts, {})), tmp_path / "coordinator")


def plan(*stages: list[Step], holds: list[Hold] | None = None) -> Plan:
    collected = Stages()
    for stage in stages:
        collected.then(*stage)
    return Plan(new_id(), "a test", collected.stages, holds or [])


def note(title: str, verb: str = "note", **args: Any) -> Step:
    return step(KINDS[verb](**args), "h", "none", title)


def test_runs_in_order_and_journals(engine: Engine, log: list[str]) -> None:
    made = plan([note("one")], [note("two")])
    assert engine.run(made) == {"1.1": "one", "2.1": "two"}
    assert log == ["do one", "do two"]
    record = engine.journals.read(made.id)
    assert record.status == "completed" and record.done == {"1.1": "one", "2.1": "two"}
    with pytest.raises(Unsafe, match=r"has ended \(completed\)"):
        engine.rollback(made.id)


def test_steps_of_a_stage_run_together(engine: Engine, log: list[str]) -> None:
    engine.run(plan([note(f"n{number}") for number in range(20)]))
    assert sorted(log) == sorted(f"do n{number}" for number in range(20))


def test_failure_puts_everything_back(engine: Engine, log: list[str]) -> None:
    made = plan([note("one")], [note("two", fail="conflict")], [note("three")])
    with pytest.raises(Conflict, match="no room"):
        engine.run(made)
    assert log == ["do one", "undo two", "undo one"]
    assert engine.journals.read(made.id).end == "failed and rolled back"


def test_silent_server_is_no_silent_host(engine: Engine, log: list[str]) -> None:
    """Its host has answered: what was done is known, and is put back."""
    made = plan([note("one")], [note("two", fail="port")])
    with pytest.raises(ServiceUnreachable, match="no answer"):
        engine.run(made)
    assert log == ["do one", "undo two", "undo one"]
    assert engine.journals.read(made.id).end == "failed and rolled back"


def test_what_is_meant_to_stay_is_repeated_by_its_own_command(engine: Engine, log: list[str]) -> None:
    """A fence that one storage host refuses stays at the others; nothing but unfence lets the host in again."""
    made = plan([note("one", "stay"), note("two", "stay", fail="conflict"), note("three", "stay", fail="silent")])
    with pytest.raises(StepFailed) as caught:
        engine.run(made)
    assert log == ["do one"]
    assert caught.value.hint.startswith("storkit again") and "make room" in caught.value.hint
    assert "two: no room" in caught.value.message and "three: gone" in caught.value.message
    record = engine.journals.read(made.id)
    assert record.status == "failed in part" and record.done == {"1.1": "one"}


def test_a_killed_fence_is_not_taken_back_by_rollback(engine: Engine, log: list[str]) -> None:
    made = plan([note("one", "stay")], [note("two", "stay")])
    with engine.journals.create(made) as journal:
        journal.start("1.1", {"seen": 0})
        journal.done("1.1", "one")
    engine._mark(made)
    with pytest.raises(Unsafe, match="what it did stays: only storkit back takes it back"):
        engine.rollback(made.id)
    assert log == [] and engine.journals.read(made.id).status == "given up"


def test_every_failing_step_of_a_stage_is_named(engine: Engine, log: list[str]) -> None:
    made = plan([note("one")], [note("two", fail="conflict"), note("three", fail="port"), note("four", fail="both")])
    with pytest.raises(Problems) as caught:
        engine.run(made)
    assert [each.message for each in caught.value.each] == ["no room", "no answer", "no room", "no answer"]
    assert caught.value.left == "everything was put back" and "no room; no answer" in caught.value.message


def test_every_problem_of_a_step_is_named_where_the_plan_stays(engine: Engine, log: list[str]) -> None:
    made = plan([note("one", "final")], [note("two", fail="both")])
    with pytest.raises(StepFailed) as caught:
        engine.run(made)
    assert "two: no room" in caught.value.message and "two: no answer" in caught.value.message
    assert caught.value.hint.startswith(f"storkit plan resume {made.id}, or storkit plan rollback {made.id}")
    assert "make room" in caught.value.hint and "look" in caught.value.hint
    assert isinstance(caught.value.cause, Problems)
    assert [each["message"] for each in caught.value.to_json()["cause"]["problems"]] == ["no room", "no answer"]


@pytest.mark.parametrize(
    ("target", "fail", "moves", "said"),
    [
        ("hypervisor:x", "silent", False, "; if h has died: storkit host evacuate h"),
        ("hypervisor:x", "peer", True, "; if p has died: storkit host evacuate p"),
        ("hypervisor:x", "peer", False, ""),  # the home of a disk's copy, for example
        ("x", "silent", False, ""),
    ],
)
def test_a_host_of_guests_that_says_nothing_more_may_have_died(
    engine: Engine, log: list[str], target: str, fail: str, moves: bool, said: str
) -> None:
    made = plan([note("one")], [replace(note("two", fail=fail, moves=moves), target=target)])
    with pytest.raises(StepFailed) as caught:
        engine.run(made)
    ends = f"storkit plan resume {made.id}, or storkit plan rollback {made.id}"
    assert caught.value.hint == f"{ends}{said}; before that: look"


@pytest.mark.parametrize("how", ["conflict", "silent"])
def test_before_the_first_step_nothing_is_changed(engine: Engine, log: list[str], how: str, tmp_path: Path) -> None:
    """What the first step could not even look at was not begun: there is no plan to end, and no mark."""
    made = plan([note("one", blind=how)], [note("two")], holds=[Hold("h", ["v"])])
    with pytest.raises((Conflict, HostUnreachable)) as caught:
        engine.run(made)
    assert log == [] and caught.value.left == "nothing was changed"
    assert engine.journals.read(made.id).end == "never begun"
    assert list((tmp_path / "h/pending").iterdir()) == []


@pytest.mark.parametrize("how", ["conflict", "silent", None])
def test_a_question_leaves_no_plan(engine: Engine, log: list[str], how: str | None) -> None:
    made = plan([note("one", "ask", fail=how or "")])
    if how is None:
        assert engine.run(made) == {"1.1": "one"}
    else:
        with pytest.raises((Conflict, HostUnreachable)):
            engine.run(made)
    assert engine.journals.ids() == []


def test_a_running_plan_is_running(engine: Engine, log: list[str]) -> None:
    made = plan([note("one")])
    with engine.journals.create(made) as journal:
        journal.start("1.1", {"seen": 0})
        assert engine.journals.read(made.id).status == "running"
        journal.undone("1.1")
        assert engine.journals.read(made.id).status == "rolling back"
    assert engine.journals.read(made.id).status == "interrupted"


def test_failed_undo_does_not_stop_the_others(engine: Engine, log: list[str]) -> None:
    made = plan([note("one")], [note("two", stuck=True)], [note("three", fail="conflict")])
    with pytest.raises(StepFailed, match="stuck") as caught:
        engine.run(made)
    assert log == ["do one", "do two", "undo three", "undo one"]
    assert f"storkit plan rollback {made.id}" in caught.value.hint


def test_nothing_is_put_back_behind_a_barrier(engine: Engine, log: list[str]) -> None:
    """A guest that has moved is not moved back because something after it failed: resume is right."""
    made = plan([note("one")], [note("moved", "gate")], [note("three", fail="conflict")])
    with pytest.raises(StepFailed) as caught:
        engine.run(made)
    assert log == ["do one", "do moved"]
    assert f"storkit plan resume {made.id}" in caught.value.hint


def test_barrier_that_cannot_be_undone_keeps_what_it_rests_on(engine: Engine, log: list[str]) -> None:
    made = plan([note("one")], [note("moved", "gate", stuck=True)], [note("three", fail="conflict")])
    with pytest.raises(StepFailed):
        engine.run(made)
    with pytest.raises(StepFailed, match="cannot be taken back"):
        engine.rollback(made.id)
    assert "undo one" not in log


def test_silent_host_is_left_for_resume(engine: Engine, log: list[str]) -> None:
    made = plan([note("one")], [note("two", fail="silent")])
    with pytest.raises(StepFailed, match="gone"):
        engine.run(made)
    assert log == ["do one"]
    assert engine.resume(made.id)["2.1"] == "two"
    assert log == ["do one", "do two"]


def test_final_steps_say_so(engine: Engine, log: list[str]) -> None:
    made = plan([note("one", "final")], [note("two", fail="silent")])
    with pytest.raises(StepFailed):
        engine.run(made)
    with pytest.raises(StepFailed, match="nothing takes this back"):
        engine.rollback(made.id)


def test_resume_after_rollback_was_cut_short(engine: Engine, log: list[str]) -> None:
    """Steps that were undone are done again, the others are not."""
    made = plan([note("one")], [note("two")], [note("three")])
    journal = engine.journals.create(made)
    for number in ("1.1", "2.1"):
        journal.start(number, {"seen": 0})
        journal.done(number, number)
    journal.undo("2.1")
    journal.undone("2.1")
    journal.close()
    engine.resume(made.id)
    assert log == ["do two", "do three"]


def test_a_step_that_may_have_been_taken_back_is_done_again(engine: Engine, log: list[str]) -> None:
    """A rollback was killed within an undo: to go on as if the step stood would rest on what may be gone. What the step
    found before it first ran is kept, for another rollback."""
    made = plan([note("one")], [note("two")], [note("three")])
    journal = engine.journals.create(made)
    for number in ("1.1", "2.1"):
        journal.start(number, {"seen": 7})
        journal.done(number, number)
    journal.undo("2.1")
    journal.close()
    assert engine.journals.read(made.id).standing == {"1.1"}
    engine.resume(made.id)
    assert log == ["do two", "do three"]
    record = engine.journals.read(made.id)
    assert record.started["2.1"] == {"seen": 7} and record.undoing == set()


@pytest.mark.parametrize(("how", "again"), [("conflict", []), ("silent", ["do two"])])
def test_a_step_whose_undo_has_failed_stands_unless_its_host_is_silent(
    engine: Engine, log: list[str], how: str, again: list[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    made = plan([note("one")], [note("two")], [note("three", fail="silent")])
    with pytest.raises(StepFailed):
        engine.run(made)
    undo = Note.undo

    def failing(self: Note, run: Run, step: Step, before: Seen) -> None:
        if step.title == "two":
            raise error_of(how)
        undo(self, run, step, before)

    monkeypatch.setattr(Note, "undo", failing)
    with pytest.raises(StepFailed, match="could be taken back"):
        engine.rollback(made.id)
    del log[:]
    engine.resume(made.id)
    assert log == ["do one", *again, "do three"]


def test_cut_short_line_was_never_written(tmp_path: Path) -> None:
    journals = Journals(tmp_path)
    made = plan([note("one")])
    journal = journals.create(made)
    journal.start("1.1", None)
    journal.close()
    path = tmp_path / f"{made.id}.jsonl"
    with path.open("a") as file:
        file.write('{"done": "1.1", "resu')
    assert journals.read(made.id).done == {}
    again = journals.reopen(made.id)
    again.done("1.1", 5)
    again.close()
    assert [list(json.loads(line)) for line in path.read_text().splitlines()][1:] == [
        ["start", "before", "time"],
        ["done", "result", "time"],
    ]


@pytest.mark.parametrize("damage", ["garbage\n", '{"what": 1}\n', '{"start": "1.1"}\n'])
def test_damaged_journal_is_named_and_kept(tmp_path: Path, damage: str) -> None:
    journals = Journals(tmp_path)
    made = plan([note("one")])
    journals.create(made).close()
    path = tmp_path / f"{made.id}.jsonl"
    path.write_text(path.read_text() + damage + '{"end": "completed"}\n')
    before = path.read_bytes()
    with pytest.raises(Unsafe, match="line 2"):
        journals.read(made.id)
    assert path.read_bytes() == before


def test_no_such_plan(tmp_path: Path) -> None:
    for name in ("nothing", "../../etc/passwd", ""):
        with pytest.raises(NotFound):
            Journals(tmp_path).read(name)


def test_old_plans_are_forgotten_unfinished_ones_never(tmp_path: Path, engine: Engine, log: list[str]) -> None:
    journals = engine.journals
    first = plan([note("unfinished")])
    journals.create(first).close()
    for _ in range(60):
        engine.run(plan([note("x")]))
    assert first.id in journals.ids()
    assert len(journals.ids()) <= 53


def test_names_are_held_and_marked(engine: Engine, log: list[str], tmp_path: Path) -> None:
    """A second coordinator is refused while the first runs, and after it was killed until its plan has ended."""
    other = Engine(Connections(engine.connections.inventory), tmp_path / "other")
    made = plan([note("one", fail="silent")], holds=[Hold("h", ["u-u-i-d"], titles={"u-u-i-d": "volume web"})])
    engine.hold(made.holds, title="attach web on b")
    with pytest.raises(
        Conflict, match=rf"^volume web is locked by 'attach web on b' since \d\d:.* \(process {os.getpid()} "
    ):
        other.hold(made.holds)
    with pytest.raises(StepFailed):
        engine.run(made)
    engine.connections.unlock()
    with pytest.raises(Conflict, match="has not ended") as caught:
        other.hold(made.holds)
    assert made.id in caught.value.hint
    engine.resume(made.id)
    engine.connections.unlock()
    other.hold(made.holds)
    other.connections.unlock()
    place = other.connections.to("h")._performer.site  # type: ignore[attr-defined]
    assert list((place.run / "locks").iterdir()) == []


def test_shared_holds(engine: Engine, tmp_path: Path) -> None:
    other = Engine(Connections(engine.connections.inventory), tmp_path / "other")
    shared = [Hold("h", ["gold"], shared=True)]
    engine.hold(shared, title="clone gold to web")
    other.hold(shared, title="verify gold")
    with pytest.raises(StorkitError, match="gold is locked by 'verify gold' since"):
        other.hold([Hold("h", ["gold"])])


def test_plan_that_never_began_is_not_resumed(engine: Engine, log: list[str]) -> None:
    """Killed between its journal and its marks: others may have changed the world since."""
    made = plan([note("one")], holds=[Hold("h", ["volume"])])
    engine.journals.create(made).close()
    with pytest.raises(Conflict, match="before it began"):
        engine.resume(made.id)
    assert log == [] and engine.journals.read(made.id).end == "never begun"


def test_interrupted_plan_is_named(engine: Engine, log: list[str], monkeypatch: pytest.MonkeyPatch) -> None:
    def interrupt(self: Note, run: Run, step: Step) -> None:
        raise KeyboardInterrupt

    made = plan([note("one")], [note("two")], holds=[Hold("h", ["volume"])])
    with monkeypatch.context() as patched:
        patched.setattr(Note, "act", interrupt)
        with pytest.raises(Interrupted) as caught:
            engine.run(made)
    assert caught.value.exit_code == 130 and f"storkit plan resume {made.id}" in caught.value.hint
    assert engine.resume(made.id) == {"1.1": "one", "2.1": "two"}
