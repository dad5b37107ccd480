"""The other ways by which one host's disk reaches another: NFS 4.2, the kernel's NBD client, DRBD."""

from __future__ import annotations

import pytest

from tests.lab import Host, Lab, services

pytestmark = [pytest.mark.lab, pytest.mark.slow]


def test_nfs_42_shares_a_file_and_keeps_its_holes(lab: Lab) -> None:
    a, b, s = lab.hosts("a", "b", "s")
    s.run(["mkdir", "-p", "/srv/volumes"])
    s.put("/srv/volumes *(rw,no_root_squash,sync,no_subtree_check)\n", "/etc/exports")
    services.nfs_server(s)
    s.run(["exportfs", "-ra"])
    for client in (a, b):
        client.run(["modprobe", "-a", "nfs", "nfsv4"])
        client.run(["mount", "-t", "nfs4", "-o", "vers=4.2", "s:/srv/volumes", "/mnt"])
        assert "vers=4.2" in client.run(["cat", "/proc/mounts"]).stdout

    a.run(["truncate", "-s", "1G", "/mnt/disk"])
    a.run(["dd", "if=/dev/zero", "of=/mnt/disk", "bs=1M", "count=8", "seek=100", "conv=notrunc,fsync"])
    a.run(["fallocate", "--punch-hole", "-o", "100M", "-l", "4M", "/mnt/disk"])
    a.run(["sh", "-c", "printf 'written by a' | dd of=/mnt/disk bs=1M seek=200 conv=notrunc,fsync"])
    assert b.run(["dd", "if=/mnt/disk", "bs=1M", "skip=200", "count=1"]).stdout.startswith("written by a")
    assert int(s.run(["du", "-m", "/srv/volumes/disk"]).stdout.split()[0]) < 8, "the hole went through to the server"


def test_nfs_locks_exclude_the_other_host(lab: Lab) -> None:
    a, b, s = lab.hosts("a", "b", "s")
    s.run(["mkdir", "-p", "/srv/volumes"])
    s.put("/srv/volumes *(rw,no_root_squash,sync,no_subtree_check)\n", "/etc/exports")
    services.nfs_server(s)
    s.run(["exportfs", "-ra"])
    for client in (a, b):
        client.run(["modprobe", "-a", "nfs", "nfsv4"])
        client.run(["mount", "-t", "nfs4", "-o", "vers=4.2", "s:/srv/volumes", "/mnt"])
    holder = a.spawn(["flock", "/mnt/lock", "sh", "-c", "touch /mnt/held; exec sleep 600"])
    b.wait_for(lambda: b.run(["ls", "/mnt"]).stdout.count("held"), "lock held by a")
    assert b.run(["flock", "-n", "-E", "75", "/mnt/lock", "true"], check=False).status == 75
    holder.kill()
    b.run(["flock", "-w", "20", "/mnt/lock", "true"])


def attach_nbd(client: Host, server: Host) -> None:
    client.run(["modprobe", "nbd", "max_part=0"])
    client.run(["nbd-client", "-N", "disk", server.name, "/dev/nbd0"])
    client.wait_for(lambda: client.run(["blockdev", "--getsize64", "/dev/nbd0"]).stdout.strip() != "0", "size of nbd0")


def test_nbd_carries_a_file_system_from_host_to_host(lab: Lab) -> None:
    a, b, s = lab.hosts("a", "b", "s")
    s.run(["truncate", "-s", "256M", "/srv/disk"])
    s.spawn(["nbdkit", "-f", "-e", "disk", "file", "/srv/disk"])
    s.wait_for(lambda: ":10809" in s.run(["ss", "-ltn"]).stdout, "NBD server")
    attach_nbd(a, s)
    a.run(["mkfs.ext4", "-q", "/dev/nbd0"])
    a.run(["mount", "/dev/nbd0", "/mnt"])
    a.put("kept", "/mnt/file")
    a.run(["umount", "/mnt"])
    a.run(["nbd-client", "-d", "/dev/nbd0"])
    attach_nbd(b, s)
    b.run(["mount", "/dev/nbd0", "/mnt"])
    assert b.get("/mnt/file") == b"kept"


DRBD = """\
global { usage-count no; }
resource r0 {
  net { protocol C; }
  device /dev/drbd0 minor 0;
  disk /dev/ubdb;
  meta-disk internal;
  on a { address 10.77.0.ADDRESS_A:7789; }
  on b { address 10.77.0.ADDRESS_B:7789; }
}
"""


def drbd_state(host: Host) -> str:
    return host.run(["cat", "/proc/drbd"]).stdout


def test_drbd_mirrors_and_promotes_the_other_host(lab: Lab) -> None:
    a, b = lab.hosts("a", "b")
    configuration = DRBD.replace("10.77.0.ADDRESS_A", a.address()).replace("10.77.0.ADDRESS_B", b.address())
    for host in (a, b):
        host.add_disk(128 << 20)
        host.run(["modprobe", "drbd"])
        host.put(configuration, "/etc/drbd.conf")
        host.run(["drbdadm", "create-md", "--force", "r0"])
        host.run(["drbdadm", "up", "r0"])
    a.wait_for(lambda: "cs:Connected" in drbd_state(a), "connection to b")
    a.run(["drbdadm", "new-current-uuid", "--clear-bitmap", "r0/0"])
    a.wait_for(lambda: "ds:UpToDate/UpToDate" in drbd_state(a), "clean mirror")
    a.run(["drbdadm", "primary", "r0"])
    a.run(["mkfs.ext4", "-q", "/dev/drbd0"])
    a.run(["mount", "/dev/drbd0", "/mnt"])
    a.put("kept", "/mnt/file")
    assert b.run(["drbdadm", "primary", "r0"], check=False).status, "one primary only"
    a.run(["umount", "/mnt"])
    a.run(["drbdadm", "secondary", "r0"])
    b.run(["drbdadm", "primary", "r0"])
    b.run(["mount", "/dev/drbd0", "/mnt"])
    assert b.get("/mnt/file") == b"kept"
