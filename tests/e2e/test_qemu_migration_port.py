"""The port that a host receives a guest at: who connects to it, says nothing or nonsense stops no guest."""

from __future__ import annotations

import os
import signal
import socket
import threading
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack, contextmanager
from urllib.parse import urlsplit

import pytest

from storkit.core.errors import CommandFailed, ServiceUnreachable, TimedOut
from storkit.hypervisors import _door as door
from storkit.hypervisors._qemu import migration, process
from storkit.hypervisors._qemu.settings import QemuSettings
from storkit.hypervisors.qemu import Qemu
from storkit.system.run import which
from tests.e2e.qemuhosts import NAME, SLOW, Hosts, status, wait_until

pytestmark = [
    pytest.mark.e2e,
    pytest.mark.skipif(which("qemu-system-x86_64") is None, reason="needs qemu-system-x86"),
]
PLAIN = QemuSettings(accel="tcg", migration_plain=True)


def port_of(uri: str) -> tuple[str, int]:
    parts = urlsplit(f"//{uri.removeprefix('tcp:')}")
    assert parts.hostname and parts.port
    return parts.hostname, parts.port


def closed(uri: str) -> bool:
    try:
        socket.create_connection(port_of(uri), timeout=5).close()
    except ConnectionRefusedError:
        return True
    return False


@contextmanager
def strangers(uri: str, *words: bytes) -> Iterator[None]:
    """Connections that were there before the guest's, each having said something; they stay open."""
    with ExitStack() as stack:
        for said in words:
            stack.enter_context(socket.create_connection(port_of(uri), timeout=5)).sendall(said)
        yield


def moved(source: Qemu, destination: Qemu, uri: str, hosts: Hosts) -> None:
    source.send(NAME, uri, destination.credential(NAME))
    destination.resume(NAME)
    assert (status(source), status(destination)) == ("migrated", "running")
    hosts.writes_on()
    source.retire(NAME)


def test_strangers_at_the_port_delay_nothing(hosts: Hosts) -> None:
    hosts.start(hosts.boot_sector())
    silent = [b""] * (door.MOST_WAITING + 5)
    there = hosts.host("b", address="127.0.0.1")
    uri = there.receive(NAME, same_machine=False, source="127.0.0.1")
    with strangers(uri, *silent, b"\x16", b"GET / HTTP/1.1\r\n\r\n", b"QEVM" + bytes(100)):
        moved(hosts.a, there, uri, hosts)
    # The same without TLS, on the way back.
    plain = hosts.host("a", PLAIN, address="127.0.0.1")
    uri = plain.receive(NAME, same_machine=False)
    with strangers(uri, b"", b"QEV", b"\x16\x03\x01\x02\x00"):
        moved(hosts.host("b", PLAIN), plain, uri, hosts)


def test_only_the_source_is_listened_to(hosts: Hosts) -> None:
    hosts.start(hosts.boot_sector())
    there = hosts.host("b", address="127.0.0.1")
    uri = there.receive(NAME, same_machine=False, source="127.0.0.1")
    with socket.socket() as stranger:
        stranger.bind(("127.0.0.2", 0))
        stranger.settimeout(0.3)
        with pytest.raises(TimeoutError):
            stranger.connect(port_of(uri))
    # The inventory is mended, and it listens to another one from then on; the URI may be another, too.
    elsewhere = there.receive(NAME, same_machine=False, source="127.0.0.2")
    with socket.create_connection(port_of(elsewhere), source_address=("127.0.0.2", 0), timeout=5):
        pass
    with pytest.raises(ServiceUnreachable):
        hosts.a.send(NAME, uri, there.credential(NAME))
    moved(hosts.a, there, there.receive(NAME, same_machine=False, source="127.0.0.1"), hosts)


def test_silence_after_the_first_words_stops_no_guest(hosts: Hosts, monkeypatch: pytest.MonkeyPatch) -> None:
    """A stranger who knows how TLS begins takes the guest's place: the migration fails, and the guest runs on."""
    monkeypatch.setattr(migration, "HANDSHAKE_TIMEOUT", 1.0)
    hosts.start(hosts.boot_sector())
    there = hosts.host("b", address="127.0.0.1")
    uri = there.receive(NAME, same_machine=False)
    with strangers(uri, b"\x16\x03\x01\x02\x00"):
        wait_until(lambda: closed(uri), "the stranger's connection was not handed over")
        assert status(there) == "incoming"
        with pytest.raises(ServiceUnreachable, match="cannot be connected to"):
            hosts.a.send(NAME, uri, there.credential(NAME))
        hosts.writes_on()
        assert (status(hosts.a), status(there)) == ("running", "incoming")
        there.retire(NAME)
    moved(hosts.a, there, there.receive(NAME, same_machine=False), hosts)


def test_a_destination_that_says_nothing_stops_no_guest(hosts: Hosts, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(migration, "HANDSHAKE_TIMEOUT", 1.0)
    hosts.start(hosts.boot_sector())
    there = hosts.host("b", address="127.0.0.1")
    there.receive(NAME, same_machine=False)
    key = there.credential(NAME)
    with socket.create_server(("127.0.0.1", 0)) as dead, ThreadPoolExecutor(1) as pool:
        sending = pool.submit(hosts.a.send, NAME, f"tcp:127.0.0.1:{dead.getsockname()[1]}", key)
        connection, _ = dead.accept()
        with connection:
            hosts.writes_on()
            with pytest.raises((TimedOut, CommandFailed)):
                sending.result(30)
    assert status(hosts.a) == "running"
    hosts.writes_on()
    moved(hosts.a, there, there.receive(NAME, same_machine=False), hosts)


def test_a_destination_that_hangs_is_ended_if_it_was_never_let_go_on(
    hosts: Hosts, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(process, "ASK_TIMEOUT", 1.0)
    hosts.start(hosts.boot_sector())
    there = hosts.host("b", address="127.0.0.1")
    uri = there.receive(NAME, same_machine=False)
    with ThreadPoolExecutor(1) as pool:
        sending = pool.submit(hosts.host("a", SLOW).send, NAME, uri, there.credential(NAME))
        assert hosts.moving.wait(30)
        os.kill(hosts.pid(there), signal.SIGSTOP)
        assert status(there) == "unknown"
        there.retire(NAME)
        with pytest.raises(CommandFailed):
            sending.result(30)
    assert (status(hosts.a), status(there)) == ("running", "stopped")
    hosts.writes_on()


def test_the_port_is_closed_when_the_guest_is_given_up(hosts: Hosts) -> None:
    hosts.start(hosts.boot_sector())
    there = hosts.host("b", address="127.0.0.1")
    threads = threading.active_count()
    uri = there.receive(NAME, same_machine=False)
    there.retire(NAME)
    assert closed(uri)
    assert threading.active_count() == threads
