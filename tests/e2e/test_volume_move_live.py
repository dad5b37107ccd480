"""A volume gets another pool while its guest writes all the time: the guest goes on, and there is one disk."""

from __future__ import annotations

import os
import signal
import subprocess
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from storkit.system.timeouts import scaled
from tests.e2e.sshd import two_machines
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


def large(world: World, size: int = 32 * MIB, rest: int = 1) -> None:
    """A guest whose disk has holes, and data at its end. `rest`: ticks, 18 a second, between two of its records."""
    image = world.directory / "boot.img"
    bootsector.make_disk(image, rest=rest)
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
    large(moving, rest=0)
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
    moving.storkit("volume", "move", "g", "--to", "far")
    moving.storkit("migrate", "run", "g", "--to", "a")
    last = moving.wait_for_writes(path(moving), last)
    moving.storkit("guest", "stop", "g", "--force")
    whole(path(moving), last)
    moving.storkit("guest", "start", "g", "--on", "b")
    moving.wait_for_writes(path(moving), last)
    moving.storkit("guest", "stop", "g", "--force")
    assert moving.storkit("--json", "audit").json == []


WAYS = ("again", "resume", "rollback", "back")


def interrupted(world: World) -> list[str]:
    return [each["id"] for each in world.storkit("--json", "plan", "list").json if each["status"] == "interrupted"]


def mend(world: World, way: str) -> None:
    """End a move to pool `far` that was cut short, or take it back."""
    plans = interrupted(world)
    if way == "back":
        done = world.storkit("volume", "move", "g", "--to", "default", ok=None)
        assert done.status in (0, 5), done.stderr
        if done.status:
            assert "by now" in done.stderr, done.stderr
            world.storkit("volume", "move", "g", "--to", "far")
    elif way == "again" or not plans:
        world.storkit("volume", "move", "g", "--to", "far")
    else:
        done = world.storkit("plan", way, plans[0], ok=None)
        assert done.status in (0, 10), done.stderr
        if done.status:
            assert "alone" in done.stderr, done.stderr
            world.storkit("plan", "resume", plans[0])


def one_disk(world: World, last: int) -> int:
    """There is one volume, open and in use, and nothing is left of the other; the guest's last record."""
    there = made(world)
    assert len(there) == 1 and not {"mirroring", "switching", "filling"} & set(there.values()), there
    assert copies(world) == [path(world)]
    assert not interrupted(world)
    assert not [*world.directory.glob("*/mirrors/*")]
    if world.running():
        return world.wait_for_writes(path(world), last)
    return bootsector.last_record(path(world))


def number(world: World) -> int:
    """The last record, of whichever file has more."""
    return max(bootsector.last_record(each) for each in copies(world))


ALL = [(point, WAYS[(point + turn) % 4]) for turn in (0, 2) for point in range(1, 31)]


@pytest.mark.slow
@pytest.mark.parametrize(("point", "way"), ALL)
def test_killed_anywhere_the_guest_goes_on_and_it_is_mended(moving: World, point: int, way: str) -> None:
    large(moving, 16 * MIB)
    moving.killed(f"after:{point}", "volume", "move", "g", "--to", "far")
    last = number(moving)
    mend(moving, way)
    last = one_disk(moving, last)
    assert moving.running() == ["a"]
    moving.storkit("guest", "stop", "g", "--force")
    whole(path(moving), last)
    moving.storkit("guest", "start", "g", "--on", "a")
    moving.wait_for_writes(path(moving), last)
    moving.storkit("guest", "stop", "g", "--force")
    assert moving.storkit("--json", "audit").json == []


@pytest.mark.slow
@pytest.mark.parametrize(("point", "way"), ALL)
def test_killed_with_its_guest_nothing_is_lost(moving: World, point: int, way: str) -> None:
    """The coordinator and the guest's QEMU end at the same moment, as when their host loses its power."""
    large(moving, 16 * MIB)
    moving.killed(f"after:{point}", "volume", "move", "g", "--to", "far")
    end(moving)
    last = number(moving)
    plans = interrupted(moving)
    words = ["volume", "move", "g", "--to", "default" if way == "back" else "far"]
    if plans and way in ("resume", "rollback"):
        words = ["plan", way, plans[0]]
    if moving.storkit(*words, ok=None).status or words[0] == "plan":
        again = moving.storkit("volume", "move", "g", "--to", "far", ok=None)
        if again.status:  # it has its disk as it had it, and a guest that has ended there
            assert "is exported to a" in again.stderr, again.stderr
            moving.storkit("guest", "stop", "g", "--force")
            moving.storkit("volume", "move", "g", "--to", "far")
    if shown(moving)["exports"]:
        moving.storkit("guest", "stop", "g", "--force")
    assert one_disk(moving, last) >= last - 1
    whole(path(moving), last)
    moving.storkit("guest", "start", "g", "--on", "b")
    moving.wait_for_writes(path(moving), last)
    moving.storkit("guest", "stop", "g", "--force")
    assert moving.storkit("--json", "audit").json == []


@pytest.mark.parametrize("who", ["switch", "guest", "power"])
@pytest.mark.parametrize("point", [pytest.param(n, marks=() if n == 4 else pytest.mark.slow) for n in range(1, 15)])
def test_killed_while_it_stands_still_nothing_is_lost(moving: World, point: int, who: str) -> None:
    large(moving, 16 * MIB)
    done = moving.killed(f"{who}:{point}", "volume", "move", "g", "--to", "far")
    last = number(moving)
    if done.status:
        again = moving.storkit("volume", "move", "g", "--to", "far", ok=None)
        if again.status:
            assert "is exported to a" in again.stderr, again.stderr
            moving.storkit("guest", "stop", "g", "--force")
            moving.storkit("volume", "move", "g", "--to", "far")
    elif not moving.running():
        moving.storkit("guest", "stop", "g", "--force")
    assert one_disk(moving, last) >= last - 1
    assert path(moving).is_relative_to(moving.directory / "b")
    if who == "switch":
        assert moving.running() == ["a"]
        moving.storkit("guest", "stop", "g", "--force")
    whole(path(moving), last - 1)
    assert moving.storkit("--json", "audit").json == []


def server(world: World, host: str) -> int:
    """The pid of the process that serves the volume on a host."""
    mine = [each for each in world.processes() if "storage-daemon" in each and f"/{host}/volumes/g." in each]
    (line,) = mine
    return int(line.partition(":")[0])


def mirroring(world: World) -> subprocess.Popen[str]:
    """A move that has begun to copy, and takes some seconds."""
    command = world.popen("volume", "move", "g", "--to", "far", "--rate", "1MiB")
    end = time.monotonic() + scaled(60.0)
    copy = world.directory / "b" / "volumes" / "g.raw"
    while not copy.exists() or not copy.stat().st_blocks:
        assert time.monotonic() < end and command.poll() is None, command.communicate()
        time.sleep(0.02)
    return command


@pytest.mark.slow
@pytest.mark.parametrize("host", ["a", "b"])
def test_a_server_that_dies_is_waited_for(moving: World, host: str) -> None:
    """That of the copy: the guest goes on with its disk. What the server may have lost is copied anew."""
    large(moving)
    here = path(moving)
    command = mirroring(moving)
    os.kill(server(moving, host), signal.SIGKILL)
    last = bootsector.last_record(here)
    if host == "b":
        last = moving.wait_for_writes(here, last + 5)
    moving.storkit("host", "restore", host)
    _, said = command.communicate(timeout=scaled(120.0))
    assert command.returncode == 0, said
    last = one_disk(moving, last)
    moving.storkit("guest", "stop", "g", "--force")
    whole(path(moving), last)


def impatient(world: World) -> None:
    """The inventory gives a copy up soon; storkit itself waits less long than in other tests."""
    text = world.inventory.read_text()
    assert "[hypervisors.qemu]" in text
    world.inventory.write_text(text.replace("[hypervisors.qemu]", "[hypervisors.qemu]\nstall_timeout = 3"))
    world.environment["STORKIT_TIMEOUT_FACTOR"] = "2"


@pytest.mark.slow
def test_a_copy_whose_server_hangs_connected_is_given_up(moving: World) -> None:
    """Its requests wait in a Unix socket that nobody reads: they end with the server, which is ended for that."""
    large(moving)
    impatient(moving)
    here = path(moving)
    command = mirroring(moving)
    os.kill(server(moving, "b"), signal.SIGSTOP)
    _, said = command.communicate(timeout=600)
    assert "the guest goes on with its disk alone" in said or "does not end" in said, said
    assert "everything was put back" in said, said
    last = one_disk(moving, moving.wait_for_writes(here, bootsector.last_record(here)))
    assert path(moving) == here
    del moving.environment["STORKIT_TIMEOUT_FACTOR"]
    moving.storkit("volume", "move", "g", "--to", "far")
    last = one_disk(moving, last)
    moving.storkit("guest", "stop", "g", "--force")
    whole(path(moving), last)


@pytest.mark.slow
def test_a_copy_that_hangs_behind_the_network_is_given_up(monkeypatch: pytest.MonkeyPatch) -> None:
    """The front of its server takes what is sent, and says nothing: the guest goes on before anything there ends."""
    monkeypatch.setenv("STORKIT_TIMEOUT_FACTOR", "2")  # of the agents
    with tempfile.TemporaryDirectory(prefix="sk-") as scratch, two_machines(Path(scratch)) as world:
        world.inventory.write_text(world.inventory.read_text() + MORE.format(other="raw"))
        large(world)
        impatient(world)
        here = path(world)
        command = mirroring(world)
        fronts = [each for each in world.processes() if "storage-daemon" in each and "/b/run/nbd/" in each]
        assert len(fronts) == 2, fronts
        for each in fronts:
            os.kill(int(each.partition(":")[0]), signal.SIGSTOP)
        last = world.wait_for_writes(here, bootsector.last_record(here) + 5, scaled(60.0))
        _, said = command.communicate(timeout=600)
        assert "the guest goes on with its disk alone" in said and "everything was put back" in said, said
        last = one_disk(world, last)
        world.storkit("guest", "stop", "g", "--force")
        whole(here, last)


@pytest.mark.slow
def test_between_machines_by_tls() -> None:
    """And on after the copy's server has ended and come back: the guest waits for it, as for any disk."""
    with tempfile.TemporaryDirectory(prefix="sk-") as scratch, two_machines(Path(scratch)) as world:
        world.inventory.write_text(world.inventory.read_text() + MORE.format(other="qcow2"))
        large(world)
        (done,) = world.storkit("--json", "volume", "move", "g", "--to", "far").json
        print(f"the guest stood still for {done['stall_ms']} ms")
        assert done["guest"] == "g" and world.running() == ["a"] and len(copies(world)) == 1
        keys = [each.read_text().partition(":")[2].strip() for each in world.directory.rglob("keys.psk")]
        assert keys and not any(key in line for key in keys for line in world.processes())
        assert not [*world.directory.glob("a/nbd/copies/*")]
        os.kill(server(world, "b"), signal.SIGKILL)
        world.storkit("host", "restore", "b")
        world.storkit("volume", "move", "g", "--to", "default")
        last = world.wait_for_writes(path(world), bootsector.last_record(path(world)))
        world.storkit("migrate", "run", "g", "--to", "b")
        last = world.wait_for_writes(path(world), last)
        world.storkit("guest", "stop", "g", "--force")
        whole(path(world), last)
        assert world.storkit("--json", "audit").json == []


def test_nothing_else_is_begun_with_it_meanwhile(moving: World) -> None:
    large(moving, 16 * MIB)
    moving.killed("after:10", "volume", "move", "g", "--to", "far")
    assert made(moving) == {"default": "mirroring", "far": "filling"}
    for words in (
        ("migrate", "run", "g", "--to", "b"),
        ("migrate", "cleanup", "g"),
        ("detach", "g", "--on", "a"),
        ("detach", "far/g", "--on", "a"),
        ("volume", "delete", "far/g"),
        ("volume", "resize", "g", "+1MiB"),
        ("volume", "snapshot", "g", "s"),
        ("guest", "save", "g"),
        ("volume", "clone", "g", "c"),
        ("volume", "move", "g", "--to", "far", "--keep"),
        ("attach", "far/g", "--on", "b"),
    ):
        refused = moving.storkit(*words, ok=None)
        assert refused.status in (3, 5, 9), (words, refused)
        assert made(moving) == {"default": "mirroring", "far": "filling"}, words
    moving.storkit("guest", "stop", "g", "--force", ok=5)
    assert "move g" in moving.storkit("guest", "start", "g", ok=5).stderr
    moving.storkit("volume", "move", "g", "--to", "default")
    assert made(moving) == {"default": "moved"}
    moving.storkit("guest", "stop", "g", "--force")


def end(world: World) -> None:
    """The guest's QEMU loses its power."""
    for line in world.processes():
        if "qemu-system" in line:
            os.kill(int(line.partition(":")[0]), signal.SIGKILL)
    while any("qemu-system" in line for line in world.processes()):
        pass
