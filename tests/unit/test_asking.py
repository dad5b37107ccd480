"""Who is waited for where many hosts are asked at the same time."""

from __future__ import annotations

import threading
from collections.abc import Iterator

import pytest

from storkit.core.errors import Conflict, HostUnreachable
from storkit.plans import asking
from storkit.system.timeouts import VARIABLE


class Hosts:
    """Hosts that answer with their name once they may."""

    def __init__(self, *names: str) -> None:
        self.may = {name: threading.Event() for name in names}
        self.silent: set[str] = set()

    def ask(self, *needed: str) -> dict[str, str | asking.Silent]:
        return asking.ask_at_once(list(self.may), self._answer, needed.__contains__)

    def _answer(self, name: str) -> str:
        self.may[name].wait()
        if name in self.silent:
            raise HostUnreachable(f"host {name} does not answer")
        return name

    def let(self, *names: str) -> None:
        for name in names:
            self.may[name].set()


@pytest.fixture
def hosts(monkeypatch: pytest.MonkeyPatch) -> Iterator[Hosts]:
    monkeypatch.setattr(asking, "LEISURE", 0.3)
    monkeypatch.setenv(VARIABLE, "1")
    made = Hosts("a", "b", "c")
    yield made
    made.let("a", "b", "c")


def later(hosts: Hosts, *names: str) -> None:
    """Let these answer long after nobody would wait for them."""
    timer = threading.Timer(1.5, hosts.let, names)
    timer.start()


def test_others_are_not_waited_for(hosts: Hosts) -> None:
    hosts.let("a", "b")
    assert hosts.ask("a") == {"a": "a", "b": "b"}


def test_who_is_needed_is_waited_for(hosts: Hosts) -> None:
    hosts.let("a")
    later(hosts, "c")
    assert hosts.ask("c") == {"a": "a", "c": "c"}


def test_somebody_has_to_answer(hosts: Hosts) -> None:
    """Where nobody is needed; one that cannot be reached tells nothing of how long others may take."""
    hosts.silent.add("a")
    hosts.let("a")
    later(hosts, "b")
    said = hosts.ask()
    assert isinstance(said["a"], HostUnreachable) and said["b"] == "b" and "c" not in said


def test_another_error_ends_the_questions(hosts: Hosts) -> None:
    def answer(name: str) -> str:
        raise Conflict(name)

    with pytest.raises(Conflict):
        asking.ask_at_once(["a", "b"], answer, ["a"].__contains__)
