"""One guest's User-Mode Linux on one host: its processes, and the management console by which its kernel is spoken to.

A guest's kernel is a process; each program of the guest is another one, which outlives a kernel that was killed. So all
of them live in a namespace of process ids, which the kernel of the host empties when the first of them ends, however it
ends (pid_namespaces(7)). A namespace of mounts goes with it: what FUSE shows there, nobody else sees, and nothing is
left to be unmounted. An ordinary user gets both by a namespace of users (user_namespaces(7)).

    unshare            the pid file's, which has the lock and is what is killed
      sh               the first in the namespace, which ends with the guest's kernel
        qemu-storage-daemon    where a disk needs one (_uml/disks.py)
        linux.uml              the guest's kernel, and its programs
"""

from __future__ import annotations

import os
import select
import shlex
import socket
import struct
import time
from collections.abc import Iterable, Sequence
from contextlib import ExitStack, closing, suppress
from dataclasses import dataclass
from io import FileIO
from pathlib import Path
from typing import ClassVar

from storkit.core.backend import Site
from storkit.core.errors import CommandFailed, TimedOut
from storkit.core.model import GuestStatus
from storkit.hypervisors._process import GuestProcess, run_directory
from storkit.system import locks
from storkit.system.qemu import storagedaemon
from storkit.system.run import run
from storkit.system.timeouts import scaled

START_TIMEOUT = scaled(60.0)
"""Seconds for the disks to be opened, and the kernel to come as far as its console."""
ASK_TIMEOUT = scaled(2.0)
"""Seconds after which a guest that does not answer is `unknown`."""
UMID = "u"
"""The machine's name for itself, and the directory below `uml_dir` that its sockets are in: a path of 107 bytes."""
MEMORY = Path("/dev/shm")
"""Where the file is that is a guest's memory; it has no name there."""
SAID_MOST = 8 << 10
"""Bytes of a console's end that are shown."""

# linux/arch/um/drivers/mconsole.h: mconsole_request, and the head of mconsole_reply and mconsole_notify.
_REQUEST = struct.Struct("=III512s")
_REPLY = struct.Struct("=III")
_MAGIC = 0xCAFEBABE
_VERSION = 2
_ANSWER_MOST = 4096

# What a session's first process does: its words go to the log, and its number is that of the guest. unshare(1) ends its
# child with itself (--kill-child).
_BEGIN = 'exec </dev/null >"$2" 2>&1; ulimit -c 0; echo $$ >"$1"; shift 2; exec unshare "$@"'


@dataclass(frozen=True, slots=True)
class Kernel(GuestProcess):
    """The kernel of the guest `name`, alive or not."""

    kind: ClassVar[str] = "User-Mode Linux"

    @property
    def console(self) -> Path:
        """The socket of its management console."""
        return self.directory / UMID / "mconsole"

    @property
    def program(self) -> Path:
        """A link to the program, by which the kernel was started, and starts again when the guest reboots."""
        return self.directory / "kernel"

    @property
    def told(self) -> Path:
        """The socket at which a starting command is told that the management console is there."""
        return self.directory / "told"

    def launch(
        self, program: str, words: Sequence[str], daemon: Sequence[str], log: Path, console: str, lock: locks.Lock
    ) -> None:
        """Start it, and wait until its kernel answers.

        Args:
            program: the path of User-Mode Linux.
            words: its command line.
            daemon: the arguments of the daemon that shows its disks; none: it needs none.
            log: the file for what the processes say.
            console: the file that the guest's console goes to; empty: the log.
            lock: on `self.lock`, which the processes inherit.

        Raises CommandFailed: it has ended, and nothing is left of it. TimedOut: it lives, and does not answer.
        """
        self._sweep()
        self.link(program)
        argv = shlex.join([str(self.program), f"mconsole=notify:{self.told}", *words])
        # A last line, so that the shell stays: the namespace's first process is not to be the kernel, which would be
        # spared most of the signals that it sends itself.
        lines = [f"{argv} >>{shlex.quote(console)}" if console else argv, "exit $?"]
        if daemon:
            lines.insert(0, shlex.join([storagedaemon.PROGRAM, "--daemonize", *daemon]))
        script = "\n".join(["set -e", *lines])
        alive, held = os.pipe()
        with os.fdopen(alive, "rb", 0) as ended, closing(socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM)) as told:
            told.bind(str(self.told))
            try:
                for descriptor in (held, lock.descriptor):
                    os.set_inheritable(descriptor, True)
                begin = ["setsid", "--fork", "sh", "-c", _BEGIN, "sh", str(self.pidfile), str(log)]
                memory = {"TMPDIR": str(MEMORY)} if MEMORY.is_dir() else {}
                run([*begin, *namespaces(), "sh", "-c", script], env=memory, pass_fds=[held, lock.descriptor])
            finally:
                os.close(held)
            self._wait_until_told(told, ended, program)

    def _wait_until_told(self, told: socket.socket, ended: FileIO, program: str) -> None:
        """Wait for the kernel's word, or for the end of the last process that has inherited the pipe."""
        poll = select.poll()
        poll.register(told, select.POLLIN)
        poll.register(ended, select.POLLIN)
        ready = {descriptor for descriptor, _ in poll.poll(START_TIMEOUT * 1000)}
        if told.fileno() in ready:
            return
        if ready:
            raise CommandFailed([program], 1, "it has ended")
        raise TimedOut(
            f"the kernel of guest {self.name} does not answer {START_TIMEOUT:g} seconds after its start",
            f"storkit guest stop {self.name} --force",
        )

    def link(self, program: str) -> None:
        """What the guest's kernel is when it starts, and when the guest reboots."""
        new = self.program.with_suffix(".new")
        new.unlink(missing_ok=True)
        new.symlink_to(program)
        new.replace(self.program)

    def shut_down(self) -> None:
        """Press Ctrl-Alt-Del, which every init takes for a reboot; and what is booted then is a program that ends.

        Where the command that waits for it is killed, that is so at the guest's next reboot.
        """
        self.link("/bin/true")
        with closing(_line()) as line:
            _send(line, self.console, "cad")

    def _sweep(self) -> None:
        for path in (self.pidfile, self.told, self.console, self.console.with_name("pid")):
            path.unlink(missing_ok=True)


def namespaces() -> list[str]:
    """The arguments of unshare(1) for a guest's namespaces. What is unmounted on the host is unmounted there too."""
    user = [] if os.geteuid() == 0 else ["--user", "--map-root-user"]
    return [*user, "--mount", "--propagation", "slave", "--pid", "--fork", "--kill-child"]


def kernel(site: Site, name: str) -> Kernel:
    """The kernel of the guest `name` on the host `site`."""
    return Kernel(name, run_directory(site, "uml", name))


def ask(kernels: Iterable[Kernel]) -> dict[str, GuestStatus]:
    """What these guests are, by name, asked at the same time. One that lives and does not answer is `starting` or
    `unknown`."""
    found: dict[str, GuestStatus] = {}
    with ExitStack() as stack:
        asked = []
        for each in kernels:
            if not each.alive():
                found[each.name] = "stopped"
                continue
            starting = each.starting()  # before it is asked: it may be ready a moment after it has not answered
            line = stack.enter_context(closing(_line()))
            asked.append((each, starting, line, _send(line, each.console, "version")))
        deadline = time.monotonic() + ASK_TIMEOUT
        for each, starting, line, sent in asked:
            if sent and _answered(line, deadline):
                found[each.name] = "running"
            else:
                found[each.name] = "stopped" if not each.alive() else "starting" if starting else "unknown"
    return found


def end_of(*files: Path) -> str:
    """The ends of logs, as text."""
    said = []
    for file in files:
        with suppress(FileNotFoundError), file.open("rb") as opened:
            opened.seek(max(0, file.stat().st_size - SAID_MOST))
            said.append(opened.read(SAID_MOST).decode(errors="replace").strip())
    return "\n".join(filter(None, said))


def _line() -> socket.socket:
    """A socket with a name of its own in no directory, which the kernel of a guest answers to (unix(7), autobind)."""
    line = socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM)
    line.bind("")
    return line


def _send(line: socket.socket, console: Path, command: str) -> bool:
    """Whether there is somebody to be told this. One that hangs may have no room for a further word."""
    data = command.encode()
    try:
        line.sendto(_REQUEST.pack(_MAGIC, _VERSION, len(data), data), socket.MSG_DONTWAIT, str(console))
    except OSError:
        return False
    return True


def _answered(line: socket.socket, deadline: float) -> bool:
    """Whether the answer comes in time, and is no failure."""
    line.settimeout(max(0.001, deadline - time.monotonic()))
    try:
        answer = line.recv(_ANSWER_MOST)
    except OSError:
        return False
    return len(answer) >= _REPLY.size and _REPLY.unpack_from(answer)[0] == 0
