"""storkit, killed by SIGKILL at a point of its journal (`World.killed`).

A point is `after:N` or `before:N`: after, or before, its Nth journal entry is on the disk. Entry 0 is the plan itself.
`switch:N`, `guest:N` and `power:N` are within the moment in which a guest stands still to get another disk: before the
Nth command to its QEMU from `stop` on this process is killed, or that QEMU, or both.
"""

from __future__ import annotations

import os
import signal
import socket
import struct
from typing import Any

from storkit.plans import journal
from storkit.plans.plan import Plan
from storkit.system.qemu import qmp


def die() -> None:
    os.kill(os.getpid(), signal.SIGKILL)


def _in_the_switch(who: str, number: int) -> None:
    count = 0
    execute = qmp.Monitor.execute

    async def counted(self: qmp.Monitor, command: str, *arguments: Any, **more: Any) -> Any:
        nonlocal count
        if count or command == "stop":
            count += 1
        if count == number and count:
            if who != "switch":
                peer = self._client._writer.get_extra_info("socket")  # type: ignore[union-attr]
                pid = struct.unpack("3i", peer.getsockopt(socket.SOL_SOCKET, socket.SO_PEERCRED, 12))[0]
                os.kill(pid, signal.SIGKILL)
            if who != "guest":
                die()
        return await execute(self, command, *arguments, **more)

    qmp.Monitor.execute = counted  # type: ignore[method-assign]


def arm(point: str) -> None:
    """Kill this process at a point of the first plan that it makes."""
    when, _, given = point.partition(":")
    number, count = int(given), 0
    if when in ("switch", "guest", "power"):
        _in_the_switch(when, number)
        return
    append, create = journal.Journal._append, journal.Journals.create

    def counted_append(self: journal.Journal, entry: dict[str, Any]) -> None:
        nonlocal count
        count += 1
        if count == number and when == "before":
            die()
        append(self, entry)
        if count == number and when == "after":
            die()

    def counted_create(self: journal.Journals, plan: Plan) -> journal.Journal:
        opened = create(self, plan)
        if number == 0:
            die()
        return opened

    journal.Journal._append = counted_append  # type: ignore[method-assign]
    journal.Journals.create = counted_create  # type: ignore[method-assign]
