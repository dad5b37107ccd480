"""Unix sockets of this machine's other programs (unix(7), proc(5))."""

from __future__ import annotations

from pathlib import Path

TABLE = Path("/proc/net/unix")


def bound(name: str) -> bool:
    """Whether a socket of this name is there; `@` begins an abstract one.

    Any user may have bound one whose name is no text: such a name is no reason to see none of the others.
    """
    return any(line.endswith(name) for line in TABLE.read_text(errors="replace").splitlines())
