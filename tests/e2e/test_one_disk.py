"""One disk, one guest, one right: what would take a guest's disk, or give it to two, is refused with the names."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest

from tests.e2e.world import World


@pytest.fixture
def plain(make_world: Callable[..., World]) -> World:
    world = make_world("raw")
    for name in ("v", "w"):
        world.storkit("volume", "create", name, "1MiB")
    return world


def define(world: World, name: str, *words: str, ok: int = 0) -> str:
    return world.storkit("guest", "define", name, "--memory", "16MiB", *words, ok=ok).stderr


def names(world: World) -> list[str]:
    return [volume["name"] for volume in world.storkit("--json", "volume", "list").json]


@pytest.mark.parametrize("disk", ["v", "v:ro"])
def test_a_disk_of_a_stopped_guest_is_not_deleted(plain: World, disk: str) -> None:
    define(plain, "web", "--disk", disk)
    for dry in ((), ("-n",)):
        done = plain.storkit(*dry, "volume", "delete", "w", "v", ok=5)
        assert "volume v is a disk of guest web" in done.stderr
        assert "storkit guest delete web" in done.stderr and "storkit volume delete --force v" in done.stderr
    assert names(plain) == ["v", "w"]
    plain.storkit("volume", "delete", "w")
    plain.storkit("volume", "delete", "--force", "v")
    assert names(plain) == []
    assert "there is no volume v" in plain.storkit("guest", "start", "web", ok=4).stderr


def test_after_its_guest_is_deleted_a_disk_is_nobodys(plain: World) -> None:
    define(plain, "web", "--disk", "v")
    plain.storkit("guest", "delete", "web")
    plain.storkit("volume", "delete", "v")


def test_a_volume_that_took_a_disks_name_may_be_deleted(plain: World) -> None:
    """The guest's file names its disk by UUID: another volume under the name is none of its disks."""
    define(plain, "web", "--disk", "v")
    plain.storkit("volume", "delete", "--force", "v")
    plain.storkit("volume", "create", "v", "1MiB")
    plain.storkit("volume", "delete", "v")


def test_a_file_written_by_hand_counts(plain: World) -> None:
    guest = plain.directory / "guests/hand.toml"
    guest.parent.mkdir(exist_ok=True)
    guest.write_text('uuid = "ec0a6d23-0557-48f6-8dbb-fb0cf7b7cd17"\nmemory = "16MiB"\ndisks = [{ volume = "v" }]\n')
    assert "a disk of guest hand" in plain.storkit("volume", "delete", "v", ok=5).stderr
    assert "a disk of guest hand" in define(plain, "web", "--disk", "v", ok=5)
    guest.write_text(
        'uuid = "ec0a6d23-0557-48f6-8dbb-fb0cf7b7cd17"\nmemory = "16MiB"\n[root]\n'
        'volume = "w"\naddress = "10.0.0.5/24"\n[boot]\nkernel = "/k"\n'
    )
    assert "a disk of guest hand" in plain.storkit("volume", "delete", "w", ok=5).stderr
    guest.write_text("memory = ")
    assert str(guest) in plain.storkit("volume", "delete", "v", ok=2).stderr
    assert str(guest) in define(plain, "web", "--disk", "v")
    assert "v" in names(plain)
    plain.storkit("volume", "delete", "--force", "v")


def test_two_guests_have_no_disk_in_common_that_both_write(plain: World) -> None:
    define(plain, "web", "--disk", "v")
    before = sorted((plain.directory / "guests").iterdir())
    assert "volume v is a disk of guest web" in define(plain, "db", "--disk", "w", "--disk", "v", ok=5)
    config = plain.directory / "db.args"
    config.write_text("qemu-system-x86_64 -name db -m 64 -drive file=/dev/vg/db,if=virtio,format=raw\n")
    plain.storkit("guest", "import", config, "--disk", "/dev/vg/db=v", ok=5)
    assert sorted((plain.directory / "guests").iterdir()) == before
    define(plain, "ftp", "--disk", "w")
    assert "of guest web" in plain.storkit("guest", "clone", "ftp", "db", "--set", "disks.0.volume=v", ok=5).stderr
    assert names(plain) == ["v", "w"]
    define(plain, "web", "--disk", "v", "--replace")
    assert "reads volume v while guest web writes it" in define(plain, "db", "--disk", "v:ro")


def test_two_guests_may_read_one_disk(plain: World) -> None:
    assert define(plain, "web", "--disk", "v:ro") + define(plain, "db", "--disk", "v:ro") == ""


def test_reading_only_is_refused_where_the_host_writes(plain: World) -> None:
    plain.storkit("attach", "v", "--on", "b")
    for words in (("attach", "v"), ("pool", "attach", "default")):
        done = plain.storkit(*words, "--on", "b", "--read-only", ok=5)
        assert "host b may write volume v" in done.stderr and "storkit detach v --on b" in done.stderr
    assert plain.storkit("--json", "volume", "show", "v").json["writers"] == ["b"]
    assert plain.storkit("--json", "attach", "v", "--on", "b").json["writable"] is True
    plain.storkit("attach", "v", "--on", "a", "--read-only")
    plain.storkit("detach", "v", "--on", "b")
    plain.storkit("attach", "v", "--on", "b", "--read-only")
    assert plain.storkit("--json", "volume", "show", "v").json["writers"] == []


def test_a_host_that_reads_is_given_the_right_to_write(plain: World) -> None:
    plain.storkit("attach", "v", "--on", "b", "--read-only")
    plain.storkit("attach", "v", "--on", "b", "--read-only")
    shown = plain.storkit("--json", "attach", "v", "--on", "b").json
    assert shown["writable"] is True
    seen = plain.storkit("--json", "volume", "show", "v").json
    assert seen["writers"] == ["b"] and [each["writable"] for each in seen["attachments"]] == [True]


def test_an_image_is_said_to_be_read_only(plain: World, tmp_path: Path) -> None:
    image = tmp_path / "image"
    image.write_bytes(bytes(1 << 20))
    plain.storkit("volume", "import", "--golden", image, "gold")
    assert "for reading only" in plain.storkit("attach", "gold", "--on", "b").stderr
    assert plain.storkit("attach", "gold", "--on", "b", "--read-only").stderr == ""
