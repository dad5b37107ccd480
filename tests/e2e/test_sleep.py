"""A guest that is saved sleeps: nobody writes its disk until it wakes up, once, on whichever host reads its memory."""

from __future__ import annotations

import os
import shutil
from collections.abc import Callable

import pytest

from tests.e2e.test_kill_points import kill
from tests.e2e.world import World
from tests.filesystems import mounted
from tests.guestkit import bootsector

pytestmark = pytest.mark.e2e


def asleep(world: World, *file: object) -> bytes:
    """Start the guest on a and save it; the bytes of its disk."""
    world.guest()
    world.storkit("guest", "start", "g", "--on", "a")
    world.wait_for_writes(world.disk(), 20)
    world.storkit("guest", "save", "g", *file)
    return world.disk().read_bytes()


def hold(world: World) -> dict[str, object] | None:
    found: dict[str, object] | None = world.storkit("--json", "volume", "show", "g").json["hold"]
    return found


def test_a_guest_saved_on_one_host_wakes_up_on_another(make_world: Callable[..., World]) -> None:
    world = make_world()
    shared = world.directory / "g.memory"
    before = asleep(world, shared)
    assert shared.stat().st_mode & 0o777 == 0o600
    shown = world.storkit("--json", "volume", "show", "g").json
    assert (shown["writers"], shown["exports"], shown["hold"]["name"]) == ([], [], "g")
    assert "asleep" in world.storkit("guest", "list").stdout and "asleep" in world.storkit("guest", "show", "g").stdout
    assert "guest g sleeps on volume g" in world.storkit("status").stdout
    assert "disk, held" in world.storkit("volume", "list").stdout
    for words in (
        ("attach", "g", "--on", "b"),
        ("guest", "start", "g", "--on", "b"),
        ("guest", "save", "g"),
        ("migrate", "cleanup", "g"),
        ("migrate", "run", "g", "--to", "b"),
        ("volume", "delete", "g", "--force"),
        ("volume", "resize", "g", "64MiB"),
        ("guest", "delete", "g"),
    ):
        refused = world.storkit(*words, ok=None)
        assert refused.status == 5 and "storkit guest restore g" in refused.stderr, refused.stderr
    world.storkit("attach", "g", "--on", "b", "--read-only")
    world.storkit("detach", "g", "--on", "b")
    assert world.disk().read_bytes() == before
    copy = world.directory / "copy"
    shutil.copyfile(shared, copy)
    assert "awake on b" in world.storkit("guest", "restore", "g", "--on", "b").stdout
    assert world.running() == ["b"] and world.status()["writers"] == ["b"] and hold(world) is None
    world.wait_for_writes(world.disk(), bootsector.verify(world.disk()).last + 20)
    for file in (shared, copy):
        assert "does not sleep" in world.storkit("guest", "restore", "g", file, ok=4).stderr
    world.storkit("guest", "stop", "g", "--force")
    report = bootsector.verify(world.disk())
    assert report.clean and report.last > 40, report
    shared.unlink()
    assert world.leftovers() == []


def cut(world: World, verb: str, *words: str) -> str:
    """Kill a command once the step of this verb has acted, before its journal says so; its plan."""
    steps = [step["verb"] for stage in world.storkit("--json", "-n", *words).json["stages"] for step in stage]
    plan = kill(world, f"before:{2 * (steps.index(verb) + 1)}", *words)
    assert plan
    return plan


def test_killed_at_any_step_the_guest_is_awake_once_or_sleeps(make_world: Callable[..., World]) -> None:
    world = make_world()
    world.guest()
    world.storkit("guest", "start", "g", "--on", "a")

    def awake(host: str) -> None:
        assert (world.status()["places"], world.status()["writers"], hold(world)) == ({host: "running"}, [host], None)
        world.wait_for_writes(world.disk(), world.written() + 5)

    def sleeps() -> None:
        shown = world.storkit("--json", "volume", "show", "g").json
        assert shown["hold"] and (shown["writers"], shown["exports"]) == ([], [])

    for verb in ("hold", "save"):
        world.storkit("plan", "rollback", cut(world, verb, "guest", "save", "g"))
        awake("a")
    plan = cut(world, "save", "guest", "save", "g")
    assert world.status()["places"] == {"a": "paused"}
    assert "storkit guest restore g" in world.storkit("guest", "resume", "g", ok=5).stderr
    assert "its save has not ended" in world.storkit("guest", "restore", "g", ok=5).stderr
    world.storkit("plan", "resume", plan)
    sleeps()
    asleep = world.disk().read_bytes()
    restore = ("guest", "restore", "g", "--on", "a")
    for verb in ("wake_writers", "load", "release"):
        world.storkit("plan", "rollback", cut(world, verb, *restore))
        sleeps()
        assert world.disk().read_bytes() == asleep, verb
    cut(world, "load", *restore)
    world.storkit(*restore)
    awake("a")
    plan = cut(world, "sleep", "guest", "save", "g")
    refused = world.storkit("plan", "rollback", plan, ok=10)
    assert "storkit guest restore g" in refused.stderr
    world.storkit("plan", "resume", plan)
    sleeps()
    plan = cut(world, "awake", *restore)
    assert "is awake" in world.storkit("plan", "rollback", plan, ok=10).stderr
    world.storkit("plan", "resume", plan)
    awake("a")
    world.storkit("guest", "stop", "g", "--force")
    assert bootsector.verify(world.disk()).clean
    assert world.leftovers() == []


def test_a_guest_whose_memory_is_given_up_starts_anew_and_its_memory_wakes_nobody(
    make_world: Callable[..., World],
) -> None:
    world = make_world()
    first = world.directory / "first"
    asleep(world, first)
    assert "--force" in world.storkit("guest", "discard", "g", ok=5).stderr
    world.storkit("guest", "discard", "g", "--force")
    assert hold(world) is None
    kept = world.directory / "kept"
    shutil.copyfile(first, kept)
    world.storkit("guest", "start", "g", "--on", "b")
    generation = world.storkit("--json", "volume", "show", "g").json["generation"]
    world.storkit("guest", "save", "g")
    refused = world.storkit("guest", "restore", "g", kept, "--on", "b", ok=5).stderr
    assert "another sleep" in refused or "has run since" in refused
    memory = world.directory / "b/saved/g.memory"
    for bad in (memory.read_bytes()[:-1], b"", os.urandom(4096)):
        kept.write_bytes(bad)
        assert "is no memory of a guest" in world.storkit("guest", "restore", "g", kept, "--on", "b", ok=9).stderr
    assert f"scp b:{memory} a:" in world.storkit("guest", "restore", "g", "--on", "a", ok=4).stderr
    world.storkit("guest", "restore", "g")
    assert world.running() == ["b"] and not memory.exists()
    assert world.storkit("--json", "volume", "show", "g").json["generation"] > generation
    world.storkit("guest", "stop", "g", "--force")


def test_a_save_or_a_restore_that_fails_changes_nothing(make_world: Callable[..., World]) -> None:
    """No room for the memory: the guest goes on. A memory that QEMU cannot read: it sleeps on, and wakes up later."""
    world = make_world()
    world.guest()
    world.storkit("guest", "start", "g", "--on", "a")
    taken = world.directory / "taken"
    taken.write_bytes(b"mine")
    assert "exists already" in world.storkit("guest", "save", "g", taken, ok=5).stderr
    assert taken.read_bytes() == b"mine" and world.running() == ["a"]
    small = world.directory / "small"
    small.mkdir()
    with mounted("tmpfs", small, 256 << 10):
        failed = world.storkit("guest", "save", "g", small / "g.memory", ok=None)
        assert failed.status in (5, 6), failed.stderr
        assert list(small.iterdir()) == []
    assert hold(world) is None and world.status()["places"] == {"a": "running"}
    world.wait_for_writes(world.disk(), world.written() + 5)
    world.storkit("guest", "save", "g")
    memory = world.directory / "a/saved/g.memory"
    whole = memory.read_bytes()
    memory.write_bytes(b"x" * 4096 + whole[4096:])
    before = world.disk().read_bytes()
    assert world.storkit("guest", "restore", "g", ok=None).status == 6
    assert hold(world) and world.disk().read_bytes() == before
    assert world.processes() == []
    memory.write_bytes(whole)
    world.storkit("guest", "restore", "g")
    world.wait_for_writes(world.disk(), world.written() + 5)
    world.storkit("guest", "stop", "g", "--force")
    assert bootsector.verify(world.disk()).clean
