"""One User-Mode Linux kernel as a process of the cell."""

from __future__ import annotations

import os
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path

from tests.lab.cell import Cell, child_of
from tests.lab.errors import LabError

# A host disk of the lab is a sparse file in the cell's tmpfs.
DISKS = "abcdefgh"

_MCONSOLE = """\
import socket, struct, sys
console, reply, command = sys.argv[1:]
line = socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM)
line.bind(reply)
line.settimeout(10)
line.sendto(struct.pack("=III512s", 0xCAFEBABE, 2, len(command), command.encode()), console)
failed, text = False, b""
while True:
    answer = line.recv(4096)
    error, more, size = struct.unpack("=III", answer[:12])
    failed, text = failed or bool(error), text + answer[12 : 12 + size]
    if not more:
        break
sys.stdout.write(text.decode(errors="replace"))
sys.exit(failed)
"""


@dataclass(frozen=True)
class Settings:
    """What a kernel is started with."""

    name: str
    memory: str
    disks: Sequence[str]  # the first is "COW,BASE", the root
    taps: Sequence[tuple[str, str]]  # each with the MAC address of the host's end
    environment: Mapping[str, str]  # reaches the first process
    extra: Sequence[str] = field(default=())
    before: Sequence[str] = field(default=())  # words in front of the program


class Uml:
    def __init__(self, cell: Cell, directory: Path, settings: Settings, line: int) -> None:
        """Start the kernel; its console goes to `directory`/console. `line` is its first serial line, then closed."""
        self._cell, self._directory, self.name = cell, directory, settings.name
        argv = [
            *settings.before,
            "linux.uml",
            f"mem={settings.memory}",
            f"uml_dir={directory}",
            "umid=uml",
            *(f"ubd{DISKS[n]}={disk}" for n, disk in enumerate(settings.disks)),
            *(
                f"vec{n}:transport=tap,ifname={tap},mac={mac},depth=128,gro=1"
                for n, (tap, mac) in enumerate(settings.taps)
            ),
            "root=/dev/ubda", "rw", "rootfstype=ext4", "init=/sbin/lab-init",
            "con=null", "con0=null,fd:1", "ssl=null", f"ssl0=fd:{line},fd:{line}",
            # the quickest way to compute RAID 6, which no host has: nearly a second of measuring at each boot
            "initcall_blacklist=raid6_select_algo",
            # a panic ends the process, which the test then sees at once
            "panic=1", "oops=panic",
            *settings.extra,
            *(f"{name}={value}" for name, value in settings.environment.items()),
        ]  # fmt: skip
        # a kernel takes the name of a dead one for in use: both are the same process id of their own namespaces
        shutil.rmtree(cell.path(directory / "uml"), ignore_errors=True)
        try:
            with cell.path(directory / "console").open("ab") as console:
                self._process = cell.spawn(
                    argv, pass_fds=[line], stdin=subprocess.DEVNULL, stdout=console, stderr=console,
                    env={**os.environ, "TMPDIR": str(cell.run_dir)},
                )  # fmt: skip
        finally:
            os.close(line)

    def is_on(self) -> bool:
        return self._process.poll() is None

    def kill(self) -> None:
        """End it now, as a power cut would: nothing in the host gets to know."""
        self._process_of_kernel(signal.SIGKILL)
        self._process.wait(timeout=30)

    def pause(self) -> None:
        self._process_of_kernel(signal.SIGSTOP)

    def resume(self) -> None:
        self._process_of_kernel(signal.SIGCONT)

    def plug(self, letter: str, file: Path) -> None:
        self.mconsole(f"config ubd{letter}={file}")

    def mconsole(self, command: str) -> str:
        """Say something to the kernel's management console, e.g. `config ubdb=FILE`."""
        reply = self._directory / f"mconsole-reply-{time.monotonic_ns()}"
        done = self._cell.run(
            [sys.executable, "-I", "-c", _MCONSOLE, str(self._directory / "uml/mconsole"), str(reply), command],
            check=False,
        )
        self._cell.path(reply).unlink(missing_ok=True)
        if done.returncode:
            raise LabError(f"host {self.name}: mconsole {command!r} failed: {done.stdout}{done.stderr}")
        return done.stdout

    def _process_of_kernel(self, number: signal.Signals) -> None:
        # nsenter -> unshare -> shell -> kernel
        try:
            os.kill(child_of(child_of(child_of(self._process.pid))), number)
        except (FileNotFoundError, ProcessLookupError, LabError):
            if self.is_on() and number != signal.SIGKILL:
                raise LabError(f"host {self.name} is not running") from None
