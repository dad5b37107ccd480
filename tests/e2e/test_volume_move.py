"""A volume gets another pool: its name, UUID, content and guest stay, and it is one disk at every moment."""

from __future__ import annotations

import subprocess
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.e2e.world import INVENTORY, World
from tests.guestkit import bootsector

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
    "point", [pytest.param(n, marks=() if n in (17, 24) else pytest.mark.slow) for n in range(1, 28)]
)
def test_killed_anywhere_it_is_one_disk_and_is_mended(moving: World, point: int) -> None:
    """Under whatever way of going on."""
    moving.guest()
    start = moving.disk().read_bytes()
    pool = "far"
    for way in WAYS if point not in (17, 24) else WAYS[point % 4 :][:2]:
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


def test_a_guest_goes_with_its_disk_and_starts_from_the_new_place(moving: World) -> None:
    """No edit is needed, by whoever keeps its files, nor by whoever has none."""
    moving.guest()
    moving.storkit("guest", "start", "g")
    path = Path(moving.storkit("--json", "volume", "show", "g").json["path"])
    moving.wait_for_writes(path, 0)
    for words in (("volume", "move", "g", "--to", "thick"), ("guest", "move", "g", "--to", "b")):
        refused = moving.storkit(*words, ok=5).stderr
        assert "nothing was changed" in refused or "--stop" in refused
    moving.storkit("guest", "stop", "g", "--force")
    before = moving.disk().read_bytes()
    moving.storkit("volume", "move", "g", "--to", "thick")
    assert moving.disk().read_bytes() == before
    last = bootsector.last_record(moving.disk())
    done = moving.storkit("--json", "guest", "move", "g", "--to", "b", "--start").json
    assert done["host"] == "b" and done["volumes"] == [{"volume": "g", "pool": "far", "was_in": "thick"}]
    assert moving.running() == ["b"] and len(copies(moving, "g")) == 1
    (copy,) = copies(moving, "g")
    moving.wait_for_writes(copy, last)
    moving.storkit("guest", "stop", "g", "--force")
    (moving.directory / "guests" / "g.toml").unlink()
    assert moving.storkit("--json", "guest", "list").json[0]["name"] == "g"
    moving.storkit("guest", "move", "g", "--to", "a", "--pool", "thick")
    moving.storkit("guest", "start", "g")
    assert moving.running() == ["a"]
    moving.storkit("guest", "stop", "g", "--force")


def test_what_is_refused_changes_nothing(moving: World) -> None:
    moving.storkit("volume", "create", "v", "1MiB")
    moving.storkit("volume", "create", "w", "1MiB", "--pool", "far")
    for words, status, why in (
        (("v", "--to", "none"), 4, "none"),
        (("x", "--to", "far"), 4, "x"),
        (("v", "--to", "far", "--rate", "5B"), 2, "few"),
    ):
        assert why in moving.storkit("volume", "move", *words, ok=status).stderr
    moving.storkit("attach", "v", "--on", "a", "--read-only")
    assert "is exported to a" in moving.storkit("volume", "move", "v", "--to", "far", ok=5).stderr
    moving.storkit("detach", "v", "--on", "a")
    stranger = moving.directory / "b" / "volumes" / "v.qcow2"
    stranger.write_text("somebody's")
    assert "in the way" in moving.storkit("volume", "move", "v", "--to", "far", ok=5).stderr
    assert stranger.read_text() == "somebody's"
    stranger.unlink()
    assert "copy v from pool default to pool far" in moving.storkit("-n", "volume", "move", "v", "--to", "far").stdout
    assert {each["pool"] for each in moving.storkit("--json", "volume", "list").json} == {"default", "far"}


def test_golden_images_and_snapshots_move_and_a_snapshot_stays(moving: World) -> None:
    moving.storkit("volume", "create", "v", "1MiB")
    fill(moving, "v", 3)
    (done,) = moving.storkit("--json", "volume", "move", "v", "--to", "far", "--keep", "--rate", "100MiB").json
    assert done["kept"].startswith("v.before-") and holds(moving, done["kept"], 3) and holds(moving, "v", 3)
    (kept,) = moving.storkit("--json", "volume", "move", done["kept"], "--to", "far").json
    assert kept["kind"] == "snapshot"
    fill(moving, "v", 4)
    moving.storkit("volume", "restore", "v", kept["name"], "--discard")
    assert holds(moving, "v", 3), "in the pool of its disk again, it is restored"

    image = moving.directory / "golden.img"
    image.write_bytes(bytes([9]) * MIB)
    moving.storkit("volume", "import", image, "golden", "--golden", "--pool", "far")
    moving.storkit("volume", "clone", "golden", "c")
    refused = moving.storkit("volume", "move", "golden", "--to", "default", ok=5).stderr
    assert "c stands on it" in refused and "volume flatten c" in refused
    moving.storkit("volume", "move", "c", "--to", "thick")
    (done,) = moving.storkit("--json", "volume", "move", "golden", "--to", "default").json
    assert done["kind"] == "image" and holds(moving, "golden", 9) and holds(moving, "c", 9)
    assert moving.storkit("--json", "image", "verify", "golden", ok=None).status in (0, 3, 5)


def test_the_same_storage_under_two_names_is_not_taken_for_two(moving: World) -> None:
    text = moving.inventory.read_text()
    moving.inventory.write_text(text + f'[pools.same]\nhost = "b"\npath = "{moving.directory}/a/volumes"\n')
    moving.storkit("volume", "create", "v", "1MiB", "--pool", "default", ok=None)
    before = [each["pool"] for each in moving.storkit("--json", "volume", "list").json]
    moving.storkit("volume", "move", "default/v", "--to", "same", ok=None)
    assert [each["pool"] for each in moving.storkit("--json", "volume", "list").json] == before
    assert len(copies(moving, "v")) == 1


def made(world: World, name: str) -> dict[str, str]:
    found = [each for each in world.storkit("--json", "volume", "list").json if each["name"] == name]
    return {each["pool"]: each["made"] for each in found}


def test_what_is_moving_is_opened_only_where_its_copy_can_be_asked_for(moving: World) -> None:
    """The copy may be the disk by now, and be in use there."""
    moving.storkit("volume", "create", "v", "1MiB")
    text = moving.inventory.read_text()
    seen = set[str]()
    for number in range(30, 14, -1):
        to = "far" if moving.storkit("--json", "volume", "show", "v").json["pool"] == "default" else "default"
        if moving.killed(f"after:{number}", "volume", "move", "v", "--to", to).status != -9:
            continue
        states = made(moving, "v")
        if to == "far" and states.get("default") == "moving" and states.get("far") not in seen:
            seen.add(states["far"])
            moving.inventory.write_text(text.replace('"local:b"', '"ssh://127.0.0.8:1"'))
            refused = moving.storkit("volume", "move", "default/v", "--to", "default", ok=9)
            assert "cannot say whether its copy is the disk" in refused.stderr
            assert moving.storkit("attach", "default/v", "--on", "a", ok=None).status != 0
            moving.inventory.write_text(text)
            assert made(moving, "v") == states
        moving.storkit("volume", "move", "v", "--to", to)
        assert list(made(moving, "v")) == [to]
        if len(seen) == 2:
            break
    assert len(seen) == 2, seen


def test_two_pools_that_are_one_directory_lose_nothing(moving: World) -> None:
    moving.storkit("volume", "create", "v", "1MiB", "--pool", "thick")
    fill(moving, "v", 9)
    one = moving.inventory.read_text()
    for number in range(30, 10, -1):
        done = moving.killed(f"after:{number}", "volume", "move", "v", "--to", "far")
        if done.status == -9 and made(moving, "v").get("thick") == "moving":
            break
        moving.storkit("volume", "move", "v", "--to", "thick")
    twice = one + f'[pools.shared]\nhost = "b"\npath = "{moving.directory}/thick"\nformat = "qcow2"\n'
    moving.inventory.write_text(twice)
    for pool in ("thick", "shared"):
        refused = moving.storkit("volume", "move", f"{pool}/v", "--to", pool, ok=None)
        assert refused.status in (5, 9), refused
    moving.inventory.write_text(one)
    moving.storkit("volume", "move", "v", "--to", "thick")
    assert holds(moving, "v", 9)
    moving.inventory.write_text(twice)
    for pool in ("thick", "shared"):
        assert "one storage, or a copy" in moving.storkit("volume", "delete", f"{pool}/v", ok=9).stderr
    moving.inventory.write_text(one)
    assert holds(moving, "v", 9)
