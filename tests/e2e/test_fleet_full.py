"""Fleets in a pool that has no room for all of their members, at whatever clone it ends: what there is is told as it
is, the same command goes on once there is room, and nothing stands in the way of an end."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from tests.e2e.fleets import create, golden, names, nothing_left, states
from tests.e2e.world import World
from tests.filesystems import mounted

pytestmark = pytest.mark.e2e

POOL = 24 << 20
COUNT = 4


@contextmanager
def small(make_world: Callable[..., World], format: str) -> Iterator[tuple[World, Path]]:
    """A world whose pool is on a small file system, with a golden image."""
    world = make_world(format)
    volumes = world.directory / "a/volumes"
    volumes.mkdir(parents=True)
    with mounted("tmpfs", volumes, POOL):
        golden(world)
        yield world, volumes
        world.clear()


def leave(volumes: Path, room: int) -> None:
    """Leave so many bytes on the pool's file system."""
    filler = volumes / ".filler"
    filler.unlink(missing_ok=True)
    there = os.statvfs(volumes)
    filler.write_bytes(bytes(max(0, there.f_bavail * there.f_frsize - room)))


def true(world: World) -> set[str]:
    """What `fleet list` and `fleet show` say is there, once it is seen that it is: the members that are whole."""
    (said,) = world.storkit("--json", "fleet", "list").json or [{"members": []}]
    shown = {each["name"]: each["status"] for each in said["members"]}
    if shown:
        assert shown == states(world)
    volumes, guests = set(names(world)), set(names(world, "guest"))
    for name, status in shown.items():
        assert (status == "missing") == (name not in volumes or name not in guests), (name, status, volumes, guests)
    return {name for name, status in shown.items() if status != "missing"}


def free(volumes: Path) -> int:
    there = os.statvfs(volumes)
    return there.f_bavail * there.f_frsize


SOME, ALL = (3, 8), range(11)
"""Tenths of the room that a fleet needs: it ends at its base, at its first clone, at its last, or behind that."""


@pytest.mark.parametrize(
    ("format", "tenths"),
    [("raw", SOME), *(pytest.param(each, ALL, marks=pytest.mark.slow) for each in ("raw", "qcow2"))],
)
def test_wherever_the_room_ends(make_world: Callable[..., World], format: str, tenths: Iterable[int]) -> None:
    with small(make_world, format) as (world, volumes):
        before = free(volumes)
        create(world, COUNT)
        needed = before - free(volumes)
        world.storkit("fleet", "destroy", "web")
        for tenth in tenths:
            leave(volumes, needed * tenth // 10)
            full = create(world, COUNT, ok=None)
            assert full.status == (5 if tenth < 10 else 0), full.stderr
            if full.status:
                assert "no space left" in full.stderr
                assert tenth == 0 or "everything was put back" in full.stderr  # to look into qcow2 needs room
                assert true(world) == set() and names(world) == ["debian"] and names(world, "fleet") == []
            leave(volumes, 2 * needed)
            create(world, COUNT)
            assert len(true(world)) == COUNT
            # Set back and ended where there is no room at all.
            leave(volumes, 0)
            world.storkit("fleet", "reset", "web", "--all")
            assert len(true(world)) == COUNT
            world.storkit("fleet", "destroy", "web")
            nothing_left(world)


def test_a_fleet_that_finds_no_room_to_grow_stays_as_it_is(make_world: Callable[..., World]) -> None:
    with small(make_world, "raw") as (world, volumes):
        before = free(volumes)
        create(world, 2, "--start")
        each = (before - free(volumes)) // 3
        leave(volumes, each * 3 // 2)
        full = create(world, 6, ok=5)
        assert "no space left" in full.stderr and "everything was put back" in full.stderr
        assert states(world) == {"web-01": "running", "web-02": "running"} and true(world) == {"web-01", "web-02"}
        # One of its disks is deleted by hand.
        world.storkit("fleet", "stop", "web", "--force")
        leave(volumes, 0)
        world.storkit("volume", "delete", "--force", "web-02")
        assert true(world) == {"web-01"}
        leave(volumes, 0)
        assert "no space left" in create(world, 2, ok=5).stderr and true(world) == {"web-01"}
        leave(volumes, 8 * each)
        create(world, 6)
        assert len(true(world)) == 6
        world.storkit("fleet", "destroy", "web")
        nothing_left(world)
