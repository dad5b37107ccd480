"""The TCP ports that storkit's NBD servers listen on: who reaches them, and what idle connections can do."""

from __future__ import annotations

import socket
from contextlib import ExitStack

from storkit.core.model import Client, Offer
from tests.e2e.nbdhosts import NEEDS_SERVER, Hosts, hosts, offer

__all__ = ["hosts"]

pytestmark = NEEDS_SERVER
N = Client("n", False, "127.0.0.1")


def answers(found: Offer, source: str) -> bool:
    """Whether the port takes a connection from an address, and says something to it."""
    with socket.socket() as client:
        client.bind((source, 0))
        client.settimeout(0.5)
        try:
            client.connect((found.server, found.port))
            return client.recv(8) == b"NBDMAGIC"
        except TimeoutError:
            return False


def test_only_the_clients_own_address_reaches_its_port(hosts: Hosts) -> None:
    a, n = hosts.nbd("a"), hosts.nbd("n")
    volume = hosts.volume()
    a.export([volume], [N, Client("m", False, "127.0.0.2"), Client("anywhere", False, "nobody.invalid")])
    mine, other = offer(a, volume, N), offer(a, volume, Client("m", False))
    assert [answers(mine, source) for source in ("127.0.0.1", "127.0.0.2")] == [True, False]
    assert [answers(other, source) for source in ("127.0.0.1", "127.0.0.2")] == [False, True]
    # A name that this host does not know filters nothing: the key alone decides, as it does for the others.
    assert answers(offer(a, volume, Client("anywhere", False)), "127.0.0.3")
    n.attach([mine])
    assert n.evidence([volume])

    # The client has got another address: the filter follows it, and the attachment stays as it is.
    servers = hosts.servers()
    a.export([volume], [N])
    assert hosts.servers() == servers
    a.export([volume], [Client("n", False, "127.0.0.3")])
    moved = offer(a, volume, N)
    assert (moved.port, moved.name) == (mine.port, mine.name)
    assert [answers(mine, source) for source in ("127.0.0.1", "127.0.0.3")] == [False, True]
    a.export([volume], [N])
    assert n.evidence([volume])

    # What was granted is kept for the next start of the servers.
    for host in ("m", "anywhere"):
        a.unexport([volume], [host])
    a.restore()
    assert [answers(mine, source) for source in ("127.0.0.1", "127.0.0.2")] == [True, False]
    n.detach([volume])
    a.unexport([volume], ["n"])
    hosts.assert_clean()


def test_idle_connections_keep_no_client_out(hosts: Hosts) -> None:
    a, n = hosts.nbd("a"), hosts.nbd("n")
    volume = hosts.volume()
    a.export([volume], [N])
    mine = offer(a, volume, N)
    with ExitStack() as idle:
        for _ in range(300):
            idle.enter_context(socket.create_connection((mine.server, mine.port), timeout=10))
        n.attach([mine])
        assert n.evidence([volume])[0].size == volume.size
    n.detach([volume])
    a.unexport([volume], ["n"])
    hosts.assert_clean()
