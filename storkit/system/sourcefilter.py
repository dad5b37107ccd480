"""A listening TCP socket that only chosen addresses can reach: others get no answer, as from a port behind a firewall.

The kernel runs a classic BPF program on every packet for the socket, before it is a connection (socket(7),
SO_ATTACH_FILTER). Nothing has to be installed, no privilege is needed, and the filter goes with the socket: no rule of
a firewall can be forgotten or left behind.
"""

from __future__ import annotations

import ctypes
import ipaddress
import socket
import struct
from collections.abc import Iterable
from contextlib import suppress

_SO_ATTACH_FILTER = 26
_NETWORK_HEADER = 0xFFF00000
"""SKF_NET_OFF (linux/filter.h): offsets from here are those of the IP header."""
_LOAD_BYTE, _LOAD_WORD, _SHIFT_RIGHT, _JUMP_IF_EQUAL, _RETURN = 0x30, 0x20, 0x74, 0x15, 0x06
_ACCEPT, _DROP = 0xFFFFFFFF, 0
_SOURCE = {4: 12, 6: 8}
"""Where the source's address is in the header of each version of IP (RFC 791, RFC 8200)."""

MOST = 20
"""Addresses in one filter: its jumps reach 255 instructions, and an address takes up to 9."""

Instruction = tuple[int, int, int, int]
"""struct sock_filter: code, where to jump if true and if false, operand."""


def only_from(listener: socket.socket, addresses: Iterable[str]) -> None:
    """Let only these IP addresses connect. To be called before `listen`; connections that are made inherit it."""
    code = b"".join(struct.pack("=HBBI", *instruction) for instruction in program(addresses))
    held = ctypes.create_string_buffer(code, len(code))
    listener.setsockopt(socket.SOL_SOCKET, _SO_ATTACH_FILTER, struct.pack("HP", len(code) // 8, ctypes.addressof(held)))


def sources(name: str, told: str = "") -> list[str]:
    """The IP addresses that a host can come from: those of its name or address, and the one that it has `told` us.

    A host that tells a wrong one opens nothing but its own port to it. Empty: nobody here knows any.
    """
    found: set[str] = set()
    if name:
        with suppress(OSError, UnicodeError):
            found = {str(entry[4][0]).partition("%")[0] for entry in socket.getaddrinfo(name, None)}
    with suppress(ValueError):
        found.add(str(ipaddress.ip_address(told)))
    return sorted(found)[:MOST]


def source_towards(name: str) -> str:
    """The address that this host's connections to `name` come from; empty: there is no way to it. Nothing is sent."""
    try:
        family, kind, protocol, _, where = socket.getaddrinfo(name, 9, type=socket.SOCK_DGRAM)[0]
        with socket.socket(family, kind, protocol) as probe:
            probe.connect(where)
            return str(probe.getsockname()[0]).partition("%")[0]
    except (OSError, UnicodeError):
        return ""


def program(addresses: Iterable[str]) -> list[Instruction]:
    """The instructions that accept packets from these addresses, and drop all others."""
    wanted = [ipaddress.ip_address(address) for address in addresses]
    code: list[Instruction] = [(_LOAD_BYTE, 0, 0, _NETWORK_HEADER), (_SHIFT_RIGHT, 0, 0, 4)]
    for version in (4, 6):
        tests: list[Instruction] = []
        for address in wanted:
            if address.version == version:
                tests += _test(address.packed, _NETWORK_HEADER + _SOURCE[version])
        # The accumulator still holds the version here: whatever was loaded since has led to a return.
        code += [(_JUMP_IF_EQUAL, 0, len(tests) + 1, version), *tests, (_RETURN, 0, 0, _DROP)]
    return [*code, (_RETURN, 0, 0, _DROP)]


def _test(packed: bytes, offset: int) -> list[Instruction]:
    """Accept the packet if this address is at `offset`, else go on after these instructions."""
    words = struct.unpack(f">{len(packed) // 4}I", packed)
    code: list[Instruction] = []
    for number, word in enumerate(words):
        left = 2 * (len(words) - number - 1) + 1
        code += [(_LOAD_WORD, 0, 0, offset + 4 * number), (_JUMP_IF_EQUAL, 0, left, word)]
    return [*code, (_RETURN, 0, 0, _ACCEPT)]
