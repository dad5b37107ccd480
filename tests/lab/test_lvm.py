"""The LVM pool on a real kernel: what the contract does not say."""

from __future__ import annotations

import json
from typing import Any

import pytest

from tests.lab import Host, Lab, iscsi

pytestmark = pytest.mark.lab

PRELUDE = """
import contextlib, json, os, subprocess, sys, time
from dataclasses import replace
from pathlib import Path
from uuid import uuid4
from storkit.core.backend import Site
from storkit.core.errors import *
from storkit.core.model import Volume
from storkit.lvm import Lvm, LvmSettings
from storkit.tech.lvm import tools

MIB = 1 << 20
PIECE = 1 << 16  # a small buffer used again: new pages are what costs most in a kernel like this
site = Site("here", Path("/var/lib/storkit"), Path("/run/storkit"), Path("/dev/storkit"))

def pool(**settings):
    return Lvm(site, LvmSettings(**settings), "p")

def new(name, size=16 * MIB, **more):
    return Volume(name, str(uuid4()), size, **more)

def sh(*argv):
    return subprocess.run(argv, check=True, capture_output=True, text=True).stdout

def write(path, pattern, length, offset=0):
    with open(path, "r+b", buffering=0) as device:
        device.seek(offset)
        for _ in range(0, length, PIECE):
            device.write(pattern * PIECE)
        os.fsync(device.fileno())

def only(path, pattern, length, offset=0):
    with open(path, "rb", buffering=0) as device:
        device.seek(offset)
        same = pattern * PIECE
        return all(device.read(PIECE) == same for _ in range(0, length, PIECE))

def refused(kind, call, *args, **more):
    try:
        call(*args, **more)
    except kind as error:
        return error.message, error.hint
    raise AssertionError(f"{call} was not refused")
"""


def inside(host: Host, code: str, *args: str, timeout: float = 900, fresh: bool = False) -> Any:
    """Run code in a host; the JSON value on the last line it prints."""
    said = host.python(PRELUDE + code, *args, timeout=timeout, fresh=fresh)
    return json.loads(said.splitlines()[-1]) if said.strip() else None


def group(host: Host, size: int = 2 << 30, thin: str = "") -> None:
    """A volume group vg, with a thin pool of the size `thin` where that is given."""
    disk = host.add_disk(size)
    host.run(["vgcreate", "-y", "vg", disk])
    if thin:
        host.run(["lvcreate", "-y", "--type", "thin-pool", "-L", thin, "-n", "pool", "vg"])


@pytest.mark.slow
def test_a_hundred_volumes_are_one_call(lab: Lab) -> None:
    (s,) = lab.hosts("s")
    group(s, thin="1G")
    took = inside(
        s,
        """
thin = pool(vg="vg", thinpool="pool")
wanted = [new(f"v{number:03}") for number in range(100)]
took = {}
def measure(what, call):
    start = time.monotonic()
    call()
    took[what] = round(time.monotonic() - start, 1)
def loop():
    for number in range(100):
        sh("lvcreate", "-q", "-y", "-V", "16M", "-T", "vg/pool", "-n", f"loop{number}")
measure("create", lambda: thin.create(wanted))
assert [v.name for v in thin.find()] == [v.name for v in wanted]
(golden,) = thin.create([new("golden", made="imported")])
write(golden.path, b"g", 4 * MIB)
(golden,) = thin.relabel([replace(golden, kind="image")])
clones = [new(f"c{number:03}") for number in range(100)]
measure("clone", lambda: thin.clone(golden, clones))
assert all(only(volume.path, b"g", 4 * MIB) for volume in thin.find([clones[0].name, clones[99].name]))
measure("find", thin.find)
measure("delete", lambda: thin.delete(wanted + clones))
measure("loop of lvcreate", loop)
assert [v.name for v in thin.find()] == ["golden"]
print(json.dumps(took))
""",
        timeout=1800,
    )
    print(f"100 volumes, seconds: {took}")
    assert took["create"] < took["loop of lvcreate"]


def test_below_the_floor_nothing_is_made(lab: Lab) -> None:
    (s,) = lab.hosts("s")
    group(s, thin="64M")
    inside(
        s,
        """
thin = pool(vg="vg", thinpool="pool", floor="50%", warn="40%")
(disk,) = thin.create([new("disk", 64 * MIB)])
assert thin.capacity().warnings == []
write(disk.path, b"x", 40 * MIB)
for call in (lambda: thin.create([new("a")]), lambda: thin.clone(disk, [new("a", disk.size)]),
             lambda: thin.snapshot(disk, [new("a", disk.size)])):
    message, hint = refused(Conflict, call)
    assert "below the floor of 32MiB" in message and "lvextend" in hint, message
assert any("nearly full" in warning for warning in thin.capacity().warnings)
assert [v.name for v in thin.find()] == ["disk"]
pool(vg="vg", thinpool="pool", floor="10MiB").create([new("b")])
sh("lvchange", "-Zn", "vg/pool")
assert "does not zero" in refused(Conflict, pool(vg="vg", thinpool="pool", floor="0").create, [new("c")])[0]
pool(vg="vg", thinpool="pool", floor="0", zeroing=False).create([new("c")])
thin.delete(thin.find())
""",
    )


def test_a_volume_never_shows_anothers_bytes(lab: Lab) -> None:
    (s,) = lab.hosts("s")
    group(s, 256 << 20)
    inside(
        s,
        """
thick = pool(vg="vg")
room = tools.read("vg").free
def dirty():
    sh("lvcreate", "-y", "-Wn", "-Zn", "-l", "100%FREE", "-n", "probe", "vg")
    return "/dev/vg/probe"
write(dirty(), b"S", room)
sh("lvremove", "-y", "vg/probe")
assert only(dirty(), b"S", room), "the disk forgets by itself: this test proves nothing"
sh("lvremove", "-y", "vg/probe")
(whole,) = thick.create([new("whole", room)])
assert only(whole.path, b"\\0", room)
assert "no room" in refused(Conflict, thick.create, [new("more")])[0]
write(whole.path, b"S", room)
thick.delete([whole])
assert only(dirty(), b"\\0", room), "what is deleted is not discarded"
write("/dev/vg/probe", b"S", room)
sh("lvremove", "-y", "vg/probe")
(small, odd) = thick.create([new("small", 64 * MIB), new("odd", 5 * MIB + 512)])
assert only(small.path, b"\\0", 64 * MIB) and only(odd.path, b"\\0", 5 * MIB)
(grown,) = thick.resize([replace(small, size=100 * MIB)])
assert only(grown.path, b"\\0", 100 * MIB)
write(odd.path, b"o", MIB)
(copy,) = thick.clone(odd, [new("copy", 32 * MIB)])
assert copy.made == "copy" and only(copy.path, b"o", MIB) and only(copy.path, b"\\0", 31 * MIB, MIB)
""",
    )


@pytest.mark.slow
def test_an_image_is_imported_into_a_logical_volume(lab: Lab) -> None:
    (s,) = lab.hosts("s")
    group(s, 512 << 20, thin="128M")
    inside(
        s,
        """
from storkit import images
sh("qemu-img", "create", "-f", "qcow2", "/root/i.qcow2", "24M")
sh("qemu-io", "-f", "qcow2", "-c", "write -P 7 8M 1M", "/root/i.qcow2")
for kind in (pool(vg="vg"), pool(vg="vg", thinpool="pool")):
    (volume,) = kind.create([new("image", 32 * MIB, made="importing")])
    images.fill(site, volume, "/root/i.qcow2")
    (image,) = kind.relabel([replace(volume, kind="image", made="imported")])
    assert only(image.path, b"\\7", MIB, 8 * MIB)
    assert only(image.path, b"\\0", 8 * MIB) and only(image.path, b"\\0", 23 * MIB, 9 * MIB)
    with contextlib.suppress(PermissionError):
        write(image.path, b"x", MIB)
        raise AssertionError("an image can be written")
    kind.delete([image])
""",
    )


def test_what_is_not_ours_stays_as_it_is(lab: Lab) -> None:
    (s,) = lab.hosts("s")
    group(s, thin="256M")
    s.run(["vgchange", "--addtag", "admins", "vg"])
    s.run(["lvcreate", "-y", "-L", "16M", "-n", "foreign", "--addtag", "storkit", "vg"])
    s.run(["lvcreate", "-y", "-V", "16M", "-T", "vg/pool", "-n", "thinforeign"])
    inside(
        s,
        """
def state():
    fields = "lv_name,lv_uuid,lv_tags,lv_size,lv_attr,seg_le_ranges,lv_time"
    return sh("lvs", "-o", fields, "-S", "lv_name=~foreign", "vg") + sh("vgs", "-o", "vg_tags", "vg")
for path in ("/dev/vg/foreign", "/dev/vg/thinforeign"):
    write(path, b"F", 16 * MIB)
before = state()
for mine in (pool(vg="vg"), pool(vg="vg", thinpool="pool")):
    assert mine.find() == []
    for name in ("foreign", "thinforeign", "pool"):
        message, _ = refused(Conflict, mine.create, [new("good"), new(name)])
        assert "did not make" in message, message
        mine.delete([new(name)])
        for verb in (mine.resize, mine.relabel):
            refused(NotFound, verb, [new(name)])
        refused(NotFound, mine.clone, new(name), [new("c")])
    assert "keeps the name" in refused(UsageError, mine.create, [new("x_tdata")])[0]
    assert mine.find() == []
(volume,) = pool(vg="vg").create([new("v")])
sh("lvcreate", "-y", "-s", "-L", "8M", "-n", "foreignsnap", "vg/v")
assert "foreignsnap stands on it" in refused(Conflict, pool(vg="vg").delete, [volume])[0]
sh("lvremove", "-y", "vg/foreignsnap")
sh("lvchange", "--deltag", "storkit.size=16777216", "vg/v")
assert "damaged" in refused(Unsafe, pool(vg="vg").find)[0]
pool(vg="vg").delete([volume])
assert state() == before
assert only("/dev/vg/foreign", b"F", 16 * MIB) and only("/dev/vg/thinforeign", b"F", 16 * MIB)
""",
    )


def test_nobody_else_activates_volumes(lab: Lab) -> None:
    """Two hosts see one volume group, on a disk that both attach."""
    a, b, s = lab.hosts("a", "b", "s")
    iqn = iscsi.export(s, "disk", s.add_disk(256 << 20), [a, b])
    a.run(["vgcreate", "-y", "vg", iscsi.login(a, s, iqn)])
    iscsi.login(b, s, iqn)
    a.run(["lvcreate", "-y", "-L", "16M", "-n", "ordinary", "vg"])
    uuid = inside(a, 'print(json.dumps(pool(vg="vg").create([new("v")])[0].uuid))')
    b.run(["pvscan", "--cache"])
    b.run(["vgchange", "-ay"])
    b.run(["udevadm", "settle"])
    assert b.run(["test", "-b", "/dev/vg/ordinary"]).status == 0
    assert b.run(["test", "-e", "/dev/vg/v"], check=False).status != 0
    assert inside(b, 'print(json.dumps(pool(vg="vg").find()[0].uuid))') == uuid


def test_after_a_boot_volumes_are_found_and_can_be_activated(lab: Lab) -> None:
    (s,) = lab.hosts("s")
    group(s, thin="256M")
    inside(s, 'write(pool(vg="vg", thinpool="pool").create([new("v")])[0].path, b"x", MIB); sh("sync")')
    s.power_off()
    s.boot()
    s.run(["vgchange", "-ay"])
    inside(
        s,
        """
thin = pool(vg="vg", thinpool="pool")
(volume,) = thin.find()
assert not os.path.exists(volume.path)
(snap,) = thin.snapshot(volume, [new("snap")])
tools.activate([volume, replace(snap, path="/tmp/elsewhere")])
assert only(volume.path, b"x", MIB) and only(snap.path, b"x", MIB)
tools.activate([volume])
sh("lvchange", "-an", "vg/v")
assert "is not the volume" in refused(Conflict, tools.activate, [replace(volume, uuid=str(uuid4()))])[0]
""",
    )


def test_what_is_missing_is_named(lab: Lab) -> None:
    (s,) = lab.hosts("s")
    group(s)
    inside(
        s,
        """
assert refused(NotFound, pool(vg="none").find)[0] == "there is no volume group none"
assert "no thin pool none in volume group vg" in refused(NotFound, pool(vg="vg", thinpool="none").create, [new("v")])[0]
assert "names no volume group" in refused(UsageError, pool().find)[0]
assert "cannot be a name" in refused(UsageError, pool(vg="vg --config x").find)[0]
sh("chmod", "-x", "/usr/sbin/lvm")
message, hint = refused(Unsupported, pool(vg="vg").find)
assert "lvm is not installed" in message and hint == "apt install lvm2"
""",
    )
