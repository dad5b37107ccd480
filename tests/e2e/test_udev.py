"""Waiting for real devices: loop devices of this machine."""

from __future__ import annotations

import os
import subprocess
from pathlib import Path

import pytest

from storkit.core.errors import TimedOut
from storkit.system.block.udev import Watch

pytestmark = [
    pytest.mark.e2e,
    pytest.mark.skipif(os.geteuid() != 0 or not Path("/dev/loop-control").exists(), reason="loop devices need root"),
]


def test_a_device_that_changes(tmp_path: Path) -> None:
    image = tmp_path / "image"
    image.write_bytes(bytes(1 << 20))
    with Watch("block") as watch:
        name = subprocess.run(
            ["losetup", "--find", "--show", str(image)], check=True, capture_output=True, text=True
        ).stdout.strip()
        try:
            device = watch.wait(lambda device: device.device_node == name, 10, name, action="change")
            assert device.subsystem == "block"
        finally:
            subprocess.run(["losetup", "--detach", name], check=True)


def test_a_device_that_never_comes() -> None:
    with Watch("block") as watch, pytest.raises(TimedOut, match="the LUN did not appear"):
        watch.wait(lambda device: device.device_node == "/dev/none", 0.2, "the LUN")
