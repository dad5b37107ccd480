"""Volumes are moved between logical volumes and files, on one host and between two, over the storage network."""

from __future__ import annotations

from pathlib import Path

import pytest

from tests.lab.lab import Lab
from tests.lab.world import VOLUMES, World, storage

pytestmark = [pytest.mark.lab, pytest.mark.slow]

THIN = """
[pools.thin]
host = "s"
type = "lvm"
vg = "vg"
thinpool = "thin"
"""
NEAR = f"""
[pools.near]
host = "a"
type = "directory"
path = "{VOLUMES}"
transport = "nbd"
format = "qcow2"
"""
CODE = """
import os, sys
path, act = sys.argv[1], sys.argv[2]
piece = bytes(range(256)) * 4096
descriptor = os.open(path, os.O_RDWR if act == "write" else os.O_RDONLY)
if act == "write":
    os.pwrite(descriptor, piece, 3 << 20)
    os.fsync(descriptor)
else:
    size = os.lseek(descriptor, 0, os.SEEK_END)
    zeros = bytes(1 << 20)
    wanted = {3 << 20: piece}
    print(all(os.pread(descriptor, 1 << 20, at) == wanted.get(at, zeros) for at in range(0, size, 1 << 20)))
os.close(descriptor)
"""


class Several(World):
    """A pool on s, and one of files on a; of logical volumes, a thick and a thin one."""

    def inventory(self) -> str:
        return super().inventory() + (THIN if self.storage.pool == "lvm" else "") + NEAR


def test_from_pool_to_pool(lab: Lab, tmp_path: Path) -> None:
    world = Several(lab, tmp_path, storage("iscsi"))
    world.a.run(["mkdir", "-p", "-m", "700", VOLUMES])
    world.s.run(["modprobe", "dm-thin-pool"])
    world.s.run(["lvcreate", "-q", "--type", "thin-pool", "-L", "128M", "-n", "thin", "vg"])
    world.storkit("volume", "create", "v", "16MiB")
    before = world.storkit("volume", "show", "v")
    world.s.python(CODE, "/dev/vg/v", "write")
    for pool, host in (("near", "a"), ("thin", "s"), ("near", "a"), ("default", "s")):
        (done,) = world.storkit("volume", "move", "v", "--to", pool)
        assert (done["uuid"], done["pool"], done["host"]) == (before["uuid"], pool, host)
        assert [each["pool"] for each in world.storkit("volume", "list")] == [pool]
        if pool == "near":
            shown = world.a.run(["qemu-img", "info", "--output=json", done["path"]]).stdout
            assert '"format": "qcow2"' in shown
        else:
            assert world.s.python(CODE, done["path"], "read").strip() == "True"
    world.storkit("volume", "rename", "v", "w")
    assert world.s.python(CODE, "/dev/vg/w", "read").strip() == "True"
    assert world.storkit("volume", "show", "w")["uuid"] == before["uuid"]
    world.storkit("volume", "delete", "w")
    assert world.s.run(["lvs", "--noheadings", "-o", "lv_name", "vg"]).stdout.split() == ["thin"]


def test_from_nfs_and_back(lab: Lab, tmp_path: Path) -> None:
    """The new home mounts the file, which is exported to it alone, for reading."""
    world = Several(lab, tmp_path, storage("nfs"))
    world.a.run(["mkdir", "-p", "-m", "700", VOLUMES])
    world.storkit("volume", "create", "v", "16MiB")
    world.s.python(CODE, f"{VOLUMES}/v.raw", "write")
    for pool in ("near", "default"):
        (done,) = world.storkit("volume", "move", "v", "--to", pool)
        assert done["pool"] == pool and [each["pool"] for each in world.storkit("volume", "list")] == [pool]
    assert world.s.python(CODE, f"{VOLUMES}/v.raw", "read").strip() == "True"
    world.storkit("volume", "delete", "v")
    left = world.left()
    assert not left, "\n".join(left)
