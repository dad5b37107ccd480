"""Hosts are emptied and filled again and again, and one dies: on real kernels, with guests that write all the time."""

from __future__ import annotations

import time
from pathlib import Path

import pytest

from tests.lab.lab import Lab
from tests.lab.world import World, storage

pytestmark = [pytest.mark.lab, pytest.mark.slow]
GUESTS = ("g1", "g2")
MOVES = 200


def started(lab: Lab, scratch: Path, stored: str) -> World:
    """Two guests run on a, and write; commands are given on s."""
    world = World(lab, scratch, storage(stored), commands="s")
    for name in GUESTS:
        world.define(name)
    world.storkit("guest", "start", *GUESTS, "--on", "a")
    return world


def places(world: World) -> dict[str, dict[str, str]]:
    return {each["guest"]: each["places"] for each in world.storkit("migrate", "status")}


def end(world: World) -> None:
    for name in GUESTS:
        report = world.clear(name)
        assert report.clean, f"{name}: {report}"
    left = world.left()
    assert not left, "\n".join(left)


@pytest.mark.parametrize("stored", ["iscsi", "nbd-kernel"])
def test_hosts_are_drained_in_turn(lab: Lab, tmp_path: Path, stored: str) -> None:
    world = started(lab, tmp_path, stored)
    here, there = "a", "b"
    for _ in range(MOVES // len(GUESTS)):
        moved = world.storkit("host", "drain", here, "--to", there)
        assert places(world) == {name: {there: "running"} for name in GUESTS}, moved
        world.storkit("host", "undrain", here)
        here, there = there, here
    for name in GUESTS:
        world.wait_for_writes(name)
    end(world)


def test_a_host_that_died_is_evacuated_and_comes_back(lab: Lab, tmp_path: Path) -> None:
    world = started(lab, tmp_path, "iscsi")
    for name in GUESTS:
        world.wait_for_writes(name)
    world.a.power_off()
    begun = time.monotonic()
    evacuated = world.storkit("host", "evacuate", "a", "--to", "b")
    seconds = time.monotonic() - begun
    assert evacuated["started"] == [{"guest": name, "host": "b"} for name in GUESTS], evacuated
    print(f"two guests started elsewhere {seconds:.1f} s after the word")
    # nothing of the guests, and no right, on the host that comes back
    world.boot(world.a)
    assert places(world) == {name: {"b": "running"} for name in GUESTS}
    refused = world.run("attach", "g1", "--on", "a")
    assert refused.status, refused
    world.storkit("unfence", "a")
    for name in GUESTS:
        world.migrate("a", name)
    # each began once more, which shows as a time stamp that is smaller than the one before
    for name in GUESTS:
        world.storkit("guest", "stop", name, "--force")
        report = world.report(name)
        assert not report.gaps and not report.torn and len(report.backwards) <= 1, f"{name}: {report}"
        world.delete(name)
    left = world.left()
    assert not left, "\n".join(left)
