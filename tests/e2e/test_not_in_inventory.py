"""A host that a grant names, and the inventory does not (any more): it is unknown, and can be cut off by its name."""

from __future__ import annotations

import shutil
from collections.abc import Callable
from pathlib import Path

import pytest

from tests.e2e.world import INVENTORY, World

pytestmark = pytest.mark.e2e

THREE = INVENTORY.format(format="raw") + '[hosts.c]\nurl = "local:c"\n'


@pytest.fixture
def world(make_world: Callable[..., World]) -> World:
    return make_world(inventory=THREE)


def take_out(world: World, name: str, renamed: str = "") -> None:
    line = f"[hosts.{renamed}]\n" if renamed else ""
    url = f'url = "local:{name}"\n'
    text = world.inventory.read_text()
    assert f"[hosts.{name}]\n{url}" in text
    world.inventory.write_text(text.replace(f"[hosts.{name}]\n{url}", line + url if renamed else ""))


def test_it_is_shown_as_unknown_and_detached_by_name(world: World) -> None:
    for volume in ("v", "w"):
        world.storkit("volume", "create", volume, "1MiB")
        world.storkit("attach", volume, "--on", "c")
    take_out(world, "c")
    status = world.storkit("status")
    assert "unknown (not in the inventory)" in status.stdout and "host c is not in the inventory" in status.stderr
    assert world.storkit("--json", "status").json["silent"] == ["c"]
    assert world.storkit("--json", "volume", "show", "v").json["writers"] == ["c"]
    refused = world.storkit("volume", "delete", "v", ok=5).stderr
    assert "exported to c (not in the inventory)" in refused and "storkit fence c" in refused
    assert "is written by c" in world.storkit("attach", "v", "--on", "b", ok=5).stderr
    assert "no host 'd'" in world.storkit("detach", "v", "--on", "d", ok=4).stderr
    assert "no host 'd'" in world.storkit("fence", "d", ok=4).stderr
    detached = world.storkit("detach", "v", "--on", "c")
    assert "c, which is not in the inventory and was not asked, could write v until now" in detached.stderr
    assert "no host 'c'" in world.storkit("detach", "v", "--on", "c", ok=4).stderr
    world.storkit("attach", "v", "--on", "b")
    world.storkit("pool", "detach", "default", "--on", "c")
    world.storkit("volume", "delete", "w")
    assert "is not exported" not in world.storkit("status").stderr


def test_it_is_fenced_and_let_in_again_by_name(world: World) -> None:
    world.storkit("volume", "create", "v", "1MiB")
    world.storkit("attach", "v", "--on", "c")
    text = world.inventory.read_text()
    take_out(world, "c")
    assert world.storkit("--json", "fence", "c").json["lost"][0]["volume"] == "v"
    assert world.storkit("--json", "volume", "show", "v").json["exports"] == []
    world.inventory.write_text(text)
    assert "host c is fenced" in world.storkit("attach", "v", "--on", "c", ok=9).stderr
    take_out(world, "c")
    assert "host c is not in the inventory" in world.storkit("unfence", "c").stderr
    world.inventory.write_text(text)
    world.storkit("attach", "v", "--on", "c")


def test_its_guest_is_unknown_until_it_is_fenced(world: World) -> None:
    world.guest()
    world.storkit("guest", "start", "g", "--on", "c")
    text = world.inventory.read_text()
    take_out(world, "c")
    assert "unknown on c" in world.storkit("guest", "list").stdout
    assert world.status()["places"] == {"c": "unknown"}
    deleted = world.storkit("guest", "delete", "g", ok=5).stderr
    assert "unknown on c (not in the inventory)" in deleted and "storkit fence c" in deleted
    for words in (("guest", "start", "g", "--on", "a"), ("guest", "stop", "g"), ("migrate", "cleanup", "g"),
                  ("migrate", "run", "g", "--to", "b")):  # fmt: skip
        assert "storkit fence c" in world.storkit(*words, ok=9).stderr
    redefine = ("guest", "define", "g", "--disk", "g", "--memory", "32MiB", "--replace")
    assert "storkit fence c" in world.storkit(*redefine, ok=5).stderr
    world.storkit("fence", "c")
    world.storkit("guest", "start", "g", "--on", "a")
    assert world.status()["places"] == {"a": "running"} and world.status()["writers"] == ["a"]
    world.storkit("guest", "stop", "g", "--force")
    world.inventory.write_text(text)
    world.storkit("guest", "stop", "g", "--force")


def test_under_another_name_its_guest_is_seen(world: World) -> None:
    """The grant is still in the name that it had."""
    world.guest()
    world.storkit("guest", "start", "g", "--on", "c")
    take_out(world, "c", renamed="d")
    assert world.status()["places"] == {"d": "running", "c": "unknown"}
    assert "running on d" in world.storkit("guest", "delete", "g", ok=5).stderr
    assert "storkit fence c" in world.storkit("guest", "stop", "g", ok=9).stderr
    world.storkit("fence", "c")
    world.storkit("guest", "stop", "g", "--force")
    world.storkit("guest", "start", "g", "--on", "b")
    assert world.status()["places"] == {"b": "running"}


def test_a_url_that_only_a_grant_names_is_never_acted_on(world: World) -> None:
    """A host may call its clients what it likes: here another machine's coordinator has given it a directory of that
    machine."""
    world.guest()
    theirs = world.directory / "theirs"
    client = f"local:{theirs}"
    options = ["--inventory", str(world.inventory), "--state", str(world.directory / "elsewhere")]
    mine, world.words = world.words, lambda *words: [*options, *map(str, words)]  # type: ignore[method-assign]
    world.storkit("attach", "g", "--on", client)
    assert "attached" in world.storkit("status").stdout, "who named the URL is answered by it"
    world.words = mine  # type: ignore[method-assign]
    shutil.rmtree(theirs)
    assert f"host {client} is not in the inventory" in world.storkit("status").stderr
    assert world.status()["places"] == {client: "unknown"}
    world.storkit("volume", "show", "g")
    world.storkit("verify", "g", ok=None)
    for words in (("guest", "start", "g", "--on", "a"), ("guest", "stop", "g")):
        world.storkit(*words, ok=9)
    world.storkit("guest", "delete", "g", ok=5)
    world.storkit("detach", "g", "--on", client)
    world.storkit("fence", client)
    assert world.storkit("--json", "volume", "show", "g").json["exports"] == []
    assert not theirs.exists()


def test_a_record_of_named_urls_that_is_damaged_stops_nothing(make_world: Callable[..., World]) -> None:
    world = make_world()
    there = Path(world.directory / "x")
    world.storkit("volume", "create", "v", "1MiB")
    world.storkit("attach", "v", "--on", f"local:{there}")
    record = world.directory / "coordinator" / "hosts.json"
    assert str(there) in record.read_text()
    for content in ("[", "{}", "[1, null]", "[" * 100000, "\xff\xfe"):
        record.write_text(content, encoding="latin-1")
        assert "not in the inventory" in world.storkit("status").stderr
    record.unlink()
    record.mkdir()
    world.storkit("attach", "v", "--on", f"local:{there}")
    world.storkit("detach", "v", "--on", f"local:{there}")
