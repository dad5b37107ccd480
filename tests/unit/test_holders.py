"""Who stands on a device, by trees of sysfs and proc as Linux 6.1 has them."""

from __future__ import annotations

from pathlib import Path

import pytest

from storkit.system.block import holders
from storkit.system.block.holders import Holder, volume_group


class Machine:
    """A /sys and a /proc."""

    def __init__(self, root: Path) -> None:
        self.sys, self.proc = root / "sys", root / "proc"
        (self.proc / "self").mkdir(parents=True)
        (self.proc / "self/mountinfo").write_text("22 1 98:0 / / rw - ext4 /dev/root rw\n")
        (self.proc / "swaps").write_text("Filename\tType\tSize\tUsed\tPriority\n")
        self.count = 0

    def device(self, name: str, *on: str, **files: str) -> None:
        """A device that stands on others; `files` are attributes, with __ for a slash."""
        self.count += 1
        entry = self.sys / "class/block" / name
        (entry / "holders").mkdir(parents=True)
        for path, text in {"dev": f"250:{self.count}", **files}.items():
            file = entry / path.replace("__", "/")
            file.parent.mkdir(exist_ok=True)
            file.write_text(text + "\n")
        for below in on:
            (self.sys / "class/block" / below / "holders" / name).touch()

    def partition(self, name: str, disk: str) -> None:
        self.device(name, partition="1")
        (self.sys / "class/block" / disk / name).symlink_to(self.sys / "class/block" / name)

    def node(self, number: int, name: str, uuid: str, *on: str) -> None:
        self.device(f"dm-{number}", *on, dm__name=name, dm__uuid=uuid)

    def find(self, *devices: str, through: bool = True) -> list[Holder]:
        return holders.find(devices, through=through, sys=self.sys, proc=self.proc)

    def commands(self, *devices: str, through: bool = True) -> list[str]:
        return [holder.remove for holder in self.find(*devices, through=through)]


@pytest.fixture
def machine(tmp_path: Path) -> Machine:
    made = Machine(tmp_path)
    made.device("sda")
    made.node(0, "storkit:web:attached", "STORKIT-u-attached", "sda")
    return made


def test_storkits_own_node_is_nobody(machine: Machine) -> None:
    assert machine.find("/dev/sda", "/dev/dm-0") == [] == machine.find("/dev/none")


@pytest.mark.parametrize(
    ("name", "uuid", "what", "remove"),
    [
        ("mpatha", "mpath-36001405", "the multipath map mpatha", "multipath -f mpatha"),
        ("guest--vg-root", "LVM-abcdef", "LVM's volume group guest-vg", "vgchange -an guest-vg"),
        ("secret", "CRYPT-LUKS2-9a-secret", "the encrypted device secret", "cryptsetup close secret"),
        ("storkit:web:attached1", "part1-STORKIT-u-attached", "the device-mapper node storkit:web:attached1",
         "dmsetup remove storkit:web:attached1"),
        ("by hand", "", "the device-mapper node by hand", "dmsetup remove 'by hand'"),
        ("x; reboot-y", "LVM-abcdef", "LVM's volume group x; reboot", "vgchange -an 'x; reboot'"),
    ],
)  # fmt: skip
@pytest.mark.parametrize("on", ["sda", "dm-0"])
def test_maps_are_known_by_what_made_them(
    machine: Machine, on: str, name: str, uuid: str, what: str, remove: str
) -> None:
    machine.node(1, name, uuid, on)
    assert machine.find("/dev/sda") == [Holder(what, f"/dev/{on}", remove)] == machine.find("/dev/dm-0", "/dev/sda")


def test_what_stands_on_top_is_taken_away_first(machine: Machine) -> None:
    machine.device("md127", "dm-0", md__level="raid1")
    machine.node(1, "vg-lv", "LVM-x", "md127")
    machine.node(2, "vg-other", "LVM-x", "md127")
    machine.device("loop3", loop__backing_file="/dev/mapper/vg-lv")
    assert machine.commands("/dev/sda") == ["losetup -d /dev/loop3", "vgchange -an vg", "mdadm --stop /dev/md127"]
    error = holders.conflict("web", "b", machine.find("/dev/sda"))
    assert error.message == (
        "volume web is in use on b: by the loop device loop3 on /dev/dm-1 and LVM's volume group vg on /dev/md127 and "
        "the md array md127 on /dev/dm-0"
    )
    assert error.hint == "losetup -d /dev/loop3; vgchange -an vg; mdadm --stop /dev/md127"


def test_partitions_loops_mounts_and_swap(machine: Machine) -> None:
    machine.partition("sda1", "sda")
    machine.node(1, "vg-lv", "LVM-x", "sda1")
    machine.device("loop0", loop__backing_file="/dev/sda")
    machine.device("loop1", loop__backing_file="/root/other")
    mounts = "30 22 250:{} / /mnt/a\\040b rw - ext4 /dev/sda1 rw\n31 22 0:40 / /data rw - btrfs /dev/dm-0 rw\n"
    number = (machine.sys / "class/block/sda1/dev").read_text().strip().partition(":")[2]
    (machine.proc / "self/mountinfo").write_text(mounts.format(number))
    with (machine.proc / "swaps").open("a") as swaps:
        swaps.write("/dev/loop0 partition 8 0 -2\n")
    assert machine.commands("/dev/sda") == [
        "vgchange -an vg", "umount '/mnt/a b'", "umount /data", "swapoff /dev/loop0", "losetup -d /dev/loop0"
    ]  # fmt: skip


def test_users_of_the_path_are_told_from_who_has_taken_the_disk_below(machine: Machine) -> None:
    machine.node(1, "used-lv", "LVM-x", "dm-0")
    assert machine.find("/dev/sda", through=False) == []
    machine.node(2, "mpatha", "mpath-3600", "sda")
    assert machine.commands("/dev/sda", through=False) == ["multipath -f mpatha"]


def test_loop_devices_on_a_file(machine: Machine) -> None:
    machine.device("loop0", loop__backing_file="/run/storkit/nfs/u/web.raw")
    machine.node(1, "vg-lv", "LVM-x", "loop0")
    commands = [holder.remove for holder in holders.on_file("/run/storkit/nfs/u/web.raw", machine.sys, machine.proc)]
    assert commands == ["vgchange -an vg", "losetup -d /dev/loop0"]
    assert holders.on_file("/run/storkit/nfs/u/other.raw", machine.sys, machine.proc) == []


@pytest.mark.parametrize(
    ("mapped", "group"),
    [("vg-lv", "vg"), ("my--vg-l--v", "my-vg"), ("a--b--c-d--e", "a-b-c"), ("v---x", "v-"), ("vg", "vg")],
)
def test_the_volume_group_in_a_nodes_name(mapped: str, group: str) -> None:
    assert volume_group(mapped) == group
