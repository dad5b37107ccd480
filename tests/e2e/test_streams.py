"""Images through pipes: `storkit volume export v - | storkit volume import - w`."""

from __future__ import annotations

import os
import pty
import shlex
import subprocess
from collections.abc import Callable
from pathlib import Path

import pytest

from tests.e2e.sshd import two_machines
from tests.e2e.world import Done, World

DATA = os.urandom(300_032) + bytes(1 << 20) + os.urandom(512)


@pytest.fixture
def plain(make_world: Callable[..., World]) -> World:
    return with_volume(make_world("raw"))


def with_volume(world: World) -> World:
    image = world.directory / "image"
    image.write_bytes(DATA)
    world.storkit("volume", "import", image, "v")
    return world


def shell(world: World, line: str, **options: object) -> Done:
    """Run a line of bash in which `storkit` is this one."""
    storkit = " ".join(shlex.quote(word) for word in [*world.argv, *world.words()])
    text = f'set -o pipefail; storkit() {{ {storkit} "$@"; }}; {line}'
    done = subprocess.run(["bash", "-c", text], capture_output=True, env=world.environment, cwd=world.directory,
                          timeout=120, check=False, **options)  # type: ignore[call-overload]  # fmt: skip
    return Done(done.returncode, done.stdout.decode(errors="replace"), done.stderr.decode(errors="replace"))


def volumes(world: World) -> list[str]:
    return [volume["name"] for volume in world.storkit("--json", "volume", "list").json]


def spooled(world: World) -> list[Path]:
    return list((world.directory / "coordinator/spool").glob("*"))


@pytest.mark.parametrize("words", ["", "--format qcow2", "--format qcow2 --compress", "--format vmdk"])
def test_export_and_import_through_a_pipe(world: World, words: str) -> None:
    with_volume(world)
    done = shell(world, f"storkit volume export v - {words} | storkit volume import - w")
    assert done.status == 0, done.stderr
    assert "w: imported" in done.stdout and "v: " in done.stderr
    assert world.disk("w").read_bytes() == DATA
    assert spooled(world) == []
    assert world.storkit("--json", "plan", "list").json[-1]["status"] == "completed"


def test_standard_output_is_the_image_and_nothing_else(plain: World) -> None:
    done = subprocess.run([*plain.argv, *plain.words("-v", "volume", "export", "v", "-")],
                          capture_output=True, env=plain.environment, check=True)  # fmt: skip
    assert done.stdout == DATA
    assert b"standard output" in done.stderr
    assert shell(plain, "storkit volume export v - > copy && cmp copy image").status == 0


@pytest.mark.parametrize(
    ("line", "status", "text"),
    [
        ("storkit --json volume export v -", 2, "not for JSON"),
        ("storkit volume export none -", 4, "there is no volume"),
        ("storkit volume export v - --compress", 2, "not compressed"),
        ("storkit volume export v - > /dev/full", 5, "no space left"),
        ("storkit volume export v - | head -c 1000 > /dev/null", 1, "went away after"),
        ("storkit volume export v - | true", 1, "went away after"),
        ("storkit volume export v - >&-", 2, "terminal"),
        ("storkit volume export none - | storkit volume import - w", 2, "standard input: the image is empty"),
        ("storkit --json volume export v - | storkit volume import - w", 2, "whole number of sectors"),
        ("storkit volume list | storkit volume import - w", 2, "whole number of sectors"),
        ("head -c 70000 image | storkit volume import - w", 2, "standard input: 70000 bytes"),
        ("storkit volume export v - --format qcow2 | head -c 300000 | storkit volume import - w", 2, "truncated"),
        ("gzip < image | head -c 200000 | storkit volume import - w", 2, "standard input is cut short"),
        ("storkit volume import - w <&-", 2, "standard input"),
    ],
)
def test_what_is_short_or_no_image_is_refused(plain: World, line: str, status: int, text: str) -> None:
    done = shell(plain, line)
    assert done.status == status, done.stderr
    assert text in done.stderr and "Traceback" not in done.stderr
    assert volumes(plain) == ["v"]
    assert spooled(plain) == []
    assert not (plain.directory / "-").exists()
    unfinished = {plan["status"] for plan in plain.storkit("--json", "plan", "list").json} - {"completed"}
    assert unfinished <= {"failed and rolled back"}


def test_a_terminal_is_no_place_for_an_image(plain: World) -> None:
    ours, theirs = pty.openpty()
    for words in (("export", "v", "-"), ("import", "-", "w")):
        done = subprocess.run([*plain.argv, *plain.words("volume", *words)], stdin=theirs, stdout=theirs,
                              stderr=subprocess.PIPE, text=True, env=plain.environment, check=False)  # fmt: skip
        assert done.returncode == 2 and "terminal" in done.stderr
    os.set_blocking(ours, False)
    with pytest.raises(BlockingIOError):
        os.read(ours, 1)
    os.close(ours)
    os.close(theirs)


def test_a_file_may_be_called_so(plain: World) -> None:
    assert shell(plain, "storkit volume export v ./- && cmp ./- image").status == 0
    assert shell(plain, "storkit volume import ./- w < /dev/null").status == 0
    assert plain.disk("w").read_bytes() == DATA


def test_a_dry_run_writes_nothing(plain: World) -> None:
    done = shell(plain, "storkit -n volume export v -")
    assert (done.status, done.stdout) == (0, "") and "standard output" in done.stderr


def test_zeros_that_are_added_are_told(plain: World) -> None:
    done = shell(plain, "head -c 1000 image | storkit volume import --format raw - w")
    assert done.status == 0 and "24 bytes of zeros" in done.stderr
    assert plain.disk("w").read_bytes() == DATA[:1000] + bytes(24)


def test_a_volume_in_use_is_not_exported(plain: World) -> None:
    plain.storkit("attach", "v", "--on", "b")
    done = shell(plain, "storkit volume export v -")
    assert (done.status, done.stdout) == (5, "")


def test_what_killed_exports_left_is_removed_by_the_next(plain: World) -> None:
    left = plain.directory / "coordinator/spool/stream-1-dead.partial"
    left.parent.mkdir(parents=True)
    left.touch()
    assert shell(plain, "storkit volume export v - > copy").status == 0
    assert spooled(plain) == []


def test_over_ssh_it_is_refused_before_anything_is_written(tmp_path: Path) -> None:
    with two_machines(tmp_path) as world:
        with_volume(world)
        done = shell(world, "storkit volume export v - | storkit volume import - w")
        assert done.status == 2 and done.stderr.count("next:") == 2
        assert "copy /var/tmp/v.img from a" in done.stderr
        assert volumes(world) == ["v"]
