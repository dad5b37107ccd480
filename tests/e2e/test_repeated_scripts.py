"""A script that is run again: what is there already, or gone already, is as good."""

from __future__ import annotations

from collections.abc import Callable

import pytest

from tests.e2e.world import INVENTORY, World

pytestmark = pytest.mark.e2e


def test_made_once_and_deleted_once(world: World) -> None:
    first, second = (
        world.storkit("--json", "volume", "create", "v", "1MiB", "--if-missing").json[0]["uuid"] for _ in range(2)
    )
    assert first == second
    assert "exists already" in world.storkit("volume", "create", "v", "1MiB", ok=5).stderr
    other = world.storkit("volume", "create", "v", "2MiB", "--if-missing", ok=5).stderr
    assert "is another: a disk of 1MiB in pool default" in other
    world.storkit("volume", "create", "w", "1MiB")
    assert world.storkit("--json", "volume", "delete", "v", "none", "w", "--if-exists").json == {"deleted": ["v", "w"]}
    assert world.storkit("--json", "volume", "delete", "v", "none", "--if-exists").json == {"deleted": []}
    world.storkit("volume", "delete", "v", ok=4)
    world.storkit("guest", "define", "g")
    for _ in range(2):
        world.storkit("guest", "delete", "g", "--if-exists")
    world.storkit("guest", "delete", "g", ok=4)


def test_what_a_silent_host_may_have_is_not_known_to_be_gone(make_world: Callable[..., World]) -> None:
    silent = '[hosts.c]\nurl = "ssh://127.0.0.9:1"\n[pools.other]\nhost = "c"\n'
    world = make_world(inventory=INVENTORY.format(format="raw") + silent)
    for words in (("create", "v", "1MiB", "--if-missing"), ("delete", "v", "--if-exists")):
        refused = world.storkit("--json", "volume", *words, ok=7)
        assert "127.0.0.9" in refused.stderr and refused.json["error"]["changed"] is False
