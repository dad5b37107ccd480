"""Which addresses the targets listen on: of this host, and shared with those that listen already."""

from __future__ import annotations

import socket
from pathlib import Path

import pytest

from storkit.core.backend import Site
from storkit.core.errors import StorkitError, Unsupported
from storkit.tech import portals as written
from storkit.tech.iscsi.names import PORT
from storkit.tech.iscsi.portals import listening, parse_listeners


def own_portals(site: Site, *portals: str) -> list[str]:
    return written.own(site, portals, PORT, "iscsi")


def site(address: str) -> Site:
    return Site("s", Path("/x"), Path("/x"), Path("/x"), address)


def test_the_host_s_own_address_unless_portals_are_set() -> None:
    assert own_portals(site("127.0.0.1")) == ["127.0.0.1:3260"]
    assert own_portals(site(""), "127.0.0.2:860", "127.0.0.3") == ["127.0.0.2:860", "127.0.0.3:3260"]


@pytest.mark.parametrize("address, said", [("", "has no address"), ("203.0.113.9", "no address of this host"),
                                           ("localhost", "where no other machine reaches"),
                                           ("nowhere.invalid", "does not know its own address")])  # fmt: skip
def test_what_no_client_could_reach_is_refused(address: str, said: str) -> None:
    with pytest.raises(Unsupported, match=said):
        own_portals(site(address))


def test_all_portals_that_are_wrong_are_said_at_once() -> None:
    with pytest.raises(StorkitError) as raised:
        own_portals(site(""), "203.0.113.9", "127.0.0.1", "203.0.113.10")
    assert len(getattr(raised.value, "problems", [])) == 2


def test_a_socket_on_all_addresses_is_shared() -> None:
    with socket.create_server(("0.0.0.0", 0)) as server:
        port = server.getsockname()[1]
        portals = [f"127.0.0.1:{port}", f"127.0.0.2:{port}"]
        assert listening(portals) == [f"0.0.0.0:{port}"]
    assert listening(portals) == portals


def test_one_on_the_same_address_is_shared_and_on_another_is_none_of_ours() -> None:
    with socket.create_server(("127.0.0.1", 0)) as server:
        port = server.getsockname()[1]
        portals = [f"127.0.0.1:{port}", f"127.0.0.2:{port}"]
        assert listening(portals) == portals


def test_listeners_are_read() -> None:
    text = Path(__file__).with_name("data").joinpath("proc-net-tcp6-6.1.txt").read_text()
    assert parse_listeners(text) == {("::", 3260), ("::1", 22)}
