"""A guest moves from a to b and back, over every storage and hypervisor there is, and nothing is lost or left."""

from __future__ import annotations

from pathlib import Path

import pytest

from tests.lab.lab import Lab
from tests.lab.world import Storage, World, each, worlds

pytestmark = pytest.mark.lab


USUAL = ("iscsi-own-qemu", "nfs-libvirt")


@pytest.mark.parametrize("combination", each(worlds(), USUAL))
def test_guest_moves_there_and_back(lab: Lab, tmp_path: Path, combination: tuple[Storage, str]) -> None:
    world = World(lab, tmp_path, *combination)
    world.define()
    world.storkit("guest", "start", "g", "--on", "a")
    world.wait_for_writes()
    for destination in ("b", "a"):
        world.migrate(destination)
    report = world.clear()
    assert report.clean, report
    left = world.left()
    assert not left, "\n".join(left)
