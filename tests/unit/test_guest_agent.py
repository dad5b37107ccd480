"""A guest's agent says what it likes: each lie is an error of one line, and no wait is without an end."""

from __future__ import annotations

import json
import socket
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from functools import partial
from pathlib import Path
from typing import Any

import pytest

from storkit.core.errors import (
    CommandFailed,
    NotAllowed,
    NotFound,
    StorkitError,
    TimedOut,
    Unsupported,
    UsageError,
)
from storkit.core.guest import GuestCard
from storkit.hypervisors import _guestagent as agents
from storkit.hypervisors._libvirt import inside
from storkit.hypervisors._libvirt.virsh import Virsh
from storkit.plans.verb import step
from storkit.plans.verbs.freezing import FreezeGuest, ThawGuest
from storkit.system.qemu import guestagent
from storkit.system.run import which

Says = Callable[[str, dict[str, Any]], Any]
"""What an agent answers to a command: a value that it returns, bytes as they are, or None: it says nothing more."""


@pytest.fixture
def place(tmp_path: Path) -> Path:
    return tmp_path / "agent"


@contextmanager
def agent(place: Path, says: Says) -> Iterator[list[str]]:
    """An agent at a socket; the commands that it was given."""
    asked: list[str] = []
    with socket.socket(socket.AF_UNIX) as door:
        door.bind(str(place))
        door.listen()

        def serve() -> None:
            while True:
                try:
                    line, _ = door.accept()
                except OSError:
                    return
                # Who has heard enough hangs up.
                with suppress(OSError), line, line.makefile("rb") as lines:
                    for each in lines:
                        request = json.loads(each.lstrip(b"\xff"))
                        asked.append(request["execute"])
                        if request["execute"] == "guest-sync-delimited":
                            said: Any = b"\xff" + json.dumps({"return": request["arguments"]["id"]}).encode() + b"\n"
                        else:
                            said = says(request["execute"], request.get("arguments", {}))
                        if said is None:
                            break
                        line.sendall(said if isinstance(said, bytes) else json.dumps({"return": said}).encode() + b"\n")

        thread = threading.Thread(target=serve)
        thread.start()
        try:
            yield asked
        finally:
            door.shutdown(socket.SHUT_RDWR)
            thread.join()


def run(place: Path, says: Says, timeout: float = 5.0) -> Any:
    with agent(place, says), guestagent.talk(place, 1.0) as ask:
        return agents.execute(ask, "g", ["true"], "", timeout)


def ended(**said: Any) -> Says:
    return lambda command, _: {"pid": 7} if command == "guest-exec" else {"exited": True, **said}


def test_what_a_command_left(place: Path) -> None:
    done = run(place, ended(exitcode=3, **{"out-data": "aGk=", "err-truncated": True}))
    assert (done.name, done.status, done.signal, done.stdout, done.stderr, done.cut) == (
        "g",
        3,
        0,
        "aGk=",
        "",
        ["stderr"],
    )
    place.unlink()
    assert run(place, ended(signal=9)).signal == 9


@pytest.mark.parametrize(
    "says",
    [
        lambda *_: b"no JSON\n",
        lambda *_: b"[" * 100_000 + b"\n",
        lambda *_: b'{"neither": 1}\n',
        lambda *_: b'"return"\n',
        lambda *_: {"pid": "7"},
        lambda *_: {"pid": True},
        lambda *_: {"pid": 2**70},
        lambda *_: [],
        lambda *_: {},
        ended(exitcode="0"),
        ended(),
        ended(exitcode=0, **{"out-data": 5}),
        ended(exitcode=0, **{"out-data": "no base64!"}),
        lambda command, _: {"pid": 7} if command == "guest-exec" else {"exited": "yes"},
        lambda command, _: {"pid": 7} if command == "guest-exec" else [],
    ],
)
def test_what_is_no_answer(place: Path, says: Says) -> None:
    with pytest.raises(CommandFailed) as refused:
        run(place, says)
    assert "no answer of a guest agent's" in refused.value.stderr


def test_an_error_is_the_guest_s_word_and_short(place: Path) -> None:
    said = json.dumps({"error": {"class": "GenericError", "desc": "no such program \x1b[2J" + "x" * 5000}})
    with pytest.raises(CommandFailed) as refused:
        run(place, lambda *_: said.encode() + b"\n")
    assert refused.value.stderr.startswith("no such program") and len(refused.value.stderr) < 400
    place.unlink()
    with pytest.raises(CommandFailed):
        run(place, lambda *_: b'{"error": 5}\n')


def test_one_that_hangs_is_given_up(place: Path) -> None:
    with agent(place, lambda *_: b""), guestagent.talk(place, 1.0) as ask, pytest.raises(TimedOut, match="guest-ping"):
        ask("guest-ping", timeout=0.1)
    with socket.socket(socket.AF_UNIX) as door:
        place.unlink()
        door.bind(str(place))
        door.listen()
        with pytest.raises(TimedOut, match="guest-sync-delimited"), guestagent.talk(place, 0.1):
            pass
    with pytest.raises(NotFound), guestagent.talk(place, 0.1):
        pass


def test_one_that_is_lost_is_lost(place: Path) -> None:
    with pytest.raises(CommandFailed) as lost:
        run(place, lambda *_: None)
    assert "has ended, or has moved" in lost.value.stderr


def test_one_that_never_ends_its_answer_is_given_up(place: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(guestagent, "MOST", 1 << 16)
    with pytest.raises(CommandFailed, match="guest-exec"):
        run(place, lambda *_: b"x" * (1 << 18))


def test_what_was_meant_for_somebody_else_is_thrown_away(place: Path) -> None:
    """An agent still answers whoever was there before, and was lost."""
    with socket.socket(socket.AF_UNIX) as door:
        door.bind(str(place))
        door.listen()

        def serve() -> None:
            line, _ = door.accept()
            with line, line.makefile("rb") as lines:
                number = json.loads(lines.readline().lstrip(b"\xff"))["arguments"]["id"]
                line.sendall(b'half an answer\n{"return": 5}\n\xff{"return": 77777777777}\n')
                line.sendall(b'\xff{"return": %d}\n' % number)
                lines.readline()
                line.sendall(b'{"return": {"pid": 1}}\n')
                lines.readline()
                line.sendall(b'{"return": {"exited": true, "exitcode": 0}}\n')
                lines.readline()

        thread = threading.Thread(target=serve)
        thread.start()
        with guestagent.talk(place, 5.0) as ask:
            assert agents.execute(ask, "g", ["true"], "", 5.0).status == 0
        thread.join()


def test_a_command_that_does_not_end_is_killed(place: Path) -> None:
    given: list[Any] = []

    def says(command: str, arguments: dict[str, Any]) -> Any:
        given.append((command, arguments))
        killed = any("kill" in str(each) for each in given)
        return {"pid": 7} if command == "guest-exec" else {"exited": killed, "signal": 9}

    with pytest.raises(TimedOut, match=r"true did not end within 0.1 seconds in guest g") as late:
        run(place, says, 0.1)
    assert late.value.hint == "it was killed there"
    assert ("guest-exec", {"path": "/bin/sh", "arg": ["-c", "kill -KILL 7"]}) in given
    place.unlink()
    with pytest.raises(TimedOut) as goes_on:
        run(place, lambda command, a: b'{"error": {"desc": "no"}}\n' if "kill" in str(a) else
            {"pid": 7} if command == "guest-exec" else {"exited": False}, 0.1)  # fmt: skip
    assert "its process is 7" in goes_on.value.hint


@pytest.mark.parametrize(("words", "stdin"), [([], ""), ([""], ""), (["a\0b"], ""), (["cat"], "A" * (23 << 20))])
def test_what_no_agent_could_run_is_refused(words: list[str], stdin: str) -> None:
    with pytest.raises(UsageError):
        agents.check_input(words, stdin)


def cards(place: Path, said: Any) -> list[GuestCard]:
    with agent(place, lambda *_: said), guestagent.talk(place, 1.0) as ask:
        return agents.cards(ask)


def test_cards_are_those_that_are_some(place: Path) -> None:
    eth0 = {
        "name": "eth0", "hardware-address": "52:54:00:AA:BB:CC",
        "ip-addresses": [
            {"ip-address": "10.0.2.15", "ip-address-type": "ipv4", "prefix": 24},
            {"ip-address": "fe80::1", "ip-address-type": "ipv6"}, {"ip-address": "2001:db8::5"},
            {"ip-address": "; rm -rf /"}, {"ip-address": 5}, 7, {},
        ],
    }  # fmt: skip
    lies = [
        {"name": "lo", "hardware-address": "00:00:00:00:00:00"},
        {"name": "x\x1b", "hardware-address": "52:54:00:00:00:01"},
        {"name": "y", "hardware-address": "../../etc"},
        *({"name": 5}, "eth1", None),
    ]
    assert cards(place, [*lies, eth0]) == [GuestCard("eth0", "52:54:00:aa:bb:cc", ["10.0.2.15", "2001:db8::5"])]
    place.unlink()
    with pytest.raises(CommandFailed):
        cards(place, {"eth0": 1})


# File systems that stand still


class Systems:
    """An agent's file systems."""

    def __init__(self) -> None:
        self.state = "thawed"
        self.thaws = threading.Event()

    def __call__(self, command: str, arguments: dict[str, Any]) -> Any:
        match command:
            case "guest-fsfreeze-status":
                return self.state
            case "guest-fsfreeze-freeze":
                self.state = "frozen"
                return 2
            case "guest-fsfreeze-thaw":
                before, self.state = self.state, "thawed"
                self.thaws.set()
                return 2 if before == "frozen" else 0
        return b'{"error": {"desc": "no"}}\n'


def way(place: Path) -> agents.Way:
    talk = partial(guestagent.talk, place, 1.0)
    return agents.Way(talk, talk, str(place), lambda: ["socket", str(place)])


def test_they_stand_still_and_go_on(place: Path) -> None:
    systems = Systems()
    with agent(place, systems):
        assert agents.freeze(way(place), "g").systems == 2
        assert systems.state == "frozen"
        assert agents.thaw(way(place), "g").systems == 2
        assert systems.state == "thawed" and not agents._frozen


def test_they_go_on_after_their_time(place: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(agents, "FROZEN_AT_MOST", 0.3)
    systems = Systems()
    with agent(place, systems):
        assert agents.freeze(way(place), "g").systems == 2
        assert systems.thaws.wait(20)
        after = agents.thaw(way(place), "g")
    assert after.systems == 0 and "went on before" in after.why


def test_those_of_somebody_else_stay_so(place: Path) -> None:
    systems = Systems()
    systems.state = "frozen"
    with agent(place, systems):
        said = agents.freeze(way(place), "g")
        assert said.systems == 0 and "for somebody else" in said.why and systems.state == "frozen"
        assert agents.thaw(way(place), "g").systems == 0
    assert systems.state == "frozen"


def test_where_it_fails_they_go_on(place: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """It froze them, and nobody heard it."""
    monkeypatch.setattr(agents, "FREEZE", 0.2)
    systems = Systems()

    def says(command: str, arguments: dict[str, Any]) -> Any:
        said = systems(command, arguments)
        return b"" if command == "guest-fsfreeze-freeze" else said

    with agent(place, says):
        said = agents.freeze(way(place), "g")
        assert said.systems == 0 and "has not answered" in said.why
        assert systems.thaws.wait(20)
    assert systems.state == "thawed"


@pytest.mark.parametrize(
    ("said", "error", "words"),
    [
        ("error: internal error: unable to execute QEMU agent command 'guest-exec': no file", CommandFailed, "no file"),
        ("error: argument unsupported: QEMU guest agent is not configured", StorkitError, "without a channel"),
        ("error: Guest agent is not responding: QEMU guest agent is not connected", StorkitError, "no agent answers"),
        ("error: Guest agent is not responding: Guest agent not available for now", TimedOut, "has not answered"),
        ("error: Requested operation is not valid: domain is not running", NotFound, "does not run"),
        ("error: something else", CommandFailed, "virsh"),
    ],
)  # fmt: skip
def test_what_libvirt_says_of_an_agent(said: str, error: type[StorkitError], words: str) -> None:
    found = inside._explained("g", "guest-exec", said, 5.0)
    assert isinstance(found, error) and words in f"{found.message} {getattr(found, 'stderr', '')}"


@pytest.mark.skipif(which("virsh") is None, reason="virsh is not installed (libvirt-clients)")
def test_virsh_keeps_no_history_of_what_it_was_told(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Its lines have what a command reads, which may be a password. libvirt's own test driver has no agent."""
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    monkeypatch.setenv("HOME", str(tmp_path))
    said = {"path": "chpasswd", "input-data": "cm9vdDpodW50ZXIy"}
    with pytest.raises(StorkitError) as caught:
        inside._ask(Virsh("test:///default"), "test", "test", "guest-exec", said, 5.0)
    assert "Failed to create" not in str(caught.value)
    kept = [path for path in tmp_path.rglob("*") if path.is_file()]
    assert not any(b"cm9vdDpodW50ZXIy" in path.read_bytes() for path in kept), kept


class _Refusing:
    """A host whose key is for volumes alone, or whose storkit is older."""

    def __init__(self, error: StorkitError) -> None:
        self.error = error

    def __getattr__(self, name: str) -> Any:
        return self if name in ("on", "hypervisor") else self._refuse

    def __call__(self, *args: object) -> _Refusing:
        return self

    def _refuse(self, *args: object) -> None:
        raise self.error


@pytest.mark.parametrize("error", [NotAllowed("not by this key"), Unsupported("not known")])
def test_a_plan_goes_on_where_nobody_may_freeze(error: StorkitError) -> None:
    run: Any = _Refusing(error)
    for verb in (FreezeGuest("g"), ThawGuest("g")):
        found = verb.act(run, step(verb, "h", "hypervisor:qemu", "t"))
        assert (found.systems, found.why) == (0, error.message)
