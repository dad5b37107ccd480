"""A guest that somebody made by hand under libvirt, on a disk of its host: adopted, also while it runs, moved there and
back, and given back. Its bytes stay where they are."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest

from tests.guestkit import bootsector
from tests.lab.host import Host
from tests.lab.lab import Lab
from tests.lab.world import REST, VOLUMES, Storage, World, storage

pytestmark = [pytest.mark.lab, pytest.mark.slow]

UUID = "0f1d0c2e-5a44-4f7c-9d53-3c1a4b6f2f10"
DOMAIN = f"""\
<domain type="qemu">
  <name>g</name><uuid>{UUID}</uuid><description>made by hand</description><memory unit="MiB">16</memory>
  <os><type arch="x86_64" machine="pc">hvm</type></os>
  <features><acpi/></features>
  <devices>
    <disk type="KIND" device="disk">
      <driver name="qemu" type="raw" cache="none"/><source WORD="PLACE"/><target dev="hda" bus="ide"/>
    </disk>
  </devices>
</domain>
"""
LV, FILE = "/dev/vg/old-disk", "/srv/old/disk.img"


class Hands:
    """An administrator with virsh on host a."""

    def __init__(self, world: World, place: str) -> None:
        self.world, self.a, self.place = world, world.a, place
        image = world.scratch / "boot.img"
        bootsector.make_disk(image, rest=REST)
        self.a.put(image.read_bytes(), "/root/boot.img")
        if place == LV:
            self.a.run(["lvcreate", "-q", "-y", "-L", "4M", "-n", "old-disk", "vg"])
        else:
            self.a.run(["install", "-D", "-m", "0600", "/dev/null", place])
        self.a.run(["dd", "if=/root/boot.img", f"of={place}", "conv=fsync,notrunc", "status=none"])
        kind, word = ("block", "dev") if place == LV else ("file", "file")
        self.a.put(DOMAIN.replace("KIND", kind).replace("WORD", word).replace("PLACE", place), "/root/g.xml")
        self.a.run(["virsh", "define", "/root/g.xml"])

    def definition(self, *words: str) -> str:
        return self.a.run(["virsh", "dumpxml", *words, "g"]).stdout

    def bytes(self) -> str:
        """Where the disk's bytes are."""
        extents = ["lvs", "--noheadings", "-o", "lv_uuid,seg_pe_ranges", "vg"]
        inode = ["stat", "-c", "%i", FILE, f"{VOLUMES}/g.raw"]  # in one of the two places
        return self.a.run(extents if self.place == LV else inode, check=False).stdout

    def processes(self, host: Host) -> list[str]:
        return host.run(["pidof", "qemu-system-x86_64"], check=False).stdout.split()

    def last(self) -> int:
        return bootsector.last_record(self.world._copy(self.place, "raw"))

    def has_written(self) -> None:
        before = self.last()
        self.a.wait_for(lambda: self.last() > before, "record of the guest", 120, every=0.5)


@pytest.mark.parametrize("kind", ["iscsi-running", "nfs-running", "iscsi-stopped"])
def test_a_guest_made_by_hand_is_adopted_moved_and_given_back(lab: Lab, tmp_path: Path, kind: str) -> None:
    stored, runs = kind.split("-")
    own: Storage = storage("iscsi-own") if stored == "iscsi" else replace(storage("nfs"), host="a")
    world = World(lab, tmp_path, own, "libvirt")
    hands = Hands(world, LV if stored == "iscsi" else FILE)
    a, b = world.a, world.b
    before, there = hands.definition("--inactive"), hands.bytes()
    if runs == "running":
        a.run(["virsh", "start", "g"])
        hands.has_written()
    process = hands.processes(a)

    (guest,) = world.storkit("guest", "adopt", "g")
    assert (guest["uuid"], guest["disks"][0]["volume"]) == (UUID, "g")
    defined = hands.definition("--inactive")
    assert hands.place not in defined and "made by hand" in defined
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
    report = bootsector.verify(world._copy(hands.place, "raw"))
    assert report.clean, report
    a.run(["virsh", "start", "g"])
    a.run(["virsh", "destroy", "g"])
    a.run(["virsh", "undefine", "g"])
    assert world.run("volume", "list").stdout.strip() == "[]"
