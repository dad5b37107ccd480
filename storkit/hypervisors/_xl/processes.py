"""The xl processes that build, watch, move or save a domain now, whoever has started them, as /proc has them.

A domain that stands still because it is suspended goes on, or ends, when the xl that has suspended it says so: without
such a process it stands still for ever.
"""

from __future__ import annotations

import os
import signal
import time
from collections.abc import Callable, Iterator
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path

GUEST = "STORKIT_GUEST"
"""In the environment of the processes that storkit starts: the guest's name. xl's receiver has it in no argument."""
_HELPER = "libxl-save-help"
"""The process of xl's that copies memory, as the kernel cuts its name off."""
TICK = 0.05


@dataclass(frozen=True, slots=True)
class XlProcess:
    """One process that runs xl."""

    pid: int
    words: tuple[str, ...]
    guest: str
    """The guest that storkit has started it for; empty: somebody else did."""
    watches: bool
    """Whether nobody talks to it: of a receiver this is the one that waits in the background for its domain's end."""

    @property
    def verb(self) -> str:
        """xl's command: the first word that is no option."""
        return next((word for word in self.words[1:] if not word.startswith("-")), "")

    def sends(self, name: str, domain: int) -> bool:
        """Whether it migrates or saves this domain away."""
        return self.verb in ("migrate", "save") and bool({name, str(domain)} & set(self.words[2:]))

    def brings(self, name: str, config: Path) -> bool:
        """Whether it builds the guest's domain now, or waits in the background to build it anew when it reboots.

        Such an xl ends with its domain, unless that reboots, and when it is suspended (xl_vmcontrol.c).
        """
        if self.guest == name:
            return self.verb == "create" or (self.verb == "migrate-receive" and self.watches)
        return self.verb == "create" and str(config) in self.words

    @property
    def receives(self) -> bool:
        """Whether it receives a domain now."""
        return self.verb == "migrate-receive" and not self.watches


def xl_processes() -> list[XlProcess]:
    """All of them."""
    return [found for found in map(_read, _pids()) if found]


def _pids() -> Iterator[int]:
    return (int(entry.name) for entry in Path("/proc").iterdir() if entry.name.isdecimal())


def _read(pid: int) -> XlProcess | None:
    place = Path("/proc", str(pid))
    try:
        words = (place / "cmdline").read_bytes().decode(errors="replace").split("\0")[:-1]
        if not words or Path(words[0]).name != "xl":
            return None
        environment = (place / "environ").read_bytes().decode(errors="replace").split("\0")
        watches = (place / "fd/0").readlink() == Path("/dev/null")
    except OSError:  # it has ended
        return None
    guest = next((each.partition("=")[2] for each in environment if each.startswith(f"{GUEST}=")), "")
    return XlProcess(pid, tuple(words), guest, watches)


def disconnect(process: XlProcess) -> None:
    """End what carries an xl's stream, and nothing else: xl then puts its domain in order by itself, and ends."""
    for pid in _pids():
        with suppress(OSError):
            fields = Path("/proc", str(pid), "stat").read_text()
            name, parent = fields[fields.index("(") + 1 : fields.rindex(")")], fields[fields.rindex(")") :].split()[2]
            if int(parent) == process.pid and name != _HELPER:
                os.kill(pid, signal.SIGTERM)


def kill(process: XlProcess) -> None:
    """End an xl that does not end by itself."""
    with suppress(ProcessLookupError):
        descriptor = os.pidfd_open(process.pid)
        try:
            if _read(process.pid) == process:
                signal.pidfd_send_signal(descriptor, signal.SIGKILL)
        finally:
            os.close(descriptor)


def wait_until(done: Callable[[], bool], seconds: float) -> bool:
    """Whether it has come true within these seconds."""
    deadline = time.monotonic() + seconds
    while not done():
        if time.monotonic() > deadline:
            return False
        time.sleep(TICK)
    return True
