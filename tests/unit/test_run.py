"""Programs: what they leave, when they are given up, and what goes on after them."""

from __future__ import annotations

import os
import signal
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from storkit.core.errors import CommandFailed, TimedOut, Unsupported
from storkit.system.run import Result, run, which

FOLLOWED: list[Any] = [pytest.param(None, id="kept"), pytest.param(lambda line: None, id="followed")]
Follower = Callable[[str], None] | None


def test_what_a_program_says_and_reads_is_kept_whole() -> None:
    text = "ä\n" * 100_000
    assert run(["sh", "-c", "cat; echo no >&2; exit 3"], stdin=text, ok=[3]) == Result(3, text, "no\n")
    assert run(["cat"]).stdout == ""
    assert run(["printf", "\\377"]).stdout == "\N{REPLACEMENT CHARACTER}"


def test_lines_are_given_as_they_come() -> None:
    lines: list[str] = []
    assert run(["printf", "10 %%\\r20 %%\\rdone\\n"], on_line=lines.append).status == 0
    assert lines == ["10 %", "20 %", "done"]


def test_a_programs_own_name_is_its_path() -> None:
    assert run(["sh", "-c", "tr '\\0' '\\n' < /proc/$$/cmdline"]).stdout.split()[0] == which("sh")


def test_programs_speak_no_language_but_c() -> None:
    assert run(["sh", "-c", "echo $LC_ALL $A"], env={"A": "b"}).stdout == "C b\n"


def test_descriptors_are_given_by_name_alone() -> None:
    reading, writing = os.pipe()
    other = os.open("/", os.O_RDONLY)
    os.set_inheritable(other, True)
    listing = ["find", "/proc/self/fd", "-lname", "*", "-printf", "%f "]
    try:
        assert run(listing, stdout=writing, pass_fds=[writing]).stdout == ""
        seen = {int(number) for number in os.read(reading, 1000).decode().split()}
        assert {0, 1, 2, writing} < seen and other not in seen
        assert other not in {int(number) for number in run(listing).stdout.split()}
    finally:
        for descriptor in (reading, writing, other):
            os.close(descriptor)


@pytest.mark.parametrize("follow", FOLLOWED)
def test_a_failure_shows_what_was_said(follow: Follower) -> None:
    with pytest.raises(CommandFailed, match="status 4") as failed:
        run(["sh", "-c", "echo why >&2; exit 4"], on_line=follow)
    assert "why" in str(failed.value) and failed.value.hint.startswith("try it by hand: sh -c '")


@pytest.mark.parametrize("follow", FOLLOWED)
@pytest.mark.parametrize("number", [signal.SIGKILL, signal.SIGSEGV, signal.SIGUSR1])
def test_one_that_somebody_killed_has_failed_whatever_is_an_answer(number: signal.Signals, follow: Follower) -> None:
    with pytest.raises(CommandFailed):
        run(["sh", "-c", f"kill -{number.value} $$"], ok=range(256), on_line=follow)


@pytest.mark.parametrize("follow", FOLLOWED)
def test_one_that_does_not_end_is_killed(follow: Follower, tmp_path: Path) -> None:
    pid = tmp_path / "pid"
    with pytest.raises(TimedOut, match="did not end within"):
        run(["sh", "-c", f"echo $$ > {pid}; exec sleep 60"], timeout=0.5, on_line=follow)
    assert not Path(f"/proc/{pid.read_text().strip()}").exists()


def test_what_it_leaves_running_is_not_waited_for(tmp_path: Path) -> None:
    before = time.monotonic()
    left = run(["sh", "-c", "sleep 60 & echo $!"])
    assert time.monotonic() - before < 30
    os.kill(int(left.stdout), signal.SIGKILL)


def test_a_program_that_is_not_there() -> None:
    with pytest.raises(Unsupported, match="nosuch is not installed") as missing:
        run(["nosuch"], package="such")
    assert missing.value.hint == "apt install such"
