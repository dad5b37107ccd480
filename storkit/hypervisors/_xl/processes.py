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
_SHORTEST = {
    "create": 2, "destroy": 3, "save": 2, "restore": 3, "migrate": 7, "migrate-receive": 8,
    "block-attach": 7, "block-detach": 7,
}  # fmt: skip
"""xl's commands that matter here, and how many letters of each xl lets a person type (cmdtable_lookup in xl.c)."""
_WITH_WORD = ("C", "s")
"""The options of `xl migrate` after which a word of theirs follows (xl_migrate.c); `xl save` has none."""
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
    """Whether nobody talks to it: it waits in the background for the end of the domain that it has built, with the
    words that it was called with."""
    directory: str = "/"
    """Where the paths in its words begin."""

    @property
    def verb(self) -> str:
        """xl's command: the first word that is no option."""
        said = next(iter(self._plain), "")
        return next((verb for verb, least in _SHORTEST.items() if len(said) >= least and verb.startswith(said)), said)

    @property
    def file(self) -> str:
        """The file of a guest's memory that it saves to or restores from; empty: it does neither."""
        words = {"save": self._plain[2:3], "restore": self._plain[1:][-1:]}.get(self.verb)
        return str(Path(self.directory, words[0])) if words else ""

    @property
    def _plain(self) -> list[str]:
        return [word for word in self.words[1:] if not word.startswith("-")]

    @property
    def _domain(self) -> str:
        """The domain that a migration or a save is of: the first word after the verb that is neither an option nor an
        option's."""
        words = iter(self.words[1:])
        next((word for word in words if not word.startswith("-")), "")  # the verb
        for word in words:
            if not word.startswith("-"):
                return word
            if not word.startswith("--") and word[-1:] in _WITH_WORD:
                next(words, "")
        return ""

    def sends(self, name: str, domain: int) -> bool:
        """Whether it migrates or saves this domain away."""
        return self.verb in ("migrate", "save") and self._domain in (name, str(domain))

    def brings(self, name: str, config: Path) -> bool:
        """Whether it builds the guest's domain now, or waits in the background to build it anew when it reboots.

        Such an xl ends with its domain, unless that reboots, and when it is suspended (xl_vmcontrol.c).
        """
        if self.guest == name:
            return self.verb in ("create", "restore") or (self.verb == "migrate-receive" and self.watches)
        return self.verb == "create" and str(config) in self.words

    @property
    def receives(self) -> bool:
        """Whether it receives a domain now."""
        return self.verb == "migrate-receive" and not self.watches


def xl_processes() -> list[XlProcess]:
    """All of them."""
    return [found for found in map(_read, _pids()) if found]


def xl_above(pid: int) -> XlProcess | None:
    """The xl that this process was started by, or one of those that started that."""
    seen = set[int]()
    while pid > 1 and pid not in seen:
        seen.add(pid)
        if found := _read(pid):
            return found
        pid = _parent(pid)[1]
    return None


def _pids() -> Iterator[int]:
    return (int(entry.name) for entry in Path("/proc").iterdir() if entry.name.isdecimal())


def _read(pid: int) -> XlProcess | None:
    place = Path("/proc", str(pid))
    try:
        words = (place / "cmdline").read_bytes().decode(errors="replace").split("\0")[:-1]
        if not words or Path(words[0]).name != "xl":
            return None
        environment = (place / "environ").read_bytes().decode(errors="replace").split("\0")
        # What goes to the background opens both (do_daemonize in xl_utils.c); a service's xl has the first as well.
        silent = (place / "fd/0").readlink() == Path("/dev/null")
        watches = silent and (place / "fd/1").readlink().name.startswith("xl-")
        directory = str((place / "cwd").readlink())
    except OSError:  # it has ended
        return None
    guest = next((each.partition("=")[2] for each in environment if each.startswith(f"{GUEST}=")), "")
    return XlProcess(pid, tuple(words), guest, watches, directory)


def _parent(pid: int) -> tuple[str, int]:
    """A process's name, as the kernel cuts it off, and its parent. proc(5): the name is in parentheses, and may have
    some. A process that has ended has neither."""
    try:
        fields = Path("/proc", str(pid), "stat").read_text(errors="replace")
    except OSError:
        return "", 0
    end = fields.rindex(")")
    return fields[fields.index("(") + 1 : end], int(fields[end:].split()[2])


def disconnect(process: XlProcess) -> None:
    """End what carries an xl's stream, and nothing else: xl then puts its domain in order by itself, and ends. To a
    file it is xl's own helper that writes."""
    for pid in _pids():
        name, parent = _parent(pid)
        if parent == process.pid and (name != _HELPER or process.verb == "save"):
            with suppress(OSError):
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
