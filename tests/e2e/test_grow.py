"""A disk becomes larger while its guest runs: on every host that has it, and in QEMU, with no write lost."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

from storkit.system.qemu import qmp
from tests.e2e.world import World, each_format
from tests.guestkit import bootsector

pytestmark = pytest.mark.e2e

MIB = 1 << 20
POINTS = [
    pytest.param(f"{when}:{number}", marks=[] if when == "after" else [pytest.mark.slow])
    for number in (2, 3, 4, 5)
    for when in ("before", "after")
]


def seen(world: World, host: str) -> int:
    """How large the guest's disk is to its QEMU on a host."""
    (line,) = [line for line in world.processes() if "guest=g," in line and f"/{host}/" in line]
    monitor = Path(re.findall(r"id=qmp,path=([^ ,]*)", line)[0])
    (size,) = (block["inserted"]["image"]["virtual-size"] for block in qmp.call(monitor, "query-block"))
    return int(size)


def sizes(world: World, name: str = "g") -> set[int]:
    shown = world.storkit("--json", "volume", "show", name).json
    return {shown["size"], *(each["size"] for each in shown["attachments"])}


def goes_on(world: World) -> None:
    world.wait_for_writes(raw(world), world.written())


def raw(world: World) -> Path:
    return Path(world.storkit("--json", "volume", "show", "g").json["path"])


@each_format
def test_under_its_guest(world: World, request: pytest.FixtureRequest) -> None:
    world.guest()
    world.storkit("guest", "start", "g", "--on", "b")
    plan = world.storkit("-n", "volume", "resize", "g", "+6MiB").stdout
    assert "resize g from 2MiB to 8MiB" in plan and "let guest g see g larger" in plan and seen(world, "b") == 2 * MIB
    done = world.storkit("volume", "resize", "g", "+6MiB")
    assert "next start" not in done.stderr
    assert sizes(world) == {8 * MIB} and seen(world, "b") == 8 * MIB
    world.storkit("verify", "g")
    world.storkit("migrate", "run", "g", "--to", "a")
    assert seen(world, "a") == 8 * MIB
    world.storkit("volume", "resize", "g", "12MiB")
    assert sizes(world) == {12 * MIB} and seen(world, "a") == 12 * MIB
    world.storkit("volume", "resize", "g", "12MiB")  # again: nothing is lost
    assert "cut off" in world.storkit("volume", "resize", "g", "8MiB", ok=2).stderr
    shrink = world.storkit("volume", "resize", "g", "8MiB", "--shrink", "--shrink", ok=5).stderr
    assert "is written by a" in shrink and "nothing was changed" in shrink
    for wrong in ("+", "+5", "+x", "-1GiB", "++1GiB"):
        assert world.storkit("volume", "resize", "--", "g", wrong, ok=2).stderr.startswith("storkit: ")
    world.storkit("guest", "stop", "g", "--force")
    assert bootsector.verify(world.disk()).clean
    world.storkit("volume", "resize", "g", "+1MiB")
    assert world.leftovers() == [] and sizes(world) == {13 * MIB}


@pytest.mark.parametrize("point", POINTS)
def test_killed_at_any_step_it_is_resumed(world: World, point: str) -> None:
    world.guest()
    world.storkit("guest", "start", "g", "--on", "b")
    world.killed(point, "volume", "resize", "g", "8MiB")
    plans = [plan for plan in world.storkit("--json", "plan", "list").json if plan["status"] == "interrupted"]
    for plan in plans:
        world.storkit("plan", "resume", plan["id"])
    world.storkit("volume", "resize", "g", "8MiB")
    assert sizes(world) == {8 * MIB} and seen(world, "b") == 8 * MIB
    world.storkit("guest", "stop", "g", "--force")
    assert bootsector.verify(world.disk()).clean


def test_in_the_window_of_a_migration(world: World) -> None:
    """Both hosts have it, and both may write it."""
    world.guest()
    world.storkit("guest", "start", "g", "--on", "a")
    world.storkit("migrate", "prepare", "g", "--to", "b")
    world.storkit("volume", "resize", "g", "8MiB")
    assert sizes(world) == {8 * MIB} and seen(world, "a") == 8 * MIB
    assert world.status()["window"]
    world.storkit("migrate", "abort", "g")
    world.storkit("migrate", "run", "g", "--to", "b")
    world.storkit("guest", "stop", "g", "--force")
    assert bootsector.verify(world.disk()).clean


def test_where_it_is_attached_by_hand_and_read_only(world: World) -> None:
    world.storkit("volume", "create", "v", "1MiB")
    world.storkit("attach", "v", "--on", "a", "--read-only")
    world.storkit("attach", "v", "--on", "b")
    world.storkit("volume", "resize", "v", "2MiB")
    assert sizes(world, "v") == {2 * MIB}
    shown = world.storkit("--json", "volume", "show", "v").json
    assert shown["writers"] == ["b"] and len(shown["attachments"]) == 2
    world.storkit("verify", "v")


def test_a_guest_that_is_not_asked_sees_it_at_its_next_start(world: World) -> None:
    """One that is paused for another reason is told as well; one of a silent host keeps the disk as it is."""
    world.guest()
    world.storkit("guest", "start", "g", "--on", "b")
    text = world.inventory.read_text()
    world.inventory.write_text(text.replace('"local:b"', '"ssh://127.0.0.8:1"'))
    refused = world.storkit("volume", "resize", "g", "8MiB", ok=None)
    assert refused.status in (7, 9) and "nothing was changed" in refused.stderr, refused.stderr
    world.inventory.write_text(text)
    assert sizes(world) == {2 * MIB} and seen(world, "b") == 2 * MIB
