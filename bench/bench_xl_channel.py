"""The way that a Xen guest's memory takes between hosts: storkit's channel against ssh, which is xl's own way.

    python bench/bench_xl_channel.py [MIB] [RUNS]

Both carry the same bytes from a pipe to a pipe over 127.0.0.1, encrypted, each in turn. The channel is the very program
that `xl migrate -s` runs; ssh has the ciphers of its defaults, and no compression, as xl calls it.
"""

from __future__ import annotations

import atexit
import json
import os
import socket
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path
from statistics import median

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

from bench import _table
from storkit.hypervisors._xl import channel, incoming, outgoing

CHANNEL, SSH = "storkit's channel", "ssh"


def main() -> None:
    size = int(sys.argv[1] if len(sys.argv) > 1 else 512) << 20
    runs = int(sys.argv[2] if len(sys.argv) > 2 else 5)
    with tempfile.TemporaryDirectory() as name:
        there = Path(name)
        ways = {SSH: by_ssh(there), CHANNEL: by_channel(there)}
        speeds: dict[str, list[float]] = {title: [] for title in ways}
        for _ in range(runs):
            for title, way in ways.items():
                began = time.perf_counter()
                got = way(memory(there, size))
                assert got == size, f"{title}: {got} bytes of {size}"
                speeds[title].append(size / (time.perf_counter() - began) / 1e6)
    base = speeds[SSH]
    rows = [
        [title, f"{median(each):.0f}", f"{max(each):.0f}", f"{median(each) / median(base):.2f} x",
         f"{max(each) / max(base):.2f} x"]
        for title, each in speeds.items()
    ]  # fmt: skip
    _table.table(f"{size >> 20} MiB, median of {runs}", ["", "MB/s", "fastest", "of ssh's", "of ssh's fastest"], rows)


def memory(there: Path, size: int) -> int:
    """A file of random bytes, as a descriptor at its start."""
    path = there / "memory"
    if not path.exists():
        piece = os.urandom(1 << 20)
        with path.open("wb") as file:
            for _ in range(size >> 20):
                file.write(piece)
    return os.open(path, os.O_RDONLY)


def by_channel(there: Path) -> Callable[[int], int]:
    """A listening end as at the destination, and the program of the source."""
    incoming.new_key(there)
    server = socket.create_server(("127.0.0.1", 0))
    to = {"address": "127.0.0.1", "port": server.getsockname()[1]}
    (there / channel.TO).write_text(json.dumps(to))

    def carried(source: int) -> int:
        out, silent = os.pipe(), os.pipe()
        got = Counted(out[0])

        def receive() -> None:
            connection, _ = server.accept()
            with suppress(OSError), channel.secure(connection, there, server=True) as secured:
                channel.carry(secured, silent[0], out[1])
            os.close(out[1])

        receiving = threading.Thread(target=receive)
        receiving.start()
        with os.fdopen(source, "rb") as file:
            subprocess.run(["sh", "-c", outgoing.program(there)], stdin=file, check=True)
        receiving.join()
        for descriptor in silent:
            os.close(descriptor)
        return got.total()

    return carried


def by_ssh(there: Path) -> Callable[[int], int]:
    """`ssh ADDRESS cat` to an sshd of our own."""
    for key in ("host", "own"):
        subprocess.run(["ssh-keygen", "-q", "-t", "ed25519", "-N", "", "-f", there / key], check=True)
    with socket.create_server(("127.0.0.1", 0)) as free:
        port = free.getsockname()[1]
    options = [f"Port={port}", "ListenAddress=127.0.0.1", f"HostKey={there}/host", "StrictModes=no", "UsePAM=no",
               f"AuthorizedKeysFile={there}/own.pub", "PidFile=none"]  # fmt: skip
    Path("/run/sshd").mkdir(exist_ok=True)
    server = ["/usr/sbin/sshd", "-D", "-f", "/dev/null", *(f"-o{each}" for each in options)]
    daemon = subprocess.Popen(server, stderr=subprocess.DEVNULL)
    atexit.register(daemon.terminate)
    words = ["ssh", "-p", str(port), "-i", f"{there}/own", "-oBatchMode=yes", "-oStrictHostKeyChecking=no",
             "-oUserKnownHostsFile=/dev/null", "-oLogLevel=ERROR", "-oConnectionAttempts=10",
             "127.0.0.1", "cat"]  # fmt: skip

    def carried(source: int) -> int:
        out = os.pipe()
        got = Counted(out[0])
        with os.fdopen(source, "rb") as file:
            subprocess.run(words, stdin=file, stdout=out[1], check=True)
        os.close(out[1])
        return got.total()

    return carried


class Counted:
    """The bytes that come out of a pipe."""

    def __init__(self, source: int) -> None:
        self._count = 0
        self._source = source
        self._thread = threading.Thread(target=self._read)
        self._thread.start()

    def _read(self) -> None:
        while piece := os.read(self._source, 1 << 20):
            self._count += len(piece)
        os.close(self._source)

    def total(self) -> int:
        """All of them, once the pipe has ended."""
        self._thread.join()
        return self._count


if __name__ == "__main__":
    main()
