"""Who stands on a disk keeps it: what others have made on it is named, with the command that takes it away."""

from __future__ import annotations

import shlex
import time

import pytest

from storkit.core.errors import Conflict
from tests.lab import Host, Lab, services
from tests.lab.luns import Client, Targets
from tests.lab.test_smoke_multipath import CONFIGURATION

pytestmark = pytest.mark.lab

LVM = '--config \'devices {{ global_filter = [ "a|^{}$|", "r|.*|" ] }}\''


@pytest.fixture
def targets(lab: Lab) -> Targets:
    return Targets(lab.host("s"))


@pytest.fixture
def client(lab: Lab, targets: Targets) -> Client:
    return Client(lab.host("b"))


def lvm(path: str) -> str:
    """Make a volume group on a disk, whatever else of this host shows the same bytes."""
    only = LVM.format(path)
    return (
        f"pvcreate -qff -y {path} {only} && vgcreate -q guest-vg {path} {only} && lvcreate -qn x -l 1 guest-vg {only}"
    )


HELD = [
    ("dmsetup create hand --table '0 2048 linear {disk} 0'", "dmsetup remove hand"),
    ("losetup /dev/loop3 {disk}", "losetup -d /dev/loop3"),
    ("losetup /dev/loop3 {path}", "losetup -d /dev/loop3"),
    ("mke2fs -q {path} && mkdir -p /mnt/v && mount {path} /mnt/v", "umount /mnt/v"),
    (lvm("{path}"), "vgchange -an guest-vg"),
    ("losetup /dev/loop3 {path} && dmsetup create top --table '0 8 linear 7:3 0'",
     "dmsetup remove top; losetup -d /dev/loop3"),
]  # fmt: skip


def check_held(host: Host, disk: str, path: str, detach: object) -> None:
    """Each of these, made on an attachment, is named by a detach, and gone by the command that it names."""
    assert callable(detach)
    host.run(["modprobe", "-a", "loop", "dm-mod"])
    for make, remove in HELD:
        host.run(["sh", "-c", make.format(disk=disk, path=path)])
        with pytest.raises(Conflict, match="in use on") as refused:
            detach()
        assert refused.value.hint == remove
        host.run(["sh", "-c", refused.value.hint])
        host.run(["udevadm", "settle"])


def test_detach_takes_no_disk_from_under_anybody(targets: Targets, client: Client) -> None:
    b = client.host
    targets.make(1, b, writable=True)
    (there,) = client.attach(targets.offer(1, b, writable=True))
    disk = client.sh("ls -d /sys/block/dm-*/slaves/sd*").rpartition("/")[2]
    check_held(b, f"/dev/{disk}", "/dev/storkit/v1", lambda: client.detach(1))
    assert client.find() == [there] and client.evidence(1).size
    client.detach(1)
    assert client.left() == []


def test_a_disk_that_another_map_has_taken_is_not_used_beside_it(targets: Targets, client: Client) -> None:
    """multipathd takes whatever disk comes; what it says of itself is what one has to type."""
    b = client.host
    targets.make(1, b, writable=True)
    client.attach(targets.offer(1, b, writable=True))
    b.put(CONFIGURATION, "/etc/multipath.conf")
    services.multipathd(b)
    disk = client.sh("ls -d /sys/block/dm-*/slaves/sd*").rpartition("/")[2]
    time.sleep(5)
    print(
        client.sh(
            f"multipath -v3 -d /dev/{disk}; multipath -ll; dmsetup table; udevadm info /dev/{disk}; cat /sys/block/{disk}/device/model; multipath -t; lvmconfig --type full devices/use_devicesfile devices/global_filter devices/filter"
        )
    )
    print(shlex.quote("x"))
    raise SystemExit(1)
