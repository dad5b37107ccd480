"""LIO and open-iscsi between real kernels, and what storkit builds on them."""

from __future__ import annotations

import pytest

from tests.lab import Host, Lab, iscsi

pytestmark = [pytest.mark.lab, pytest.mark.slow]
GIB = 1 << 30
REGION = 128  # sectors that dm-clone copies at once


def write(host: Host, device: str, text: str, at: int = 0) -> None:
    """One sector, past every cache; `device` must be a block device."""
    host.run(["test", "-b", device])
    host.run(["dd", f"of={device}", "bs=512", f"seek={at}", "conv=notrunc", "oflag=direct", "count=1"],
             input=text.ljust(512))  # fmt: skip


def read(host: Host, device: str, at: int = 0) -> str:
    return host.run(["dd", f"if={device}", "bs=512", f"skip={at}", "count=1", "iflag=direct"]).stdout.rstrip()


def test_two_hosts_see_one_disk(lab: Lab) -> None:
    a, b, s = lab.hosts("a", "b", "s")
    iqn = iscsi.export(s, "disk", s.add_disk(GIB), clients=[a, b])
    on_a, on_b = iscsi.login(a, s, iqn), iscsi.login(b, s, iqn)
    write(a, on_a, "written by a")
    assert read(b, on_b) == "written by a"
    assert read(s, "/dev/ubdb") == "written by a"


def test_a_client_without_an_acl_is_refused(lab: Lab) -> None:
    a, b, s = lab.hosts("a", "b", "s")
    iqn = iscsi.export(s, "disk", s.add_disk(GIB), clients=[b])
    with pytest.raises(Exception, match="authorization failure"):
        iscsi.login(a, s, iqn)


def test_lvm_thin_on_iscsi_moves_between_hosts(lab: Lab) -> None:
    a, b, s = lab.hosts("a", "b", "s")
    iqn = iscsi.export(s, "disk", s.add_disk(2 * GIB), clients=[a, b])
    disk = iscsi.login(a, s, iqn)
    a.run(["modprobe", "-a", "dm_thin_pool", "dm_snapshot"])
    a.run(["vgcreate", "shared", disk])
    a.run(["lvcreate", "--type", "thin-pool", "-L", "512M", "-n", "pool", "shared"])
    a.run(["lvcreate", "-V", "4G", "--thinpool", "shared/pool", "-n", "thin"])
    a.run(["mkfs.ext4", "-q", "/dev/shared/thin"])
    a.run(["mount", "/dev/shared/thin", "/mnt"])
    a.put("kept", "/mnt/file")
    a.run(["umount", "/mnt"])
    a.run(["lvcreate", "-s", "-kn", "-n", "snap", "shared/thin"])
    a.run(["vgchange", "-an", "shared"])

    b.run(["modprobe", "-a", "dm_thin_pool", "dm_snapshot"])
    iscsi.login(b, s, iqn)
    b.run(["vgchange", "-ay", "shared"])
    b.run(["mount", "/dev/shared/snap", "/mnt"])
    assert b.get("/mnt/file") == b"kept"


def test_clone_pulls_a_remote_disk_under_a_reader(lab: Lab) -> None:
    a, s = lab.hosts("a", "s")
    size = 32 << 20
    source = s.add_disk(size)
    s.run(["sh", "-c", f"head -c {size} /dev/urandom | dd of={source} bs=1M oflag=direct iflag=fullblock"])
    remote = iscsi.login(a, s, iscsi.export(s, "disk", source, clients=[a]))
    local, metadata = a.add_disk(size), a.add_disk(16 << 20)
    a.run(["modprobe", "dm_clone"])
    sectors = size // 512
    a.run(["dmsetup", "create", "moving", "--table", f"0 {sectors} linear {remote} 0"])
    wanted = s.run(["md5sum", source]).stdout.split()[0]
    # a pause between passes, as dm-clone copies only while nobody else uses the disk
    reader = a.spawn(["sh", "-c", "set -e; while [ ! -e /tmp/stop ]; do md5sum /dev/mapper/moving; sleep 1; done"])

    def swap(table: str) -> None:
        a.run(["dmsetup", "suspend", "moving"])
        a.run(["dmsetup", "load", "moving", "--table", table])
        a.run(["dmsetup", "resume", "moving"])

    swap(f"0 {sectors} clone {metadata} {local} {remote} {REGION}")
    a.run(["dmsetup", "message", "moving", "0", "hydration_threshold", "16"])
    a.run(["dmsetup", "message", "moving", "0", "hydration_batch_size", "16"])
    regions = sectors // REGION
    done = f" {regions}/{regions} 0 "
    a.wait_for(lambda: done in a.run(["dmsetup", "status", "moving"]).stdout, "end of the hydration", 60)
    swap(f"0 {sectors} linear {local} 0")
    a.run(["iscsiadm", "-m", "session", "-u"])
    a.run(["touch", "/tmp/stop"])
    sums = reader.wait().stdout.splitlines()
    assert sums and all(line.split()[0] == wanted for line in sums)
    assert a.run(["md5sum", local]).stdout.split()[0] == wanted
