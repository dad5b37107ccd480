"""Every right that is given, taken or fenced stands in the log of the host that decides, with who asked."""

from __future__ import annotations

import socket
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from storkit.hosts import rights
from storkit.system import syslog
from tests.e2e.world import World

pytestmark = pytest.mark.e2e


class Log:
    """A log socket of the test's own."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self._socket = socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM)
        self._socket.bind(str(path))
        self._socket.setblocking(False)

    def said(self) -> list[str]:
        lines = []
        while True:
            try:
                lines.append(self._socket.recv(65536).decode())
            except BlockingIOError:
                return lines


@pytest.fixture
def log(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Log]:
    made = Log(tmp_path / "log")
    monkeypatch.setenv("STORKIT_LOG_SOCKET", str(made.path))
    yield made
    made._socket.close()


def test_what_is_given_taken_and_fenced(make_world: Callable[..., World], log: Log) -> None:
    world = make_world()
    world.storkit("volume", "create", "v", "1MiB")
    assert log.said() == []
    world.storkit("attach", "v", "--on", "b")
    plan = world.storkit("--json", "plan", "list").json[-1]["id"]
    uuid = world.storkit("--json", "volume", "show", "v").json["uuid"]
    given = log.said()
    assert [line.partition("]: ")[2] for line in given] == [
        f"let b read v ({uuid}) by nbd; asked by {rights.asker()}, plan {plan}",
        f"let b write v ({uuid}) by nbd; asked by {rights.asker()}, plan {plan}",
    ]
    assert all(line.startswith("<85>storkit[") for line in given)
    world.storkit("detach", "v", "--on", "b")
    assert f"take v ({uuid}) from b by nbd" in log.said()[-1]
    world.storkit("fence", "b")
    assert "fence b by nbd" in log.said()[-1]
    world.storkit("attach", "v", "--on", "b", ok=9)
    assert "let b read v" in (refused := log.said()[0]) and "FAILED: host b is fenced on a" in refused
    world.storkit("unfence", "b")
    assert any("unfence b by nbd" in line for line in log.said())


def test_what_is_given_again_by_a_restore(make_world: Callable[..., World], log: Log) -> None:
    """By a command and, as at a boot, by the host itself; nothing is said where nobody had a right."""
    world = make_world()
    world.storkit("host", "restore")
    world.storkit("volume", "create", "v", "1MiB")
    assert log.said() == []
    world.storkit("attach", "v", "--on", "b")
    uuid = world.storkit("--json", "volume", "show", "v").json["uuid"]
    log.said()
    given = f"let again b write v ({uuid}) by nbd; asked by "
    world.storkit("host", "restore", "a")
    (line,) = log.said()
    assert line.partition("]: ")[2] == given + rights.asker()
    world.storkit("--state", world.directory / "a", "host", "restore", "--boot")
    (line,) = log.said()
    assert line.partition("]: ")[2].startswith(given)
    (world.directory / f"a/nbd/{uuid}.json").write_text("{")
    world.storkit("host", "restore", "a", ok=9)
    (line,) = log.said()
    assert "give again what was given before by nbd: FAILED: " in line and "is damaged" in line


def test_a_log_that_is_full_or_missing_stops_nobody(log: Log, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(syslog, "PATIENCE", 0.01)
    kept = int(Path("/proc/sys/net/unix/max_dgram_qlen").read_text())  # what a socket keeps: unix(7)
    for _ in range(kept + 10):
        syslog.log("x")
    assert 0 < len(log.said()) < kept + 10
    monkeypatch.setenv("STORKIT_LOG_SOCKET", str(log.path.parent / "nobody"))
    syslog.log("x")


def test_a_line_is_one_line(log: Log, monkeypatch: pytest.MonkeyPatch) -> None:
    """Who asks is a coordinator's word: it can forge no second line, and no terminal sequence."""
    monkeypatch.setenv("SSH_CONNECTION", "10.0.0.7 4711 10.0.0.1 22")
    syslog.log(f"asked by {rights.from_afar(chr(27) + '[2J root' + chr(10) + '<85>sshd: all is well')}")
    (line,) = log.said()
    assert line.partition("]: ")[2] == "asked by \\x1b[2J root\\n<85>sshd: all is well, from 10.0.0.7"
