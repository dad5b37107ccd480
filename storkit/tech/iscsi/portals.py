"""Where this host's iSCSI targets are reached, by number, and what the kernel has to listen on for that.

Targets share a listening socket if it has the same address and port. One on all addresses (what targetcli makes unless
told otherwise) leaves no room for one on a single address of the same port, so where there is one it is shared.
"""

from __future__ import annotations

import ipaddress
import socket
import sys
from pathlib import Path

from storkit.core.backend import Site
from storkit.core.errors import StorkitError, Unsupported, raise_problems
from storkit.tech.iscsi.names import IscsiSettings, portal, portal_name


def own_portals(site: Site, settings: IscsiSettings) -> list[str]:
    """The portals of this host's targets, as LIO names them. Raises Unsupported: none, or not of this host."""
    own = [f"[{site.address}]" if ":" in site.address else site.address] if site.address else []
    texts = settings.portals or own
    if not texts:
        message = f"hosts would come over the network, and host {site.host} has no address"
        raise Unsupported(message, f"give host {site.host} an address in the inventory, or set iscsi portals")
    found: list[str] = []
    problems: list[StorkitError] = []
    for text in texts:
        try:
            address, port = portal(text)
            found.append(portal_name(_own_address(address), port))
        except StorkitError as error:
            problems.append(error)
    raise_problems(problems)
    return found


def listening(portals: list[str]) -> list[str]:
    """The portals to make, as LIO names their directories, for a target to be reached at these."""
    listeners = set()
    for file in (Path("/proc/net/tcp"), Path("/proc/net/tcp6")):
        if file.exists():
            listeners |= parse_listeners(file.read_text())
    return list(dict.fromkeys(_shared(name, listeners) for name in portals))


def _shared(name: str, listeners: set[tuple[str, int]]) -> str:
    address, port = portal(name)
    if (address, port) in listeners:
        return name
    for everywhere in ("0.0.0.0", "::") if ":" not in address else ("::",):
        if (everywhere, port) in listeners:
            return portal_name(everywhere, port)
    return name


def parse_listeners(text: str) -> set[tuple[str, int]]:
    """Address and port of each listening socket in /proc/net/tcp or tcp6 (proc(5)): addresses are 32-bit words in the
    machine's byte order, state 0A is LISTEN."""
    found = set()
    for line in text.splitlines()[1:]:
        words = line.split()
        if len(words) > 3 and words[3] == "0A":
            address, _, port = words[1].partition(":")
            raw = b"".join(int(address[at : at + 8], 16).to_bytes(4, sys.byteorder) for at in range(0, len(address), 8))
            found.add((str(ipaddress.ip_address(raw)), int(port, 16)))
    return found


def _own_address(name: str) -> str:
    try:
        address = str(socket.getaddrinfo(name, None, type=socket.SOCK_STREAM)[0][4][0])
    except OSError as error:
        raise Unsupported(f"{name} has no address: {error}", "name iscsi portals by number") from error
    family = socket.AF_INET6 if ":" in address else socket.AF_INET
    with socket.socket(family, socket.SOCK_STREAM) as probe:
        try:
            # the kernel's target would listen on any address, hoping that the host gets it some day (IP_FREEBIND)
            probe.bind((address, 0))
        except OSError as error:
            message = f"{address} is no address of this host: {error.strerror}"
            raise Unsupported(message, "see `ip address`, and set iscsi portals") from error
    if ipaddress.ip_address(address.partition("%")[0]).is_loopback and name != address:
        hint = "name the portal by the number that other hosts reach; see /etc/hosts"
        raise Unsupported(f"{name} is {address} on this host, where no other host reaches it", hint)
    return address
