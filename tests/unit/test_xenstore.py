"""The xenstore's protocol, with a daemon that keeps to it, and with some that do not."""

from __future__ import annotations

import socket
import threading
from collections.abc import Iterator
from pathlib import Path

import pytest

from storkit.core.errors import CommandFailed, NotFound, ServiceUnreachable
from storkit.hooks import xenstore
from storkit.hooks.xenstore import Xenstore
from tests.xenstored import HEADER, Daemon


@pytest.fixture
def daemon(tmp_path: Path) -> Iterator[Daemon]:
    found = Daemon(tmp_path / "socket")
    yield found
    found.close()


def test_the_xenstore(daemon: Daemon) -> None:
    store = Xenstore(daemon.place)
    assert store.read("/none") is None and store.list("/none") == []
    store.write({"/a/b": "1 \N{SNOWMAN}", "/a/c": ""})
    assert (store.read("/a/b"), store.read("/a/c"), store.list("/a")) == ("1 \N{SNOWMAN}", "", ["b", "c"])
    store.remove("/a/b")
    store.remove("/a/b")
    assert store.list("/a") == ["c"]
    # events of watches, and answers to others, are none for us
    daemon.noise = HEADER.pack(15, 0, 0, 2) + b"x\0" + HEADER.pack(2, 999, 0, 1) + b"?"
    assert store.read("/a/c") == ""


def test_a_xenstore_that_refuses(daemon: Daemon, monkeypatch: pytest.MonkeyPatch) -> None:
    store = Xenstore(daemon.place)
    with pytest.raises(CommandFailed, match="ENOENT"):
        monkeypatch.setattr(daemon, "_answer", lambda *given: None)
        store.write({"/a": "1"})


@pytest.mark.parametrize("answer", [b"", b"x", HEADER.pack(2, 1, 0, 1 << 30), HEADER.pack(2, 1, 0, 4) + b"ab"])
def test_a_xenstore_that_breaks(tmp_path: Path, answer: bytes) -> None:
    place = tmp_path / "socket"
    with socket.socket(socket.AF_UNIX) as listener:
        listener.bind(str(place))
        listener.listen()

        def serve() -> None:
            connection, _ = listener.accept()
            with connection:
                connection.recv(100)
                connection.sendall(answer)

        serving = threading.Thread(target=serve)
        serving.start()
        with pytest.raises(ServiceUnreachable):
            Xenstore(place).read("/a")
        serving.join()


def test_a_machine_without_a_xenstore(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(xenstore, "SOCKET", tmp_path / "none")
    monkeypatch.setattr(xenstore, "DEVICE", tmp_path / "neither")
    with pytest.raises(NotFound, match="no xenstore"):
        Xenstore()
