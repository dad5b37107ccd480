"""A volume gets another pool while its guest writes all the time: the guest goes on, and there is one disk."""

from __future__ import annotations

import os
import subprocess
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from tests.e2e.world import INVENTORY, World
from tests.guestkit import bootsector

pytestmark = pytest.mark.e2e

MIB = 1 << 20
MORE = """\
[pools.far]
host = "b"
format = "{other}"
"""


@pytest.fixture
def moving(tmp_path: Path) -> Iterator[World]:
    world = World(tmp_path, inventory=INVENTORY.format(format="raw") + MORE.format(other="raw"))
    yield world
    left = world.processes()
    world.clear()
    assert not left


def large(world: World, size: int = 64 * MIB) -> None:
    """A guest whose disk has holes, and data at its end."""
    image = world.directory / "boot.img"
    bootsector.make_disk(image)
    os.truncate(image, size)
    command = f"write -P 7 {size - 8 * MIB} 4M"
    subprocess.run(["qemu-io", "-f", "raw", "-c", command, str(image)], check=True, capture_output=True)
    world.storkit("volume", "import", image, "g")
    world.storkit("guest", "define", "g", "--disk", "g", "--memory", "16MiB")
    world.storkit("guest", "start", "g")
    world.wait_for_writes(path(world), 0)


def shown(world: World) -> dict[str, Any]:
    found: dict[str, Any] = world.storkit("--json", "volume", "show", "g").json
    return found


def path(world: World) -> Path:
    return Path(shown(world)["path"])


def made(world: World) -> dict[str, str]:
    return {each["pool"]: each["made"] for each in world.storkit("--json", "volume", "list").json}


def copies(world: World) -> list[Path]:
    return [*world.directory.rglob("g.raw"), *world.directory.rglob("g.qcow2")]


def whole(disk: Path, least: int) -> None:
    """The guest's records are all there, none is torn, and the last is not before `least`."""
    report = bootsector.verify(disk)
    assert report.clean, report
    assert bootsector.last_record(disk) >= least
    size = disk.stat().st_size
    with disk.open("rb") as file:
        file.seek(size - 8 * MIB)
        assert file.read(4 * MIB) == bytes([7]) * (4 * MIB)


def test_there_and_back_under_writes(moving: World) -> None:
    large(moving)
    before = shown(moving)
    (done,) = moving.storkit("--json", "volume", "move", "g", "--to", "far").json
    print(f"the guest stood still for {done['stall_ms']} ms")
    assert (done["pool"], done["was_in"], done["guest"], done["uuid"]) == ("far", "default", "g", before["uuid"])
    assert done["digest"].startswith("blocks-sha256:")
    here = path(moving)
    assert copies(moving) == [here] and here.is_relative_to(moving.directory / "b")
    assert here.stat().st_blocks * 512 < 16 * MIB, "sparse stays sparse"
    last = moving.wait_for_writes(here, bootsector.last_record(here))
    assert moving.running() == ["a"]
    assert moving.storkit("--json", "audit").json == []
    moving.storkit("migrate", "run", "g", "--to", "b")
    assert moving.running() == ["b"]
    last = moving.wait_for_writes(here, last)
    moving.storkit("volume", "move", "g", "--to", "default")
    last = moving.wait_for_writes(path(moving), last)
    moving.storkit("guest", "stop", "g", "--force")
    whole(path(moving), last)
    moving.storkit("guest", "start", "g", "--on", "b")
    moving.wait_for_writes(path(moving), last)
    moving.storkit("guest", "stop", "g", "--force")
    assert moving.storkit("--json", "audit").json == []
