"""The address at which other machines reach this host's servers, as this host itself resolves it."""

from __future__ import annotations

import ipaddress
import socket

from storkit.core.errors import StorkitError, Unsupported


def own_address(host: str, address: str, hint: str = "") -> str:
    """The IP address that servers of this host listen at.

    Args:
        host: this host's name, for messages.
        address: what the inventory says of it: a name or a number.
        hint: what to do about an address that is wrong; by default, what to write into the inventory.

    Raises:
        Unsupported: no other machine would reach it. There is none; this host does not know the name (an alias of some
            ssh_config); the name is a loopback here, as Debian writes 127.0.1.1 into /etc/hosts; or it is not this
            host's. A number that is a loopback is taken: whoever writes it means this machine alone.
    """
    write = hint or f'in the inventory, at host {host}: address = "NUMBER", one of: ip -br address'
    if not address:
        raise Unsupported(f"host {host} has no address at which hosts on other machines could reach its servers", write)
    try:
        found = str(socket.getaddrinfo(address, None, type=socket.SOCK_STREAM)[0][4][0])
    except (OSError, UnicodeError) as error:
        raise Unsupported(f"host {host} does not know its own address {address}: {error}", write) from error
    number = ipaddress.ip_address(found.partition("%")[0])
    if number.is_unspecified:
        raise Unsupported(f"{address} is no address of host {host}: it stands for all of them", write)
    if number.is_loopback and not is_number(address):
        message = f"address {address} is {found} on host {host} itself, where no other machine reaches its servers"
        raise Unsupported(message, hint or f"{write}; or mend the line of {address} in /etc/hosts there")
    with socket.socket(socket.AF_INET6 if number.version == 6 else socket.AF_INET, socket.SOCK_STREAM) as probe:
        try:
            # Some servers bind to an address that the host has not got, hoping that it will (IP_FREEBIND, as LIO does).
            probe.bind((found, 0))
        except OSError as error:
            message = f"{address} is no address of this host, {host}: {error.strerror}"
            raise Unsupported(message, write) from error
    return found


def address_problem(host: str, address: str) -> StorkitError | None:
    """What `own_address` would raise; None: other machines can be told this address."""
    try:
        own_address(host, address)
    except Unsupported as problem:
        return problem
    return None


def is_number(address: str) -> bool:
    """Whether this is an IP address, and not a name for one."""
    try:
        ipaddress.ip_address(address.partition("%")[0])
    except ValueError:
        return False
    return True
