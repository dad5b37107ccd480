"""A guest with a machine of its own: SeaBIOS starts it, and QEMU reads and writes its disk through a dom0's cache."""

from __future__ import annotations

from pathlib import Path

import pytest

from tests.guestkit import bootsector
from tests.lab.world import storage
from tests.lab.xen import Dom0, XenLab
from tests.lab.xen.world import IMAGE, PATIENT, XenWorld

pytestmark = [pytest.mark.lab, pytest.mark.slow]
TICKS = 9
"""The guest writes two records a second, each of which the dom0's QEMU writes to a page of eight sectors."""


class HvmWorld(XenWorld):
    """g1 is a boot sector that writes by its firmware."""

    def define(self) -> None:
        disk = self.scratch / "boot.img"
        bootsector.make_disk(disk, bootsector.SIZE, rest=TICKS)
        self.s.put(disk, IMAGE)
        self.storkit("volume", "import", IMAGE, "g1")
        self.path = self.storkit("volume", "show", "g1")["path"]
        self.storkit("guest", "define", "g1", "--disk", "g1", "--memory", "32MiB", "--machine", "hvm")

    def disk(self) -> Path:
        copy = self.scratch / "copy.img"
        copy.write_bytes(self.s.get(self.path))
        return copy

    def wait_for_writes(self, host: Dom0, lines: int = 5) -> None:
        wanted = bootsector.last_record(self.disk()) + lines
        self.s.wait_for(lambda: bootsector.last_record(self.disk()) >= wanted, f"record {wanted}", 2 * PATIENT, every=1)


def test_guest_with_a_machine_of_its_own_moves_there_and_back(xen: XenLab, tmp_path: Path) -> None:
    world = HvmWorld(xen, tmp_path, storage("nbd-kernel"))
    world.define()
    world.storkit("guest", "start", "g1", "--on", "h1")
    world.wait_for_writes(world.h1)
    for destination in (world.h2, world.h1):
        world.migrate(destination)
    world.storkit("guest", "stop", "g1", "--force")
    assert world.domains(world.h1) == []
    report = bootsector.verify(world.disk())
    assert report.clean, report
