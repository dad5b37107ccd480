"""Logical volumes have no device after a boot, until somebody asks for them: whoever opens one by its path does."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest

from tests.lab.host import Host
from tests.lab.lab import Lab
from tests.lab.world import World, storage

pytestmark = pytest.mark.lab


def device_mapper(host: Host) -> None:
    host.run(["modprobe", "dm-mod"])


NBD = replace(
    storage("iscsi"), name="nbd-lvm", transport="nbd", use=lambda host: None, serve=device_mapper, hypervisors=("qemu",)
)


def test_nbd_serves_and_images_are_read_and_written_after_a_boot(lab: Lab, tmp_path: Path) -> None:
    world = World(lab, tmp_path, NBD, commands="s", users=("a",))
    world.storkit("volume", "create", "v", "8MiB")
    world.storkit("volume", "create", "w", "8MiB")
    world.storkit("attach", "v", "--on", "a")
    world.s.run(["sync"])
    world.s.power_off()
    world.boot(world.s)
    assert world.s.run(["sh", "-c", "ls /dev/vg; true"]).stdout == ""
    world.storkit("host", "restore")
    shown = world.storkit("volume", "show", "v")
    assert shown["writers"] == ["a"] and shown["exports"][0]["live"]
    world.storkit("detach", "v", "--on", "a")
    world.storkit("volume", "export", "w", "/root/w.img")
    world.s.run(["rm", "/root/w.img"])
    world.s.run(["lvchange", "-an", "vg/v", "vg/w"])
    world.storkit("attach", "v", "--on", "a")
    world.storkit("detach", "v", "--on", "a")
    world.storkit("volume", "delete", "v", "w")
    left = world.left()
    assert not left, "\n".join(left)
