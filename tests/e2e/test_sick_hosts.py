"""Hosts whose ssh connects and which do not answer: every command ends, with that host unknown, and does the rest."""

from __future__ import annotations

import os
import signal
import time
from collections.abc import Callable, Iterator
from typing import Any

import pytest

from storkit.system.timeouts import VARIABLE
from tests import sickagents
from tests.e2e.world import World

pytestmark = pytest.mark.e2e

INVENTORY = """\
[hosts.a]
url = "local:a"
address = "127.0.0.1"
[hosts.b]
url = "local:b"
[hosts.c]
url = "{c}"
state = "{directory}/c"
[pools.default]
host = "{home}"
format = "raw"
"""
FAR = """\
[pools.far]
host = "c"
"""


class SickWorld:
    """Hosts a and b, which are well, and c, which is sick as it is told to be."""

    def __init__(self, make: Callable[..., World], home: str = "a") -> None:
        self.world = make()
        self.directory = self.world.directory / "sick"
        self.url = sickagents.hosts(self.directory, "c")["c"]
        inventory = INVENTORY.format(c=self.url, directory=self.world.directory, home=home)
        self.world.inventory.write_text(inventory + (FAR if home != "c" else ""))
        self.world.environment["PATH"] = f"{self.directory}/bin:{os.environ['PATH']}"
        self.storkit = self.world.storkit

    def be(self, how: str, what: str = "", seconds: float = 0) -> None:
        sickagents.be(self.directory, self.url, how, what, seconds)

    def hurry(self, factor: float) -> None:
        self.world.environment[VARIABLE] = str(factor)

    def agents(self) -> list[int]:
        return [pid for pid in sickagents.agents(self.directory, self.url) if sickagents.lives(pid)]

    def reached(self) -> None:
        """Wait until c is asked for what it is sick at."""
        wait_for(lambda: sickagents.reached(self.directory, self.url))

    def exports(self) -> list[tuple[str, bool]]:
        """Who has an export of v, and whether it may write."""
        shown = self.storkit("--json", "volume", "show", "v").json
        return [(export["client"], export["writable"]) for export in shown["exports"]]


def wait_for(condition: Callable[[], Any], seconds: float = 60) -> None:
    end = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < end
        time.sleep(0.02)


@pytest.fixture
def make_sick(make_world: Callable[..., World]) -> Iterator[Callable[..., SickWorld]]:
    made: list[SickWorld] = []

    def make(home: str = "a") -> SickWorld:
        made.append(SickWorld(make_world, home))
        return made[-1]

    yield make
    for each in made:
        left = sickagents.connected(each.directory)
        sickagents.end(each.directory)
        assert left == [], "ssh processes were left behind"


@pytest.mark.parametrize(("how", "what"), [("silent", ""), ("hang", "*"), ("half", "*")])
def test_commands_end_and_the_host_is_unknown(make_sick: Callable[..., SickWorld], how: str, what: str) -> None:
    sick = make_sick()
    sick.storkit("volume", "create", "v", "4MiB", "--pool", "default")
    sick.be(how, what)
    sick.hurry(0.2)
    asked = {words: sick.world.popen(*words.split()) for words in ("--json status", "migrate status", "host check")}
    said = {words: (*process.communicate(timeout=100), process.returncode) for words, process in asked.items()}
    out, err, status = said["--json status"]
    assert status == 0 and '"silent": [\n    "c"\n  ]' in out and "host c does not answer" in err
    assert err.count("does not answer") == 1, err
    assert said["migrate status"][2] == 0, said["migrate status"]
    out, err, status = said["host check"]
    assert status == 7 and [line.split()[:2] for line in out.splitlines()[1:]][2] == ["c", "unreachable"], out

    sick.storkit("attach", "v", "--on", "b")
    done = sick.storkit("fence", "b", ok=10)
    assert "host c does not answer" in done.stderr
    assert sick.exports() == [], "c, which is sick, kept a from cutting b off"


@pytest.mark.parametrize("how", ["no-json", "deep", "error-argv", "result-strings"])
def test_what_is_no_answer_ends_no_command(make_sick: Callable[..., SickWorld], how: str) -> None:
    sick = make_sick()
    sick.be(how, "*")
    done = sick.storkit("--json", "status")
    assert done.json["silent"] == ["c"] and "host c answers with what is no answer" in done.stderr
    assert "Traceback" not in done.stderr
    assert "what is no answer" in sick.storkit("host", "check", ok=7).stdout


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
@pytest.mark.parametrize("how", ["silent", "hang"])
def test_a_command_that_waits_ends_when_it_is_asked_to(
    make_sick: Callable[..., SickWorld], how: str, number: signal.Signals
) -> None:
    """Long before the deadline of what it waits for, in threads."""
    sick = make_sick()
    sick.be(how, "*")
    sick.hurry(100)
    process = sick.world.popen("status")
    sick.reached()
    process.send_signal(number)
    _, err = process.communicate(timeout=60)
    assert process.returncode == 130 and "storkit: interrupted" in err and "Traceback" not in err


def test_a_plan_that_waits_is_named_when_it_is_asked_to_end(make_sick: Callable[..., SickWorld]) -> None:
    sick = make_sick()
    sick.storkit("volume", "create", "v", "4MiB", "--pool", "default")
    sick.be("hang", "attach")
    sick.hurry(100)
    process = sick.world.popen("attach", "v", "--on", "c")
    sick.reached()
    process.send_signal(signal.SIGTERM)
    _, err = process.communicate(timeout=60)
    assert process.returncode == 130 and "storkit plan resume" in err, err
    sickagents.end(sick.directory)
    sick.be("well")
    sick.hurry(1)
    sick.storkit("plan", "rollback", sick.storkit("--json", "plan", "list").json[-1]["id"])
    assert sick.exports() == []


@pytest.mark.parametrize("how", ["refused", "silent"])
def test_nothing_is_given_to_a_host_that_does_not_answer(make_sick: Callable[..., SickWorld], how: str) -> None:
    sick = make_sick()
    sick.storkit("volume", "create", "v", "4MiB", "--pool", "default")
    plans = sick.storkit("--json", "plan", "list").json
    sick.be(how)
    sick.hurry(0.2)
    done = sick.storkit("attach", "v", "--on", "c", ok=7)
    assert "host c" in done.stderr and "nothing was changed" in done.stderr and "resume" not in done.stderr
    assert sick.exports() == [] and sick.storkit("--json", "plan", "list").json == plans


def test_no_window_is_opened_to_a_host_that_does_not_answer(make_sick: Callable[..., SickWorld]) -> None:
    sick = make_sick()
    sick.world.guest()
    sick.storkit("guest", "start", "g", "--on", "a")
    plans = sick.storkit("--json", "plan", "list").json
    sick.be("refused")
    assert "host c" in sick.storkit("migrate", "run", "g", "--to", "c", ok=7).stderr
    assert sick.world.status()["writers"] == ["a"] and sick.storkit("--json", "plan", "list").json == plans
    sick.storkit("guest", "stop", "g", "--force")


def give_up(sick: SickWorld, verb: str, *words: str) -> int:
    """A command whose verb is stopped beyond its deadline at c, the home of the volume; the agent's process."""
    sick.be("stop", verb)
    sick.hurry(0.1)
    done = sick.storkit(*words, ok=10)
    assert f"did not carry out {verb}" in done.stderr
    sick.be("well")
    sick.hurry(1)
    (pid,) = sick.agents()
    assert sickagents.stopped(pid)
    return pid


def go_on(sick: SickWorld, pid: int) -> None:
    os.kill(pid, signal.SIGCONT)
    wait_for(lambda: not sickagents.lives(pid))


def test_a_late_export_lets_nobody_in(make_sick: Callable[..., SickWorld]) -> None:
    """b is fenced while its export hangs, and let in again; then the old command's export goes on."""
    sick = make_sick(home="c")
    sick.storkit("volume", "create", "v", "4MiB", "--pool", "default")
    late = give_up(sick, "export", "attach", "v", "--on", "b")
    plan = sick.storkit("--json", "plan", "list").json[-1]["id"]
    for words in (("plan", "rollback", plan), ("attach", "v", "--on", "a")):
        assert "is locked by" in sick.storkit(*words, ok=5).stderr
    sick.storkit("fence", "b")
    sick.storkit("unfence", "b")
    go_on(sick, late)
    assert sick.exports() == []
    sick.storkit("plan", "rollback", plan)
    sick.storkit("attach", "v", "--on", "a")
    assert sick.exports() == [("a", True)]


def test_a_late_right_to_write_is_not_given(make_sick: Callable[..., SickWorld]) -> None:
    sick = make_sick(home="c")
    sick.storkit("volume", "create", "v", "4MiB", "--pool", "default")
    late = give_up(sick, "set_writers", "attach", "v", "--on", "b")
    plan = sick.storkit("--json", "plan", "list").json[-1]["id"]
    sick.storkit("fence", "b")
    go_on(sick, late)
    assert sick.exports() == []
    sick.storkit("plan", "rollback", plan)
    assert sick.exports() == [] and "is fenced on c" in sick.storkit("attach", "v", "--on", "b", ok=9).stderr


def test_a_late_unfence_opens_no_later_fence(make_sick: Callable[..., SickWorld]) -> None:
    sick = make_sick(home="c")
    sick.storkit("volume", "create", "v", "4MiB", "--pool", "default")
    sick.storkit("fence", "b")
    late = give_up(sick, "unfence", "unfence", "b")
    sick.storkit("fence", "b")
    go_on(sick, late)
    assert "is fenced on c" in sick.storkit("attach", "v", "--on", "b", ok=9).stderr


def test_it_leaves_no_process_that_waits(make_sick: Callable[..., SickWorld]) -> None:
    """The fixture looks for ssh processes; here the agents themselves must see that their coordinator has gone."""
    sick = make_sick()
    sick.storkit("status")
    wait_for(lambda: sick.agents() == [])
