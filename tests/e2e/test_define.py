"""`guest define --replace` changes what is said and keeps the rest, also what only the file can say."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from tests.e2e.world import World

FILE = """\
uuid = "ec0a6d23-0557-48f6-8dbb-fb0cf7b7cd17"
memory = "64MiB"
vcpus = 2
machine = "pc"
cpu = "max"
console = "/tmp/web.log"
extra = ["-rtc", "base=localtime"]
disks = [{ volume = "v", target = "vdb", bus = "scsi" }, { volume = "w", readonly = true }]
nics = [{ bridge = "br0", mac = "52:54:00:00:00:01", model = "e1000" }]
[boot]
kernel = "/boot/vmlinuz"
initrd = "/boot/initrd"
cmdline = "quiet"
firmware = "uefi"
"""


@pytest.fixture
def plain(make_world: Callable[..., World]) -> World:
    world = make_world("raw")
    for name in ("v", "w", "x"):
        world.storkit("volume", "create", name, "1MiB")
    (world.directory / "guests").mkdir()
    (world.directory / "guests/web.toml").write_text(FILE)
    return world


def shown(world: World) -> dict[str, Any]:
    """The guest; what is kept of it changes with each change (test_kept_guests.py)."""
    found: dict[str, Any] = world.storkit("--json", "guest", "show", "web").json
    del found["kept"]
    return found


def changed(world: World, *words: object) -> tuple[dict[str, Any], dict[str, Any]]:
    """Change the guest; what was different before, and what is different now."""
    before = shown(world)
    world.storkit("guest", "define", "web", "--replace", *words)
    after = shown(world)
    keys = [key for key in before if before[key] != after[key]]
    return {key: before[key] for key in keys}, {key: after[key] for key in keys}


@pytest.mark.parametrize(
    ("words", "key", "value"),
    [
        (("--memory", "128MiB"), "memory", 128 << 20),
        (("--vcpus", "1"), "vcpus", 1),
        (("--machine", "q35"), "machine", "q35"),
        (("--console", "/tmp/other"), "console", "/tmp/other"),
        (("--console", ""), "console", ""),
        (("--without", "console"), "console", ""),
        (("--without", "machine"), "machine", ""),
        (("--without", "nics"), "nics", []),
        (("--without", "disks"), "disks", []),
    ],
)
def test_only_what_is_said_changes(plain: World, words: tuple[str, ...], key: str, value: object) -> None:
    assert changed(plain, *words)[1] == {key: value}


def test_nothing_said_changes_nothing(plain: World) -> None:
    assert changed(plain) == ({}, {})


def test_parts_of_its_boot(plain: World) -> None:
    before, after = changed(plain, "--kernel", "/boot/new", "--without", "initrd")
    assert after == {"boot": {**before["boot"], "kernel": "/boot/new", "initrd": ""}}
    before, after = changed(plain, "--cmdline", "", "--without", "kernel")
    assert after == {"boot": {**before["boot"], "kernel": "", "cmdline": ""}}


def test_disks_that_stay_keep_their_places(plain: World) -> None:
    before, after = changed(plain, "--disk", "x", "--disk", "v")
    new, kept = after["disks"]
    assert kept == before["disks"][0] and (kept["target"], kept["bus"]) == ("vdb", "scsi")
    assert (new["volume"], new["readonly"], new["target"]) == ("x", False, "")
    assert changed(plain, "--disk", "x", "--disk", "v:ro")[1]["disks"] == [new, {**kept, "readonly": True}]


def test_cards_keep_their_addresses(plain: World) -> None:
    before, after = changed(plain, "--bridge", "br1", "--bridge", "br2")
    first, second = after["nics"]
    assert first == {**before["nics"][0], "bridge": "br1"}
    assert (second["bridge"], second["mac"]) == ("br2", "")


@pytest.mark.parametrize(
    ("words", "text"),
    [
        (("--without", "console"), "say --replace"),
        (("--replace", "--without", "console", "--console", "/x"), "contradict each other"),
        (("--replace", "--without", "memory"), "invalid choice"),
        (("--replace", "--address", "10.0.0.5/24"), "a guest whose root is a tree"),
        (("--replace", "--memory", ""), "is not a size"),
        (("--replace", "--vcpus", "0"), "vcpus"),
        (("--replace", "--hypervisor", ""), "hypervisor"),
    ],
)
def test_what_cannot_be_changed_is_refused(plain: World, words: tuple[str, ...], text: str) -> None:
    assert text in plain.storkit("guest", "define", "web", *words, ok=2).stderr
    assert (plain.directory / "guests/web.toml").read_text() == FILE


def test_without_replace_it_exists_already(plain: World) -> None:
    plain.storkit("guest", "define", "web", "--memory", "128MiB", ok=5)
    plain.storkit("guest", "define", "new", "--replace", "--memory", "128MiB")
    assert plain.storkit("--json", "guest", "show", "new").json["memory"] == 128 << 20


def test_a_disk_made_anew_is_taken_only_when_it_is_named(plain: World) -> None:
    plain.storkit(
        "guest",
        "define",
        "web",
        "--replace",
        "--disk",
        "v",
        "--without",
        "kernel",
        "--without",
        "initrd",
        "--without",
        "cmdline",
    )
    plain.storkit("volume", "delete", "--force", "v")
    plain.storkit("volume", "create", "v", "1MiB")
    plain.storkit("guest", "define", "web", "--replace", "--memory", "128MiB")
    done = plain.storkit("guest", "show", "web", ok=9)
    assert "storkit guest define web --replace --disk v" in done.stderr
    plain.storkit("guest", "define", "web", "--replace", "--disk", "v")
    assert shown(plain)["memory"] == 128 << 20


def test_a_dry_run_shows_what_it_would_be(plain: World, tmp_path: Path) -> None:
    text = plain.storkit("-n", "guest", "define", "web", "--replace", "--vcpus", "4").stdout
    assert "vcpus = 4" in text and 'memory = "64MiB"' in text
    assert (plain.directory / "guests/web.toml").read_text() == FILE


def test_uefi_variables_are_a_volume_of_their_own(plain: World) -> None:
    def disks() -> list[tuple[str, str]]:
        return [(disk["volume"], disk["bus"]) for disk in shown(plain)["disks"]]

    define = ("guest", "define", "web", "--replace")
    plain.storkit(*define, "--disk", "v", "--nvram", "w")
    assert disks() == [("v", "scsi"), ("w", "flash")]
    plain.storkit(*define, "--disk", "x")
    assert disks() == [("x", "virtio"), ("w", "flash")]
    plain.storkit(*define, "--nvram", "v")
    assert disks() == [("x", "virtio"), ("v", "flash")]
    assert "UEFI writes its variables" in plain.storkit(*define, "--nvram", "v:ro", ok=2).stderr
    assert "no firmware but UEFI" in plain.storkit(*define, "--firmware", "bios", ok=2).stderr
    assert "contradict" in plain.storkit(*define, "--nvram", "v", "--without", "nvram", ok=2).stderr
    for size in ("2MiB", "+1MiB", "512KiB"):
        refused = plain.storkit("volume", "resize", "v", size, "--shrink", "--shrink", ok=5).stderr
        assert "is the UEFI variables of guest web" in refused and "nothing was changed" in refused
    plain.storkit(*define, "--without", "nvram", "--firmware", "bios")
    assert disks() == [("x", "virtio")]
    plain.storkit("volume", "resize", "v", "2MiB")
