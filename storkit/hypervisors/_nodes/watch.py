"""The program that watches over a node which writes two disks: one for each, there while it is one.

The kernel holds a guest's writes when one of the two fails, until somebody gives the node another table; and a command
may be killed while it holds them for the switch. Where this program has ended, the next command of the move does it.
"""

from __future__ import annotations

import json
import os
import select
import signal
import sys
import time
from contextlib import suppress
from pathlib import Path

import storkit
from storkit.core.backend import Site
from storkit.core.errors import TimedOut
from storkit.system import locks
from storkit.system.files import make_private
from storkit.system.run import run
from storkit.system.timeouts import scaled

_BEGIN = """\
import json, sys
told = json.loads(sys.argv[1])
sys.path[:0] = told["path"]
from storkit.hypervisors._nodes import watching
watching.main(told, sys.argv[2])
"""
_STOP = scaled(30.0)
_TICK = 0.01


def start(site: Site, hypervisor: str, disk: str) -> None:
    """See to it that the program runs."""
    make_private(site.run)
    if locks.held(_lock(site, disk)):
        return
    lock = locks.acquire(_lock(site, disk), "the watch over a copy", holder="the watch over a copy", wait=_STOP)
    try:
        where = {name: str(getattr(site, name)) for name in ("host", "state", "run", "dev", "address")}
        root = str(Path(storkit.__file__).parents[1])
        told = {"path": [root, *filter(None, sys.path)], "site": where, "hypervisor": hypervisor, "disk": disk}
        argv = ["setsid", "--fork", sys.executable, "-P", "-s", "-c", _BEGIN, json.dumps(told), str(_pid(site, disk))]
        run(argv, package="util-linux", pass_fds=[lock.descriptor])
    finally:
        lock.release()  # the program has it


def stop(site: Site, disk: str) -> None:
    """End the program, if it runs. It keeps nothing that a kill could spoil; what it does, it does under the lock of
    whoever calls this."""
    deadline = time.monotonic() + _STOP
    while locks.held(_lock(site, disk)):
        if time.monotonic() > deadline:
            raise TimedOut("the watch over a copy does not end", f"fuser -v {_lock(site, disk)}")
        if process := _found(site, disk):
            with suppress(ProcessLookupError):
                signal.pidfd_send_signal(process, signal.SIGKILL)
            select.select([process], [], [], max(0.0, deadline - time.monotonic()))
            os.close(process)
        time.sleep(_TICK)  # it is just being started, or closed
    for path in (_pid(site, disk), _lock(site, disk)):
        path.unlink(missing_ok=True)


def _found(site: Site, disk: str) -> int:
    """A pidfd of the program, by the path of its pid file in its arguments; 0: it is not found."""
    path = _pid(site, disk)
    try:
        pid = int(path.read_text())
        process = os.pidfd_open(pid)
    except (OSError, ValueError):
        return 0
    with suppress(OSError):
        if str(path).encode() in Path(f"/proc/{pid}/cmdline").read_bytes().split(b"\0"):
            return process
    os.close(process)
    return 0


def _lock(site: Site, disk: str) -> Path:
    return site.run / f"copy-{disk}.lock"


def _pid(site: Site, disk: str) -> Path:
    return site.run / f"copy-{disk}.pid"
