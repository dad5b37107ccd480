"""The cell: the namespaces that a whole lab lives in, so that the kernel itself cleans up after it.

Process 1 of the cell waits for the end of its standard input, whose other end only we hold. When we exit, crash or are
killed with -9, it ends, and with a PID namespace's first process the kernel kills every process inside, and with them
go the network namespace (bridges, taps) and the mount namespace (the tmpfs that holds every file a lab writes).
"""

from __future__ import annotations

import contextlib
import os
import subprocess
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import IO, Any

from tests.lab.errors import CommandFailed, LabError

_FIRST_PROCESS = """\
set -e
mount -t tmpfs -o mode=0755,size=90% storkit-lab "$1"
mount -t proc proc /proc
[ "$2" = shared ] || ip link set lo up
shift 2
for mounted; do umount -l "$mounted" || :; done
echo ready
trap '' INT TERM HUP
cat >/dev/null
"""


class Cell:
    """PID, mount and (unless `share_network`) network namespaces, with an empty tmpfs mounted at `run`."""

    def __init__(self, run: Path, share_network: bool = False) -> None:
        run.mkdir(parents=True, exist_ok=True)
        self.run_dir = run
        flags = ["--mount", "--pid"] if share_network else ["--mount", "--pid", "--net"]
        self._unshare = subprocess.Popen(
            ["unshare", *flags, "--propagation", "slave", "--fork", "--kill-child", "--",
             "sh", "-c", _FIRST_PROCESS, "storkit-lab", str(run), "shared" if share_network else "own",
             *_foreign_mounts(run)],
            stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=subprocess.PIPE, start_new_session=True,
        )  # fmt: skip
        assert self._unshare.stdin and self._unshare.stdout and self._unshare.stderr
        self._lifeline: IO[bytes] = self._unshare.stdin
        if self._unshare.stdout.readline() != b"ready\n":
            self._lifeline.close()
            reason = self._unshare.stderr.read().decode(errors="replace").strip()
            self._unshare.wait()
            raise LabError(f"cannot make the lab's namespaces: {reason}")
        self.pid = child_of(self._unshare.pid)
        self._enter = ["nsenter", f"--target={self.pid}", *flags, "--"]

    def argv(self, argv: Sequence[str]) -> list[str]:
        """The command that runs `argv` inside the cell, for whoever starts processes themselves."""
        return [*self._enter, *argv]

    def run(self, argv: Sequence[str], *, timeout: float = 60, check: bool = True, input: str | None = None,
            env: Mapping[str, str] | None = None) -> subprocess.CompletedProcess[str]:  # fmt: skip
        done = subprocess.run(
            self.argv(argv), capture_output=True, text=True, errors="replace", timeout=timeout, input=input,
            env=env, stdin=subprocess.DEVNULL if input is None else None,
        )  # fmt: skip
        if check and done.returncode:
            raise CommandFailed("the lab's cell", argv, done.returncode, done.stdout, done.stderr)
        return done

    def spawn(self, argv: Sequence[str], **popen: Any) -> subprocess.Popen[bytes]:
        """Start a process with a PID namespace of its own in the cell: its end, however it comes, takes all of its
        children. The shell is the namespace's first process, which could not be ended by a signal of its own."""
        first = ["sh", "-c", '"$@"; exit $?', "first", *argv]
        return subprocess.Popen(
            self.argv(["unshare", "--pid", "--fork", "--kill-child", "--", *first]), start_new_session=True, **popen
        )

    def path(self, inside: Path) -> Path:
        """Where a path inside the cell's mounts is seen from outside."""
        return Path(f"/proc/{self.pid}/root{inside}")

    def close(self) -> None:
        with contextlib.suppress(OSError):
            self._lifeline.close()
        self._unshare.wait(timeout=30)
        for stream in (self._unshare.stdout, self._unshare.stderr):
            if stream:
                stream.close()


def _foreign_mounts(run: Path) -> list[str]:
    """Mounted disks that the cell has no use for: its copy of the mount would keep their devices busy after others have
    unmounted them, as a copy made of private mounts does not follow."""
    wanted = [str(run), str(Path(__file__)), sys.prefix, sys.base_prefix, "/usr/bin", "/etc", "/var/lib", "/tmp"]
    found = []
    for line in Path("/proc/self/mounts").read_text().splitlines():
        device, where = (word.replace("\\040", " ") for word in line.split()[:2])
        if device.startswith("/dev/") and not any(f"{path}/".startswith(f"{where.rstrip('/')}/") for path in wanted):
            found.append(where)
    return found[::-1]


def child_of(pid: int) -> int:
    """The one child process of `pid`."""
    children = Path(f"/proc/{pid}/task/{pid}/children").read_text().split()
    if len(children) != 1:
        raise LabError(f"process {pid} has {len(children)} children, not 1")
    return int(children[0])


def alive(pid: int) -> bool:
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return False
    return True
