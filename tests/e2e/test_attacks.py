"""Attempts to get two writers, the wrong disk, or a lost one out of commands that are each allowed by themselves."""

from __future__ import annotations

import os
import re
import shutil
import signal
import subprocess
import time
from collections.abc import Callable
from pathlib import Path
from uuid import uuid4

import pytest

from storkit.core import codec
from storkit.core.inventory import load
from storkit.core.model import GuestState
from storkit.hosts.connections import Connections
from storkit.system.timeouts import scaled
from tests.e2e.world import INVENTORY, World
from tests.guestkit import bootsector

pytestmark = pytest.mark.e2e


@pytest.fixture
def world(make_world: Callable[..., World]) -> World:
    return make_world()


def guests(world: World) -> list[int]:
    return [int(line.partition(":")[0]) for line in world.processes() if "qemu-system" in line]


def test_two_guests_of_one_disk_on_one_host(world: World) -> None:
    """The server cannot tell them apart: both come from the host that may write."""
    world.guest()
    world.storkit("guest", "start", "g", "--on", "a")
    world.storkit("guest", "define", "h", "--disk", "g", "--memory", "16MiB", ok=5)
    record = (world.directory / "guests/g.toml").read_text()
    record = re.sub('^uuid = ".*"', f'uuid = "{uuid4()}"', record.replace('name = "g"', 'name = "h"'), flags=re.M)
    (world.directory / "guests/h.toml").write_text(record)
    assert "volume g is the first disk of guest g" in world.storkit("guest", "start", "h", "--on", "a", ok=5).stderr
    shutil.rmtree(world.directory / "a/volumes/.guests")  # the pool of an earlier storkit, which kept no guests
    assert "volume g is in use by guest g" in world.storkit("guest", "start", "h", "--on", "a", ok=5).stderr
    assert "is written by a" in world.storkit("guest", "start", "h", "--on", "b", ok=5).stderr
    assert len(guests(world)) == 1


def test_record_renamed_while_the_guest_runs(world: World) -> None:
    world.guest()
    world.storkit("guest", "start", "g", "--on", "a")
    record = world.directory / "guests/g.toml"
    record.with_name("h.toml").write_text(record.read_text().replace('name = "g"', 'name = "h"'))
    record.unlink()
    world.storkit("guest", "start", "h", "--on", "a", ok=5)
    assert len(guests(world)) == 1


def test_disks_swapped_in_the_record_while_the_guest_runs(world: World) -> None:
    """Its memory would go on at the destination with each disk in the other's place."""
    image = world.directory / "boot.img"
    bootsector.make_disk(image)
    for name in ("one", "two"):
        world.storkit("volume", "import", image, name)
    world.storkit("guest", "define", "g", "--disk", "one", "--disk", "two", "--memory", "16MiB")
    world.storkit("guest", "start", "g", "--on", "a")
    record = world.directory / "guests/g.toml"
    before = record.read_text()
    one, two = (line for line in before.splitlines(keepends=True) if "volume =" in line)
    record.write_text(before.replace(one, "@").replace(two, one).replace("@", two))
    for words in (("migrate", "run", "g", "--to", "b"), ("guest", "stop", "g"), ("migrate", "cleanup", "g")):
        done = world.storkit(*words, ok=9)
        assert "runs on a with other disks than its record says: one (" in done.stderr and "next:" in done.stderr
    record.write_text(before.replace("16MiB", "32MiB"))
    assert "changed in memory" in world.storkit("migrate", "run", "g", "--to", "b", ok=5).stderr
    record.write_text(before)
    world.storkit("migrate", "run", "g", "--to", "b")
    world.storkit("guest", "stop", "g", "--force")
    assert world.leftovers() == []


def test_fenced_guest_never_writes_again(world: World) -> None:
    """It lives on with old data in its memory, while the disk goes on elsewhere and comes back to its host."""
    world.guest()
    world.storkit("guest", "start", "g", "--on", "b")
    world.wait_for_writes(world.disk(), 2)
    (stale,) = guests(world)
    world.storkit("fence", "b")
    world.storkit("guest", "start", "g", "--on", "a")
    world.wait_for_writes(world.disk(), world.written() + 5)
    (line,) = [line for line in world.processes() if "qemu-system" in line and not line.startswith(f"{stale}:")]
    subprocess.run(["kill", "-9", line.partition(":")[0]], check=True)
    world.storkit("detach", "g", "--on", "a")
    world.storkit("unfence", "b")
    done = world.storkit("guest", "start", "g", "--on", "b", ok=9)
    assert "runs on b from before volume g was taken from there" in done.stderr
    world.storkit("attach", "g", "--on", "b")
    last = world.written()
    with pytest.raises(AssertionError, match="no record"):
        world.wait_for_writes(world.disk(), last, deadline=1.5)
    assert stale in guests(world)
    world.storkit("guest", "stop", "g", "--force")
    assert guests(world) == [] and bootsector.verify(world.disk()).gaps == []
    world.storkit("guest", "start", "g", "--on", "b")
    world.wait_for_writes(world.disk(), last)


def test_new_volume_under_an_old_name_is_never_written_by_the_old_one_s_guest(world: World) -> None:
    """The guest lost its disk while its host was silent; QEMU reconnects for as long as it lives."""
    world.guest()
    world.storkit("guest", "start", "g", "--on", "b")
    world.wait_for_writes(world.disk(), 2)
    world.storkit("fence", "b")
    world.storkit("unfence", "b")
    world.storkit("detach", "g", "--on", "b")
    size = world.disk().stat().st_size
    world.storkit("volume", "delete", "--force", "g")
    world.storkit("volume", "create", "g", f"{size}B")
    world.storkit("attach", "g", "--on", "b")
    with pytest.raises(AssertionError, match="no record"):
        world.wait_for_writes(world.disk(), 0, deadline=1.5)
    assert len(guests(world)) == 1 and not any(world.disk().read_bytes())


def killed(world: World, point: str, *words: str) -> str:
    """Run a command that is killed at a point of its journal; the id of its plan."""
    assert world.killed(point, *words).status == -9
    return str(world.storkit("--json", "plan", "list").json[-1]["id"])


def other_coordinator(world: World, *words: str, ok: int = 0) -> str:
    """A command line with a state directory of its own, as on another administrator's machine."""
    argv = [*world.argv, "--inventory", str(world.inventory), "--state", str(world.directory / "other"), *words]
    done = subprocess.run(argv, capture_output=True, text=True, env=world.environment, timeout=60, check=False)
    assert done.returncode == ok, done.stderr
    return done.stderr


@pytest.mark.parametrize("mend", ["resume", "rollback"])
def test_plan_that_another_coordinator_has_overtaken(world: World, mend: str) -> None:
    """Begun here, cleaned up from there, and the guest has gone elsewhere since: the old plan does nothing more."""
    world.guest()
    world.storkit("guest", "start", "g", "--on", "a")
    plan = killed(world, "after:9", "migrate", "run", "g", "--to", "b")
    other_coordinator(world, "migrate", "cleanup", "g")
    other_coordinator(world, "guest", "stop", "g", "--force")
    other_coordinator(world, "guest", "start", "g", "--on", "b")
    assert "has ended (given up)" in world.storkit("plan", mend, plan, ok=9).stderr
    status = world.status()
    assert status["places"] == {"b": "running"} and status["writers"] == ["b"]


def test_killed_between_its_last_entry_and_its_mark(world: World) -> None:
    """The plan has ended, and its mark is there: who has its journal takes the mark away, and goes on; others cannot
    know, and asking for the plan again takes the mark away as well."""
    world.storkit("volume", "create", "v", "1MiB")
    plan = killed(world, "after:3", "volume", "resize", "v", "2MiB")
    world.storkit("volume", "resize", "v", "3MiB")
    plan = killed(world, "after:3", "volume", "resize", "v", "4MiB")
    assert "has not ended" in other_coordinator(world, "volume", "resize", "v", "5MiB", ok=5)
    assert "has ended (completed)" in world.storkit("plan", "resume", plan, ok=9).stderr
    other_coordinator(world, "volume", "resize", "v", "5MiB")


def test_one_host_under_two_urls_is_one_host(world: World) -> None:
    world.guest()
    (world.directory / "link").symlink_to("b")
    b = f"local:{world.directory}/b"
    for url in (f"{b}/", f"{b}/../b", f"local:{world.directory}/link"):
        world.storkit("attach", "g", "--on", url)
        assert world.storkit("--json", "volume", "show", "g").json["writers"] == ["b"]
    text = world.inventory.read_text()
    world.inventory.write_text(text.replace('[hosts.b]\nurl = "local:b"', '[hosts.b]\nurl = "local:b/../a"'))
    assert "they would be one host" in world.storkit("host", "list", ok=2).stderr


def test_guest_is_seen_whatever_the_environment_says(make_world: Callable[..., World], tmp_path: Path) -> None:
    """The sockets of a host with a long path are elsewhere, and always in the same place."""
    deep = "d" * 15
    inventory = '[hosts.a]\nurl = "local:%s/a"\n[hosts.b]\nurl = "local:%s/b"\n[pools.default]\nhost = "a"\n'
    world = make_world(inventory=inventory % (deep, deep))
    world.environment["XDG_RUNTIME_DIR"] = str(tmp_path / "r")
    (tmp_path / "r").mkdir(mode=0o700)
    world.guest()
    world.storkit("guest", "start", "g", "--on", "a")
    try:
        del world.environment["XDG_RUNTIME_DIR"]
        assert world.status()["places"] == {"a": "running"}
        assert "is written by a" in world.storkit("volume", "clone", "g", "copy", ok=5).stderr
    finally:
        world.storkit("guest", "stop", "g", "--force")


def test_disk_is_not_taken_from_under_a_guest(world: World) -> None:
    """Nor is it cut or copied while its server is down: the guest waits, and will go on."""
    world.guest()
    world.storkit("guest", "start", "g", "--on", "a")
    done = world.storkit("detach", "g", "--on", "a", ok=5)
    assert "guest g is running on a, and volume g is its disk" in done.stderr
    (server,) = [line for line in world.processes() if "qemu-storage-daemon" in line]
    os.kill(int(server.partition(":")[0]), signal.SIGKILL)
    for words in (("resize", "g", "1MiB", "--shrink", "--shrink"), ("clone", "g", "copy")):
        assert "is written by a" in world.storkit("volume", *words, ok=5).stderr
    world.storkit("host", "restore")
    world.wait_for_writes(world.disk(), world.written())
    world.storkit("guest", "stop", "g", "--force")
    world.storkit("volume", "resize", "g", "4MiB")


@pytest.mark.parametrize("mend", ["rollback", "cleanup"])
def test_migration_that_outlives_its_coordinator_is_called_off_first(
    make_world: Callable[..., World], mend: str
) -> None:
    """QEMU goes on by itself: a guest that arrived between two looks would have been ended as a leftover."""
    world = make_world(inventory=INVENTORY.format(format="raw") + "bandwidth = 65536\n")
    world.guest()
    world.storkit("guest", "start", "g", "--on", "a")
    process = world.popen("migrate", "run", "g", "--to", "b")
    end = time.monotonic() + scaled(30)
    while source(world).migration != "active":
        assert time.monotonic() < end
        time.sleep(0.05)
    process.kill()
    process.communicate()
    plan = str(world.storkit("--json", "plan", "list").json[-1]["id"])
    world.storkit(*(("plan", "rollback", plan) if mend == "rollback" else ("migrate", "cleanup", "g")))
    # QEMU 7.2 closes the way back before it notes that it cancels: its thread may see that first, and call it failed.
    assert source(world).migration in ("cancelled", "failed")
    status = world.status()
    assert status["places"] == {"a": "running"} and status["writers"] == ["a"]
    world.wait_for_writes(world.disk(), world.written())


def test_guest_that_dies_while_it_is_moved_is_said_to_be_gone(make_world: Callable[..., World]) -> None:
    world = make_world(inventory=INVENTORY.format(format="raw") + "bandwidth = 65536\n")
    world.guest()
    world.storkit("guest", "start", "g", "--on", "a")
    process = world.popen("migrate", "run", "g", "--to", "b")
    end = time.monotonic() + 120
    while (state := source(world)).migration != "active":
        assert process.poll() is None and time.monotonic() < end, process.communicate()
        time.sleep(0.05)
    os.kill(state.pid, signal.SIGKILL)
    said = process.communicate(timeout=120)[1]
    assert process.returncode == 1, said
    assert "guest g is gone: its process on a ended while it was moved to b" in said
    assert "everything was put back" in said and "next: storkit guest start g --on a" in said
    assert world.status()["places"] == {} and world.storkit("--json", "status").json["plans"] == []
    world.storkit("guest", "start", "g", "--on", "a")
    world.wait_for_writes(world.disk(), world.written())


def source(world: World) -> GuestState:
    hosts = Connections(load(world.inventory))
    (state,) = codec.load(list[GuestState], hosts.to("a").call("hypervisor:qemu", "find", {"guests": ["g"]}))
    hosts.close()
    return state
