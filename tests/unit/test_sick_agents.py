"""An agent that does not answer, or with what is no answer, is a silent host: with the reason, in time, and no more."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from storkit.core import deadlines
from storkit.core.errors import Conflict, HostUnreachable, Unsupported
from storkit.core.host import Claim
from storkit.core.inventory import HostConfig, Inventory, PoolConfig
from storkit.hosts.connections import Connections
from storkit.hosts.remote import wire
from storkit.hosts.remote.ssh import SshConnection
from storkit.system.timeouts import VARIABLE
from tests import sickagents

POOL = "pool:default"
WIRE_1 = Path(__file__).parents[1] / "data/state-0.1.0/conversation.txt"


class Sick:
    """One host, sick as it is told to be."""

    def __init__(self, directory: Path) -> None:
        self.directory = directory
        self.url = sickagents.hosts(directory, "a")["a"]
        config = HostConfig("a", self.url, state=str(directory / "a"))
        self.inventory = Inventory({"a": config}, {"default": PoolConfig("default", "a", "directory", {})})
        self.connections = Connections(self.inventory)

    def be(self, how: str, what: str = "", seconds: float = 0) -> None:
        sickagents.be(self.directory, self.url, how, what, seconds)

    def ask(self) -> Any:
        return self.connections.to("a").call(POOL, "find", {})

    def agents(self) -> list[int]:
        return sickagents.agents(self.directory, self.url)


@pytest.fixture
def sick(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Sick]:
    monkeypatch.setenv("PATH", f"{tmp_path}/bin:{os.environ['PATH']}")
    monkeypatch.setenv(VARIABLE, "1")
    made = Sick(tmp_path)
    try:
        yield made
        made.connections.close()
        assert sickagents.connected(tmp_path) == []
    finally:
        sickagents.end(tmp_path)


@pytest.fixture
def impatient(monkeypatch: pytest.MonkeyPatch) -> None:
    """The times of a test in which nothing that answers is slow."""
    monkeypatch.setattr(deadlines, "QUESTION", 1.0)


@pytest.mark.parametrize("how", sickagents.WRONG)
def test_what_is_no_answer_makes_a_host_silent(sick: Sick, how: str) -> None:
    sick.be(how, "*")
    with pytest.raises(HostUnreachable, match="host a answers with what is no answer"):
        sick.ask()
    with pytest.raises(HostUnreachable, match="no answer"):
        sick.ask()
    assert len(sick.agents()) == 1, "it was asked again"


@pytest.mark.parametrize("how", ["hang", "half", "restless"])
@pytest.mark.usefixtures("impatient")
def test_a_verb_that_does_not_move_is_not_waited_for(sick: Sick, how: str) -> None:
    """Words without movement are no sign of life."""
    sick.be(how, "find", 3600)
    with pytest.raises(HostUnreachable, match="does not answer: it did not carry out find of pool:default"):
        sick.ask()
    with pytest.raises(HostUnreachable, match="does not answer"):
        sick.connections.to("a").itself.facts()


def test_a_verb_that_moves_is_waited_for(sick: Sick, monkeypatch: pytest.MonkeyPatch) -> None:
    # Long beside the tenths of a second between two signs of life, which a busy machine stretches.
    monkeypatch.setattr(deadlines, "QUESTION", 4.0)
    sick.be("moving", "find", 1.25 * deadlines.QUESTION)
    assert sick.ask() == []


def test_a_connection_that_ends_within_an_answer_is_lost(sick: Sick) -> None:
    sick.be("cut", "find")
    with pytest.raises(HostUnreachable, match="cannot be reached"):
        sick.ask()


@pytest.mark.parametrize("how", ["silent", "greets", "refused"])
def test_a_login_that_does_not_end_or_prints(sick: Sick, how: str, monkeypatch: pytest.MonkeyPatch) -> None:
    if how == "silent":  # the others are waited for until they have spoken, also on a busy machine
        monkeypatch.setattr(deadlines, "HELLO", 1.0)
    sick.be(how)
    with pytest.raises(HostUnreachable) as caught:
        sick.ask()
    said = {"silent": "did not say hello", "greets": "Welcome to Debian", "refused": "Connection refused"}
    assert said[how] in caught.value.message
    assert ("login script" in caught.value.hint) == (how == "greets")


@pytest.mark.usefixtures("impatient")
def test_an_agent_that_reads_nothing_does_not_keep_the_one_who_writes(sick: Sick) -> None:
    """More than a pipe holds: the write itself would wait for ever."""
    sick.be("deaf")
    with pytest.raises(HostUnreachable, match="it did not take a request"):
        sick.connections.to("a").call(POOL, "find", {"names": ["x" * 60] * 10_000})


@pytest.mark.usefixtures("impatient")
def test_what_else_is_under_way_there_is_still_waited_for(sick: Sick, monkeypatch: pytest.MonkeyPatch) -> None:
    """One verb hangs, another moves: only the first is given up, and nothing new is begun."""
    sick.be("late", "find_exports", 2.5 * deadlines.QUESTION)
    connection = sick.connections.to("a")
    answers: list[Any] = []
    hangs = threading.Thread(target=lambda: answers.append(_error(lambda: connection.call(*_exports()))))
    slow = deadlines.QUESTION * 60
    talk = connection._talk  # type: ignore[attr-defined]
    asked, send = threading.Event(), talk._send
    monkeypatch.setattr(talk, "_send", lambda message, quiet: (send(message, quiet), asked.set()))
    moves = threading.Thread(target=lambda: answers.append(talk.request(_request(), "find", slow)))
    moves.start()
    assert asked.wait(60)
    hangs.start()
    hangs.join()
    assert isinstance(answers[0], HostUnreachable)
    moves.join()
    assert answers[1] == []


def _exports() -> tuple[str, str, dict[str, Any]]:
    return "transport:nbd", "find_exports", {}


def _request() -> dict[str, Any]:
    return {"do": "call", "target": "transport:nbd", "verb": "find_exports", "args": {}}


def _error(action: Any) -> Exception | None:
    try:
        action()
    except HostUnreachable as error:
        return error
    return None


@pytest.mark.usefixtures("impatient")
def test_the_lock_of_a_verb_that_was_given_up_stays_until_it_has_ended(sick: Sick) -> None:
    """Its coordinator goes, another comes: what may still act keeps its lock, also against `unlock`."""
    sick.be("stop", "find")
    connection = sick.connections.to("a")
    connection.lock([Claim(["volume"])], "the first")
    with pytest.raises(HostUnreachable):
        sick.ask()
    sick.connections.unlock()
    sick.connections.close()
    (pid,) = sick.agents()
    assert sickagents.stopped(pid)
    sick.be("well")
    other = Connections(sick.inventory)
    with pytest.raises(Conflict, match="locked by the first"):
        other.to("a").lock([Claim(["volume"])], "the second")
    os.kill(pid, signal.SIGCONT)
    deadline = time.monotonic() + 30
    while sickagents.lives(pid):
        assert time.monotonic() < deadline
        time.sleep(0.01)
    assert other.to("a").lock([Claim(["volume"])], "the second") == []
    other.close()


def test_threads_that_want_one_host_share_one_connection(sick: Sick) -> None:
    threads = [threading.Thread(target=sick.ask) for _ in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert len(sick.agents()) == 1


def test_silent_hosts_are_waited_for_at_the_same_time(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PATH", f"{tmp_path}/bin:{os.environ['PATH']}")
    monkeypatch.setenv(VARIABLE, "1")
    monkeypatch.setattr(deadlines, "HELLO", 2.0)
    urls = sickagents.hosts(tmp_path, *(f"h{number}" for number in range(20)))
    for url in urls.values():
        sickagents.be(tmp_path, url, "silent")
    connections = Connections(Inventory({name: HostConfig(name, url) for name, url in urls.items()}, {}))
    before = time.monotonic()
    silent = connections.reach(urls)
    # One after the other it would be 40 seconds; a busy machine is given most of that.
    assert silent.keys() == urls.keys() and time.monotonic() - before < 0.8 * 20 * deadlines.HELLO
    for name in urls:
        with pytest.raises(HostUnreachable):
            connections.to(name)
    assert all(len(sickagents.agents(tmp_path, url)) <= 1 for url in urls.values())
    connections.close()
    assert sickagents.connected(tmp_path) == []
    sickagents.end(tmp_path)


@pytest.mark.parametrize("leave", [Connections.forget_silent, Connections.close])
@pytest.mark.parametrize("how", ["silent", "hang"])
def test_who_is_not_waited_for_any_more_is_left_at_once(
    sick: Sick, how: str, leave: Callable[[Connections], None]
) -> None:
    """Before its hello, or at a question: another thread still waits for it when the command ends, or asks again."""
    sick.be(how, "*")
    said: list[Any] = []
    waits = threading.Thread(target=lambda: said.append(_error(sick.ask)))
    waits.start()
    end = time.monotonic() + 60
    while not (sickagents.reached(sick.directory, sick.url) if how == "hang" else sick.agents()):
        assert time.monotonic() < end
        time.sleep(0.02)
    while waits.is_alive() and time.monotonic() < end:
        leave(sick.connections)  # again: the agent runs a moment before the thread waits for it
        waits.join(0.2)
    assert [str(error) for error in said] == ["host a was not waited for"]
    sick.be("well")
    if leave is Connections.close:
        assert isinstance(_error(sick.ask), HostUnreachable), "a thread that is left over reaches nobody any more"
    else:
        assert sick.ask() == []


def test_an_older_agent_is_understood(sick: Sick) -> None:
    """Protocol 1, as version 0.1.0 spoke it: what it was asked then is asked in the same words."""
    sick.be("replay", str(WIRE_1))
    connection = sick.connections.to("a")
    lines = [json.loads(line[3:]) for line in WIRE_1.read_text().splitlines() if line.startswith("-> ")]
    volume = next(line["args"]["volumes"][0] for line in lines if line.get("verb") == "create")
    assert isinstance(connection, SshConnection) and connection.protocol == 1
    assert connection.call(POOL, "find", {"names": None}) == []
    assert connection.call(POOL, "create", {"volumes": [volume]})[0]["path"] == "/srv/storkit-wire/a/volumes/v.raw"
    holder = "storkit (process 4711 on admin1)"
    assert connection.lock([Claim([volume["uuid"]])], holder) == []
    connection.itself.mark("20261128-230641-30800", [volume["uuid"]], "attach v on b", "admin1")
    with pytest.raises(Exception, match="not exported to host b"):
        connection.call("transport:nbd", "set_writers", {"volumes": [volume], "hosts": ["b"]})
    assert connection.itself.marked("20261128-230641-30800")
    connection.itself.unmark("20261128-230641-30800")
    assert connection.itself.facts().version == "0.1.0"
    connection.unlock()


def talk(requests: list[Any], setup: dict[str, Any]) -> list[dict[str, Any]]:
    """What the agent answers to these lines, in the order of their numbers."""
    lines = [item if isinstance(item, bytes) else json.dumps(item).encode() for item in [setup, *requests]]
    argv = [sys.executable, "-m", "storkit", "agent"]
    environment = {**os.environ, "PYTHONPATH": str(sickagents.ROOT)}
    done = subprocess.run(
        argv, input=b"\n".join(lines) + b"\n", capture_output=True, timeout=60, check=False, env=environment
    )
    assert b"Traceback" not in done.stderr, done.stderr.decode()
    return [json.loads(line) for line in done.stdout.splitlines()]


def told(state: Path, **more: Any) -> dict[str, Any]:
    pools = {"default": {"type": "directory", "settings": {"format": "raw"}}}
    return {"hello": 1, "version": "0.1.0", "setup": {"host": "a", "state": str(state), "pools": pools, **more}}


def test_an_older_coordinator_is_understood(tmp_path: Path) -> None:
    """The recorded lines of protocol 1, put to today's agent: the answers have the shape that they had."""
    lines = [(line[:2], json.loads(line[3:])) for line in WIRE_1.read_text().splitlines()]
    asked = [said for who, said in lines if who == "->"]
    first = {**asked[0], "setup": {**asked[0]["setup"], "state": str(tmp_path / "a")}}
    # One after the other, as they were: the agent carries out at the same time what comes at the same time.
    process = subprocess.Popen(
        [sys.executable, "-m", "storkit", "agent"], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True,
        env={**os.environ, "PYTHONPATH": str(sickagents.ROOT)},
    )  # fmt: skip
    assert process.stdin and process.stdout
    got = []
    for request in (first, *asked[1:]):
        process.stdin.write(json.dumps(request) + "\n")
        process.stdin.flush()
        got.append(json.loads(process.stdout.readline()))
    process.stdin.close()
    assert process.wait(timeout=30) == 0
    for (_, then), now in zip((line for line in lines if line[0] == "<-"), got, strict=True):
        assert then.get("id") == now.get("id") and ("error" in then) == ("error" in now)
        same = [now.get(key) for key in ("result",)] if then.get("id") not in (2, 9) else []
        assert all(value == then.get("result") for value in same), (then, now)
    assert got[0]["hello"] == 1 and "moved" not in json.dumps(got)


def test_a_newer_neighbour_is_understood(tmp_path: Path) -> None:
    """What it says beyond what is known here is left out, but where it would change what is done."""
    first = {**told(tmp_path / "a", tomorrow=1), "protocols": [1, wire.NEWEST + 1]}
    volume = {"name": "v", "uuid": "cc18ff28-316c-43a9-9f2c-38e3cc63bc95", "size": 1048576, "tomorrow": {"x": 1}}
    answers = talk(
        [
            {"id": 1, "do": "call", "target": POOL, "verb": "create", "args": {"volumes": [volume]}},
            {"id": 2, "do": "call", "target": POOL, "verb": "create", "args": {"volumes": [volume], "encrypt": True}},
            {"id": 3, "do": "call", "target": POOL, "verb": "defragment", "args": {}},
            {"id": 4, "do": "dance"},
        ],
        first,
    )
    by_number = {answer.get("id", 0): answer for answer in answers}
    assert by_number[0]["hello"] == wire.NEWEST
    assert by_number[1]["result"][0]["name"] == "v"
    for number in (2, 3, 4):
        error = by_number[number]["error"]
        assert error["kind"] == "unsupported" and "upgrade storkit on" in error["hint"], error


@pytest.mark.parametrize(
    ("protocols", "hint"), [([7, 9], "upgrade storkit here"), ([0, 0], "upgrade storkit on host a")]
)
def test_strangers_are_told_which_side_is_too_old(protocols: list[int], hint: str) -> None:
    with pytest.raises((Unsupported, wire.Malformed)) as caught:
        wire.common({"hello": protocols[0], "protocols": protocols}, "host a")
    if isinstance(caught.value, Unsupported):
        assert caught.value.hint == hint


def test_a_record_of_a_newer_agent_is_cut_to_what_is_known(sick: Sick) -> None:
    from storkit.hosts.remote import answers

    volume = {"name": "v", "uuid": "cc18ff28-316c-43a9-9f2c-38e3cc63bc95", "size": 512, "tomorrow": 1}
    (found,) = answers.checked(POOL, "find", [volume])
    assert "tomorrow" not in found and found["made"] == ""
    with pytest.raises(wire.Malformed, match="'size' is missing"):
        answers.checked(POOL, "find", [{"name": "v", "uuid": volume["uuid"]}])


NO_REQUESTS = [
    b"", b"\xff", b"[]", b"null", b"[" * 100_000, b'{"id": 1}', b'{"do": 5}', b'{"id": [], "do": "call"}',
    b'{"do": "call", "target": 5, "verb": "find", "args": {}}', b'{"do": "call", "target": "pool:default"}',
    b'{"do": "call", "target": "pool:default", "verb": "find", "args": []}',
    b'{"do": "call", "target": "pool:default", "verb": ["find"], "args": {}}',
    b'{"do": "call", "target": "pool:default", "verb": "find", "args": {}, "epoch": "x"}',
    b'{"do": "lock"}', b'{"do": "lock", "claims": [{"names": "x"}]}', b'{"do": "mark", "plan": 5, "names": []}',
    b'{"do": "mark", "plan": "x"}', b'{"do": "marked", "plan": null}', b'{"do": "unmark", "plan": {}}',
]  # fmt: skip


def test_the_agent_refuses_what_is_no_request_and_goes_on(tmp_path: Path) -> None:
    question = {"do": "call", "target": POOL, "verb": "find", "args": {}}
    asked = [each for number, line in enumerate(NO_REQUESTS) for each in (line, {"id": 100 + number, **question})]
    answers = talk(asked, told(tmp_path / "a"))
    refused = [answer["error"] for answer in answers if "error" in answer]
    assert len(refused) == len(NO_REQUESTS)
    for error in refused:
        assert {each["kind"] for each in error.get("problems", [error])} <= {"usage", "unsupported"}, error
    answered = [answer["id"] for answer in answers if answer.get("result") == []]
    assert sorted(answered) == [100 + number for number in range(len(NO_REQUESTS))]


@pytest.mark.parametrize(
    "first", [b"", b"\xff", b"5", b"[" * 100_000, b'{"hello": "1"}', b'{"hello": 99}', b'{"a": 1}']
)
def test_the_agent_refuses_what_is_no_hello(first: bytes) -> None:
    (answer,) = talk([], first)  # type: ignore[arg-type]
    assert answer["error"]["kind"] in ("usage", "unsupported")
