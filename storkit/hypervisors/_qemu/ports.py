"""The ports of the host by which guests are reached."""

from __future__ import annotations

import re
from contextlib import suppress

from storkit.core.backend import Site
from storkit.core.errors import StorkitError
from storkit.core.guest import Guest
from storkit.hypervisors._qemu.process import ASK_TIMEOUT, process
from storkit.system.qemu import qmp

_FORWARDED = re.compile(r"TCP\[HOST_FORWARD\]\s+\S+\s+127\.0\.0\.1\s+(\d+)\s+\S+\s+22\s")
"""A line of QEMU's `info usernet`, which has no QMP command of its own: our port, and the guest's."""


def ssh_port(site: Site, guest: Guest) -> int:
    """The port of the host's loopback that leads to a guest's SSH, which QEMU itself has picked; 0: there is none."""
    here = process(site, guest.name)
    if any(nic.kind == "user" for nic in guest.nics) and here.alive():
        command = {"command-line": "info usernet"}
        with suppress(StorkitError):  # one that hangs says nothing
            said = qmp.call(here.monitor, "human-monitor-command", command, timeout=ASK_TIMEOUT)
            if match := _FORWARDED.search(str(said)):
                return int(match[1])
    return 0
