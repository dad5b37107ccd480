"""A volume gets another pool: its name, UUID, content and guest stay, and it is one disk at every moment."""

from __future__ import annotations

import subprocess
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.e2e.world import INVENTORY, World

pytestmark = pytest.mark.e2e

MIB = 1 << 20
MORE = """\
[pools.thick]
host = "a"
path = "{directory}/thick"
format = "{other}"
[pools.far]
host = "b"
format = "{other}"
"""


@pytest.fixture
def moving(tmp_path: Path) -> Iterator[World]:
    (tmp_path / "thick").mkdir()
    text = INVENTORY.format(format="raw") + MORE.format(directory=tmp_path, other="qcow2")
    world = World(tmp_path, inventory=text)
    yield world
    left = world.processes()
    world.clear()
    assert not left


def fill(world: World, name: str, byte: int, offset: int = 0, length: int = MIB) -> None:
    shown = world.storkit("--json", "volume", "show", name).json
    command = f"write -P {byte} {offset} {length}"
    subprocess.run(["qemu-io", "-f", shown["format"], "-c", command, shown["path"]], check=True, capture_output=True)


def holds(world: World, name: str, byte: int, offset: int = 0, length: int = MIB) -> bool:
    shown = world.storkit("--json", "volume", "show", name).json
    argv = ["qemu-io", "-r", "-f", shown["format"], "-c", f"read -P {byte} {offset} {length}", shown["path"]]
    done = subprocess.run(argv, capture_output=True)
    return done.returncode == 0 and b"verification failed" not in done.stdout


def test_there_and_back(moving: World) -> None:
    moving.storkit("volume", "create", "v", "64MiB")
    fill(moving, "v", 7, 5 * MIB)
    before = moving.storkit("--json", "volume", "show", "v").json
    for pool, host in (("far", "b"), ("thick", "a"), ("default", "a")):
        (done,) = moving.storkit("--json", "volume", "move", "v", "--to", pool).json
        assert (done["uuid"], done["pool"], done["host"]) == (before["uuid"], pool, host)
        assert done["created"] == before["created"]
        assert holds(moving, "v", 7, 5 * MIB) and holds(moving, "v", 0, 6 * MIB, 50 * MIB)
        assert Path(done["path"]).stat().st_blocks * 512 < 3 * MIB
        assert len(moving.storkit("--json", "volume", "list").json) == 1
    (again,) = moving.storkit("--json", "volume", "move", "v", "--to", "default").json
    assert again["was_in"] == ""


def twins(world: World, name: str) -> list[str]:
    """The pools that have a volume of this name which may be used, after what is refused of the others was tried."""
    found = [each for each in world.storkit("--json", "volume", "list").json if each["name"] == name]
    assert len({each["uuid"] for each in found}) == 1 and len(found) in (1, 2)
    return [each["pool"] for each in found if each["made"] not in ("importing", "moving")]


def copies(world: World, name: str) -> list[Path]:
    """The files that a volume has anywhere."""
    return [*world.directory.rglob(f"{name}.raw"), *world.directory.rglob(f"{name}.qcow2")]


WAYS = ("again", "resume", "rollback", "back")


def mend(world: World, way: str, pool: str) -> None:
    open_ = [each["id"] for each in world.storkit("--json", "plan", "list").json if each["status"] == "interrupted"]
    if way == "again" or not open_:
        world.storkit("volume", "move", "g", "--to", pool)
    elif way == "back":
        world.storkit("volume", "move", "g", "--to", "default")
    else:
        done = world.storkit("plan", way, open_[0], ok=None)
        assert done.status in (0, 10), done.stderr
        if done.status:
            assert "alone by now" in done.stderr, done.stderr
            world.storkit("plan", "resume", open_[0])


@pytest.mark.parametrize(
    "point", [pytest.param(n, marks=() if n in (8, 17, 24) else pytest.mark.slow) for n in range(1, 28)]
)
def test_killed_anywhere_it_is_one_disk_and_is_mended(moving: World, point: int) -> None:
    """Under whatever way of going on."""
    moving.guest()
    start = moving.disk().read_bytes()
    pool = "far"
    for way in WAYS if point not in (8, 17, 24) else WAYS[point % 4 :][:2]:
        moving.killed(f"after:{point}", "volume", "move", "g", "--to", pool)
        assert len(twins(moving, "g")) <= 1
        shown = moving.storkit("--json", "volume", "show", "g").json
        if shown["made"] == "moving":
            assert moving.storkit("attach", "g", "--on", "a", ok=None).status in (5, 9)
        mend(moving, way, pool)
        assert len(twins(moving, "g")) == 1 and len(copies(moving, "g")) == 1, way
        assert moving.disk().read_bytes() == start, way
        assert [each for each in moving.storkit("--json", "plan", "list").json if each["status"] == "interrupted"] == []
        assert moving.storkit("--json", "guest", "show", "g").json["kept"]["generation"] == 1
        moving.storkit("volume", "move", "g", "--to", "default")
        assert len(copies(moving, "g")) == 1
