"""The kernel lets only chosen addresses reach a listening socket."""

from __future__ import annotations

import socket

import pytest

from storkit.system.sourcefilter import only_from, source_towards, sources


def listening(address: str, *allowed: str) -> socket.socket:
    family = socket.AF_INET6 if ":" in address else socket.AF_INET
    listener = socket.socket(family, socket.SOCK_STREAM)
    listener.bind((address, 0))
    only_from(listener, allowed)
    listener.listen()
    return listener


def reaches(source: str, listener: socket.socket) -> bool:
    """Whether a connection from `source` is made, and carries bytes both ways; a dropped one is given up soon."""
    with socket.socket(listener.family, socket.SOCK_STREAM) as client:
        client.bind((source, 0))
        client.settimeout(0.3)
        try:
            client.connect(listener.getsockname()[:2])
        except TimeoutError:
            return False
        server, peer = listener.accept()
        with server:
            assert peer[0] == source
            for one, other in ((client, server), (server, client)):
                one.sendall(b"x" * 70000)
                assert other.recv(10, socket.MSG_WAITALL) == b"x" * 10
        return True


@pytest.mark.parametrize("allowed", [["127.0.0.2"], ["::1", "10.1.2.3", "127.0.0.2"], ["127.0.0.2", "127.0.0.4"]])
def test_only_the_named_addresses_get_through(allowed: list[str]) -> None:
    with listening("127.0.0.1", *allowed) as listener:
        assert reaches("127.0.0.2", listener)
        assert not reaches("127.0.0.3", listener)
        assert not reaches("127.0.0.1", listener)


def test_nobody_gets_through_where_nobody_is_named() -> None:
    with listening("127.0.0.1") as listener:
        assert not reaches("127.0.0.1", listener)


def test_addresses_of_ipv6() -> None:
    for allowed, through in ((["::1"], True), (["127.0.0.1", "fe80::1"], False), (["::2", "::1"], True)):
        with listening("::1", *allowed) as listener:
            assert reaches("::1", listener) == through


def test_names_are_looked_up_and_unknown_ones_have_no_address() -> None:
    assert "127.0.0.1" in sources("localhost")
    assert sources("10.1.2.3") == ["10.1.2.3"]
    assert sources("10.1.2.3", "10.1.2.4") == ["10.1.2.3", "10.1.2.4"]
    for unknown in ("nobody.invalid", "", "x" * 300, ".."):
        assert sources(unknown) == []
        assert sources(unknown, "127.0.0.1") == ["127.0.0.1"]
        assert sources(unknown, "no address; rm -rf /") == []


def test_a_host_knows_where_it_comes_from() -> None:
    assert source_towards("127.0.0.2") == "127.0.0.1"
    for unknown in ("nobody.invalid", "x" * 300, ".."):
        assert source_towards(unknown) == ""
