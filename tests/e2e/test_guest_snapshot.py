"""All disks of a guest kept at one instant, while it runs and while it does not, and set back."""

from __future__ import annotations

import tempfile
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.e2e.world import World
from tests.filesystems import mounted
from tests.guestkit import bootsector

pytestmark = pytest.mark.e2e


@pytest.fixture
def sharing() -> Iterator[World]:
    """A world on a file system that shares blocks, with a guest of two disks."""
    with tempfile.TemporaryDirectory(prefix="sk-") as scratch:
        at = Path(scratch, "w")
        at.mkdir()
        with mounted("xfs", at, 400 << 20):
            world = World(at)
            two_disks(world)
            yield world
            world.clear()


def two_disks(world: World) -> None:
    world.guest()
    world.storkit("volume", "create", "data", "1MiB")
    world.storkit("guest", "define", "g", "--replace", "--disk", "g", "--disk", "data")


def plans(world: World) -> list[str]:
    return [each["status"] for each in world.storkit("--json", "plan", "list").json]


def test_while_it_runs_and_set_back(sharing: World) -> None:
    world = sharing
    world.storkit("guest", "start", "g", "--on", "b")
    disk = world.disk()
    world.wait_for_writes(disk, 5)
    kept = world.storkit("--json", "guest", "snapshot", "g", "monday").json
    assert kept == {"guest": "g", "snapshots": {"g": "g.monday", "data": "data.monday"}, "paused": True, "frozen": 0}
    then = bootsector.last_record(world.disk("g.monday"))
    assert world.status()["places"] == {"b": "running"} and then >= 5
    world.wait_for_writes(disk, then + 5)
    assert bootsector.verify(world.disk("g.monday")).clean
    assert "exists already" in world.storkit("guest", "snapshot", "g", "monday", ok=5).stderr
    refused = world.storkit("guest", "revert", "g", "monday", ok=5)
    assert "running on b" in refused.stderr
    world.storkit("guest", "stop", "g", "--force")
    assert "was not kept as g.tuesday" in world.storkit("guest", "revert", "g", "tuesday", ok=None).stderr
    back = world.storkit("--json", "guest", "revert", "g", "monday").json
    assert all(each.startswith(f"{name}.before-") for name, each in back["volumes"].items()), back
    assert bootsector.last_record(world.disk()) == then
    world.storkit("guest", "start", "g", "--on", "a")
    world.wait_for_writes(world.disk(), then + 2)
    world.storkit("guest", "stop", "g", "--force")
    report = bootsector.verify(world.disk())
    assert (report.gaps, report.torn, report.backwards) == ([], [], [then + 1]), report  # it was booted again there


POINTS = ("after:3", "after:4", "after:6", "after:8")


@pytest.mark.parametrize("point", [POINTS[1], *(pytest.param(each, marks=pytest.mark.slow) for each in POINTS[::2])])
@pytest.mark.parametrize("way", ["resume", "rollback"])
def test_killed_the_guest_goes_on_when_the_plan_does(sharing: World, point: str, way: str) -> None:
    world = sharing
    world.storkit("guest", "start", "g")
    assert world.killed(point, "guest", "snapshot", "g", "now").status == -9
    (plan,) = [each["id"] for each in world.storkit("--json", "plan", "list").json if each["status"] == "interrupted"]
    world.storkit("plan", way, plan)
    assert world.status()["places"] == {"a": "running"}
    written = bootsector.last_record(world.disk())
    world.wait_for_writes(world.disk(), written)
    names = [each["name"] for each in world.storkit("--json", "volume", "list").json]
    assert names == (["data", "data.now", "g", "g.now"] if way == "resume" else ["data", "g"])
    world.storkit("guest", "stop", "g", "--force")


def test_one_that_stands_still_stays_so_and_one_that_is_stopped_too(world: World) -> None:
    """On any pool: nobody has the disks."""
    two_disks(world)
    kept = world.storkit("--json", "guest", "snapshot", "g", "first").json
    assert kept["paused"] is False
    world.storkit("guest", "start", "g")
    refused = world.storkit("guest", "snapshot", "g", "second", ok=None)
    assert refused.status == 5 and "in use" in refused.stderr
    assert world.status()["places"] == {"a": "running"}
    assert "interrupted" not in plans(world)
    world.storkit("guest", "stop", "g", "--force")
    names = [each["name"] for each in world.storkit("--json", "volume", "list").json]
    assert names == ["data", "data.first", "g", "g.first"]
    for words in (("guest", "snapshot", "g", "no good"), ("guest", "snapshot", "nobody", "x")):
        assert world.storkit(*words, ok=None).status in (2, 4)
