"""A hook's process that is killed by SIGKILL: `python -m tests.e2e.killed_hook POINT HOST STATE KEY ACTION`.

A point is `before:N` or `after:N`: before, or after, the Nth thing that it does: a request to the manager, an attach or
a detach. Without N it comes to its end, and prints how many there were.
"""

from __future__ import annotations

import os
import signal
import sys
from collections.abc import Callable
from typing import Any

from storkit.hooks.engine import GuestDisk, GuestId, Hooks
from storkit.hooks.hostfile import HostFile, Manager
from storkit.hosts.remote.ssh import SshConnection
from storkit.nbd import Nbd

UUID = "11111111-2222-3333-4444-555555555555"


def main(point: str, host: str, state: str, key: str, action: str) -> None:
    when, _, given = point.partition(":")
    count = 0

    def counted(method: Callable[..., Any]) -> Callable[..., Any]:
        def call(*args: Any, **kwargs: Any) -> Any:
            nonlocal count
            count += 1
            mine = str(count) == given
            if mine and when == "before":
                os.kill(os.getpid(), signal.SIGKILL)
            result = method(*args, **kwargs)
            if mine and when == "after":
                os.kill(os.getpid(), signal.SIGKILL)
            return result

        return call

    for cls, name in ((SshConnection, "call"), (Nbd, "attach"), (Nbd, "detach")):
        setattr(cls, name, counted(getattr(cls, name)))
    content = HostFile(host, {"a": Manager("ssh://root@a", key, ["127.0.0.1"])}, state)
    disks, guest = [GuestDisk("v")], GuestId("g", UUID)
    with Hooks(content) as hooks:
        if action == "hold":
            hooks.hold(disks, guest, "/var/g.save")
        elif action == "leave":
            hooks.leave(disks, guest, "ended")
        else:
            hooks.enter(disks, guest, "wake" if action == "wake" else "start")
            if action == "wake":
                hooks.woken(disks, guest)
    print(count)


if __name__ == "__main__":
    main(*sys.argv[1:])
