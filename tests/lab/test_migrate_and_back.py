"""Hosts are ready, and a guest moves from a to b and back, over every storage and hypervisor there is, and nothing is
lost or left."""

from __future__ import annotations

from pathlib import Path

import pytest

from tests.lab.lab import Lab
from tests.lab.world import Storage, World, each, worlds

pytestmark = pytest.mark.lab


@pytest.mark.parametrize("combination", each(worlds(), ["nfs-libvirt"]))
def test_guest_moves(lab: Lab, tmp_path: Path, combination: tuple[Storage, str]) -> None:
    moves(World(lab, tmp_path, *combination), "b")


@pytest.mark.parametrize("combination", each(worlds(), []))
def test_guest_moves_there_and_back(lab: Lab, tmp_path: Path, combination: tuple[Storage, str]) -> None:
    moves(World(lab, tmp_path, *combination), "b", "a")


def moves(world: World, *destinations: str) -> None:
    ready = world.storkit("host", "check")
    assert {host["host"]: host["problems"] for host in ready} == {host.name: [] for host in world.hosts}
    world.define()
    world.storkit("guest", "start", "g", "--on", "a")
    world.wait_for_writes()
    for destination in destinations:
        world.migrate(destination)
    report = world.clear()
    assert report.clean, report
    left = world.left()
    assert not left, "\n".join(left)
