"""Which IP addresses this host has seen network cards with (`guest address`).

Nobody is asked for it: what the kernel, and DHCP servers of this host, know already is read. What is looked for are
network cards of guests, so a guest of this host that has spoken through it is found, whatever gave it its address.
"""

from __future__ import annotations

import ipaddress
import json
import time
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any

from storkit.core.host import Neighbour
from storkit.system.run import run
from storkit.system.timeouts import scaled

LEASES = ("/var/lib/misc/dnsmasq.leases", "/var/lib/dnsmasq/dnsmasq.leases")
"""Of dnsmasq: when it ends, MAC, address, name, client's id, a line each (dnsmasq(8), --dhcp-leasefile)."""
NETWORKS = "/var/lib/libvirt/dnsmasq"
"""Of libvirt's networks: *.status, a list of objects with `mac-address` and `ip-address` (virnetworkleases)."""
_LARGEST = 16 << 20
"""Bytes of such a file; a larger one is none."""
_ASK = scaled(10.0)
_GONE = {"FAILED", "INCOMPLETE"}
"""States of a neighbour that has not answered (ip-neighbour(8))."""


def seen(macs: Iterable[str], leases: Iterable[str] = LEASES, networks: str = NETWORKS) -> list[Neighbour]:
    """Every address that one of these cards (MACs in lower case) was seen with, each once."""
    wanted = set(macs)
    if not wanted:
        return []
    found = [
        *_told(_neighbours(), "neighbour", wanted),
        *_told((pair for file in leases for pair in _dnsmasq(Path(file))), "lease", wanted),
        *_told((pair for file in sorted(Path(networks).glob("*.status")) for pair in _libvirt(file)), "lease", wanted),
    ]
    return list({(one.mac, one.address): one for one in reversed(found)}.values())[::-1]


def _told(pairs: Iterable[tuple[Any, Any]], how: Any, wanted: set[str]) -> Iterator[Neighbour]:
    for mac, address in pairs:
        if isinstance(mac, str) and isinstance(address, str) and mac.lower() in wanted and _is_address(address):
            yield Neighbour(mac.lower(), address, how)


def _is_address(text: str) -> bool:
    try:
        return not ipaddress.ip_address(text).is_link_local
    except ValueError:
        return False


def _neighbours() -> Iterator[tuple[Any, Any]]:
    said = json.loads(run(["ip", "-j", "neigh", "show"], package="iproute2", timeout=_ASK).stdout or "[]")
    return ((each.get("lladdr"), each.get("dst")) for each in said if not _GONE & set(each.get("state", [])))


def _dnsmasq(file: Path) -> Iterator[tuple[Any, Any]]:
    for line in _text(file).splitlines():
        ends, mac, address, *_ = [*line.split(), "", "", ""]
        if ends == "0" or (ends.isdigit() and int(ends) > time.time()):  # 0: for ever
            yield mac, address


def _libvirt(file: Path) -> Iterator[tuple[Any, Any]]:
    try:
        said = json.loads(_text(file) or "[]")
    except ValueError:  # dnsmasq's helper writes it anew under whoever reads it
        return
    for each in said if isinstance(said, list) else []:
        if isinstance(each, dict) and each.get("expiry-time", 0) > time.time():
            yield each.get("mac-address"), each.get("ip-address")


def _text(file: Path) -> str:
    """What a file says; nothing if it is not there, or not for this user."""
    try:
        with file.open("rb") as opened:
            return opened.read(_LARGEST).decode(errors="replace")
    except OSError:
        return ""
