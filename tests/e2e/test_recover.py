"""docs/recover.md: the coordinator's machine is gone, and its journals with it; another one goes on."""

from __future__ import annotations

import shutil

import pytest

from tests.e2e.world import World

pytestmark = pytest.mark.e2e


def lose_the_coordinator(world: World) -> None:
    """Whatever the coordinator alone had in its state directory is gone; what is under way stays marked."""
    shutil.rmtree(world.directory / "coordinator")


def test_an_attach_whose_journal_is_lost_is_ended_by_hand(world: World) -> None:
    world.storkit("volume", "create", "v", "1MiB")
    assert world.killed("after:3", "attach", "v", "--on", "b").status == -9
    lose_the_coordinator(world)
    done = world.storkit("detach", "v", "--on", "b", ok=5)
    (mark,) = (world.directory / "a/pending").glob("*.json")
    assert mark.stem in done.stderr
    world.storkit("plan", "resume", mark.stem, ok=4)
    mark.unlink()
    world.storkit("detach", "v", "--on", "b")
    assert world.leftovers() == []
    world.storkit("attach", "v", "--on", "b")


def test_a_migration_whose_journal_is_lost_is_ended_by_cleanup(world: World) -> None:
    world.guest()
    world.storkit("guest", "start", "g", "--on", "a")
    assert world.killed("after:9", "migrate", "run", "g", "--to", "b").status == -9
    lose_the_coordinator(world)
    assert world.status()["window"] is True
    world.storkit("guest", "stop", "g", ok=5)
    world.storkit("migrate", "cleanup", "g")
    assert world.status()["window"] is False and world.status()["writers"] == ["a"]
    world.storkit("guest", "stop", "g", "--force")
