"""A pool that cannot be looked at, or a damaged volume, stops what needs it and nothing else."""

from __future__ import annotations

import os
from collections.abc import Callable
from pathlib import Path

import pytest

from tests.e2e.world import World

pytestmark = pytest.mark.e2e

INVENTORY = """\
[hosts.a]
url = "local:a"
[hosts.b]
url = "local:b"
[pools.one]
host = "a"
[pools.two]
host = "a"
path = "{two}"
[pools.three]
host = "b"
[defaults]
pool = "one"
"""


@pytest.fixture
def world(make_world: Callable[..., World], tmp_path: Path) -> World:
    """Volumes web in pool one, db in pool two, log in pool three; a guest on web, and one on db."""
    two = tmp_path / "two"
    two.mkdir(mode=0o700)
    world = make_world(inventory=INVENTORY.format(two=two))
    for name, pool in (("web", "one"), ("db", "two"), ("log", "three")):
        world.storkit("volume", "create", name, "1MiB", "--pool", pool)
    for name, disk in (("front", "web"), ("back", "db")):
        world.storkit("guest", "define", name, "--disk", disk)
    return world


@pytest.fixture
def unmounted(world: World, tmp_path: Path) -> World:
    """Pool two's directory is gone."""
    (tmp_path / "two").rename(tmp_path / "away")
    return world


@pytest.fixture
def damaged(world: World, tmp_path: Path) -> World:
    """The sidecar of db is no JSON, and one more volume beside it is well."""
    world.storkit("volume", "create", "near", "1MiB", "--pool", "two")
    (tmp_path / "two/db.json").write_text("{")
    return world


def column(text: str, number: int = 0) -> list[str]:
    return [line.split()[number] for line in text.splitlines()[1:]]


def test_lists_show_the_other_pools_and_name_the_missing_one(unmounted: World, tmp_path: Path) -> None:
    for words in (("volume", "list"), ("pool", "list"), ("guest", "list"), ("migrate", "status")):
        done = unmounted.storkit(*words)
        assert "pool two cannot be looked at" in done.stderr and str(tmp_path / "two") in done.stderr, words
        assert "mkdir" not in done.stderr
    assert column(unmounted.storkit("volume", "list").stdout) == ["web", "log"]
    assert column(unmounted.storkit("pool", "list").stdout) == ["one", "three", "two"]
    assert column(unmounted.storkit("guest", "list").stdout) == ["back", "front"]
    assert column(unmounted.storkit("migrate", "status").stdout, 1) == ["unknown", "stopped"]
    unmounted.storkit("status")
    (other,) = [pool for pool in unmounted.storkit("--json", "pool", "list").json if "error" in pool]
    assert (other["pool"], other["host"], other["error"]["kind"]) == ("two", "a", "not-found")
    (other,) = [guest for guest in unmounted.storkit("--json", "migrate", "status").json if "error" in guest]
    assert other["guest"] == "back"


def test_an_empty_place_of_a_mount_is_not_an_empty_pool(world: World, tmp_path: Path) -> None:
    """What `umount` leaves: the directory is there, and nothing is in it."""
    two = tmp_path / "two"
    (tmp_path / "away").mkdir()
    for entry in list(two.iterdir()):
        entry.rename(tmp_path / "away" / entry.name)
    listed = world.storkit("volume", "list")
    assert column(listed.stdout) == ["web", "log"] and "is empty, and was in use before" in listed.stderr
    assert "is its file system mounted?" in listed.stderr
    world.storkit("volume", "create", "new", "1MiB", "--pool", "two", ok=4)
    assert list(two.iterdir()) == []
    (two / ".storkit.lock").touch()
    world.storkit("volume", "create", "new", "1MiB", "--pool", "two")
    (two / ".storkit.lock").unlink()
    assert column(world.storkit("volume", "list").stdout) == ["web", "new", "log"]


def test_what_needs_another_pool_goes_on(unmounted: World) -> None:
    unmounted.storkit("attach", "web", "--on", "b")
    unmounted.storkit("volume", "show", "web")
    unmounted.storkit("detach", "web", "--on", "b")
    done = unmounted.storkit("volume", "create", "new", "1MiB", "--pool", "three")
    assert "pool two cannot be looked at" in done.stderr  # where a volume of that name may be
    unmounted.storkit("volume", "delete", "new")


def test_what_may_need_the_missing_pool_says_why_not(unmounted: World) -> None:
    for words in (
        ("volume", "show", "db"),
        ("attach", "db", "--on", "b"),
        ("volume", "delete", "db"),
        ("guest", "start", "back"),
    ):
        error = unmounted.storkit(*words, ok=5).stderr
        assert "pool two" in error and "there is no directory" in error and "mkdir" not in error
    for command in ("volume create new 1MiB --pool two", "pool attach two --on b"):
        assert "there is no directory" in unmounted.storkit(*command.split(), ok=4).stderr


def test_a_damaged_volume_is_named_in_lists_and_hides_no_other(damaged: World) -> None:
    listed = damaged.storkit("volume", "list")
    assert column(listed.stdout) == ["web", "near", "log", "db"] and "db.json is damaged" in listed.stderr
    (bad,) = [volume for volume in damaged.storkit("--json", "volume", "list").json if "error" in volume]
    assert (bad["name"], bad["pool"], bad["host"], bad["error"]["kind"]) == ("db", "two", "a", "unsafe")
    assert "not counted: db" in damaged.storkit("pool", "list").stderr
    assert column(damaged.storkit("guest", "list").stdout) == ["back", "front"]
    damaged.storkit("attach", "near", "--on", "b")
    damaged.storkit("detach", "near", "--on", "b")


def test_a_damaged_volume_is_refused_and_keeps_its_name(damaged: World) -> None:
    for words in (
        ("volume", "show", "db"),
        ("attach", "db", "--on", "b"),
        ("volume", "delete", "db"),
        ("volume", "create", "db", "1MiB", "--pool", "one"),
        ("volume", "clone", "web", "db"),
        ("pool", "attach", "two", "--on", "b"),
        ("guest", "start", "back"),
    ):
        assert "db.json is damaged" in damaged.storkit(*words, ok=9).stderr, words


def test_a_guest_list_is_whole_while_the_host_of_a_pool_is_down(world: World) -> None:
    text = world.inventory.read_text()
    world.inventory.write_text(text.replace('[hosts.a]\nurl = "local:a"', '[hosts.a]\nurl = "ssh://127.0.0.9:1"'))
    listed = world.storkit("guest", "list")
    assert column(listed.stdout) == ["back", "front"] and "unknown on a" in listed.stdout
    assert "host a cannot be reached" in listed.stderr
    assert column(world.storkit("migrate", "status").stdout) == ["back", "front"]
    assert column(world.storkit("volume", "list").stdout) == ["log"]
    assert column(world.storkit("pool", "list").stdout) == ["three", "one", "two"]


def test_status_shows_what_is_attached_of_a_host_that_is_down(world: World) -> None:
    world.storkit("attach", "web", "--on", "b")
    text = world.inventory.read_text()
    world.inventory.write_text(text.replace('[hosts.a]\nurl = "local:a"', '[hosts.a]\nurl = "ssh://127.0.0.9:1"'))
    shown = world.storkit("status")
    rows = [line.split() for line in shown.stdout.partition("\n\n")[0].splitlines()[1:]]
    assert rows == [["web", "unknown", "b", "unknown", "attached"]], shown
    assert "host a cannot be reached" in shown.stderr
    world.inventory.write_text(text)


def test_a_damaged_record_hides_nothing_but_what_it_is_of(world: World) -> None:
    """Of an export, of an attachment, of a guest: what can be shown is shown, and what cannot is named."""
    world.storkit("volume", "create", "new", "1MiB", "--pool", "three")
    for name, home in (("web", "a"), ("log", "b"), ("new", "b")):
        world.storkit("attach", name, "--on", home)
    log = world.storkit("--json", "volume", "show", "log").json["uuid"]
    grant = world.directory / f"b/nbd/{log}.json"
    grant.write_text("{")
    (world.directory / "guests/front.toml").write_text("=")
    shown = world.storkit("status")
    rows = [line.split() for line in shown.stdout.partition("\n\n")[0].splitlines()[1:]]
    assert rows == [
        ["web", "a", "a", "writes", "attached"],
        ["new", "b", "b", "writes", "attached"],
        ["log", "unknown", "b", "unknown", "attached"],
    ]
    assert "host b cannot say all of what nbd has there" in shown.stderr and grant.name in shown.stderr
    assert [(one["host"], one["transport"]) for one in world.storkit("--json", "status").json["unread"]] == [
        ("b", "nbd")
    ]
    listed = world.storkit("guest", "list")
    assert [line.split()[:2] for line in listed.stdout.splitlines()[1:]] == [["back", "stopped"], ["front", "damaged"]]
    assert "front.toml" in listed.stderr
    assert column(world.storkit("migrate", "status").stdout) == ["back", "front"]
    # What needs the damaged record is refused; what does not goes on.
    world.storkit("attach", "log", "--on", "a", ok=9)
    world.storkit("detach", "web", "--on", "a")
    world.storkit("guest", "show", "front", ok=2)

    attachment = world.directory / f"b/nbd/attached/{log}.json"
    attachment.write_text("[]")
    shown = world.storkit("--json", "status")
    assert "host b cannot say all of what nbd has there" in shown.stderr
    assert [one["volume"] for one in shown.json["attachments"]["b"]] == ["new"]


def test_status_names_who_writes_a_volume_past_its_server(world: World) -> None:
    world.storkit("attach", "web", "--on", "a")
    path = world.storkit("--json", "volume", "show", "web").json["path"]
    assert "open for writing" not in world.storkit("status").stdout
    with Path(path).open("r+b"):  # by this process, which asks for no lock
        shown = world.storkit("status").stdout
        assert "volume web is open for writing on a: by " in shown and f"(pid {os.getpid()})" in shown
        (export,) = world.storkit("--json", "status").json["exports"]["a"]
        assert f"ps -fp {os.getpid()}" in export["others"]
        refused = world.storkit("attach", "web", "--on", "b", "--read-only", ok=5)
        assert f"(pid {os.getpid()})" in refused.stderr and "everything was put back" in refused.stderr
        world.storkit("detach", "web", "--on", "a")
