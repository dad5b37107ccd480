"""The guests of one host beside each other: whose disks one has, and the ports by which each is reached."""

from __future__ import annotations

import re
from collections.abc import Iterable
from contextlib import suppress

from storkit.core.backend import Site
from storkit.core.errors import StorkitError
from storkit.core.guest import Guest
from storkit.hypervisors._machine import taken_disks
from storkit.hypervisors._qemu import definition as definitions
from storkit.hypervisors._qemu.process import ASK_TIMEOUT, ask, process
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


def taken(site: Site, guest: Guest, names: Iterable[str]) -> list[str]:
    """Which disks of a guest others have, of these, that are alive on this host."""
    mine = [disk.uuid for disk in guest.disks if disk.uuid]
    found: list[str] = []
    for name in names:
        directory = site.state.absolute() / "qemu" / name
        text = ""
        with suppress(OSError):
            text = (directory / definitions.RECORD).read_text()
        here = process(site, name)
        # Hundreds of guests have nothing in common with it: only those that have are read, and asked.
        if name != guest.name and any(uuid in text for uuid in mine) and here.alive():
            found += taken_disks(guest, definitions.load(directory).guest, ask([here])[name].status)
    return found
