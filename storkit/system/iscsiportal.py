"""Where this host's iSCSI targets listen: its own addresses, by number."""

from __future__ import annotations

import ipaddress
import socket

from storkit.core.backend import Site
from storkit.core.errors import StorkitError, Unsupported, raise_problems
from storkit.system.iscsigrant import IscsiSettings, portal, portal_name


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
