"""Guests as TOML files: what is read, refused and written."""

from __future__ import annotations

import tomllib
from contextlib import suppress
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from storkit.core.errors import Conflict, NotFound, Problems, StorkitError, UsageError
from storkit.core.guest import Boot, Disk, Guest, Nic
from storkit.guests import files
from storkit.guests.check import MIB, check
from tests.filesystems import mounted

UUID = "0f1d0c2e-5a44-4f7c-9d53-3c1a4b6f2f10"
FULL = Guest(
    name="web",
    uuid=UUID,
    memory=1536 * MIB,
    vcpus=2,
    machine="pc-q35-7.2",
    cpu="max",
    boot=Boot("/srv/vmlinuz", "/srv/initrd", 'console=ttyS0 a="b c"'),
    disks=[Disk("web", target="vda", uuid="6f9d6a70-3d19-4a0e-9f5b-02a3f6b1c7aa"), Disk("tools", readonly=True)],
    nics=[Nic("br0"), Nic("br1", "52:54:00:12:34:56", "e1000")],
    console="/var/log/web.log",
    extra=["-rtc", "base=localtime"],
)


def problems(error: StorkitError) -> list[StorkitError]:
    return error.problems if isinstance(error, Problems) else [error]


def test_a_guest_written_is_the_guest_read(tmp_path: Path) -> None:
    path = files.save(tmp_path / "guests", FULL)
    assert path == tmp_path / "guests" / "web.toml"
    assert files.load(tmp_path / "guests", "web") == FULL
    assert path.stat().st_mode & 0o777 == 0o644
    assert [entry.name for entry in path.parent.iterdir()] == ["web.toml"]


def test_a_file_is_short_and_its_sizes_are_for_people() -> None:
    data = tomllib.loads(files.dumps(Guest("web", UUID, 2 * 1024 * MIB, disks=[Disk("web")])))
    assert data == {"name": "web", "uuid": UUID, "memory": "2GiB", "disks": [{"volume": "web"}]}
    assert tomllib.loads(files.dumps(FULL))["memory"] == "1536MiB"


@pytest.mark.parametrize("memory", ['"256MiB"', "268435456", '"0.25G"', '"262144 KiB"'])
def test_memory_is_text_or_bytes(memory: str) -> None:
    assert files.parse(f'uuid = "{UUID}"\nmemory = {memory}', "web.toml", "web").memory == 256 * MIB


@pytest.mark.parametrize(
    ("memory", "text"), [('"512"', "has no unit"), ("512", "512 bytes is not"), ('"1GB"', "whole MiB")]
)
def test_memory_that_could_mean_two_things_is_refused(memory: str, text: str) -> None:
    with pytest.raises(UsageError, match=text):
        files.parse(f'uuid = "{UUID}"\nmemory = {memory}', "web.toml", "web")


def test_everything_wrong_comes_at_once_with_file_and_key(tmp_path: Path) -> None:
    (tmp_path / "web.toml").write_text(
        """
        name = "db"
        uuid = 7
        memory = "much"
        vcpus = "two"
        colour = "red"
        [boot]
        firmware = "coreboot"
        [[disks]]
        volume = "web"
        size = 5
        [[nics]]
        mac = 5
        """
    )
    with pytest.raises(Problems) as caught:
        files.load(tmp_path, "web")
    places = [problem.message.removeprefix(f"{tmp_path}/web.toml: ") for problem in caught.value.problems]
    for start in ("name:", "uuid:", "memory:", "vcpus:", "unknown key 'colour'", "boot.firmware:", "disks[0]: unknown"):
        assert any(place.startswith(start) for place in places), (start, places)
    assert any(place.startswith("nics[0].mac:") for place in places)
    assert all(str(tmp_path) in problem.message for problem in caught.value.problems)


@pytest.mark.parametrize(
    ("change", "key"),
    [
        ({"name": "../etc"}, "name"),
        ({"uuid": UUID.upper()}, "uuid"),
        ({"uuid": "not-one"}, "uuid"),
        ({"memory": 0}, "memory"),
        ({"memory": -MIB}, "memory"),
        ({"memory": MIB + 512}, "memory"),
        ({"vcpus": 0}, "vcpus"),
        ({"hypervisor": "a/b"}, "hypervisor"),
        ({"machine": "pc,accel=kvm"}, "machine"),
        ({"cpu": "max\n-S"}, "cpu"),
        ({"console": "relative.log"}, "console"),
        ({"console": "/var/../etc/shadow"}, "console"),
        ({"boot": Boot("vmlinuz")}, "boot.kernel"),
        ({"boot": Boot("/k", cmdline="a\nb")}, "boot.cmdline"),
        ({"boot": Boot(cmdline="quiet")}, "boot.cmdline"),
        ({"boot": Boot(initrd="/i")}, "boot.initrd"),
        ({"disks": [Disk("a/b")]}, "disks[0].volume"),
        ({"disks": [Disk("a"), Disk("a")]}, "disks[1].volume"),
        ({"disks": [Disk("a", "vda"), Disk("b", "vda")]}, "disks[1].target"),
        ({"disks": [Disk("a", "vda,x=1")]}, "disks[0].target"),
        ({"disks": [Disk("a", uuid="x")]}, "disks[0].uuid"),
        ({"nics": [Nic("br0,script=/bin/sh")]}, "nics[0].bridge"),
        ({"nics": [Nic()]}, "nics[0]"),
        ({"nics": [Nic("br0", kind="user")]}, "nics[0].bridge"),
        ({"nics": [Nic("br0", group="239.1.1.1:5")]}, "nics[0].group"),
        ({"nics": [Nic(kind="group", group="10.0.0.1:5")]}, "nics[0].group"),
        ({"nics": [Nic(kind="group", group="239.1.1.1,fd=5:5")]}, "nics[0].group"),
        ({"nics": [Nic("a-name-of-16-char")]}, "nics[0].bridge"),
        ({"nics": [Nic("br0", "52:54:00:12:34")]}, "nics[0].mac"),
        ({"nics": [Nic("br0", "53:54:00:12:34:56")]}, "nics[0].mac"),
        ({"nics": [Nic("br0", "52:54:00:12:34:56"), Nic("br0", "52:54:00:12:34:56".upper())]}, "nics[1].mac"),
        ({"nics": [Nic("br0", model="virtio,x=y")]}, "nics[0].model"),
        ({"extra": ["-S\n-daemonize"]}, "extra[0]"),
        ({"extra": ["-S", ""]}, "extra[1]"),
    ],
)
def test_what_is_refused(change: dict[str, Any], key: str) -> None:
    found = check(replace(Guest("web", UUID, 64 * MIB), **change), "here")
    assert [problem.message.split(": ")[1] for problem in found] == [key], found
    assert found[0].exit_code == 2


def test_a_good_guest_has_no_problems() -> None:
    assert check(FULL) == []
    assert check(Guest("a", UUID, MIB, hypervisor="uml", boot=Boot(cmdline="root=/dev/ubda"))) == []


def test_a_file_that_is_there_is_not_written_over(tmp_path: Path) -> None:
    files.save(tmp_path, FULL)
    changed = replace(FULL, vcpus=4)
    with pytest.raises(Conflict, match="exists already"):
        files.save(tmp_path, changed)
    assert files.load(tmp_path, "web") == FULL
    assert [entry.name for entry in tmp_path.iterdir()] == ["web.toml"]
    files.save(tmp_path, changed, replace=True)
    assert files.load(tmp_path, "web") == changed


def test_a_damaged_file_is_not_written_over(tmp_path: Path) -> None:
    (tmp_path / "web.toml").write_text("memory =\nvcpus = 1\n")
    with pytest.raises(Conflict):
        files.save(tmp_path, FULL)
    with pytest.raises(UsageError, match=r"web\.toml: .*line 1"):
        files.load(tmp_path, "web")


@pytest.mark.parametrize("again", [False, True])
def test_the_administrators_comments_stay(tmp_path: Path, again: bool) -> None:
    text = "# The shop's web server\n" + files.dumps(FULL)
    (tmp_path / "web.toml").write_text(text)
    files.save(tmp_path, FULL, replace=again)
    assert (tmp_path / "web.toml").read_text() == text


def test_nothing_is_written_of_a_wrong_guest(tmp_path: Path) -> None:
    with pytest.raises(UsageError):
        files.save(tmp_path, replace(FULL, vcpus=0))
    assert list(tmp_path.iterdir()) == []


def test_the_name_may_be_left_out_but_not_be_another(tmp_path: Path) -> None:
    (tmp_path / "db.toml").write_text(f'uuid = "{UUID}"\nmemory = "1GiB"\n')
    assert files.load(tmp_path, "db").name == "db"
    (tmp_path / "db.toml").write_text(f'name = "web"\nuuid = "{UUID}"\nmemory = "1GiB"\n')
    with pytest.raises(UsageError, match="'web' is not the file's name"):
        files.load(tmp_path, "db")


def test_listing(tmp_path: Path) -> None:
    assert files.names(tmp_path / "none") == [] == files.load_all(tmp_path / "none")
    for name in ("web", "db", "a.b"):
        files.save(tmp_path, replace(FULL, name=name))
    (tmp_path / "web.toml.123.partial").write_text("half")
    (tmp_path / ".hidden.toml").write_text("x")
    (tmp_path / "README").write_text("x")
    assert files.names(tmp_path) == ["a.b", "db", "web"]
    assert [guest.name for guest in files.load_all(tmp_path)] == ["a.b", "db", "web"]


def test_listing_says_what_is_wrong_in_all_files(tmp_path: Path) -> None:
    for name in ("a", "b"):
        (tmp_path / f"{name}.toml").write_text(f'uuid = "{UUID}"\nmemory = 5\n')
    with pytest.raises(Problems) as caught:
        files.load_all(tmp_path)
    assert [Path(problem.message.split(":")[0]).name for problem in caught.value.problems] == ["a.toml", "b.toml"]


def test_a_missing_guest(tmp_path: Path) -> None:
    files.save(tmp_path, FULL)
    with pytest.raises(NotFound) as caught:
        files.load(tmp_path, "wbe")
    assert "web" in caught.value.hint


@pytest.mark.parametrize("name", ["../web", "web/..", "", "-web", "a\0b", "a\nb", "x" * 64, "ü"])
def test_names_that_would_leave_the_directory(tmp_path: Path, name: str) -> None:
    for act in (files.load, files.delete):
        with pytest.raises(UsageError):
            act(tmp_path, name)


def test_deleting_is_done_once_and_can_be_said_twice(tmp_path: Path) -> None:
    files.delete(tmp_path / "none", "web")
    files.save(tmp_path, FULL)
    (tmp_path / "web.toml.99.partial").write_text("left by a killed command")
    files.save(tmp_path, replace(FULL, name="web2"))
    files.delete(tmp_path, "web")
    files.delete(tmp_path, "web")
    assert [entry.name for entry in tmp_path.iterdir()] == ["web2.toml"]


def test_no_room_leaves_no_half_file(tmp_path: Path) -> None:
    (tmp_path / "small").mkdir()
    with mounted("tmpfs", tmp_path / "small", 64 << 10) as small:
        with (small / "filler").open("wb", buffering=0) as filler, suppress(OSError):
            while True:
                filler.write(bytes(4096))
        with pytest.raises(Conflict, match="no space"):
            files.save(small, FULL)
        assert [path.name for path in small.iterdir()] == ["filler"]


text = st.text(st.characters(exclude_categories=["Cc", "Cs", "Zl", "Zp"]), min_size=1).filter(lambda t: not check(
    replace(FULL, boot=Boot("/k", cmdline=t))))  # fmt: skip


@given(cmdline=text, path=text, words=st.lists(text, max_size=3), memory=st.integers(1, 10**6))
def test_any_text_survives_the_file(cmdline: str, path: str, words: list[str], memory: int) -> None:
    boot = Boot("/" + path.replace("..", "--"), cmdline=cmdline)
    guest = replace(FULL, boot=boot, extra=words, memory=memory * MIB)
    assert files.parse(files.dumps(guest), "file", "web") == guest
