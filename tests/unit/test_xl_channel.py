"""The channel of a Xen guest's memory: both ends show the key of this one migration, and nobody else is let in."""

from __future__ import annotations

import os
import socket
import subprocess
import threading
from pathlib import Path

import pytest

from storkit.core.errors import UsageError
from storkit.hypervisors._xl import channel, incoming
from storkit.hypervisors._xl.outgoing import parse_uri, program
from storkit.hypervisors.xl import Xl
from storkit.system.run import which
from tests.unit.xenhost import base, done, hypervisor, line, listed, pids

__all__ = ["base", "hypervisor", "pids"]


@pytest.fixture
def keys(tmp_path: Path) -> Path:
    if which("openssl") is None:
        pytest.skip("needs openssl")
    incoming.new_key(tmp_path)
    return tmp_path


def connected() -> tuple[socket.socket, socket.socket]:
    with socket.create_server(("127.0.0.1", 0)) as server:
        first = socket.create_connection(server.getsockname())
        return first, server.accept()[0]


def test_the_channel_carries_both_ways_until_an_end(keys: Path) -> None:
    ours, theirs = connected()
    into, out, back, answer = os.pipe(), os.pipe(), os.pipe(), os.pipe()
    data = os.urandom(3 << 20)

    def destination() -> None:
        with channel.secure(theirs, keys, server=True) as secured:
            channel.carry(secured, back[0], out[1])
        os.close(out[1])

    def source() -> None:
        with channel.secure(ours, keys, server=False) as secured:
            channel.carry(secured, into[0], answer[1], sent.append)

    sent = list[int]()
    threads = [threading.Thread(target=each, daemon=True) for each in (destination, source)]
    for thread in threads:
        thread.start()
    os.write(back[1], b"ready")
    assert os.read(answer[0], 100) == b"ready"
    writer = threading.Thread(target=lambda: (os.write(into[1], data), os.close(into[1])), daemon=True)
    writer.start()
    got = b""
    while piece := os.read(out[0], 1 << 20):
        got += piece
    assert got == data and sent[-1] == len(data)
    for thread in threads:
        thread.join(10)
        assert not thread.is_alive()


def test_who_does_not_have_the_key_is_not_let_in(keys: Path, tmp_path_factory: pytest.TempPathFactory) -> None:
    other = tmp_path_factory.mktemp("other")
    incoming.new_key(other)
    ours, theirs = connected()
    failed = list[OSError]()

    def stranger() -> None:
        try:
            with channel.secure(ours, other, server=False) as secured:
                secured.recv(1)
        except OSError as error:
            failed.append(error)

    thread = threading.Thread(target=stranger, daemon=True)
    thread.start()
    with pytest.raises(OSError, match=r"(?i)cert|alert|closed|EOF"):
        channel.secure(theirs, keys, server=True)
    theirs.close()
    thread.join(10)
    assert failed


def test_the_key_travels_as_a_credential(keys: Path, tmp_path_factory: pytest.TempPathFactory) -> None:
    there = tmp_path_factory.mktemp("there")
    credential = incoming.read_key(keys)
    assert credential and "PRIVATE" not in repr(credential)
    incoming.write_key(there, credential)
    for name in (channel.KEY, channel.CERTIFICATE):
        assert (there / name).read_text() == (keys / name).read_text()
        assert (there / name).stat().st_mode & 0o077 == 0 or name == channel.CERTIFICATE
    incoming.forget_key(keys)
    assert incoming.read_key(keys) is None


def test_the_program_connects_and_says_what_it_sent(keys: Path) -> None:
    with socket.create_server(("127.0.0.1", 0)) as server:
        (keys / channel.TO).write_text(f'{{"address": "127.0.0.1", "port": {server.getsockname()[1]}}}')
        words = ["sh", "-c", program(keys)]
        with subprocess.Popen(words, stdin=subprocess.PIPE, stdout=subprocess.PIPE) as process:
            assert process.stdin and process.stdout
            with channel.secure(server.accept()[0], keys, server=True) as secured:
                secured.sendall(b"banner")
                assert os.read(process.stdout.fileno(), 100) == b"banner"
                process.stdin.write(b"memory")
                process.stdin.close()
                assert secured.recv(100) == b"memory"
            assert process.wait(10) == 0
    assert int((keys / channel.SENT).read_text()) == 6


def test_the_program_says_that_nobody_listens(keys: Path) -> None:
    (keys / channel.TO).write_text('{"address": "127.0.0.1", "port": 1}')
    done = subprocess.run(["sh", "-c", program(keys)], capture_output=True, text=True, stdin=subprocess.DEVNULL)
    assert done.returncode == 1 and "127.0.0.1 port 1 cannot be connected to" in done.stderr


@pytest.mark.parametrize(
    ("said", "whole"),
    [
        ("migration target: Domain started successsfully.\n", True),
        ("migration target: Failure, destroying our copy.\nmigration target: Cleanup OK\n", False),
        (None, False),  # its status is 1
    ],
)
def test_xl_is_asked_no_more_of_a_guest_that_has_come_whole(
    hypervisor: Xl, tmp_path: Path, said: str | None, whole: bool
) -> None:
    directory = hypervisor._guests.moving("g")
    incoming.new_key(directory)
    listed(tmp_path, line("g", "--p---", seconds=0))
    hypervisor._guests.expect("g")
    if said is not None:
        (tmp_path / "came").write_text(said)
    ours, theirs = connected()
    taker = threading.Thread(target=incoming.take, args=("g", directory, tmp_path / "log", theirs), daemon=True)
    taker.start()
    with channel.secure(ours, directory, server=False) as secured:
        taker.join(10)
        theirs.close()
        assert secured.recv(1) == b""
    hypervisor.resume("g")
    assert done(tmp_path) == [" unpause g" if whole else " unpause 1"]
    assert not hypervisor._guests.expected("g") and incoming.read_key(directory) is None
    hypervisor.resume("g")  # by a command that knows nothing of that
    assert done(tmp_path)[1:] == [" unpause 1"]


@pytest.mark.parametrize("uri", ["xl:10.0.0.1:70", "xl:h2.example:8002", "xl:[fe80::1%eth0]:12"])
def test_uri(uri: str) -> None:
    address, port = parse_uri(uri)
    assert uri in (f"xl:{address}:{port}", f"xl:[{address}]:{port}")


@pytest.mark.parametrize("uri", ["tcp:10.0.0.1:70", "xl:-oProxyCommand=x:1", "xl:a b:1", "xl:h2", "xl:h2:123456"])
def test_a_uri_that_is_none_is_refused(uri: str) -> None:
    with pytest.raises(UsageError):
        parse_uri(uri)
