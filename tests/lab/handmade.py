"""A guest of libvirt as a person makes it: a boot sector of tests/guestkit on one block device."""

from __future__ import annotations

_DOMAIN = """\
<domain type="qemu">
  <name>{name}</name><uuid>{uuid}</uuid><description>made by hand</description><memory unit="MiB">16</memory>
  <os><type arch="x86_64" machine="pc">hvm</type></os>
  <features><acpi/></features>
  <devices>
    <disk type="block" device="disk">
      <driver name="qemu" type="raw" cache="none"/><source dev="{device}"/><target dev="hda" bus="ide"/>
    </disk>
  </devices>
</domain>
"""


def domain(name: str, uuid: str, device: str) -> str:
    """Its XML."""
    return _DOMAIN.format(name=name, uuid=uuid, device=device)
