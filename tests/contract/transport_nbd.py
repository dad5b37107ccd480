"""NBD to test: over the Unix socket with both formats, over TCP with a pre-shared key; in the lab between two hosts."""

from __future__ import annotations

import os
import shutil
import signal
import tempfile
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

import pytest

from storkit.core.model import Attachment, Client, Volume
from storkit.system import locks
from tests.contract.rig import Rig, RigSetup, wait_until
from tests.e2e.nbdhosts import Hosts
from tests.lab.host import Host
from tests.lab.remote import LabRig, LabSetup, lab_rig


class NbdRig(Rig):
    def __init__(self, hosts: Hosts, format: str, same_machine: bool) -> None:
        self._hosts, self._format = hosts, format
        self.home, self.far = hosts.nbd("a"), hosts.nbd("b")
        self.a, self.b = Client("a", True), Client("b", same_machine)

    def volume(self, name: str, size: int = 16 << 20, **fields: Any) -> Volume:
        return self._hosts.volume(name, format=self._format, size=size, **fields)

    def grow(self, volume: Volume, size: int) -> Volume:
        if volume.format == "raw":
            os.truncate(volume.path, size)
        return replace(volume, size=size)

    def kill_servers(self) -> None:
        for pid in self._hosts.servers():
            os.kill(pid, signal.SIGKILL)
        # A process loses its command line first, and its last thread closes its files, and with them its locks, later.
        wait_until(lambda: not any(map(locks.held, self._hosts.root.rglob("*.lock"))))

    def disconnect(self, attachment: Attachment) -> None:
        """QEMU itself is the client: what this host has is the path alone."""
        Path(attachment.path).unlink()

    def leftovers(self) -> list[str]:
        return [f"process {pid}" for pid in self._hosts.servers()] + self._hosts.leftovers()


@contextmanager
def _rig(format: str, same_machine: bool) -> Iterator[Rig]:
    if shutil.which("qemu-storage-daemon") is None:
        pytest.skip("qemu-system-common not installed")
    # Not pytest's tmp_path: its names are too long for Unix sockets.
    root = Path(tempfile.mkdtemp(prefix="nbd", dir="/tmp"))
    rig = NbdRig(Hosts(root), format, same_machine)
    try:
        yield rig
    finally:
        rig.kill_servers()
        shutil.rmtree(root)


class NbdLabRig(LabRig):
    transport = "nbd"

    def prepare(self, host: Host) -> None:
        """User space alone: there is nothing to start."""

    def disconnect(self, attachment: Attachment) -> None:
        self.run(attachment.host, "rm", attachment.path)


class NbdKernelLabRig(NbdLabRig):
    """Block devices: on the server's own machine straight from its socket, on the other through a relay."""

    settings: Mapping[str, Any] = {"attach": "kernel"}

    def prepare(self, host: Host) -> None:
        # Otherwise the first attach loads it, and its 16 idle devices stay.
        host.run(["modprobe", "-a", "nbd", "dm-mod"])
        host.run(["udevadm", "settle"])

    def disconnect(self, attachment: Attachment) -> None:
        script = 'for n in /sys/block/nbd*; do if grep -qs "$1" $n/backend; then nbd-client -d /dev/${n##*/}; fi; done'
        self.run(attachment.host, "sh", "-c", script, "sh", f"storkit:{attachment.uuid}:")


def lab_setups() -> dict[str, LabSetup]:
    return {"psk": lab_rig(NbdLabRig), "kernel": lab_rig(NbdKernelLabRig)}


def setups() -> dict[str, RigSetup]:
    return {
        "unix-raw": partial(_rig, "raw", True),
        "unix-qcow2": partial(_rig, "qcow2", True),
        "psk": partial(_rig, "raw", False),
    }
