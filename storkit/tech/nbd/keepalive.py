"""How soon this host notices that the other end of a silent TCP connection is gone (tcp(7)).

A server that loses its power after its kernel has taken a request, and before it answers, leaves a client with nothing
to send again: the client waits for the answer. Only keepalive probes tell it that the connection is no more, and Linux
sends the first after two hours. QEMU asks for them; when they come, it can say from version 10.1 on. So the setting of
the host is lowered, unless the inventory says otherwise. It goes for all programs that ask for keepalive and do not say
when; how often a probe is repeated is left as it is.
"""

from __future__ import annotations

from collections.abc import Iterable
from contextlib import suppress
from ipaddress import ip_address
from pathlib import Path

SETTING = Path("/proc/sys/net/ipv4/tcp_keepalive_time")
"""For IPv6 as well."""


def hasten(servers: Iterable[str], seconds: int, setting: Path = SETTING) -> None:
    """See to it that silent connections to these are probed after so many seconds; one made before keeps its time.

    0 leaves the host's setting alone. Servers on this machine lose their power with it, and do not count; nor does an
    empty name. Who may not change the setting, as in a container or without root, has it left as it is.
    """
    if not seconds or all(not server or _is_loopback(server) for server in servers):
        return
    with suppress(OSError):
        if int(setting.read_text()) > seconds:
            setting.write_text(f"{seconds}\n")


def _is_loopback(server: str) -> bool:
    try:
        return ip_address(server).is_loopback
    except ValueError:
        return server == "localhost"
