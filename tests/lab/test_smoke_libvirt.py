"""libvirt moves a running guest, whose disk is an iSCSI LUN, from one host to another."""

from __future__ import annotations

from pathlib import Path

import pytest

from tests.guestkit import bootsector
from tests.lab import Host, Lab, iscsi, services

pytestmark = [pytest.mark.lab, pytest.mark.slow]

# Without KVM; 16 MiB are plenty for a guest that is one sector long.
DOMAIN = """\
<domain type="qemu">
  <name>writer</name>
  <uuid>5b0c4f0e-6f0c-4f6e-9d0a-0d4a0d0f4b11</uuid>
  <memory unit="MiB">16</memory>
  <os><type arch="x86_64" machine="pc">hvm</type><boot dev="hd"/></os>
  <clock offset="utc"/>
  <devices>
    <emulator>/usr/bin/qemu-system-x86_64</emulator>
    <disk type="block" device="disk">
      <driver name="qemu" type="raw" cache="none"/>
      <source dev="DEVICE"/>
      <target dev="hda" bus="ide"/>
    </disk>
    <controller type="usb" model="none"/>
    <memballoon model="none"/>
  </devices>
</domain>
"""
QEMU = 'security_driver = "none"\nuser = "root"\ngroup = "root"\nnamespaces = []\ncgroup_controllers = []\n'


def hypervisor(host: Host) -> None:
    host.put(QEMU, "/etc/libvirt/qemu.conf")
    services.libvirtd(host)


def copy_of(server: Host, device: str, to: Path) -> Path:
    """What the storage host has on the disk now: past its page cache, which knows nothing of what LIO writes."""
    server.run(["dd", f"if={device}", "of=/tmp/copy", "bs=1M", "iflag=direct"])
    to.write_bytes(server.get("/tmp/copy"))
    return to


def test_a_guest_writes_on_while_it_moves(lab: Lab, tmp_path: Path) -> None:
    a, b, s = lab.hosts("a", "b", "s")
    disk = s.add_disk(bootsector.SIZE)
    s.put(bootsector.boot_sector(), "/root/boot")
    s.run(["dd", "if=/root/boot", f"of={disk}", "conv=notrunc,fsync"])
    iqn = iscsi.export(s, "disk", disk, clients=[a, b])
    on_a, on_b = iscsi.login(a, s, iqn), iscsi.login(b, s, iqn)
    assert on_a == on_b
    for host in (a, b):
        hypervisor(host)

    def last_record() -> int:
        return bootsector.last_record(copy_of(s, disk, tmp_path / "disk"))

    a.put(DOMAIN.replace("DEVICE", on_a), "/root/guest.xml")
    a.run(["virsh", "create", "/root/guest.xml"])
    s.wait_for(lambda: last_record() > 100, "records of the guest", 60, every=1)
    moved = a.run(["virsh", "migrate", "--live", "writer", "qemu+ssh://b/system", "tcp://b"], timeout=120)
    at_move = last_record()
    assert "writer" not in a.run(["virsh", "list", "--name"]).stdout
    assert "writer" in b.run(["virsh", "list", "--name"]).stdout
    s.wait_for(lambda: last_record() > at_move + 100, "records after the move", 60, every=1)
    b.run(["virsh", "destroy", "writer"])
    report = bootsector.verify(copy_of(s, disk, tmp_path / "disk"))
    assert report.clean, report
    print(f"virsh migrate took {moved.seconds:.1f} s; records: {at_move} at its end, {report.last} at the guest's end")
