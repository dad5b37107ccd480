"""One fleet on two hosts of the lab, whose disks come from a third: made, set back, replaced and destroyed."""

from __future__ import annotations

import subprocess
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from tests.e2e.fleets import golden_image
from tests.lab.host import Host
from tests.lab.lab import Lab
from tests.lab.world import IMAGE, Storage, World, storage

pytestmark = [pytest.mark.lab, pytest.mark.slow]
FEW, MANY = 6, 20


def thin(s: Host) -> None:
    storage("iscsi").make(s)
    s.run(["modprobe", "dm-thin-pool"])
    s.run(["lvcreate", "-q", "--type", "thin-pool", "-L", "512M", "-n", "thin", "vg"])


THIN = replace(storage("iscsi"), name="iscsi-thin", pool_settings={"vg": "vg", "thinpool": "thin"}, make=thin)


@pytest.mark.parametrize("count", [FEW, MANY])
@pytest.mark.parametrize("kind", [THIN, storage("nfs"), storage("nbd-qcow2")], ids=lambda kind: kind.name)
def test_a_fleet_on_two_hosts(lab: Lab, tmp_path: Path, kind: Storage, count: int) -> None:
    world = World(lab, tmp_path, kind, memory="768M" if count == FEW else "2G")
    world.s.put(golden_image(tmp_path), IMAGE)
    world.storkit("volume", "import", "--golden", IMAGE, "debian")
    for host in world.hosts:
        world.remains.again(host)
    words = ("fleet", "create", "web", "--image", "debian", "--count", str(count), "--memory", "16MiB", "--start")
    made = world.storkit(*words, "--on", "a", "b")
    homes = {each["name"]: each["host"] for each in made["members"]}
    assert list(homes.values()) == ["a", "b"] * (count // 2)
    running(world, homes)
    assert {name: told(world, name) for name in homes} == {name: name for name in homes}
    # The same command changes nothing; one is set back, and one replaced, while the others run.
    before = {name: uuid(world, name) for name in homes}
    world.storkit(*words, "--on", "a", "b")
    running(world, homes)
    world.storkit("fleet", "reset", "web", "web-02")
    world.storkit("fleet", "start", "web")
    running(world, homes)
    world.storkit("fleet", "replace", "web", "web-03")
    world.storkit("fleet", "start", "web")
    running(world, homes)
    after = {name: uuid(world, name) for name in homes}
    assert {name for name in homes if after[name] != before[name]} <= {"web-02", "web-03"}
    assert told(world, "web-02") == "web-02" and told(world, "web-03") == "web-03"
    world.storkit("fleet", "destroy", "web")
    assert [each["name"] for each in world.storkit("volume", "list")] == ["debian"]
    assert world.storkit("guest", "list") == [] and world.storkit("fleet", "list") == []
    left = world.left()
    assert not left, "\n".join(left)


def running(world: World, homes: dict[str, str]) -> None:
    """Each runs on its host, which alone may write its disk."""
    shown = {each["name"]: each for each in world.storkit("fleet", "show", "web")["members"]}
    assert {name: (each["status"], each["host"]) for name, each in shown.items()} == {
        name: ("running", host) for name, host in homes.items()
    }
    rights = {each["guest"]: each["writers"] for each in world.storkit("migrate", "status")}
    assert rights == {name: [host] for name, host in homes.items()}


def uuid(world: World, name: str) -> Any:
    return world.storkit("volume", "show", name)["uuid"]


def told(world: World, name: str) -> str:
    """The host name in a member's file system."""
    words = ["debugfs", "-R", "cat /etc/hostname", str(world.disk(name))]
    environment = {"PATH": "/usr/bin:/bin:/usr/sbin:/sbin"}
    return subprocess.run(words, capture_output=True, check=True, text=True, env=environment).stdout.strip()
