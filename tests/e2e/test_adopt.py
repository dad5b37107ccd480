"""What is there becomes a volume, and is given back, by the command line; killed after any step as well."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest

from tests.e2e.test_kill_points import walk
from tests.e2e.world import World
from tests.guestkit import bootsector

pytestmark = pytest.mark.e2e


def old_disk(world: World) -> Path:
    """A guest's disk as an administrator has it, beside the pool's directory."""
    path = world.directory / "images" / "g.img"
    path.parent.mkdir(parents=True, exist_ok=True)
    bootsector.make_disk(path, rest=2)
    path.chmod(0o600)
    return path


def volumes(world: World) -> list[str]:
    return [volume["name"] for volume in world.storkit("--json", "volume", "list").json]


def test_a_file_is_adopted_used_and_given_back(make_world: Callable[..., World]) -> None:
    world = make_world("raw")
    old = old_disk(world)
    inode = old.stat().st_ino
    assert "adopt" in world.storkit("-n", "volume", "adopt", old, "g").stdout and old.exists()
    made = world.storkit("--json", "volume", "adopt", old, "g").json
    assert (made["was"], made["made"], made["host"]) == (str(old), "adopted", "a")
    assert Path(made["path"]).stat().st_ino == inode and not old.exists()
    again = world.storkit("volume", "adopt", made["path"], ok=5)
    assert "is volume g already" in again.stderr

    world.storkit("guest", "define", "g", "--disk", "g", "--memory", "16MiB")
    world.storkit("guest", "start", "g", "--on", "a")
    world.wait_for_writes(Path(made["path"]), 0)
    assert "exported to a" in world.storkit("volume", "release", "g", "--force", ok=5).stderr
    world.storkit("migrate", "run", "g", "--to", "b")
    world.storkit("guest", "stop", "g", "--force")
    assert "a disk of guest g" in world.storkit("volume", "release", "g", ok=5).stderr
    world.storkit("guest", "delete", "g")
    assert world.storkit("--json", "volume", "release", "g").json[0]["place"] == str(old)
    assert old.stat().st_ino == inode and bootsector.verify(old).clean and bootsector.last_record(old) > 0
    assert volumes(world) == [] and world.leftovers() == []


def test_what_no_pool_takes_is_refused_before_anything_changes(make_world: Callable[..., World]) -> None:
    world = make_world("raw")
    old = old_disk(world)
    for words, status, said in (
        ((old, "a/b"), 2, "cannot name a volume"),
        ((world.directory / "nothing.img",), 4, "there is no file"),
        (("vg/nothing",), 4, "no path of a file"),
        ((old, "--pool", "none"), 4, "none"),
        ((old, "--on", "b"), 4, "host b has no pool"),
        ((old, "--on", "b", "--pool", "default"), 2, "is on a, and not on b"),
    ):
        done = world.storkit("volume", "adopt", *words, ok=status)
        assert said in done.stderr, done.stderr
    assert old.exists() and volumes(world) == []


@pytest.mark.parametrize("mend", ["resume", "rollback"])
@pytest.mark.parametrize("verb", ["adopt", "release"])
def test_killed_anywhere(make_world: Callable[..., World], verb: str, mend: str) -> None:
    world = make_world("raw")
    old = old_disk(world)
    content, inode = old.read_bytes(), old.stat().st_ino
    adopt, release = ("volume", "adopt", str(old), "g"), ("volume", "release", "g")
    if verb == "release":
        world.storkit(*adopt)

    def check(point: str, plan: str) -> None:
        is_volume = (verb == "adopt") == (mend == "resume")
        assert volumes(world) == ["g"] * is_volume, f"{mend} after {point}"
        place = world.directory / "a/volumes/g.raw" if is_volume else old
        assert place.stat().st_ino == inode and place.read_bytes() == content, f"{mend} after {point}"
        if mend == "resume":  # as it was before
            world.storkit(*(release if verb == "adopt" else adopt))

    assert len(walk(world, adopt if verb == "adopt" else release, mend, check)) >= 3
