"""A fence cuts where it can, says where it could not, and is undone by nothing but unfence."""

from __future__ import annotations

from collections.abc import Callable

import pytest

from tests.e2e.world import INVENTORY, World

pytestmark = pytest.mark.e2e

TWO_STORES = INVENTORY.format(format="raw") + '[hosts.c]\nurl = "local:c"\n[pools.other]\nhost = "c"\n'
SILENT_B = INVENTORY.format(format="raw").replace('"local:b"', '"ssh://127.0.0.8:1"')
"""Nobody listens there: ssh fails at once."""


def writers(world: World, volume: str) -> list[str]:
    exports = world.storkit("--json", "volume", "show", volume).json["exports"]
    return [export["client"] for export in exports if export["writable"]]


def test_a_fence_that_one_store_refuses_stays_at_the_other(make_world: Callable[..., World]) -> None:
    world = make_world(inventory=TWO_STORES)
    for name, pool in (("v", "default"), ("w", "other")):
        world.storkit("volume", "create", name, "1MiB", "--pool", pool)
        world.storkit("attach", name, "--on", "b")
    mark = world.directory / "c/nbd/fenced"
    mark.write_text("in the way of a directory")
    refused = world.storkit("--json", "fence", "b", ok=10)
    assert refused.json["error"]["changed"] is True
    assert "fence b at c (nbd): " in refused.stderr and "next: storkit fence b" in refused.stderr
    assert "b has lost v" in refused.stderr
    assert writers(world, "v") == [] and writers(world, "w") == ["b"]
    assert "host b is fenced on a" in world.storkit("attach", "v", "--on", "b", ok=9).stderr
    assert "failed in part" in world.storkit("plan", "list").stdout
    assert world.storkit("--json", "status").json["plans"] == []
    mark.unlink()
    world.storkit("fence", "b")
    assert writers(world, "w") == []

    held = world.directory / "c/nbd/held"
    mark.rename(held)
    mark.write_text("in the way again")
    assert "next: storkit unfence b" in world.storkit("unfence", "b", ok=10).stderr
    world.storkit("attach", "v", "--on", "b")
    mark.unlink()
    held.rename(mark)
    assert "host b is fenced on c" in world.storkit("attach", "w", "--on", "b", ok=9).stderr
    world.storkit("unfence", "b")
    world.storkit("attach", "w", "--on", "b")


def test_a_person_s_word_frees_what_no_storage_holds(make_world: Callable[..., World]) -> None:
    """A guest without disks may run on any host, so a silent one keeps it from starting, until a person has looked."""
    world = make_world(inventory=SILENT_B)
    world.storkit("guest", "define", "g", "--memory", "16MiB")
    assert "next: storkit fence b --confirmed-off" in world.storkit("guest", "start", "g", "--on", "a", ok=9).stderr
    world.storkit("fence", "b", "--confirmed-off")
    world.storkit("guest", "start", "g", "--on", "a")
    assert world.status()["places"] == {"a": "running"}
    world.storkit("guest", "stop", "g", "--force")
    world.storkit("unfence", "b")
    world.storkit("guest", "start", "g", "--on", "a", ok=9)


def test_a_fence_that_no_store_answers(make_world: Callable[..., World]) -> None:
    """Nothing is cut off, so it is said what is left to a person; and then that passes over who is silent."""
    world = make_world(inventory=SILENT_B.replace('"local:a"', '"ssh://127.0.0.7:1"') + '[hosts.c]\nurl = "local:c"\n')
    refused = world.storkit("--json", "fence", "b", ok=10)
    assert refused.json["error"]["changed"] is False
    failed = refused.stderr
    assert "fence b at a (nbd): host a cannot be reached" in failed and "next: storkit fence b; " in failed
    assert "once you have seen that it is off: storkit fence b --confirmed-off" in failed
    done = world.storkit("fence", "b", "--confirmed-off")
    assert "by your word it is off" in done.stdout and "host a cannot be reached" in done.stderr


def test_a_person_s_word_about_the_only_store(make_world: Callable[..., World]) -> None:
    world = make_world(inventory=SILENT_B.replace('[pools.default]\nhost = "a"', '[pools.default]\nhost = "b"'))
    assert "next: storkit fence b --confirmed-off" in world.storkit("fence", "b", ok=5).stderr
    assert "by your word it is off" in world.storkit("fence", "b", "--confirmed-off").stdout
    assert "declared off by" in world.storkit("status").stderr
    answers = world.storkit("fence", "a", "--confirmed-off", ok=9).stderr
    assert "host a answers: it is not off" in answers and "nothing was changed" in answers
