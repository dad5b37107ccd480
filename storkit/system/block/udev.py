"""Waiting for devices by the kernel's own events (pyudev): never by sleeping and looking again.

    with Watch("block") as watch:
        ...                                   # what makes the device appear, change or go
        watch.wait(lambda device: device.device_node == "/dev/sda", timeout=10, what="the LUN")

The watch listens before the act, so that no event is missed. Where udevd runs, its events are taken: they come once its
rules and links are in place; elsewhere the kernel's (udev(7), NETLINK_KOBJECT_UEVENT).
"""

from __future__ import annotations

import math
import os
import socket
import threading
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

from storkit.core.errors import TimedOut
from storkit.system import files
from storkit.system.run import run
from storkit.system.timeouts import scaled

UDEVD = Path("/run/udev/control")
_SETTLE = math.ceil(scaled(30))


def runs() -> bool:
    """Whether a udevd listens (udevadm-control(8)'s socket): one that has ended leaves the socket's file."""
    with socket.socket(socket.AF_UNIX, socket.SOCK_SEQPACKET) as control:
        try:
            control.connect(str(UDEVD))
        except OSError:
            return False
    return True


def keep_rules(path: Path, rules: str) -> None:
    """See to it that udevd, where it runs, goes by these rules, in a file below /run/udev/rules.d, from now on."""
    if not runs() or (path.exists() and path.read_text() == rules):
        return
    path.parent.mkdir(parents=True, exist_ok=True)
    # Several commands may do this at the same time, each with a file of its own.
    partial = path.with_name(f"{path.name}.{os.getpid()}-{threading.get_ident()}{files.PARTIAL}")
    files.write_new(partial, rules, 0o644)
    partial.rename(path)
    # Twice: udevd 252 ignores a message that arrives between its accept(2) and its asking for the sender's credentials
    # (SO_PASSCRED), and udevadm succeeds all the same. A guest's disk must not be the first event after a lost one.
    for _ in range(2):
        run(["udevadm", "control", "--reload"], ok=(0, 1), package="udev")


def settle() -> None:
    """Wait until udevd has looked at all that has changed so far; some half a minute at most."""
    run(["udevadm", "settle", f"--timeout={_SETTLE}"], ok=(0, 1), timeout=_SETTLE + 10, package="udev")


class Watch:
    """The events of one subsystem, from `__enter__` on.

    Not `processed`: the kernel's own events, also where udevd runs, for those who need none of its links.
    """

    def __init__(self, subsystem: str, *, processed: bool = True) -> None:
        import pyudev

        source = "udev" if processed and runs() else "kernel"
        self._monitor = pyudev.Monitor.from_netlink(pyudev.Context(), source=source)
        self._monitor.filter_by(subsystem)

    def __enter__(self) -> Watch:
        self._monitor.start()
        return self

    def __exit__(self, *_: object) -> None:
        del self._monitor  # closes its netlink socket

    def wait(self, wanted: Callable[[Any], bool], timeout: float, what: str, action: str = "") -> Any:
        """The next event's device that is `wanted`, of the given action (add, change, remove; empty: any).

        `timeout` is in seconds. Raises TimedOut, naming `what`.
        """
        deadline = time.monotonic() + timeout
        while (left := deadline - time.monotonic()) > 0:
            device = self._monitor.poll(timeout=left)
            if device is not None and action in ("", device.action) and wanted(device):
                return device
        raise TimedOut(f"{what} did not appear within {timeout:g} seconds", "udevadm monitor shows what comes instead")
