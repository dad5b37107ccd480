"""What the kernel has to listen on for this host's iSCSI targets to be reached at their portals.

Targets share a listening socket if it has the same address and port. One on all addresses (what targetcli makes unless
told otherwise) leaves no room for one on a single address of the same port, so where there is one it is shared.
"""

from __future__ import annotations

import ipaddress
import sys
from pathlib import Path

from storkit.tech import portals as written
from storkit.tech.iscsi.names import portal


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
            return written.name(everywhere, port)
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
