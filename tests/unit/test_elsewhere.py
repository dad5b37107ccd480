"""Where an offer sends a client, compared with what the inventory says of its server, for every transport."""

from __future__ import annotations

import socket
from pathlib import Path
from types import SimpleNamespace
from typing import Any, cast

import pytest

from storkit.core import inventory, registry
from storkit.core.backend import Hypervisor, Transport
from storkit.core.errors import Unsafe, UsageError
from storkit.core.host import Door
from storkit.core.model import Offer
from storkit.hosts import elsewhere
from storkit.hosts.connections import Connections
from storkit.plans.verb import Run
from storkit.plans.verbs import moves

SERVER = "10.0.0.1"
UUID = "7d1c9f6e-30a5-4c0b-9d3b-6a1f0d6f8c11"


def offer(*addresses: str, portals: tuple[str, ...] = ()) -> Offer:
    server = addresses[0] if addresses else ""
    return Offer("web", UUID, 512, "c", "t", "web", "x", False, server=server, portals=list(portals))


def refused(one: Offer, *known: str, same: bool = False) -> bool:
    try:
        elsewhere.refuse(one, [Door(address, 1, 2) for address in known], "s", "c", same)
    except Unsafe as error:
        assert "host s sends host c to" in error.message and "web" in error.message and error.hint
        assert all(address in error.message for address in known)
        return True
    return False


def test_an_address_is_the_server_s_own_however_it_is_written(monkeypatch: pytest.MonkeyPatch) -> None:
    answer = [(socket.AF_INET, socket.SOCK_STREAM, 6, "", (SERVER, 0))]
    monkeypatch.setattr(socket, "getaddrinfo", lambda *args, **kwargs: answer)
    assert not refused(offer(SERVER), SERVER) and not refused(offer("store"), "Store")
    assert not refused(offer(SERVER), "store"), "its name, looked up"
    assert not refused(offer("fd00::1"), "fd00:0::1")
    assert not refused(offer(SERVER, portals=(f"{SERVER}:3260", "[fd00::1]:3260")), SERVER, "fd00::1")
    for said in ("10.0.0.2", "evil.example", "fd00::2", "127.0.0.1", "169.254.169.254"):
        assert refused(offer(said), SERVER) and refused(offer(said), "store"), said
        portal = f"[{said}]:3260" if ":" in said else f"{said}:3260"
        assert refused(offer(SERVER, portals=(f"{SERVER}:3260", portal)), SERVER), "one of several ways is enough"


def test_what_cannot_be_compared_is_not(monkeypatch: pytest.MonkeyPatch) -> None:
    def unknown(*args: Any, **kwargs: Any) -> Any:
        raise socket.gaierror("no such name here")

    monkeypatch.setattr(socket, "getaddrinfo", unknown)
    assert not refused(offer("10.0.0.2"), "store"), "a name of ssh's configuration alone"
    assert not refused(offer("10.0.0.2")), "somebody else's server"
    assert refused(offer("evil.example"), "store")


def test_on_its_own_machine_a_server_is_at_a_loopback_too() -> None:
    assert not refused(offer(), same=True) and not refused(offer("127.0.0.1"), same=True)
    assert not refused(offer("127.0.0.1"), SERVER, same=True) and not refused(offer("::1"), SERVER, same=True)
    assert refused(offer("10.0.0.2"), same=True) and refused(offer("127.0.0.1"), SERVER)


@pytest.mark.parametrize("name", registry.names(Transport))  # type: ignore[type-abstract]
def test_every_transport_says_where_its_servers_are_without_asking_them(name: str) -> None:
    """Of the inventory alone: their host may lie. A transport whose settings name other places says those."""
    text = f'[hosts.s]\nurl = "ssh://s"\naddress = "{SERVER}"\n[hosts.c]\nurl = "ssh://c"\n'
    connections = Connections(inventory.parse(text, Path("inventory.toml")))
    doors = connections.doors("s", f"transport:{name}")
    assert [door.address for door in doors] == [SERVER]
    assert [door.address for door in connections.doors("c", f"transport:{name}")] == ["c"]


def test_portals_of_the_inventory_are_where_it_says() -> None:
    text = (
        f'[hosts.s]\nurl = "ssh://s"\naddress = "{SERVER}"\n[transports.iscsi]\nportals = ["10.1.0.1", "[fd00::1]:9"]\n'
    )
    doors = Connections(inventory.parse(text, Path("inventory.toml"))).doors("s", "transport:iscsi")
    assert [door.address for door in doors] == ["10.1.0.1", "fd00::1"]


SENT = {
    "qemu": ("tcp:{}:49152", ("exec:rm", "fd:0", "tcp:-o:1", "tcp:b", "rdma:b:1", "")),
    "xl": ("xl:{}:49152", ("exec:rm", "tcp:b:1", "xl:-o:1", "xl:b", "")),
    "libvirt": ('{{"connect": "qemu+ssh://{0}/system", "data": "tcp://{0}", "sources": {{}}}}', ("exec:rm", "[]", "")),
}
"""For each hypervisor: what `receive` answers of an address, and what it never does."""


def test_every_hypervisor_that_moves_guests_says_where_they_are_sent() -> None:
    known = registry.names(Hypervisor)  # type: ignore[type-abstract]
    assert SENT.keys() == {name for name in known if registry.hypervisor(name).moves}


@pytest.mark.parametrize("name", SENT)
def test_a_guest_is_sent_to_its_destination_and_nowhere_else(name: str) -> None:
    """Its memory would go to whoever is there, and to what only its source can reach."""
    hypervisor = registry.hypervisor(name)
    form, bad = SENT[name]

    def receive(uri: str, same: bool = False) -> str:
        verbs = SimpleNamespace(receive=lambda *_: uri)
        run = SimpleNamespace(
            same_machine=lambda *_: same, source=lambda *_: "", address=lambda host: f"10.0.0.{1 + (host == 'c')}",
            on=lambda host: SimpleNamespace(hypervisor=lambda target: verbs),
        )  # fmt: skip
        return moves.receive(cast(Run, run), "s", "c", f"hypervisor:{name}", "g")

    assert receive(form.format(SERVER)) == form.format(SERVER)
    assert hypervisor.leads_to(form.format("[fd00::1]")) == "fd00::1"
    for said in ("10.0.0.2", "127.0.0.1", "169.254.169.254", "[::1]"):
        with pytest.raises(Unsafe, match="host s wants guest g sent to"):
            receive(form.format(said))
    for uri in bad:
        with pytest.raises(UsageError):
            receive(uri)
    assert receive("unix:/run/g.sock", same=True) == "unix:/run/g.sock"
