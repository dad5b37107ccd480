"""A state directory that is full, read-only or not ours: reading goes on, and errors are named as what they are."""

from __future__ import annotations

import subprocess
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

import pytest

from tests.e2e.world import World

pytestmark = pytest.mark.e2e

QUESTIONS = [
    "status",
    "volume list",
    "volume show v",
    "pool list",
    "guest list",
    "guest show g",
    "migrate status",
    "plan list",
    "host list",
]


@contextmanager
def mounted(place: Path, *options: str) -> Iterator[None]:
    subprocess.run(["mount", *options, place], check=True)
    try:
        yield
    finally:
        subprocess.run(["umount", "-l", place], check=True)


@pytest.fixture
def world(make_world: Callable[..., World]) -> World:
    """A volume v that b has attached, and a guest g with it."""
    world = make_world()
    world.storkit("volume", "create", "v", "1MiB")
    world.storkit("guest", "define", "g", "--disk", "v")
    return world


@pytest.fixture
def read_only(world: World) -> Iterator[World]:
    """Its directories cannot be written; an export and its server were made before."""
    world.storkit("attach", "v", "--on", "b")
    with mounted(world.directory, "--bind", str(world.directory)):
        subprocess.run(["mount", "-o", "remount,bind,ro", world.directory], check=True)
        yield world


def fill(directory: Path) -> None:
    """Leave no room on the file system of a directory."""
    with (directory / "filler").open("wb", buffering=0) as file, suppress(OSError):
        while True:
            file.write(bytes(4096))


@pytest.fixture
def full(make_world: Callable[..., World], tmp_path: Path) -> Iterator[World]:
    world = make_world()
    with mounted(world.directory, "-t", "tmpfs", "-o", "size=2m,mode=700", "tmpfs"):
        World(world.directory)
        world.storkit("volume", "create", "v", "1MiB")
        world.storkit("guest", "define", "g", "--disk", "v")
        fill(world.directory)
        yield world


def test_every_question_is_answered_on_a_read_only_file_system(read_only: World) -> None:
    for question in QUESTIONS:
        done = read_only.storkit(*question.split())
        assert "Traceback" not in done.stderr and "bug" not in done.stderr, question
    assert "v" in read_only.storkit("status").stdout and "writes" in read_only.storkit("status").stdout


def test_changes_say_that_the_file_system_is_read_only_and_where(read_only: World) -> None:
    for change in ("volume create w 1MiB", "detach v --on b", "volume snapshot v s", "guest delete g"):
        error = read_only.storkit(*change.split(), ok=5).stderr
        assert "the file system is read-only" in error and str(read_only.directory) in error, change
        assert "Traceback" not in error and "bug" not in error


def test_every_question_is_answered_on_a_full_file_system(full: World) -> None:
    for question in QUESTIONS:
        done = full.storkit(*question.split())
        assert "Traceback" not in done.stderr and "bug" not in done.stderr, question


def test_changes_say_that_there_is_no_space_and_where(full: World) -> None:
    for change in ("volume create w 1MiB", "attach v --on b", "volume resize v 2MiB"):
        error = full.storkit(*change.split(), ok=5).stderr
        assert "no space left" in error and str(full.directory) in error and "nothing was changed" in error, change
        assert "Traceback" not in error and "bug" not in error and "df -h" in error
    assert full.storkit("--json", "plan", "list").json == full.storkit("--json", "plan", "list").json
    assert all(plan["status"] in ("completed", "never begun") for plan in full.storkit("--json", "plan", "list").json)
    assert [volume["name"] for volume in full.storkit("--json", "volume", "list").json] == ["v"]


def test_a_first_question_needs_no_state_directory(make_world: Callable[..., World]) -> None:
    world = make_world()
    with mounted(world.directory, "--bind", str(world.directory)):
        subprocess.run(["mount", "-o", "remount,bind,ro", world.directory], check=True)
        for question in ("status", "volume list", "plan list", "guest list"):
            assert "Traceback" not in world.storkit(*question.split()).stderr


def test_output_that_nobody_takes_is_no_bug(world: World) -> None:
    for words in (("volume", "list"), ("--json", "status")):
        with Path("/dev/full").open("w") as full:
            argv = [*world.argv, *world.words(*words)]
            done = subprocess.run(argv, stdout=full, stderr=subprocess.PIPE, text=True, env=world.environment)
        assert done.returncode == 5 and "standard output cannot be written: No space left" in done.stderr
        assert "Traceback" not in done.stderr
