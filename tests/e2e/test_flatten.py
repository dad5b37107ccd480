"""Clones that stand on their image, made whole with the real command line, whatever was killed."""

from __future__ import annotations

import json
import subprocess
from pathlib import Path
from typing import Any

import pytest

from tests.e2e.world import World

BYTES = bytes(range(256)) * 8192
pytestmark = pytest.mark.parametrize("world", ["qcow2"], indirect=True)


@pytest.fixture
def cloned(world: World) -> World:
    image = world.directory / "golden.img"
    image.write_bytes(BYTES)
    world.storkit("volume", "import", "--golden", image, "golden")
    world.storkit("volume", "clone", "golden", "web", "db")
    return world


def backing(world: World, name: str = "web") -> str:
    """What qemu-img says that a volume's file stands on."""
    path = world.storkit("--json", "volume", "show", name).json["path"]
    done = subprocess.run(["qemu-img", "info", "--output=json", path], check=True, capture_output=True)
    subprocess.run(["qemu-img", "check", "-q", path], check=True)
    return str(json.loads(done.stdout).get("backing-filename", ""))


def test_a_flat_clone_needs_its_image_no_longer(cloned: World) -> None:
    before = cloned.storkit("--json", "volume", "show", "web").json
    assert backing(cloned) and before["made"] == "overlay"
    refused = cloned.storkit("volume", "delete", "golden", ok=5)
    assert "storkit volume flatten db web" in refused.stderr
    cloned.storkit("attach", "web", "--on", "b")
    assert "is exported to b" in cloned.storkit("volume", "flatten", "db", "web", ok=5).stderr
    cloned.storkit("detach", "web", "--on", "b")
    assert "flatten web" in cloned.storkit("-n", "volume", "flatten", "web").stdout and backing(cloned)
    (flat, _) = cloned.storkit("--json", "volume", "flatten", "web", "db").json
    assert (flat["uuid"], flat["made"], flat["origin"]) == (before["uuid"], "flattened", before["origin"])
    assert not backing(cloned) and not backing(cloned, "db")
    cloned.storkit("volume", "delete", "golden")
    assert cloned.disk("web").read_bytes() == BYTES
    said = cloned.storkit("volume", "flatten", "web").stdout
    assert said.startswith("web: stands on no other volume (flattened), 2MiB")
    cloned.storkit("attach", "web", "--on", "b")
    cloned.storkit("detach", "web", "--on", "b")


@pytest.mark.parametrize("point", ["after:0", "after:1", "before:2", "after:2"])
def test_what_was_killed_is_either_and_goes_on(cloned: World, point: str) -> None:
    cloned.killed(point, "volume", "flatten", "web")
    assert cloned.disk("web").read_bytes() == BYTES
    again: Any = cloned.storkit("volume", "flatten", "web", ok=None)
    if again.status:  # the plan that was cut short has the volume
        (plan,) = [each for each in cloned.storkit("--json", "plan", "list").json if each["status"] == "interrupted"]
        assert f"storkit plan resume {plan['id']}" in again.stderr
        cloned.storkit("plan", "resume", plan["id"])
    assert not backing(cloned) and cloned.disk("web").read_bytes() == BYTES
    cloned.storkit("volume", "flatten", "db")
    cloned.storkit("volume", "delete", "golden")
    assert [path.name for path in Path(cloned.directory / "a" / "volumes").glob("*.partial")] == []
