"""Volumes and guests get other names: what a name stood for is known by its UUID, and is whole wherever it is cut."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from storkit import api
from storkit.core.errors import Conflict
from storkit.plans.intent.kept import keeping
from tests.e2e.world import World, each_format

pytestmark = pytest.mark.e2e


def volumes(world: World) -> dict[str, str]:
    return {each["name"]: each["uuid"] for each in world.storkit("--json", "volume", "list").json}


def guest(world: World, name: str) -> Any:
    return world.storkit("--json", "guest", "show", name).json


@each_format
def test_a_volume_and_its_guest_get_other_names(world: World) -> None:
    world.guest()
    before = volumes(world)["g"]
    record = world.directory / "guests" / "g.toml"
    record.write_text("# mine\n" + record.read_text())
    world.storkit("guest", "commit", "g")
    assert "rename g to disk" in world.storkit("-n", "volume", "rename", "g", "disk").stdout and "g" in volumes(world)
    (done,) = world.storkit("--json", "volume", "rename", "g", "disk").json
    assert (done["name"], done["uuid"]) == ("disk", before) and volumes(world) == {"disk": before}
    shown = guest(world, "g")
    assert shown["kept"]["kept"]["generation"] == 3 and shown["kept"]["same"] and "# mine" in record.read_text()

    assert world.storkit("--json", "guest", "rename", "g", "web").json["guest"] == "web"
    assert not record.exists() and "# mine" in record.with_name("web.toml").read_text()
    shown = guest(world, "web")
    assert shown["kept"]["kept"]["generation"] == 4 and shown["kept"]["same"]
    record.with_name("web.toml").unlink()  # as another coordinator has it
    assert [each["name"] for each in world.storkit("--json", "guest", "list").json] == ["web"]
    world.storkit("guest", "start", "web")
    for words in (("volume", "rename", "disk", "x"), ("guest", "rename", "web", "x")):
        world.storkit(*words, ok=5)
    assert list(volumes(world)) == ["disk"] and guest(world, "web")["places"] == {"a": "running"}
    world.storkit("guest", "stop", "web", "--force")


def test_what_is_refused_changes_nothing(world: World) -> None:
    for name in ("v", "w"):
        world.storkit("volume", "create", name, "1MiB")
    world.storkit("volume", "snapshot", "v", "monday")
    before = volumes(world)
    assert "exists already" in world.storkit("volume", "rename", "v", "w", ok=5).stderr
    assert world.storkit("volume", "rename", "none", "x", ok=4).stderr
    assert world.storkit("volume", "rename", "v", "a/b", ok=2).stderr
    world.storkit("attach", "v", "--on", "b")
    assert "is exported to b" in world.storkit("volume", "rename", "v", "x", ok=5).stderr
    world.storkit("detach", "v", "--on", "b")
    stranger = world.directory / "a" / "volumes" / "x.raw"
    stranger.write_text("somebody's")
    assert "in the way" in world.storkit("volume", "rename", "v", "x", ok=5).stderr
    assert volumes(world) == before and stranger.read_text() == "somebody's"
    world.storkit("volume", "rename", "v", "y")
    world.storkit("volume", "restore", "y", "monday", "--discard")


@pytest.mark.parametrize("way", [pytest.param("again", marks=pytest.mark.slow), "resume", "rollback"])
def test_killed_anywhere_it_is_whole(world: World, way: str) -> None:
    world.guest()
    uuid = volumes(world)["g"]
    for point in {"again": range(1, 7), "resume": (1, 3, 5), "rollback": (2, 4)}[way]:
        world.killed(f"after:{point}", "volume", "rename", "g", "disk")
        assert list(volumes(world).values()) == [uuid], point
        plans = [each["id"] for each in world.storkit("--json", "plan", "list").json if each["status"] == "interrupted"]
        if plans:
            world.storkit("plan", "resume" if way == "again" else way, plans[0])
        if way != "rollback" or not plans:
            world.storkit("volume", "rename", "g", "disk", ok=None)
            assert volumes(world) == {"disk": uuid}, point
            assert guest(world, "g")["disks"][0]["volume"] == "disk", point
            world.storkit("volume", "rename", "disk", "g")
        assert volumes(world) == {"g": uuid}, point
        assert guest(world, "g")["kept"]["same"], point


def test_a_file_of_somebody_else_is_not_taken_for_the_volume(world: World) -> None:
    """A renaming that was cut short before the file had its second name, which somebody has taken since."""
    world.storkit("volume", "create", "c", "1MiB")
    place = Path(world.storkit("--json", "volume", "show", "c").json["path"])
    uuid = volumes(world)["c"]
    (place.parent / "c.rename").write_text('{"to": "w"}\n')
    stranger = place.with_name(f"w{place.suffix}")
    stranger.write_bytes(b"theirs")
    refused = world.storkit("volume", "create", "other", "1MiB", ok=None)
    assert refused.status and "is another file than" in refused.stderr
    assert stranger.read_bytes() == b"theirs" and place.exists()
    stranger.unlink()
    world.storkit("volume", "create", "other", "1MiB")
    assert volumes(world)["w"] == uuid


def test_a_guest_that_is_started_meanwhile_keeps_its_name(world: World, monkeypatch: pytest.MonkeyPatch) -> None:
    """Between the first look and the lock."""
    world.guest()
    keep = keeping.keep

    def late(*given: Any) -> Any:
        world.storkit("guest", "start", "g", "--on", "b")
        return keep(*given)

    monkeypatch.setattr(keeping, "keep", late)
    with (
        api.open(world.inventory, world.directory / "coordinator") as site,
        pytest.raises(Conflict, match="guest g is running on b: its name stays"),
    ):
        site.guests.rename("g", "h")
    assert [each["name"] for each in world.storkit("--json", "guest", "list").json] == ["g"]
    world.storkit("guest", "stop", "g", "--force")
