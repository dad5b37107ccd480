"""Where a client is sent by an offer: to its server, or to whom a host that lies has named.

An offer's address is compared with what the inventory says of that host. It may say it by a name, and the offer by a
number: the name is looked up here then. Where it cannot be, nothing is compared.
"""

from __future__ import annotations

import ipaddress
import socket
from collections.abc import Iterable

from storkit.core import registry
from storkit.core.errors import Unsafe
from storkit.core.host import Door
from storkit.core.model import Offer


def refuse(offer: Offer, doors: Iterable[Door], server: str, client: str, same_machine: bool) -> None:
    """Raise Unsafe for an offer that sends a client to an address which is not its server's.

    `doors` are the server's own (Transport.doors); none: it is somebody else's, and the inventory does not know it.
    """
    known = [door.address for door in doors if door.address]
    if not known and not same_machine:
        return
    for said in _addresses(offer):
        if not (same_machine and _is_loopback(said)) and not any(_is(said, address) for address in known):
            raise Unsafe(
                f"host {server} sends host {client} to {said} for volume {offer.volume}, and is not there by the"
                f" inventory, which has {', '.join(known) or 'no address'} for it",
                f"if that is right, make it the address of host {server} (or the transport's portals) in the inventory;"
                " otherwise believe nothing that it says until you know why",
            )


def refuse_destination(guest: str, target: str, uri: str, known: str, host: str) -> None:
    """Raise Unsafe where a host that is to receive a guest has it sent to an address which is not its own: its source
    would give its memory to whoever is there, and connect to what only it may reach. `uri`: what it has answered;
    `known`: its address by the inventory."""
    said = registry.hypervisor(target.partition(":")[2]).leads_to(uri)
    if said and not _is(said, known):
        raise Unsafe(
            f"host {host} wants guest {guest} sent to {said}, and is not there by the inventory, which has"
            f" {known or 'no address'} for it",
            f"if that is right, make it the address of host {host} in the inventory; otherwise believe nothing that it"
            " says until you know why",
        )


def is_among(door: Door, doors: Iterable[Door]) -> bool:
    """Whether a door that a host says it has is one of those that it has by the inventory."""
    return any(_is(door.address, one.address) and one.port <= door.port <= one.last for one in doors)


def _addresses(offer: Offer) -> list[str]:
    said = [offer.server, *(portal.rpartition(":")[0].strip("[]") for portal in offer.portals)]
    return list(dict.fromkeys(filter(None, said)))


def _is(said: str, known: str) -> bool:
    if said.lower() == known.lower():
        return True
    number, wanted = _number(said), _number(known)
    if wanted is not None or number is None:
        return number is not None and number == wanted
    try:
        found = socket.getaddrinfo(known, None, type=socket.SOCK_STREAM)
    except OSError:
        return True
    return number in {_number(str(each[4][0])) for each in found}


def _is_loopback(said: str) -> bool:
    number = _number(said)
    return number.is_loopback if number else said == "localhost"


def _number(address: str) -> ipaddress.IPv4Address | ipaddress.IPv6Address | None:
    try:
        return ipaddress.ip_address(address.partition("%")[0])
    except ValueError:
        return None
