"""A guest that somebody made by hand under libvirt, on a disk of its host: adopted, also while it runs, moved there and
back, and given back. Its bytes stay where they are."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest

from tests.guestkit import bootsector
from tests.lab.handmade import domain
from tests.lab.host import Host
from tests.lab.lab import Lab
from tests.lab.world import REST, World, storage

pytestmark = [pytest.mark.lab, pytest.mark.slow]

UUID = "0f1d0c2e-5a44-4f7c-9d53-3c1a4b6f2f10"
LV = "/dev/vg/old-disk"


class Hands:
    """An administrator with virsh on host a."""

    def __init__(self, world: World) -> None:
        self.world, self.a = world, world.a
        image = world.scratch / "boot.img"
        bootsector.make_disk(image, rest=REST)
        self.a.put(image.read_bytes(), "/root/boot.img")
        self.a.run(["lvcreate", "-q", "-y", "-L", "4M", "-n", "old-disk", "vg"])
        self.a.run(["dd", "if=/root/boot.img", f"of={LV}", "conv=fsync", "status=none"])
        self.a.put(domain("g", UUID, LV), "/root/g.xml")
        self.a.run(["virsh", "define", "/root/g.xml"])

    def definition(self, *words: str) -> str:
        return self.a.run(["virsh", "dumpxml", *words, "g"]).stdout

    def edits(self, old: str, new: str) -> None:
        """As `virsh edit` does."""
        text = self.definition("--inactive", "--security-info")
        assert old in text
        self.a.put(text.replace(old, new), "/root/edited.xml")
        self.a.run(["virsh", "define", "/root/edited.xml"])

    def bytes(self) -> str:
        """Where the disk's bytes are."""
        return self.a.run(["lvs", "--noheadings", "-o", "lv_uuid,seg_pe_ranges", "vg"]).stdout

    def processes(self, host: Host) -> list[str]:
        return host.run(["pidof", "qemu-system-x86_64"], check=False).stdout.split()

    def last(self) -> int:
        return bootsector.last_record(self.world._copy(LV, "raw"))

    def has_written(self) -> None:
        before = self.last()
        self.a.wait_for(lambda: self.last() > before, "record of the guest", 120, every=0.5)


def test_a_file_of_a_guest_that_runs_stays_where_it_is_and_moves_with_it(lab: Lab, tmp_path: Path) -> None:
    world = World(lab, tmp_path, replace(storage("nbd-kernel"), host="a"), "libvirt")
    a, file, image = world.a, "/srv/old/disk.img", world.scratch / "boot.img"
    bootsector.make_disk(image, rest=REST)
    a.run(["mkdir", "-p", "-m", "755", "/srv/old"])
    a.put(image.read_bytes(), file)
    a.run(["chmod", "600", file])
    text = (
        domain("g", UUID, file)
        .replace('type="block" device', 'type="file" device')
        .replace("source dev=", "source file=")
    )
    a.put(text, "/root/g.xml")
    a.run(["virsh", "define", "/root/g.xml"])
    a.run(["virsh", "start", "g"])
    inode, process = a.run(["stat", "-c", "%i", file]).stdout, a.run(["pidof", "qemu-system-x86_64"]).stdout
    world.storkit("guest", "adopt", "g")
    volume = world.storkit("volume", "show", "g")
    assert a.run(["stat", "-c", "%i", volume["path"]]).stdout == inode
    assert a.run(["pidof", "qemu-system-x86_64"]).stdout == process, "it goes on as it was"
    world.wait_for_writes()
    world.migrate("b")
    assert a.run(["pidof", "qemu-system-x86_64"], check=False).stdout == ""
    world.wait_for_writes()
    world.migrate("a")
    a.run(["virsh", "destroy", "g"])
    world.storkit("guest", "release", "g")
    assert a.run(["stat", "-c", "%i", file]).stdout == inode
    report = bootsector.verify(world._copy(file, "raw"))
    assert report.clean, report
    a.run(["virsh", "undefine", "g"])


@pytest.mark.parametrize("runs", ["running", "stopped"])
def test_a_guest_made_by_hand_is_adopted_moved_and_given_back(lab: Lab, tmp_path: Path, runs: str) -> None:
    world = World(lab, tmp_path, storage("iscsi-own"), "libvirt")
    hands = Hands(world)
    a, b = world.a, world.b
    before, there = hands.definition("--inactive"), hands.bytes()
    if runs == "running":
        a.run(["virsh", "start", "g"])
        hands.has_written()
    process = hands.processes(a)

    (guest,) = world.storkit("guest", "adopt", "g")
    assert (guest["uuid"], guest["disks"][0]["volume"]) == (UUID, "g")
    defined = hands.definition("--inactive")
    assert LV not in defined and "made by hand" in defined
    assert hands.bytes() == there, "the bytes are the same, wherever they lie"
    if runs == "stopped":
        a.run(["virsh", "start", "g"])
    else:
        assert hands.processes(a) == process, "it goes on as it was"
        status = world.status()
        assert (status["places"], status["writers"]) == ({"a": "running"}, ["a"])
        assert f"(pid {process[0]}), its guest's since before it was a volume" in status["exports"][0]["others"]
        refused = world.run("attach", "g", "--on", "b")
        assert refused.status == 5, refused
    world.wait_for_writes()
    world.migrate("b")
    assert hands.processes(a) == [] and not any(export["others"] for export in world.status()["exports"])
    world.storkit("migrate", "prepare", "g", "--to", "a")
    b.run(["virsh", "migrate", "--live", "--p2p", "--tunnelled", "g", f"qemu+ssh://{a.name}/system"], timeout=600)
    world.storkit("migrate", "finish", "g")
    status = world.status()
    assert (status["places"], status["writers"]) == ({"a": "running"}, ["a"])
    world.wait_for_writes()

    a.run(["virsh", "destroy", "g"])
    world.storkit("guest", "release", "g")
    assert hands.bytes() == there
    assert hands.definition("--inactive") == before
    report = bootsector.verify(world._copy(LV, "raw"))
    assert report.clean, report
    a.run(["virsh", "start", "g"])
    a.run(["virsh", "destroy", "g"])
    a.run(["virsh", "undefine", "g"])
    assert world.run("volume", "list").stdout.strip() == "[]"
