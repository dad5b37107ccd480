"""What libvirt's own tools have changed in a domain comes back into the guest's document, and nothing else does."""

from __future__ import annotations

import pytest

from storkit.core.errors import StorkitError
from storkit.guests.documents import libvirt

OLD = """\
<domain type='kvm'>
  <!-- mine -->
  <name>shop</name>
  <os firmware='efi'><type arch='x86_64' machine='pc'>hvm</type></os>
  <devices>
    <disk type='file' device='disk'><driver name='qemu' type='qcow2'/>
      <source file='/img/shop.qcow2'/><target dev='vda'/></disk>
  </devices>
</domain>
"""
WRITTEN = """\
<domain type='kvm'>
  <name>shop</name>
  <metadata>
    <storkit:guest xmlns:storkit="x"><storkit:volume name="v"/></storkit:guest>
  </metadata>
  <vcpu>1</vcpu>
  <os firmware='efi'>
    <type arch='x86_64' machine='pc-i440fx-7.2'>hvm</type>
    <nvram>/var/lib/shop.fd</nvram>
  </os>
  <devices>
    <emulator>/usr/bin/qemu-system-x86_64</emulator>
    <disk type='network' device='disk'>
      <driver name='qemu' type='raw'/>
      <source protocol='nbd' name='e'><host transport='unix' socket='/s'/></source>
      <target dev='vda' bus='virtio'/>
    </disk>
  </devices>
</domain>
"""
AGAIN = """\
<domain type='kvm'>
  <name>shop</name>
  <vcpu>1</vcpu>
  <os firmware='efi'>
    <type arch='x86_64' machine='pc'>hvm</type>
  </os>
  <devices>
    <disk type='file' device='disk'>
      <driver name='qemu' type='qcow2'/>
      <source file='/img/shop.qcow2'/>
      <target dev='vda' bus='virtio'/>
    </disk>
  </devices>
</domain>
"""


def refreshed(*changes: tuple[str, str]) -> str:
    text = WRITTEN
    for old, new in changes:
        assert old in text
        text = text.replace(old, new)
    return libvirt.with_disks_of(text, WRITTEN, OLD, ["vda"])


def test_the_disk_its_format_and_what_was_chosen_for_a_host_are_as_in_the_document() -> None:
    """An image taken for raw would be written over from its first byte on."""
    assert refreshed() == AGAIN


@pytest.mark.parametrize(
    ("old", "new"),
    [
        ("<vcpu>1", "<vcpu>4"),
        ("bus='virtio'", "bus='sata'"),
        ("  <vcpu>", "  <on_crash>restart</on_crash>\n  <vcpu>"),
    ],
)
def test_a_change_is_kept(old: str, new: str) -> None:
    assert refreshed((old, new)) == AGAIN.replace(old, new)


def test_what_an_administrator_has_chosen_anew_is_kept() -> None:
    text = refreshed(
        ("pc-i440fx-7.2", "pc-q35-7.2"), ("/usr/bin/qemu-system-x86_64", "/opt/qemu"), ("shop.fd", "other.fd")
    )
    for words in ("machine='pc-q35-7.2'", "<emulator>/opt/qemu</emulator>", "<nvram>/var/lib/other.fd</nvram>"):
        assert words in text


def test_a_mark_of_others_stays() -> None:
    text = refreshed(("<storkit:guest", '<other:x xmlns:other="y"/><storkit:guest'))
    assert 'xmlns:other="y"' in text and "storkit" not in text


@pytest.mark.parametrize(
    ("old", "new", "words"),
    [
        ("socket='/s'", "socket='/t'", "disk vda is another one than the volume that it was"),
        (
            "    <disk type='network'",
            "    <disk type='file'><source file='/x'/><target dev='vdb'/></disk>\n    <disk type='network'",
            "disk vdb is new, and no volume",
        ),
    ],
)
def test_other_disks_are_refused(old: str, new: str, words: str) -> None:
    with pytest.raises(StorkitError, match=words):
        refreshed((old, new))
