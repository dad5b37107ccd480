"""A host that has died: cut off at the storage, and its guests started on others."""

from __future__ import annotations

from collections.abc import Callable

import pytest

from tests.e2e.test_drain import GUESTS, INVENTORY, TO, intact, left, places, remembered, writers
from tests.e2e.test_drain import world as world  # the fixture
from tests.e2e.world import World
from tests.guestkit import bootsector

pytestmark = pytest.mark.e2e

OTHERS = ("before:1", "after:1", "after:2", "after:4")
SILENT = INVENTORY.replace('"local:a"', '"ssh://127.0.0.8:1"')
"""Nobody listens there: ssh fails at once. Its guests run on: it was wrongly taken for dead."""


def test_its_guests_are_started_and_it_writes_nothing_more(world: World) -> None:
    refused = world.storkit("host", "evacuate", "a", ok=5).stderr
    assert "host a answers" in refused and "next: storkit host drain a" in refused
    world.inventory.write_text(SILENT)
    assert "next: if it has died: storkit host evacuate a" in world.storkit("host", "drain", "a", ok=7).stderr
    plan = world.storkit("-n", "host", "evacuate", "a", *TO)
    assert "fence a at s" in plan.stdout and plan.stderr.count("would be started on") == 3
    done = world.storkit("--json", "host", "evacuate", "a", *TO, "--first", "g3").json
    assert [each["guest"] for each in done["started"]] == ["g3", "g1", "g2"] and done["left"] == []
    assert {each["host"] for each in done["started"]} == {"b", "c"}
    assert sorted(each["volume"] for each in done["lost"]) == [*GUESTS]
    assert {each["guest"]: [each["host"]] for each in done["started"]} == writers(world)
    for name in GUESTS:
        world.wait_for_writes(world.disk(name), bootsector.last_record(world.disk(name)))
    assert world.storkit("--json", "host", "evacuate", "a", *TO).json["started"] == [], "again: nothing is left to do"

    # It is back, and has them running still: they have lost their disks.
    world.inventory.write_text(INVENTORY)
    world.storkit("guest", "stop", *GUESTS, "--on", "a", "--force")
    world.storkit("unfence", "a")
    assert not any("a" in where for where in places(world).values())
    intact(world, *GUESTS, starts=2)


@pytest.mark.parametrize("point", ["after:8", *(pytest.param(each, marks=pytest.mark.slow) for each in OTHERS)])
def test_killed_it_is_repeated(world: World, point: str) -> None:
    """A fence takes the exports away by which its guests are known: what it had was written down before."""
    world.inventory.write_text(SILENT)
    world.killed(point, "host", "evacuate", "a", *TO)
    world.storkit("host", "evacuate", "a", *TO)
    found = places(world)
    assert found.keys() == {*GUESTS} and all("running" in where.values() for where in found.values())
    assert {name: [*where] for name, where in found.items()} == writers(world)
    assert [plan for plan in world.storkit("--json", "plan", "list").json if plan["status"] == "interrupted"] == []
    assert list((world.directory / "coordinator/evacuations").glob("*.json")) == []


def test_a_guest_that_can_start_nowhere_keeps_no_other(world: World) -> None:
    world.inventory.write_text(SILENT)
    remembered(world, "g2", "900TiB")
    refused = world.storkit("--json", "host", "evacuate", "a", *TO, ok=10)
    assert [each["guest"] for each in refused.json["started"]] == ["g1", "g3"]
    assert list(left(refused)) == ["g2"] and "900TiB" in left(refused)["g2"]
    remembered(world, "g2", "16MiB")
    done = world.storkit("--json", "host", "evacuate", "a", *TO).json
    assert [each["guest"] for each in done["started"]] == ["g2"] and done["left"] == []


def test_a_move_that_its_death_has_cut_short(world: World) -> None:
    """The journal is here: the plan is given up, and the guest is started."""
    world.killed("after:12", "migrate", "run", "g1", "--to", "b")
    world.inventory.write_text(SILENT)
    done = world.storkit("--json", "host", "evacuate", "a", *TO).json
    assert sorted(each["guest"] for each in done["started"]) == [*GUESTS]
    assert [plan for plan in world.storkit("--json", "plan", "list").json if plan["status"] == "interrupted"] == []


def test_one_that_cannot_be_cut_off_everywhere_is_said_so(make_world: Callable[..., World]) -> None:
    """A storage host is silent as well: what others serve is started, and it is named, status 10."""
    two = INVENTORY + '[hosts.t]\nurl = "local:t"\n[pools.other]\nhost = "t"\n'
    world = make_world(inventory=two)
    world.guest("g1")
    world.storkit("guest", "start", "g1", "--on", "a")
    world.storkit("volume", "create", "v", "1MiB", "--pool", "other")
    world.storkit("attach", "v", "--on", "a")
    world.inventory.write_text(
        two.replace('"local:a"', '"ssh://127.0.0.8:1"').replace('"local:t"', '"ssh://127.0.0.9:1"')
    )
    refused = world.storkit("--json", "host", "evacuate", "a", *TO, ok=10)
    assert [each["guest"] for each in refused.json["started"]] == ["g1"] and len(refused.json["problems"]) == 1
    assert "host t cannot be reached" in refused.stderr and "fence a" in refused.stderr
    assert "host t cannot be reached" in world.storkit("host", "evacuate", "a", *TO, ok=10).stderr
    world.storkit("guest", "stop", "g1", "--force")
    world.inventory.write_text(two.replace('"local:a"', '"ssh://127.0.0.8:1"'))
    done = world.storkit("--json", "host", "evacuate", "a", *TO).json
    assert done["started"] == [] and [each["volume"] for each in done["lost"]] == ["v"], "g1 was stopped on purpose"


def test_after_a_fence_it_says_that_nothing_is_known(world: World) -> None:
    world.inventory.write_text(SILENT)
    world.storkit("fence", "a")
    assert "an earlier fence is not known here" in world.storkit("host", "evacuate", "a", *TO).stderr


def test_what_no_storage_can_cut_off_takes_a_person_s_word(make_world: Callable[..., World]) -> None:
    """Its disks are its own: nobody else can refuse it."""
    world = make_world(inventory=INVENTORY.replace('host = "s"', 'host = "a"'))
    world.guest("g1")
    world.storkit("guest", "start", "g1", "--on", "a")
    world.inventory.write_text(SILENT.replace('host = "s"', 'host = "a"'))
    refused = world.storkit("host", "evacuate", "a", *TO, ok=5).stderr
    assert "--confirmed-off" in refused
    assert "a is cut off" in world.storkit("host", "evacuate", "a", *TO, "--confirmed-off").stdout
