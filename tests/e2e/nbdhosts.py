"""Hosts on one machine for the tests of the transport nbd, and what clients do there."""

from __future__ import annotations

import os
import shutil
import signal
import subprocess
import tempfile
import time
import uuid
from collections.abc import Iterator
from contextlib import AbstractContextManager, suppress
from pathlib import Path
from typing import Any

import pytest

from storkit.core.backend import Site
from storkit.core.model import Client, Offer, Volume
from storkit.nbd import Nbd
from storkit.system.timeouts import scaled
from storkit.tech.nbd.server import NbdSettings
from storkit.tech.nbd.wire import FLUSH, WRITE, NbdConnection
from tests.e2e.world import commands

MIB = 1 << 20
A, B, N = Client("a", True), Client("local:/tmp/b", True), Client("n", False)
NEEDS_SERVER = pytest.mark.skipif(
    shutil.which("qemu-storage-daemon") is None, reason="qemu-system-common not installed"
)


class Hosts:
    """Hosts on this machine, each with directories of its own below a short path."""

    def __init__(self, root: Path) -> None:
        self.root = root

    def site(self, name: str, address: str = "127.0.0.1") -> Site:
        base = self.root / name
        for directory in ("state", "run", "dev"):
            (base / directory).mkdir(parents=True, exist_ok=True)
        return Site(name, base / "state", base / "run", base / "dev", address)

    def nbd(self, name: str, **settings: Any) -> Nbd:
        return Nbd(self.site(name), NbdSettings(**settings))

    def volume(self, name: str = "disk", *, format: str = "raw", size: int = 16 * MIB, **fields: Any) -> Volume:
        path = self.root / f"{name}.{format}"
        subprocess.run(["qemu-img", "create", "-q", "-f", format, str(path), str(size)], check=True)
        return Volume(name, str(uuid.uuid4()), size, "pool", "a", format=format, path=str(path), **fields)

    def servers(self) -> list[int]:
        """The pids of all daemons that serve from these directories."""
        return sorted(
            pid
            for pid, words in commands()
            if words[0].endswith("qemu-storage-daemon") and str(self.root) in " ".join(words)
        )

    def ports(self) -> set[int]:
        """Where they listen for TCP. Others may listen as soon as they no longer do: tests that run beside this one."""
        held = set[str]()
        for pid in self.servers():
            with suppress(OSError):
                held |= {str(file.readlink()) for file in Path(f"/proc/{pid}/fd").iterdir()}
        found = set[int]()
        for table in ("tcp", "tcp6"):
            for row in map(str.split, Path(f"/proc/net/{table}").read_text().splitlines()[1:]):
                if row[3] == "0A" and f"socket:[{row[9]}]" in held:
                    found.add(int(row[1].rpartition(":")[2], 16))
        return found

    def leftovers(self) -> list[str]:
        """Every file, socket and link below the hosts' directories, but for the pool's lock files."""
        return sorted(
            str(path.relative_to(self.root))
            for host in self.root.iterdir()
            if host.is_dir() and host.name != "x509"
            for path in host.rglob("*")
            if (path.is_symlink() or not path.is_dir()) and path.parent.name != "use"
        )

    def assert_clean(self) -> None:
        deadline = time.monotonic() + scaled(5)
        while (left := self.servers()) and time.monotonic() < deadline:
            time.sleep(0.05)
        assert left == []
        assert self.leftovers() == []


@pytest.fixture
def hosts() -> Iterator[Hosts]:
    # Not tmp_path: pytest's names are too long for Unix sockets.
    root = Path(tempfile.mkdtemp(prefix="nbd", dir="/tmp"))
    made = Hosts(root)
    yield made
    for pid in made.servers():
        os.kill(pid, signal.SIGKILL)
    shutil.rmtree(root)


def write(connection: NbdConnection, offset: int, data: bytes) -> None:
    connection.request(WRITE, offset, payload=data)
    connection.request(FLUSH)


def refused() -> AbstractContextManager[object]:
    """The server's answer to a write on an export that may not: EROFS, which QEMU 7.2 puts on the wire as EINVAL."""
    return pytest.raises(OSError, match=r"Invalid argument|Operation not permitted")


def use(offer: Offer) -> NbdConnection:
    """A client's connection to its own export over the Unix socket."""
    connection = NbdConnection(offer.socket)
    connection.go(offer.name)
    return connection


def offer(home: Nbd, volume: Volume, client: Client) -> Offer:
    return home.offers([volume], client.name)[0]


def rights(home: Nbd, volume: Volume) -> dict[str, bool]:
    assert all(export.live for export in home.find_exports([volume.uuid]))
    return {export.client: export.writable for export in home.find_exports([volume.uuid])}
