"""What a guest that another host keeps would open or run on this one, beside its volumes: all of it is found."""

from __future__ import annotations

from dataclasses import replace

import pytest

from storkit.core.guest import Boot, Disk, Guest
from storkit.guests.documents.foreign import opened

UUID = "11111111-2222-4333-8444-555555555555"
DOMAIN = """\
<domain type='kvm' xmlns:qemu='http://libvirt.org/schemas/domain/qemu/1.0'>
  <name>shop</name>
  <metadata><libosinfo:libosinfo xmlns:libosinfo="http://libosinfo.org/xmlns/libvirt/domain/1.0">
    <libosinfo:os id="http://debian.org/debian/12"/></libosinfo:libosinfo></metadata>
  <description>see /srv/notes</description>
  <memory unit='KiB'>976563</memory><resource><partition>/machine</partition></resource>
  <os><type arch='x86_64' machine='pc'>hvm</type>{os}</os>
  <clock offset='utc'/>
  <devices>
    <emulator>/usr/bin/qemu-system-x86_64</emulator>
    <disk type='file' device='disk'><driver name='qemu' type='raw'/><source file='/srv/shop.img'>{source}</source>
      <backingStore type='file'><source file='/srv/base'/></backingStore>{disk}<target dev='vda' bus='virtio'/></disk>
    <interface type='bridge'><source bridge='br0'/><model type='virtio'/></interface>
    <channel type='unix'><target type='virtio' name='org.qemu.guest_agent.0'/></channel>
    <serial type='pty'/><graphics type='vnc' port='-1' listen='127.0.0.1'/>
    <rng model='virtio'><backend model='random'>/dev/urandom</backend></rng>
    {devices}
  </devices>
  {rest}
</domain>
"""
XL = """\
name = "shop"
memory = 512
vcpus = 2
disk = [ "phy:/dev/vg/shop,xvda,w" ]
vif = [ "mac=00:16:3e:00:00:01,bridge=xenbr0" ]
bootloader = "pygrub"
serial = "pty"
extra = "root=/dev/xvda1 ro"
"""


def libvirt(**parts: str) -> Guest:
    text = DOMAIN
    for key in ("os", "source", "disk", "devices", "rest"):
        text = text.replace(f"{{{key}}}", parts.get(key, ""))
    return Guest("shop", UUID, 0, hypervisor="libvirt", disks=[Disk("shop", "vda")], document=text)


def test_an_ordinary_guest_opens_nothing_but_its_volumes() -> None:
    assert opened(libvirt()) == []
    assert opened(libvirt(os="<loader readonly='yes'>/usr/share/OVMF/OVMF_CODE.fd</loader>")) == []
    assert opened(Guest("shop", UUID, 0, hypervisor="xl", disks=[Disk("shop", "xvda")], document=XL)) == []
    assert opened(Guest("shop", UUID, 1 << 20, disks=[Disk("shop")])) == []


@pytest.mark.parametrize(
    "parts",
    [
        {"os": "<kernel>/etc/shadow</kernel>"}, {"os": "<initrd>x</initrd>"}, {"os": "<loader>/srv/x.fd</loader>"},
        {"os": "<loader>/usr/share/OVMF/../../../srv/x</loader>"}, {"os": "<nvram>/etc/shadow</nvram>"},
        {"os": "<init>/bin/sh</init>"}, {"os": "<acpi><table type='slic'>/etc/shadow</table></acpi>"},
        {"source": "<reservations managed='no'><source type='unix' path='/run/x' mode='client'/></reservations>"},
        {"source": "<seclabel model='dac' relabel='no'/>"},
        {"disk": "<mirror type='file'><source file='/x'/></mirror>"},
        {"devices": "<emulator>/srv/evil</emulator>"}, {"devices": "<emulator>evil</emulator>"},
        {"devices": "<interface type='ethernet'><script path='evil'/></interface>"},
        {"devices": "<hostdev mode='subsystem' type='pci'/>"},
        {"devices": "<filesystem type='mount'><source dir='/'/><target dir='r'/></filesystem>"},
        {"devices": "<disk type='file'><source file='/etc/shadow'/><target dev='vdb'/></disk>"},
        {"devices": "<serial type='file'><source path='/etc/cron.d/x'/></serial>"},
        {"devices": "<channel type='unix'><source mode='bind' path='/run/docker.sock'/></channel>"},
        {"devices": "<rng model='virtio'><backend model='random'>/dev/sda</backend></rng>"},
        {"devices": "<tpm model='tpm-tis'/>"}, {"devices": "<audio id='1' type='file' path='/x'/>"},
        {"rest": "<qemu:commandline><qemu:arg value='-S'/></qemu:commandline>"}, {"rest": "<seclabel type='none'/>"},
    ],
    ids=str,
)  # fmt: skip
def test_what_a_domain_opens_is_found(parts: dict[str, str]) -> None:
    assert opened(libvirt(**parts)), parts


def test_a_domain_of_another_kind_runs_on_the_host_itself() -> None:
    guest = libvirt()
    assert opened(replace(guest, document=guest.document.replace("'kvm'", "'lxc'")))


@pytest.mark.parametrize(
    "line",
    [
        'kernel = "vmlinuz"', 'bootloader = "/srv/evil"', 'bootloader = "evil"', 'bootloader_args = [ "x" ]',
        'device_model_override = "/srv/evil"', 'device_model_args = [ "-S" ]', 'pci = [ "01:00.0" ]',
        'serial = "file:x"', 'bios_path_override = "x"',
        'serial = [ "pty", "tcp:x" ]', 'vif = [ "script=evil" ]', 'vif = [ "bridge=x,backend=d" ]',
        'firmware = "/srv/x"', 'p9 = [ "tag=t,path=/" ]', 'some_new_word = 1', 'usbdevice = "/dev/x"',
    ],
)  # fmt: skip
def test_what_an_xl_cfg_opens_is_found(line: str) -> None:
    guest = Guest("shop", UUID, 0, hypervisor="xl", disks=[Disk("shop", "xvda")], document=f"{XL}{line}\n")
    (found,) = opened(guest)
    assert found.startswith("line 9: ")


def test_what_a_record_opens_is_found() -> None:
    plain = Guest("shop", UUID, 1 << 20, disks=[Disk("shop")])
    for guest in (
        replace(plain, local=["vdb"]), replace(plain, extra=["-S"]), replace(plain, console="/etc/cron.d/x"),
        replace(plain, boot=Boot(kernel="/etc/shadow")), replace(plain, boot=Boot(initrd="/etc/shadow")),
        replace(plain, hypervisor="qemu", document="qemu-system-x86_64"),
    ):  # fmt: skip
        assert opened(guest), guest
