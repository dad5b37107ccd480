"""Errors keep their kind and content from one host to another, and each kind has its own exit code."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from storkit.core import errors
from storkit.core.errors import CommandFailed, Conflict, Problems, StepFailed, StorkitError, Unsafe, UsageError

ALL: list[StorkitError] = [
    UsageError("a", "b"),
    errors.Unsupported("a", "b"),
    errors.NotFound("a", "b"),
    Conflict("a", "b"),
    CommandFailed(["lvs", "-a"], 5, "one\ntwo", host="h", hint="b"),
    errors.TimedOut("a", "b"),
    Unsafe("a", "b"),
    StepFailed("a", "b", plan="p", cause=Conflict("c", "d")),
    errors.ServiceUnreachable("a", "b"),
    Problems([UsageError("a"), Conflict("b")]),
]


@pytest.mark.parametrize("error", ALL, ids=lambda error: error.kind)
def test_round_trip(error: StorkitError) -> None:
    back = errors.from_json(json.loads(json.dumps(error.to_json())))
    assert type(back) is type(error)
    assert back.to_json() == error.to_json()
    assert back.exit_code == error.exit_code


@pytest.mark.parametrize("error", ALL, ids=lambda error: error.kind)
def test_another_host_s_words_are_marked_as_its_own_once(error: StorkitError) -> None:
    back = errors.from_json(error.to_json(), "b")
    assert [each.message for each in back.each] == [f"b: {each.message}" for each in error.each]
    assert back.said_by == "b" and str(back) == back.message and type(back) is type(error)
    kept = errors.from_json(json.loads(json.dumps(back.to_json())))
    assert (kept.message, kept.said_by) == (back.message, "b"), "as a journal keeps it"


def test_a_host_that_answers_is_never_unreachable() -> None:
    """Also if an older agent says so: its word is about what it could not reach itself."""
    back = errors.from_json(errors.HostUnreachable("no NBD server answers", "look").to_json())
    assert type(back) is errors.ServiceUnreachable and back.message == "no NBD server answers"
    assert errors.HostUnreachable.exit_code == 7


def test_no_backend_says_that_a_host_is_unreachable() -> None:
    """After HostUnreachable nothing is rolled back: only who has the connection can say that it is lost."""
    package = Path(errors.__file__).parent.parent
    said = {str(path.relative_to(package)) for path in package.rglob("*.py") if "HostUnreachable(" in path.read_text()}
    assert said <= {"core/errors.py", "plans/lookup.py", *(name for name in said if name.startswith("hosts/"))}


def test_exit_codes_differ() -> None:
    codes = [error.exit_code for error in ALL if not isinstance(error, Problems)]
    assert codes == [2, 3, 4, 5, 6, 8, 9, 10, 11]


def test_command_failure_shows_its_last_line() -> None:
    assert CommandFailed(["lvs"], 5, "one\ntwo\n", host="h").message == "lvs on h failed with status 5: two"


def test_one_problem_is_raised_as_itself() -> None:
    with pytest.raises(Conflict):
        errors.raise_problems([Conflict("x")])
    errors.raise_problems([])
