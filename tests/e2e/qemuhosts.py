"""Two hosts with plain QEMU on one machine, and guests for them."""

from __future__ import annotations

import shutil
import threading
import time
import uuid
from collections.abc import Callable
from pathlib import Path

import pytest

from storkit.core.backend import Site
from storkit.core.guest import Disk, Guest
from storkit.core.model import DiskSource
from storkit.hypervisors._qemu.settings import QemuSettings
from storkit.hypervisors.qemu import Qemu
from storkit.system.files import make_private
from storkit.system.timeouts import scaled
from tests.e2e.world import REST
from tests.guestkit import bootsector, linux

NAME = "g1"
SLOW = QemuSettings(accel="tcg", bandwidth=100_000)
"""So slow that a test can act in the middle of a migration."""


def wait_until(condition: Callable[[], bool], what: str, timeout: float = scaled(30.0)) -> None:
    deadline = time.monotonic() + timeout
    while not condition():
        if time.monotonic() > deadline:
            pytest.fail(f"{what}: not within {timeout:g} s")
        time.sleep(0.02)


class Hosts:
    """Two hosts, a and b, and the disk that both reach."""

    def __init__(self, base: Path) -> None:
        self.base = base
        self.disk = base / "disk.img"
        self.moving = threading.Event()
        self.a = self.host("a")
        self.b = self.host("b")

    def host(self, name: str, settings: QemuSettings | None = None, address: str = "") -> Qemu:
        place = self.base / name
        site = Site(name, place / "state", place / "run", place / "dev", address, self._progress)
        for directory in (site.state, site.run, site.dev):
            make_private(directory)
        return Qemu(site, settings or QemuSettings(accel="tcg"))

    def _progress(self, fraction: float, text: str) -> None:
        if fraction > 0:
            self.moving.set()

    @property
    def console(self) -> Path:
        return self.base / "console"

    def boot_sector(self, name: str = NAME) -> Guest:
        bootsector.make_disk(self.disk, rest=REST)
        disk = Disk("v1", uuid=str(uuid.uuid4()))
        return Guest(name, str(uuid.uuid4()), 16 << 20, disks=[disk], console=str(self.console))

    def linux(self) -> Guest:
        kit = linux.build()
        shutil.copyfile(kit.root, self.disk)
        return linux.guest(kit, NAME, str(uuid.uuid4()), Disk("v1", uuid=str(uuid.uuid4())), str(self.console))

    def define(self, guest: Guest) -> None:
        """On a, and on b with a's machine type."""
        source = [DiskSource("file", str(self.disk))]
        self.a.define(guest, source)
        self.b.define(guest, source, self.a.find([guest.name])[0].machine)

    def start(self, guest: Guest) -> None:
        self.define(guest)
        self.a.start(guest.name)
        self.writes_on()

    def writes_on(self, count: int = 20) -> None:
        """Wait for further records: the guest runs, and its disk takes them."""
        last = bootsector.last_record(self.disk)
        wait_until(lambda: bootsector.last_record(self.disk) >= last + count, "the guest does not write")

    def pid(self, host: Qemu) -> int:
        return host.find([NAME])[0].pid

    def end(self) -> None:
        for host in (self.a, self.b):
            for state in host.find():
                host.stop(state.name, force=True)


def status(host: Qemu) -> str:
    return host.find([NAME])[0].status
