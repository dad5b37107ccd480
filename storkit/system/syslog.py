"""Lines for the system's log: journald or a syslog daemon, whichever listens at /dev/log (syslog(3))."""

from __future__ import annotations

import os

SOCKET = "/dev/log"
AUTH_NOTICE = 10 << 3 | 5
"""Facility authpriv, severity notice: who may do what, for those who may read it (RFC 3164, 4.1.1)."""
LONGEST = 2000
"""Bytes of a line: what every daemon takes whole is less than a datagram."""
PATIENCE = 1.0
"""Seconds that a full log is waited for: nothing that is done on a host may hang because its log does."""


def log(text: str) -> None:
    """Say something in the log. Where there is none, or it takes nothing, that is nobody's fault.

    STORKIT_LOG_SOCKET names another socket than /dev/log.
    """
    import socket  # only what changes rights is logged

    shown = "".join(c if c.isprintable() else repr(c)[1:-1] for c in text)
    line = f"<{AUTH_NOTICE}>storkit[{os.getpid()}]: ".encode() + shown.encode(errors="replace")[:LONGEST]
    try:
        with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM | socket.SOCK_CLOEXEC) as sender:
            sender.settimeout(PATIENCE)
            sender.sendto(line, os.environ.get("STORKIT_LOG_SOCKET", SOCKET))
    except OSError:
        return
