"""Guests kept with their first volume: committed, fetched, compared and edited by two administrators."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest

from tests.e2e.world import World
from tests.guestkit import bootsector

pytestmark = pytest.mark.e2e

XML = """\
<domain type='kvm'>
  <!-- by hand -->
  <name>shop</name>
  <uuid>ec0a6d23-0557-48f6-8dbb-fb0cf7b7cd17</uuid>
  <memory unit='MiB'>64</memory>
  <os><type arch='x86_64'>hvm</type></os>
  <devices>
    <disk type='file' device='disk'><source file='/srv/shop.img'/><target dev='vda' bus='virtio'/></disk>
  </devices>
</domain>
"""


class Second(World):
    """Another administrator of the same hosts, with an inventory and guests/ elsewhere."""

    def __init__(self, first: World) -> None:
        directory = first.directory / "second"
        directory.mkdir()
        hosts = "".join(f'[hosts.{name}]\nurl = "local:{first.directory}/{name}"\n' for name in "ab")
        rest = first.inventory.read_text().partition("[pools.default]")[2]
        super().__init__(directory, inventory=f"{hosts}[pools.default]{rest}")


@pytest.fixture
def world(make_world: Callable[..., World]) -> World:
    world = make_world("raw")
    world.storkit("volume", "create", "shop", "1MiB")
    (world.directory / "shop.xml").write_text(XML)
    return world


def imported(world: World) -> None:
    world.storkit("guest", "import", world.directory / "shop.xml", "--disk", "vda=shop")


def record(world: World, name: str = "shop") -> Path:
    return world.directory / f"guests/{name}.toml"


def replace(file: Path, old: str, new: str) -> None:
    text = file.read_text()
    assert old in text
    file.write_text(text.replace(old, new))


def kept(world: World, name: str = "shop") -> tuple[int, int | None, bool]:
    said = world.storkit("--json", "guest", "show", name).json["kept"]
    return said["kept"]["generation"], said["generation"], said["same"]


def files(world: World) -> dict[str, str]:
    return {path.name: path.read_text() for path in (world.directory / "guests").iterdir()}


def test_a_guest_is_kept_when_it_is_made_and_each_time_that_it_is_committed(world: World) -> None:
    imported(world)
    assert kept(world) == (1, 1, True) and "generation = 1\n" in record(world).read_text()
    assert world.storkit("guest", "diff", "shop").stdout.strip() == ""
    replace(record(world).with_suffix(".xml"), "by hand", "by another hand")
    record(world).write_text("# why it is so\n" + record(world).read_text())
    assert kept(world) == (1, 1, False)
    said = world.storkit("guest", "diff", "shop").stdout
    assert "-  <!-- by hand -->\n+  <!-- by another hand -->" in said and "+# why it is so" in said
    assert "generation 2" in world.storkit("guest", "commit", "shop").stdout
    assert "# why it is so" in record(world).read_text() and kept(world) == (2, 2, True)
    assert "generation 2" in world.storkit("guest", "commit", "shop").stdout, "it is kept already"
    (place,) = (world.directory / "a/volumes/.guests").glob("*-*")
    assert sorted(path.name for path in place.iterdir()) == ["1.json", "2.json"]


def test_a_second_administrator_finds_it_and_writes_it_to_files(world: World) -> None:
    imported(world)
    second = Second(world)
    (row,) = second.storkit("--json", "guest", "list").json
    assert (row["name"], row["disks"], row["places"]) == ("shop", ["shop"], {})
    assert kept(second) == (1, None, False) and "no files here" in second.storkit("guest", "show", "shop").stdout
    assert second.storkit("guest", "render", "shop").stdout.replace("/dev/storkit/shop", "/srv/shop.img").replace(
        "type='block'", "type='file'").replace("source dev", "source file") == XML  # fmt: skip
    assert second.storkit("migrate", "status", "shop").status == 0
    second.storkit("guest", "checkout", "shop")
    assert files(second) == files(world)


def test_of_two_who_change_it_the_second_is_refused_and_told_what_to_do(world: World) -> None:
    imported(world)
    second = Second(world)
    second.storkit("guest", "checkout", "shop")
    for each in (world, second):
        replace(record(each).with_suffix(".xml"), "by hand", f"by {each.directory.name}")
    world.storkit("guest", "commit", "shop")
    done = second.storkit("guest", "commit", "shop", ok=5)
    assert "was changed by" in done.stderr and "generation 2" in done.stderr and "guest diff shop" in done.stderr
    assert "nothing was changed" in done.stderr
    start = second.storkit("guest", "start", "shop", "--on", "b", ok=None)
    assert "was changed by" in start.stderr or start.status == 3, "an old state is never started"
    assert second.storkit("guest", "checkout", "shop", ok=5).stderr.count("would be written over") == 1
    replace(record(second), "generation = 1", "generation = 2")
    second.storkit("guest", "commit", "shop")
    world.storkit("guest", "checkout", "shop")
    assert files(world) == files(second) and "by second" in files(world)["shop.xml"]
    world.storkit("guest", "checkout", "shop", "--generation", "1")
    assert "by hand" in files(world)["shop.xml"] and kept(world) == (3, 3, False)
    world.storkit("guest", "checkout", "shop", "--force")
    assert kept(world) == (3, 3, True)


def test_a_guest_is_deleted_for_everybody_and_its_name_and_volume_are_free(world: World) -> None:
    imported(world)
    second = Second(world)
    second.storkit("guest", "checkout", "shop")
    assert "disk of guest shop" in second.storkit("volume", "delete", "shop", ok=5).stderr
    world.storkit("guest", "delete", "shop")
    assert world.storkit("--json", "guest", "list").json == [] and files(world) == {}
    replace(record(second).with_suffix(".xml"), "by hand", "late")
    assert "was deleted by" in second.storkit("guest", "commit", "shop", ok=5).stderr
    world.storkit("guest", "define", "other", "--disk", "shop")
    assert kept(world, "other") == (3, 3, True)
    assert "is a disk of guest other" in second.storkit("guest", "commit", "shop", ok=5).stderr
    second.storkit("guest", "delete", "shop")
    assert [row["name"] for row in second.storkit("--json", "guest", "list").json] == ["other"]
    assert "is a disk of guest other" in second.storkit("volume", "delete", "shop", ok=5).stderr
    assert "disk of guest other" in second.storkit("guest", "define", "third", "--disk", "shop", ok=5).stderr


def test_editing(world: World) -> None:
    imported(world)
    editor = world.directory / "editor"
    world.environment |= {"EDITOR": str(editor), "TMPDIR": str(world.directory)}

    def edits(script: str) -> None:
        editor.write_text(f"#!/bin/sh\n{script}\n")
        editor.chmod(0o755)

    edits("true")
    assert "was not changed" in world.storkit("guest", "edit", "shop").stdout
    edits('for file; do sed -i "s/by hand/with care/" "$file"; done')
    assert "generation 2" in world.storkit("guest", "edit", "shop").stdout
    assert "with care" in files(world)["shop.xml"] and kept(world) == (2, 2, True)
    for script, why in (
        ('for file; do sed -i "s/vda/vdb/" "$file"; done; sed -i "s/vdb/vda/" "$1"', "no disk"),
        ('sed -i "s/^uuid.*/uuid = \\"00000000-0000-4000-8000-00000000abcd\\"/" "$1"', "uuid"),
        ('echo "x = [" >> "$1"', "shop.toml"), ("exit 3", "editor has failed"), ('rm "$1"', "cannot be read"),
    ):  # fmt: skip
        edits(script)
        done = world.storkit("guest", "edit", "shop", ok=None)
        assert done.status not in (0, 1) and why in done.stderr, (script, done.stderr)
        typed = done.stderr.rpartition("typed is in ")[2].split()[0]
        assert Path(typed).parent == world.directory and Path(typed).is_dir() and kept(world) == (2, 2, True)
    second = Second(world)
    second.environment = world.environment
    edits('for file; do sed -i "s/with care/twice/" "$file"; done')
    assert (
        "generation 3" in second.storkit("guest", "edit", "shop").stdout and not (second.directory / "guests").exists()
    )
    assert kept(world) == (3, 2, False)


def test_a_first_disk_that_becomes_another_one_takes_the_guest_along(world: World) -> None:
    world.storkit("volume", "create", "new", "1MiB")
    world.storkit("guest", "define", "g", "--disk", "shop")
    for disk, generation in (("new", 1), ("shop", 3), ("new", 3)):
        world.storkit("guest", "define", "g", "--replace", "--disk", disk)
        assert kept(world, "g") == (generation, generation, True)
        (row,) = world.storkit("--json", "guest", "list").json
        assert row["disks"] == [disk]
    world.storkit("guest", "define", "shared", "--disk", "shop:ro")
    assert "writes no volume that keeps it" in world.storkit("guest", "commit", "shared").stdout


def test_a_guest_that_only_its_pool_keeps_starts_on_another_host_moves_and_stops(
    make_world: Callable[..., World],
) -> None:
    world = make_world("raw")
    world.guest()
    second = Second(world)
    second.storkit("guest", "start", "g", "--on", "b")
    world.wait_for_writes(world.disk(), 1)
    second.storkit("migrate", "run", "g", "--to", "a")
    assert world.status()["places"] == {"a": "running"}
    second.storkit("guest", "stop", "g", "--force")
    assert bootsector.verify(world.disk()).clean and world.leftovers() == []
    assert not (second.directory / "guests").exists()


def test_what_a_guest_without_files_uses_is_not_taken_from_it(make_world: Callable[..., World]) -> None:
    world = make_world("raw")
    world.guest()
    world.storkit("volume", "clone", "g", "h")
    world.storkit("volume", "import", "--golden", world.directory / "boot.img", "gold")
    for name in ("g", "h"):
        world.storkit("guest", "define", name, "--disk", name, "--disk", "gold:ro", *(["--replace"] * (name == "g")))
        world.storkit("guest", "start", name, "--on", "b")
    second = Second(world)
    assert "is its disk" in second.storkit("detach", "gold", "--on", "b", ok=5).stderr
    second.storkit("guest", "stop", "g", "--force")
    show = second.storkit("--json", "volume", "show", "gold").json
    assert [each["client"] for each in show["exports"]] == ["b"], "guest h runs there, and reads it"
    second.storkit("guest", "stop", "h", "--force")
    second.storkit("detach", "gold", "--on", "b")
    assert world.leftovers() == []


@pytest.mark.parametrize("mend", ["resume", "rollback"])
@pytest.mark.parametrize("verb", ["commit", "delete"])
def test_killed_anywhere_it_is_kept_whole_and_can_be_mended(world: World, verb: str, mend: str) -> None:
    imported(world)
    second = Second(world)
    for point in ("after:0", "after:1", "before:2", "after:2", "after:3"):
        if verb == "commit":
            world.storkit("guest", "checkout", "shop", "--force")
            replace(record(world).with_suffix(".xml"), "</domain>", f"</domain>\n<!-- {point} -->")
        before = kept(second)[0]
        assert world.killed(point, "guest", verb, "shop").status == -9
        if point == "after:3":  # the plan has ended, and the files do not say so yet
            world.storkit("guest", verb, "shop")
        else:
            plan = world.storkit("--json", "plan", "list").json[-1]["id"]
            mended = world.storkit("plan", mend, plan, ok=None)
            if (point, mend) == ("after:0", "resume"):
                assert mended.status == 5 and "before it began" in mended.stderr
                continue
            assert mended.status == 0, mended.stderr
            if mend == "rollback":
                assert kept(second) == (before, None, False), point
                continue
        if verb == "delete":
            assert second.storkit("--json", "guest", "list").json == [], point
            break
        assert kept(second)[0] == before + 1, point
        world.storkit("guest", "checkout", "shop")
        assert kept(world) == (before + 1, before + 1, True), point
