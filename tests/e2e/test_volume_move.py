"""A volume gets another pool: its name, UUID, content and guest stay, and it is one disk at every moment."""

from __future__ import annotations

import subprocess
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
def moving(tmp_path: Path) -> World:
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
