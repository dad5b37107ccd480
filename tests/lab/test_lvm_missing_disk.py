"""A volume group that lacks one of its disks: what lies on the other is used as ever, and the rest says which it is."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path

import pytest

from tests.lab import Host, Lab
from tests.lab.test_lvm import inside
from tests.lab.world import World, storage

pytestmark = pytest.mark.lab
EXTENTS = 5
"""Of each disk: room for one volume of the test."""
GONE = "/dev/mapper/pv1"


def plug_in(host: Host, *numbers: int) -> None:
    """Disks, as devices that can be taken away from under whoever uses them. They begin behind the start of what they
    are on, where LVM would find the same bytes twice."""
    for number in numbers:
        table = f"0 {(EXTENTS * 4 + 1) * 2048} linear /dev/ubd{'abc'[number]} 2048"
        host.run(["dmsetup", "create", f"pv{number}", "--table", table])


def pull_out(host: Host, number: int) -> None:
    host.run(["dmsetup", "wipe_table", f"pv{number}"])


def two_disks(host: Host) -> None:
    host.run(["modprobe", "dm-mod"])
    for _ in range(2):
        host.add_disk(32 << 20)
    plug_in(host, 1, 2)
    host.run(["vgcreate", "-q", "-y", "vg", "/dev/mapper/pv1", "/dev/mapper/pv2"])


def test_a_pool_that_lacks_a_disk(lab: Lab) -> None:
    (s,) = lab.hosts("s")
    two_disks(s)
    inside(
        s,
        """
thick = pool(vg="vg")
one, two = thick.create([new("one")]) + thick.create([new("two")])
assert "pv1" in sh("lvs", "--noheadings", "-o", "devices", "vg/one")
assert "pv2" in sh("lvs", "--noheadings", "-o", "devices", "vg/two")
write(two.path, b"2", two.size)
sh("dmsetup", "wipe_table", "pv1")
sh("lvchange", "-an", "vg/one", "vg/two")

seen = thick.look()
(broken,) = seen.damaged
assert seen.volumes == [two] and broken.name == "one", seen
assert "/dev/mapper/pv1 (PV " in broken.message and "pvs" in broken.hint, broken
assert any("lacks /dev/mapper/pv1" in warning for warning in thick.capacity().warnings)

calls = {"create": (thick.create, [new("four", 4 * MIB)]), "resize": (thick.resize, [replace(two, size=20 * MIB)]),
         "clone": (thick.clone, two, [new("c")]), "snapshot": (thick.snapshot, two, [new("s")]),
         "relabel": (thick.relabel, [replace(two, kind="image")])}
for name, (call, *args) in calls.items():
    message, hint = refused(Conflict, call, *args)
    assert "pool p, volume group vg, lacks /dev/mapper/pv1 (PV " in message, (name, message)
    assert "vgreduce --removemissing vg" in hint and "vgextend --restoremissing" in hint, hint

# one that is damaged keeps no other from being used
assert "/dev/mapper/pv1" in refused(Unsafe, tools.activate, [one, two])[0]
assert only(two.path, b"2", two.size)
assert thick.look().volumes == [two]
thick.delete([two])
assert thick.look().volumes == []
""",
    )


@pytest.mark.slow
def test_volumes_of_other_disks_are_attached_and_come_back_after_a_boot(lab: Lab, tmp_path: Path) -> None:
    world = World(lab, tmp_path, replace(storage("iscsi"), make=two_disks), commands="s")
    s = world.s
    for name, host in (("one", "a"), ("two", "b")):
        world.storkit("volume", "create", name, "16MiB")
        world.storkit("attach", name, "--on", host)
    world.storkit("detach", "two", "--on", "b")
    pull_out(s, 1)

    assert GONE in str(world.storkit("pool", "list")[0]["warnings"])
    listed = {each["name"]: each for each in world.storkit("volume", "list")}
    assert "error" not in listed["two"] and GONE in listed["one"]["error"]["message"]
    refused = world.run("volume", "create", "more", "4MiB")
    assert refused.status == 5 and "pool default" in refused.stdout and GONE in refused.stdout, refused
    refused = world.run("attach", "one", "--on", "b")
    assert refused.status == 9 and GONE in refused.stdout, refused
    world.storkit("attach", "two", "--on", "b")
    write = ["dd", "if=/dev/urandom", "of=/dev/storkit/two", "bs=64k", "count=1", "oflag=direct", "conv=nocreat"]
    world.b.run(write)
    assert {each["volume"] for each in world.storkit("status")["attachments"]["b"]} == {"two"}

    s.power_off()
    world.boot(s)
    plug_in(s, 2)
    restored = world.run("host", "restore", "s")
    assert restored.status != 0 and "logical volume one is damaged" in restored.stdout, restored
    world.b.run(write)
    plug_in(s, 1)
    world.storkit("host", "restore", "s")
    world.a.run([word.replace("two", "one") for word in write])
    for name, host in (("one", "a"), ("two", "b")):
        world.storkit("detach", name, "--on", host)
        world.storkit("volume", "delete", name)
    assert json.loads(world.run("volume", "list").stdout) == []
