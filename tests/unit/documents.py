"""Documents of guests for tests."""

from __future__ import annotations

from storkit.core.guest import Guest
from storkit.guests import document

UUID = "11111111-2222-4333-8444-555555555555"
DOMAIN = """\
<!-- made by hand -->
<domain type='kvm'>
  <name>shop</name>
  <uuid>11111111-2222-4333-8444-555555555555</uuid>
  <memory unit='KiB'>976563</memory>   <vcpu>2</vcpu>
  <os><type arch='x86_64' machine='pc'>hvm</type></os>
  <devices>
{devices}
  </devices>
</domain>
"""
DISK = (
    "<disk type='file' device='disk'><driver name='qemu' type='raw' cache='writeback'/>{}"
    "<target dev='vda' bus='sata'/></disk>"
)


def domain(devices: str) -> str:
    return DOMAIN.replace("{devices}", devices)


def guest(kind: str, text: str, **volumes: str) -> Guest:
    disks, local = document.adopted(kind, text, volumes, [], "guest")
    said = document.read(kind, text)
    made = Guest(said.name, said.uuid or UUID, 0, hypervisor=kind, document=text, local=local, disks=disks)
    return document.with_facts(made)
