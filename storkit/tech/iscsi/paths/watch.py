"""The program that has lost paths used again (watching.py): one for each host, there while a volume has several paths.

The kernel gives up a path that fails, and never asks for it again. Nothing is lost where the program has ended: the
disk goes on by the other path, and whoever attaches, or restores, takes the lost one up and starts the program anew.
"""

from __future__ import annotations

import json
import os
import select
import signal
import sys
import time
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager, suppress
from dataclasses import asdict
from pathlib import Path

import storkit
from storkit.core.backend import Site
from storkit.core.errors import TimedOut
from storkit.system import locks
from storkit.system.run import run
from storkit.system.timeouts import scaled
from storkit.tech.iscsi.names import IscsiSettings

_BEGIN = """\
import json, sys
told = json.loads(sys.argv[1])
sys.path[:0] = told["path"]
from storkit.tech.iscsi.paths import watching
watching.main(told, sys.argv[2])
"""
_STOP = scaled(30.0)
_TICK = 0.01


def running(site: Site) -> bool:
    return locks.held(_lock(site))


def start(site: Site, settings: IscsiSettings) -> None:
    """See to it that the program runs, of this very version and with these settings."""
    with _alone(site):
        said = f"the watch over the paths of volumes, storkit {storkit.__version__}, {settings}"
        if running(site):
            if _lock(site).read_text() == said:
                return
            _end(site)
        lock = locks.acquire(_lock(site), "the watch over paths", holder=said, wait=_STOP)
        try:
            where = {name: str(getattr(site, name)) for name in ("host", "state", "run", "dev", "address")}
            # This very storkit, which may be a zipapp, with what it imports.
            root = str(Path(storkit.__file__).parents[1])
            told = {"path": [root, *filter(None, sys.path)], "site": where, "settings": asdict(settings)}
            argv = ["setsid", "--fork", sys.executable, "-P", "-s", "-c", _BEGIN, json.dumps(told), str(_pid(site))]
            run(argv, package="util-linux", pass_fds=[lock.descriptor])
        finally:
            lock.release()  # the program has it


def stop_unless(site: Site, needed: Callable[[], Iterable[str]]) -> None:
    """End the program, unless something still has several paths."""
    if not running(site) and not _pid(site).exists():
        return
    with _alone(site):
        if not any(needed()):
            _end(site)


@contextmanager
def _alone(site: Site) -> Iterator[None]:
    """Keep other commands from starting or ending it meanwhile."""
    lock = locks.acquire(site.run / "iscsi-paths.start.lock", "the start of the watch over paths", wait=_STOP)
    try:
        yield
    finally:
        lock.release()


def _end(site: Site) -> None:
    """Raises TimedOut: it waits in the kernel."""
    deadline = time.monotonic() + _STOP
    while running(site):
        if time.monotonic() > deadline:
            message = f"the watch over the paths of volumes on {site.host} does not end"
            raise TimedOut(message, f"see what it waits for: fuser -v {_lock(site)}")
        if process := _found(site):
            with suppress(ProcessLookupError):
                signal.pidfd_send_signal(process, signal.SIGKILL)  # it keeps nothing that a kill could spoil
            select.select([process], [], [], max(0.0, deadline - time.monotonic()))
            os.close(process)
        time.sleep(_TICK)  # it is just being started, or closed
    for path in (_pid(site), _lock(site)):
        path.unlink(missing_ok=True)


def _found(site: Site) -> int:
    """A pidfd of the program, by the path of its pid file in its arguments; 0: it is not found."""
    try:
        pid = int(_pid(site).read_text())
        process = os.pidfd_open(pid)
    except (OSError, ValueError):
        return 0
    with suppress(OSError):
        if str(_pid(site)).encode() in Path(f"/proc/{pid}/cmdline").read_bytes().split(b"\0"):
            return process
    os.close(process)
    return 0


def _lock(site: Site) -> Path:
    return site.run / "iscsi-paths.lock"


def _pid(site: Site) -> Path:
    return site.run / "iscsi-paths.pid"
