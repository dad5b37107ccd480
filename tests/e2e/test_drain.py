"""A host that is emptied: its guests move away live, several at the same time, and new ones are kept off it."""

from __future__ import annotations

import os
import re
import signal
from collections.abc import Callable, Iterator
from contextlib import contextmanager

import pytest

from tests.e2e.world import Done, World
from tests.guestkit import bootsector

pytestmark = pytest.mark.e2e

INVENTORY = """\
[hosts.s]
url = "local:s"
[hosts.a]
url = "local:a"
[hosts.b]
url = "local:b"
[hosts.c]
url = "local:c"
[pools.default]
host = "s"
[hypervisors.qemu]
accel = "tcg"
"""
GUESTS = ("g1", "g2", "g3")
TO = ("--to", "b", "--to", "c")
OTHERS = ("before:1", "after:2", "after:12", "after:20", "after:44")


@pytest.fixture
def world(make_world: Callable[..., World]) -> World:
    """Three guests run on a, and write."""
    world = make_world(inventory=INVENTORY)
    for name in GUESTS:
        world.guest(name)
    world.storkit("guest", "start", "g*", "--on", "a")
    return world


def places(world: World) -> dict[str, dict[str, str]]:
    return {each["guest"]: each["places"] for each in world.storkit("--json", "migrate", "status").json}


def writers(world: World) -> dict[str, list[str]]:
    return {each["guest"]: each["writers"] for each in world.storkit("--json", "migrate", "status").json}


def intact(world: World, *guests: str, starts: int = 1) -> None:
    """Every record that guests have written is there, once; each was started that often."""
    world.storkit("guest", "stop", *guests, "--force")
    for name in guests:
        report = bootsector.verify(world.disk(name))
        assert report.last and not report.gaps and not report.torn, f"{name}: {report}"
        assert len(report.backwards) < starts, f"{name}: {report}"


def remembered(world: World, guest: str, memory: str) -> None:
    """Say in a guest's file, while it runs, that it has another memory."""
    file = world.directory / f"guests/{guest}.toml"
    file.write_text(re.sub(r"(?m)^memory = .*", f'memory = "{memory}"', file.read_text()))


def left(refused: Done) -> dict[str, str]:
    return {each["guest"]: each["error"]["message"] for each in refused.json["left"]}


def test_all_guests_move_and_new_ones_stay_away(world: World) -> None:
    plan = world.storkit("-n", "host", "drain", "a", *TO).stdout
    assert plan.count("await g") == 3 and "keep new guests off a" in plan
    assert set(map(tuple, places(world).values())) == {("a",)}, "nothing was changed"

    done = world.storkit("--json", "host", "drain", "a", *TO, "--first", "g3").json
    assert [each["guest"] for each in done["moved"]] == ["g3", "g1", "g2"] and done["left"] == []
    assert {each["to"] for each in done["moved"]} == {"b", "c"}, "they are spread"
    assert {name: [*where] for name, where in places(world).items()} == writers(world)
    assert not any("a" in where for where in places(world).values())
    assert "host a takes no guests: " in world.storkit("status").stdout
    assert list(world.storkit("--json", "status").json["drained"]) == ["a"]

    world.guest("new")
    assert "host a takes no guests: " in world.storkit("guest", "start", "new", "--on", "a", ok=5).stderr
    world.storkit("guest", "start", "new")
    memory = world.storkit("--json", "guest", "save", "new").json["file"]
    for words in (["guest", "restore", "new", memory, "--on", "a"], ["migrate", "run", "g1", "--to", "a"],
                  ["migrate", "prepare", "g1", "--to", "a"], ["migrate", "run", "g*", "--to", "a"]):  # fmt: skip
        refused = world.storkit(*words, ok=5).stderr
        assert "host a takes no guests: " in refused and "next: storkit host undrain a" in refused
        assert "nothing was changed" in refused
    assert world.storkit("--json", "host", "drain", "a", *TO).json["moved"] == [], "again: nothing is left to do"
    world.storkit("host", "undrain", "a")
    world.storkit("host", "undrain", "a")
    assert world.storkit("--json", "status").json["drained"] == {}

    moved = world.storkit("--json", "migrate", "run", "g*", "--to", "a", "--at-once", "3").json
    assert [each["guest"] for each in moved] == [*GUESTS] and all(each["migration"] for each in moved)
    again = world.storkit("--json", "migrate", "run", "g*", "--to", "a").json
    assert [(each["guest"], each["plan"], each["migration"]) for each in again] == [(g, "", None) for g in GUESTS]
    intact(world, *GUESTS)


@contextmanager
def standing_still(world: World, guest: str) -> Iterator[None]:
    """The guest's QEMU does not answer: it may be anything."""
    (line,) = [each for each in world.processes() if f"guest={guest}," in each]
    pid = int(line.partition(":")[0])
    os.kill(pid, signal.SIGSTOP)
    try:
        yield
    finally:
        os.kill(pid, signal.SIGCONT)


def test_a_guest_that_cannot_move_is_named_and_keeps_no_other(world: World) -> None:
    """g1 does not answer, g2 is not as its record says: g3 moves."""
    remembered(world, "g2", "24MiB")
    with standing_still(world, "g1"):
        refused = world.storkit("--json", "host", "drain", "a", *TO, ok=10)
    assert [each["guest"] for each in refused.json["moved"]] == ["g3"]
    assert left(refused).keys() == {"g1", "g2"}
    assert left(refused)["g1"] == "guest g1 is unknown on a" and "differs" in left(refused)["g2"]
    assert "next: " in refused.stderr

    done = world.storkit("--json", "host", "drain", "a", *TO, "--shutdown-rest", "--timeout", "0.1", ok=10)
    assert [each["guest"] for each in done.json["moved"]] == ["g1"]
    assert "did not shut down" in left(done)["g2"], "a boot sector knows no power button"
    world.storkit("guest", "stop", "g2", "--force")
    world.storkit("host", "drain", "a", *TO)
    intact(world, *GUESTS)


def test_where_there_is_no_other_host(world: World) -> None:
    """Nothing is begun, and the host takes guests as before."""
    for words, why in (
        (["--to", "a"], "guests cannot leave a for a"), (["--to", "x"], "x"), (["--at-once", "0"], "at the same time"),
        (["--timeout", "-1"], "seconds"),
    ):  # fmt: skip
        wrong = world.storkit("host", "drain", "a", *words, ok=None)
        assert wrong.status in (2, 4) and why in wrong.stderr, wrong.stderr
    for host in ("b", "c"):
        world.storkit("host", "drain", host, "--to", "s")
    refused = world.storkit("host", "drain", "a", *TO, ok=5).stderr
    assert "b takes no guests: it is drained" in refused and "no other host" in refused
    assert list(world.storkit("--json", "status").json["drained"]) == ["b", "c"]
    assert set(map(tuple, places(world).values())) == {("a",)}


def test_its_word_is_damaged(world: World) -> None:
    """It is not known whether it takes guests: it gets none, and everything else goes on."""
    world.storkit("host", "drain", "c", "--to", "b")
    word = world.directory / "c/drained/this.json"
    word.write_text("{}")
    assert "cannot say whether it takes guests" in world.storkit("status").stderr
    refused = world.storkit("migrate", "run", "g1", "--to", "c", ok=9).stderr
    assert "the record that this host takes no guests" in refused
    world.storkit("migrate", "run", "g1", "--to", "b")


@pytest.mark.parametrize("point", ["after:30", *(pytest.param(each, marks=pytest.mark.slow) for each in OTHERS)])
def test_killed_it_is_repeated(world: World, point: str) -> None:
    world.killed(point, "host", "drain", "a", *TO, "--at-once", "1")
    world.storkit("host", "drain", "a", *TO)
    assert not any("a" in where for where in places(world).values())
    assert {name: [*where] for name, where in places(world).items()} == writers(world)
    assert [plan for plan in world.storkit("--json", "plan", "list").json if plan["status"] == "interrupted"] == []
    intact(world, *GUESTS)


@pytest.mark.parametrize("to", ["b", "c"])
def test_a_move_that_was_cut_short_is_ended_where_guests_may_go(world: World, to: str) -> None:
    """It was on its way to b: it goes on if b may take guests, and is given up otherwise; either way it is told."""
    world.killed("after:12", "migrate", "run", "g1", "--to", "b")
    moved = world.storkit("--json", "host", "drain", "a", "--to", to).json["moved"]
    assert sorted(each["guest"] for each in moved) == [*GUESTS]
    assert {name: [*where] for name, where in places(world).items()} == {name: [to] for name in GUESTS}
    intact(world, *GUESTS)


def test_it_is_interrupted_and_repeated(world: World) -> None:
    running = world.popen("-v", "host", "drain", "a", *TO)
    assert running.stderr is not None
    for line in running.stderr:
        if "drain a" in line and "keep" not in line:
            break
    running.send_signal(signal.SIGINT)
    _, said = running.communicate(timeout=60)
    assert running.returncode in (0, 130), said
    world.storkit("host", "drain", "a", *TO)
    assert not any("a" in where for where in places(world).values())
    intact(world, *GUESTS)
