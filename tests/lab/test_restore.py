"""Logical volumes are set back to their snapshots: thin ones, which share chunks with them, and thick ones."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest

from tests.lab.host import Host
from tests.lab.lab import Lab
from tests.lab.test_lvm_booted import NBD
from tests.lab.world import World

pytestmark = pytest.mark.lab

MIB = 1 << 20


def thin_pool(host: Host) -> None:
    NBD.make(host)
    host.run(["modprobe", "dm-thin-pool"])
    host.run(["lvcreate", "-q", "--type", "thin-pool", "-L", "128M", "-n", "thin", "vg"])
    # A pool that has had a volume keeps a device-mapper node which a new one has not.
    host.run(["lvcreate", "-q", "-V", "16M", "-n", "first", "--thinpool", "thin", "vg"])
    host.run(["lvremove", "-q", "-f", "vg/first"])


THIN = replace(NBD, name="nbd-thin", pool_settings={"vg": "vg", "thinpool": "thin"}, make=thin_pool)


@pytest.mark.parametrize("storage", [THIN, pytest.param(NBD, marks=pytest.mark.slow)], ids=["thin", "thick"])
def test_there_and_back(lab: Lab, tmp_path: Path, storage: object) -> None:
    world = World(lab, tmp_path, storage, commands="s", users=())  # type: ignore[arg-type]
    world.storkit("volume", "create", "v", "8MiB")
    write(world.s, "v", 1, 8)
    world.storkit("volume", "snapshot", "v", "monday")
    world.storkit("volume", "resize", "v", "+4MiB")
    write(world.s, "v", 2, 12)
    (done,) = world.storkit("volume", "restore", "v", "monday")
    assert done["size"] == 8 * MIB and done["made"] == "restored"
    assert holds(world.s, "v", 1, 8) and holds(world.s, "monday", 1, 8) and holds(world.s, done["kept"], 2, 12)
    (done,) = world.storkit("volume", "restore", "v", done["kept"], "--discard")
    assert done["size"] == 12 * MIB and holds(world.s, "v", 2, 12)
    names = [each["name"] for each in world.storkit("volume", "list")]
    world.storkit("volume", "delete", *names)
    left = world.left()
    assert not left, "\n".join(left)


CODE = """
import os, sys
from storkit.system.run import run
name, byte, size, act = sys.argv[1], int(sys.argv[2]), int(sys.argv[3]) << 20, sys.argv[4]
run(["lvchange", "-ay", "-K", f"vg/{name}"], package="lvm2")
descriptor = os.open(f"/dev/vg/{name}", os.O_RDWR if act == "write" else os.O_RDONLY)
piece, same = bytes([byte]) * (1 << 20), True
for at in range(0, size, len(piece)):
    if act == "write":
        os.pwrite(descriptor, piece, at)
    else:
        same = same and os.pread(descriptor, len(piece), at) == piece
if act == "write":
    os.fsync(descriptor)
os.close(descriptor)
print(same)
"""


def write(host: Host, name: str, byte: int, size: int) -> None:
    """Fill the first MiB of a logical volume, as many as `size`."""
    host.python(CODE, name, str(byte), str(size), "write")


def holds(host: Host, name: str, byte: int, size: int) -> bool:
    host.run(["sh", "-c", "echo 3 >/proc/sys/vm/drop_caches"])
    return host.python(CODE, name, str(byte), str(size), "read").strip() == "True"
