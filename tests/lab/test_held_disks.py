"""Who stands on a disk keeps it: what others have made on it is named, with the command that takes it away."""

from __future__ import annotations

from collections.abc import Callable
from contextlib import suppress

import pytest

from storkit.core.errors import Conflict
from storkit.system.block.grabbers import LVM_FILTER, MULTIPATH_BLACKLIST
from tests.lab import Host, Lab, services
from tests.lab.luns import Client, Targets
from tests.lab.test_smoke_multipath import CONFIGURATION

pytestmark = pytest.mark.lab


@pytest.fixture
def targets(lab: Lab) -> Targets:
    return Targets(lab.host("s"))


@pytest.fixture
def client(lab: Lab, targets: Targets) -> Client:
    return Client(lab.host("b"))


def filtered(patterns: str) -> str:
    """The option of LVM's commands for a filter of its own."""
    return f"--config 'devices {{ global_filter = [ {patterns} ] }}'"


ONLY_THE_NODE = filtered('"a|^PATH$|", "r|.*|"')
LVM = " && ".join(
    f"{step} {ONLY_THE_NODE}"
    for step in ("pvcreate -qff -y PATH", "vgcreate -q guest-vg PATH", "lvcreate -q -y -n x -l 1 guest-vg")
)
HELD = [
    ("dmsetup create hand --table '0 2048 linear DISK 0'", "dmsetup remove hand"),
    ("losetup /dev/loop3 DISK", "losetup -d /dev/loop3"),
    ("losetup /dev/loop3 PATH", "losetup -d /dev/loop3"),
    ("mke2fs -q PATH && mkdir -p /mnt/v && mount PATH /mnt/v", "umount /mnt/v"),
    ("losetup /dev/loop3 PATH && dmsetup create top --table '0 8 linear 7:3 0'",
     "dmsetup remove top; losetup -d /dev/loop3"),
    (LVM, "vgchange -an guest-vg"),
]  # fmt: skip
"""What a shell makes on an attachment's PATH, or on the DISK below, and the command that is to be named."""


def check_held(host: Host, disk: str, path: str, detach: Callable[[], None]) -> None:
    """Each of these is named by a detach, and gone by the command that it names."""
    host.run(["modprobe", "-a", "loop", "dm-mod"])
    for make, remove in HELD:
        host.run(["sh", "-c", make.replace("DISK", disk).replace("PATH", path)])
        with pytest.raises(Conflict, match="in use on") as refused:
            detach()
        assert refused.value.hint == remove
        host.run(["sh", "-c", refused.value.hint])
        host.run(["udevadm", "settle"])


def disk_below(host: Host) -> str:
    """The disk below the only attachment."""
    found = host.run(["sh", "-c", "ls -d /sys/block/dm-*/slaves/*"]).stdout
    return "/dev/" + found.strip().rpartition("/")[2]


def test_detach_takes_no_disk_from_under_anybody(targets: Targets, client: Client) -> None:
    b = client.host
    targets.make(1, b, writable=True)
    (there,) = client.attach(targets.offer(1, b, writable=True))
    check_held(b, disk_below(b), "/dev/storkit/v1", lambda: client.detach(1))
    # The filter that host check asks for: without its part for the disk below, LVM goes there.
    for patterns, seen in (('"r|^/dev/mapper/storkit:|"', True), (LVM_FILTER, False)):
        assert ("guest-vg" in client.sh(f"vgs --noheadings -o vg_name {filtered(patterns)}")) == seen
    assert client.find() == [there] and client.evidence(1).size
    client.detach(1)
    assert client.left() == []


WOULD_TAKE = """
from storkit.system.block import grabbers
from storkit.system.block.grabbers import LVM_FILTER, MULTIPATH_BLACKLIST
from storkit.tech.iscsi.sessiondisk import sample
print([finding.message.split()[0] for finding in grabbers.findings(sample(), LVM_FILTER, MULTIPATH_BLACKLIST)])
"""


def test_a_disk_that_multipathd_has_taken_is_not_used_beside_it(targets: Targets, client: Client) -> None:
    b = client.host
    targets.make(1, b, writable=True)
    b.put(CONFIGURATION, "/etc/multipath.conf")
    services.multipathd(b)
    assert "multipathd" in b.python(WOULD_TAKE)
    # It takes the disk a moment after that has come, which may be before the attach has ended.
    with suppress(Conflict):
        client.attach(targets.offer(1, b, writable=True))
    b.wait_for(lambda: "mpatha" in client.sh("dmsetup ls"), "map of multipathd's")
    for act in (lambda: client.attach(targets.offer(1, b, writable=True)), lambda: client.detach(1)):
        with pytest.raises(Conflict, match="the multipath map mpatha on /dev/sd") as refused:
            act()
        assert refused.value.hint == "multipath -f mpatha"
    assert [one.volume for one in client.find()] == ["v1"], "it is not taken from under the map"

    b.put(f"{CONFIGURATION}blacklist {{\n{MULTIPATH_BLACKLIST}\n}}\n", "/etc/multipath.conf")
    client.sh("multipathd reconfigure; multipath -f mpatha")
    b.wait_for(lambda: "mpatha" not in client.sh("dmsetup ls"), "end of the map")
    assert "multipathd" not in b.python(WOULD_TAKE)
    client.attach(targets.offer(1, b, writable=True))
    assert client.write(1)
    client.detach(1)
    assert client.left() == []
