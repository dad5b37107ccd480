"""Portals: the addresses and ports at which a host's servers are reached, as the inventory has them."""

from __future__ import annotations

import re
import socket
from collections.abc import Sequence

from storkit.core.backend import Site
from storkit.core.errors import StorkitError, UsageError, raise_problems
from storkit.core.host import Door
from storkit.system.addresses import own_address
from storkit.system.timeouts import scaled

_PROBE = scaled(5.0)
_PORTAL = re.compile(r"(?:\[(?P<v6>[0-9a-fA-F:.%]+)\]|(?P<host>[^\[\]:\s]+))(?::(?P<port>[0-9]{1,5}))?")


def parse(text: str, default: int, transport: str) -> tuple[str, int]:
    """ADDRESS, ADDRESS:PORT, [IPV6] or [IPV6]:PORT as an address, without brackets, and a port."""
    match = _PORTAL.fullmatch(text)
    port = int(match["port"] or default) if match else 0
    if match is None or not 0 < port < 65536:
        raise UsageError(f"{transport}: {text!r} is no portal", "write ADDRESS, ADDRESS:PORT or [IPV6]:PORT")
    return match["v6"] or match["host"], port


def name(address: str, port: int) -> str:
    """A portal as people and programs write it."""
    return f"[{address}]:{port}" if ":" in address else f"{address}:{port}"


def problems(texts: Sequence[str], default: int, transport: str) -> list[StorkitError]:
    """What is wrong with portals of the inventory."""
    found: list[StorkitError] = []
    for text in texts:
        try:
            parse(text, default, transport)
        except UsageError as error:
            found.append(error)
    return found


def own(site: Site, texts: Sequence[str], default: int, transport: str) -> list[str]:
    """This host's portals, by number: those of the inventory, or its own address. Raises Unsupported: none, or not of
    this host."""
    if not texts:
        return [name(own_address(site.host, site.address), default)]
    hint = f"in the inventory, at {transport} portals, write numbers of the host itself: ip -br address"
    found: list[str] = []
    wrong: list[StorkitError] = []
    for text in texts:
        try:
            address, port = parse(text, default, transport)
            found.append(name(own_address(site.host, address, hint), port))
        except StorkitError as error:
            wrong.append(error)
    raise_problems(wrong)
    return found


def doors(site: Site, texts: Sequence[str], default: int, transport: str) -> list[Door]:
    """Where a host listens by the inventory."""
    address = site.address
    written = texts or ([f"[{address}]" if ":" in address else address] if address else [])
    pairs = [parse(text, default, transport) for text in written] or [("", default)]
    return [Door(address, port, port) for address, port in pairs]


def probe(address: str, port: int, timeout: float = _PROBE) -> str:
    """Why nobody can be reached at a portal, or nothing."""
    try:
        with socket.create_connection((address, port), timeout):
            return ""
    except OSError as error:
        return str(error.strerror or error)
