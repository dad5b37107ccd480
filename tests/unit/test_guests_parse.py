"""Guests imported from configurations that administrators have."""

from __future__ import annotations

from dataclasses import replace

import pytest

from storkit.core.errors import StorkitError, UsageError
from storkit.core.guest import Boot, Disk, Guest, Nic
from storkit.core.model import DiskSource
from storkit.guests.check import MIB
from storkit.guests.command import arguments
from storkit.guests.draft import uri_source
from storkit.guests.parse import parse, sniff
from storkit.guests.parse_qemu import options
from storkit.guests.parse_xl import read_disk, read_settings
from storkit.guests.place import Place
from storkit.guests.render import render

UUID = "0f1d0c2e-5a44-4f7c-9d53-3c1a4b6f2f10"

LIBVIRT = f"""
<!-- made by hand after what virsh dumpxml prints -->
<domain type='kvm' id='7'>
  <name>mail</name>
  <uuid>{UUID.upper()}</uuid>
  <metadata><x:note xmlns:x='urn:x'>keep</x:note></metadata>
  <memory unit='KiB'>2097152</memory>
  <currentMemory unit='KiB'>1048576</currentMemory>
  <vcpu placement='static' current='1'>2</vcpu>
  <os>
    <type arch='x86_64' machine='pc-q35-7.2'>hvm</type>
    <boot dev='hd'/>
    <boot dev='network'/>
  </os>
  <features><acpi/><apic/><vmport state='off'/></features>
  <cpu mode='host-passthrough' check='none' migratable='on'/>
  <clock offset='localtime'/>
  <on_crash>preserve</on_crash>
  <devices>
    <emulator>/usr/bin/qemu-system-x86_64</emulator>
    <disk type='block' device='disk'>
      <driver name='qemu' type='raw' cache='writeback' io='native'/>
      <source dev='/dev/vg0/mail' index='1'/>
      <backingStore/>
      <target dev='vda' bus='virtio'/>
      <serial>MAIL-1</serial>
      <shareable/>
      <address type='pci' domain='0x0000' bus='0x04' slot='0x00' function='0x0'/>
    </disk>
    <disk type='file' device='cdrom'><target dev='sda' bus='sata'/><readonly/></disk>
    <disk type='network' device='disk'>
      <driver name='qemu' type='raw'/>
      <source protocol='rbd' name='pool/image'><host name='mon' port='6789'/></source>
      <target dev='vdb' bus='virtio'/>
    </disk>
    <disk type='file' device='disk'>
      <driver name='qemu' type='qcow2'/>
      <source file='/var/lib/libvirt/images/spool space.qcow2'/>
      <target dev='sdb' bus='usb'/>
    </disk>
    <interface type='bridge'>
      <mac address='52:54:00:AB:CD:EF'/><source bridge='br0'/><target dev='vnet3'/><model type='virtio'/>
    </interface>
    <interface type='network'><mac address='52:54:00:00:00:01'/><source network='default'/></interface>
    <serial type='pty'><target port='0'/></serial>
    <graphics type='vnc' port='-1'/>
  </devices>
  <seclabel type='dynamic'/>
</domain>
"""


def test_a_libvirt_domain() -> None:
    found = parse(LIBVIRT, "mail.xml")
    guest = found.guest
    assert (guest.name, guest.uuid, guest.memory, guest.vcpus) == ("mail", UUID, 2048 * MIB, 2)
    assert (guest.hypervisor, guest.machine, guest.cpu) == ("libvirt", "pc-q35-7.2", "host")
    assert guest.disks == [Disk("mail", "vda"), Disk("spool-space", "sdb")]
    assert found.sources == [
        DiskSource("block", "/dev/vg0/mail"),
        DiskSource("file", "/var/lib/libvirt/images/spool space.qcow2", "qcow2"),
    ]
    assert guest.nics == [Nic("br0", "52:54:00:ab:cd:ef")]


@pytest.mark.parametrize(
    "word",
    [
        "metadata",
        "currentMemory",
        "vcpu current=1",
        "os/boot (dev=network)",
        "features/vmport",
        "clock (offset=localtime)",
        "on_crash: preserve",
        "devices/emulator",
        "driver cache=writeback",
        "backingStore",
        "serial MAIL-1",
        "shareable",
        "a cdrom",
        "type network",
        "bus usb becomes virtio",
        "target (dev=vnet3)",
        "devices/interface (type=network)",
        "devices/graphics",
        "seclabel",
    ],
)
def test_what_is_not_kept_of_a_libvirt_domain_is_named(word: str) -> None:
    assert any(word in warning for warning in parse(LIBVIRT).warnings), parse(LIBVIRT).warnings


@pytest.mark.parametrize(
    ("size", "mib"),
    [
        ('unit="MiB">64', 64),
        ('unit="GiB">2', 2048),
        (">65536", 64),
        ('unit="b">67108864', 64),
        ('unit="bytes">67108864', 64),
        ('unit="G">1', 1024),
        ('unit="pib">1', 1 << 30),
        ('unit="MB">1048576', 1000000),
    ],
)
def test_memory_units_of_libvirt(size: str, mib: int) -> None:
    text = f"<domain type='kvm'><name>a</name><uuid>{UUID}</uuid><memory {size}</memory></domain>".replace("y >", "y>")
    assert parse(text).guest.memory == mib * MIB


LAUGHS = """<?xml version="1.0"?>
<!DOCTYPE domain [<!ENTITY a "ha"><!ENTITY b "&a;&a;&a;&a;&a;&a;&a;&a;">]>
<domain type="kvm"><name>&b;</name></domain>"""
OUTSIDE = """<!DOCTYPE domain [<!ENTITY x SYSTEM "file:///etc/hostname">]><domain><name>&x;</name></domain>"""


def test_what_the_template_adds_for_guests_without_kvm_is_read_back_as_nothing() -> None:
    guest = Guest("web", UUID, 112 << 20, extra=["-sandbox", "on"])
    text = render(guest, [], "libvirt", Place("tcg"))
    assert 'value="size=114696K"' in text
    assert parse(text).guest.extra == ["-sandbox", "on"]
    assert parse(render(replace(guest, extra=[]), [], "libvirt", Place("tcg"))).guest.extra == []


@pytest.mark.parametrize("text", [LAUGHS, OUTSIDE])
def test_entities_are_never_expanded(text: str) -> None:
    with pytest.raises(UsageError, match="DOCTYPE"):
        parse(text)


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("<domain", "no XML"),
        ("<network/>", "<network>, not a <domain>"),
        ("<domain><memory unit='parsec'>5</memory></domain>", "is no size"),
        ("<domain type='kvm'/>", ""),
        ("name = ", "no value"),
        ("name 'x'", "begins no setting"),
        ('name = "a"\nmemory = "x', "line 2"),
        ("disk = [ 'a' 'b' ]", "comma"),
        ("disk = [ 'a',", "does not end"),
        ("name = 'a' 'b'", "follows the value"),
        ("name = 'a\\q'", "no escape"),
        ("memory = [ ]", "whole number"),
        ("-m", "lacks its argument"),
        ("-name 'x", "cannot be taken apart"),
        ("-m lots", "is not a size"),
        ("-m 1GB", "is not a size of QEMU's"),
        ("-m 512MiB", "is not a size of QEMU's"),
        ("<domain><memory unit='xb'>67108864</memory></domain>", "is no size"),
        ("-blockdev {x", "no JSON"),
        ("-blockdev [1]", ""),
        ('-blockdev {"driver":"raw","node-name":"a","file":5} -device virtio-blk-pci,drive=a', ""),
    ],
)
def test_what_cannot_be_read_is_refused_and_placed(text: str, message: str) -> None:
    with pytest.raises(StorkitError) as caught:
        parse(text, "the-file")
    shown = [problem.message for problem in getattr(caught.value, "problems", [caught.value])]
    assert all(text.startswith("the-file") for text in shown)
    assert any(message in text for text in shown)


def test_xens_own_example() -> None:
    """The settings of /etc/xen/xlexample.pvhlinux in Debian's xen-utils-common 4.17.7."""
    found = parse(
        """
        # Example PVH Linux guest configuration
        type = "pvh"
        name = "example.pvhlinux"
        #uuid = "XXXXXXXX-XXXX-XXXX-XXXX-XXXXXXXXXXXX"
        kernel = "/boot/vmlinuz"
        extra = "root=/dev/xvda1"
        memory = 512
        vcpus = 4
        vif = [ '' ]
        disk = [ '/dev/zvol/tank/guest-volume,raw,xvda,rw' ]
        """
    )
    guest = found.guest
    assert (guest.name, guest.memory, guest.vcpus) == ("example.pvhlinux", 512 * MIB, 4)
    assert guest.boot == Boot("/boot/vmlinuz", cmdline="root=/dev/xvda1")
    assert guest.disks == [Disk("guest-volume", "xvda")]
    assert found.sources == [DiskSource("block", "/dev/zvol/tank/guest-volume")]
    assert guest.nics == [Nic("xenbr0")]
    assert found.warnings == ["uuid: there was none, a new one was made"]


def test_an_xl_configuration_of_every_kind() -> None:
    found = parse(
        """
        # comment; with a semicolon
        name = 'old'; memory = 256
        uuid = "0f1d0c2e-5a44-4f7c-9d53-3c1a4b6f2f10"
        type = "pv"
        maxmem = 512
        root = "/dev/xvda1 ro"
        extra = "quiet" # why
        kernel = "/boot/vmlinuz"
        disk = [ 'phy:/dev/vg/old,xvda,w', 'file:/srv/swap.img,xvdb,r',
                 'format=qcow2, vdev=xvdc, access=rw, target=/srv/a, b.qcow2',
                 '/srv/x.iso,,hdc,cdrom', 'vg/relative,raw,xvdd,rw,backendtype=qdisk',
                 'script=block-iscsi,vdev=xvde,target=iqn=x', 'script=block-storkit,vdev=xvdg,access=ro,target=iso', ]
        disk += [ 'tap2:qcow2:/srv/t.qcow2,xvdf,w' ]
        vif = [ 'mac=00:16:3e:00:00:01, bridge=br0, rate=10Mb/s' ]
        on_crash = "preserve"
        cpus = [ 0, 1 ]
        """
    )
    guest = found.guest
    assert (guest.name, guest.memory, guest.machine) == ("old", 256 * MIB, "pv")
    assert guest.boot.cmdline == "root=/dev/xvda1 ro quiet"
    assert [disk.target for disk in guest.disks] == ["xvda", "xvdb", "xvdc", "xvdd", "xvdg", "xvdf"]
    assert [disk.readonly for disk in guest.disks] == [False, True, False, False, True, False]
    assert found.sources == [
        DiskSource("block", "/dev/vg/old"),
        DiskSource("file", "/srv/swap.img"),
        DiskSource("file", "/srv/a, b.qcow2", "qcow2"),
        DiskSource("block", "/dev/vg/relative"),
        DiskSource("block", "/dev/storkit/iso"),
        DiskSource("file", "/srv/t.qcow2", "qcow2"),
    ]
    assert guest.nics == [Nic("br0", "00:16:3e:00:00:01")]
    assert guest.extra == ["maxmem = 512", 'on_crash = "preserve"', "cpus = [ 0, 1 ]"]
    named = " | ".join(found.warnings)
    for word in ("maxmem", "cdrom", "backendtype=qdisk", "script=block-iscsi", "rate=10Mb/s"):
        assert word in named


@pytest.mark.parametrize(
    "spec",
    [
        "/dev/vg/guest-volume,,hda",
        "/dev/vg/guest-volume,raw,hda,rw",
        "format=raw, vdev=hda, access=rw, target=/dev/vg/guest-volume",
        "raw:/dev/vg/guest-volume,hda,w",
    ],
)
def test_the_equivalent_disks_of_xls_manual(spec: str) -> None:
    found = parse(f"name = 'a'\nmemory = 64\nuuid = '{UUID}'\ndisk = [ '{spec}' ]")
    assert found.sources == [DiskSource("block", "/dev/vg/guest-volume")]
    assert found.guest.disks == [Disk("guest-volume", "hda")]


def test_a_target_takes_the_rest_of_the_string() -> None:
    assert read_disk("vdev=xvda, target=/a,access=ro, target=/b ")["target"] == "/a,access=ro, target=/b "


def test_numbers_lists_and_escapes_of_xl() -> None:
    text = 'a = 0x10\nb = [ "x\\"y", \'p"q\', 3, ]\nc = 017 # end\nd = [\n ]\n'
    assert read_settings(text) == {"a": 16, "b": ['x"y', 'p"q', 3], "c": 15, "d": []}


SHELL = r"""
#!/bin/sh
exec qemu-system-x86_64 -enable-kvm -name shop,process=x -m 2G,slots=2 \
  -smp cpus=2,sockets=1 -cpu host,-x2apic -M q35,accel=kvm:tcg -uuid 0f1d0c2e-5a44-4f7c-9d53-3c1a4b6f2f10 \
  -drive file=/srv/shop,,a.qcow2,format=qcow2,if=virtio,cache=none \
  -drive file=/dev/vg/data,if=none,id=d1 -device virtio-scsi-pci,id=s0 -device scsi-hd,drive=d1,bus=s0.0 \
  -blockdev driver=raw,node-name=n1,file.driver=nbd,file.server.type=inet,file.server.host=::1,file.server.port=10809,file.export=e1 \
  -device virtio-blk-pci,drive=n1,physical_block_size=4096 \
  -drive file=nbd:unix:/run/a.sock:exportname=log,format=raw,if=virtio,readonly=on \
  -drive file=/srv/cd.iso,media=cdrom \
  -netdev bridge,id=n0,br=br0 -device virtio-net-pci,netdev=n0,mac=52:54:00:12:34:56 \
  -netdev user,id=n2 -device e1000,netdev=n2 \
  -chardev file,id=c0,path=/var/log/shop.log -serial chardev:c0 -chardev pty,id=unused \
  -device qemu-xhci -vga none -no-reboot -display none -monitor unix:/run/x,server
"""  # noqa: E501


def test_a_qemu_command() -> None:
    found = parse(SHELL)
    guest = found.guest
    assert (guest.name, guest.uuid, guest.memory, guest.vcpus) == ("shop", UUID, 2048 * MIB, 2)
    assert (guest.machine, guest.cpu, guest.console) == ("q35", "host,-x2apic", "/var/log/shop.log")
    assert found.sources == [
        DiskSource("file", "/srv/shop,a.qcow2", "qcow2"),
        DiskSource("block", "/dev/vg/data"),
        DiskSource("network", protocol="nbd", export="e1", server="::1", port=10809),
        DiskSource("network", protocol="nbd", export="log", socket="/run/a.sock"),
    ]
    assert [(disk.volume, disk.bus, disk.readonly) for disk in guest.disks] == [
        ("shop-a", "virtio", False),
        ("data", "scsi", False),
        ("e1", "virtio", False),
        ("log", "virtio", True),
    ]
    assert guest.nics == [Nic("br0", "52:54:00:12:34:56")]
    assert guest.extra == ["-vga", "none", "-no-reboot", "-device", "qemu-xhci"]
    named = " | ".join(found.warnings)
    for word in (
        "slots=2",
        "sockets=1",
        "cache=none",
        "no format was given",
        "physical_block_size",
        "cdrom",
        "e1000: its network user",
        "chardev unused",
        "qemu-xhci",
        "-vga none",
        "-no-reboot",
    ):
        assert word in named, (word, named)


def test_what_qemu_options_mean() -> None:
    assert options("file=a,,b,c,d=,e=x=y", "first") == {"file": "a,b", "c": "on", "d": "", "e": "x=y"}
    assert options("virtio-blk-pci,drive=x", "driver") == {"driver": "virtio-blk-pci", "drive": "x"}


def test_one_argument_a_line_needs_no_quoting() -> None:
    assert arguments("-nodefaults\n-append\na 'b\n") == ["-nodefaults", "-append", "a 'b"]


@pytest.mark.parametrize(
    ("text", "kind"),
    [
        ("  \n<domain/>", "libvirt"),
        ("# x\n\nname = 'a'", "xl"),
        ("-nodefaults", "qemu"),
        ("/usr/bin/qemu-system-x86_64 -m 1G", "qemu"),
        ("#!/bin/sh\nexec qemu-kvm -m 1G", "qemu"),
    ],
)
def test_formats_are_told_apart(text: str, kind: str) -> None:
    assert sniff(text) == kind


def test_a_guest_can_be_renamed_when_its_name_is_none() -> None:
    text = f"<domain type='kvm'><name>My Guest</name><uuid>{UUID}</uuid><memory>65536</memory></domain>"
    with pytest.raises(UsageError, match="'My Guest' cannot name a guest"):
        parse(text)
    assert parse(text, name="my-guest").guest.name == "my-guest"


def test_volumes_get_different_names() -> None:
    disks = "".join(f"'/srv/{n}/disk.img,raw,xvd{n},rw'," for n in "abc")
    found = parse(f"name = 'a'\nmemory = 64\nuuid = '{UUID}'\ndisk = [ {disks} '/srv/.._,raw,xvdd,rw' ]")
    assert [disk.volume for disk in found.guest.disks] == ["disk", "disk-2", "disk-3", "a"]


@pytest.mark.parametrize(
    "source",
    [
        DiskSource("network", protocol="nbd", export="web", socket="/run/a b.sock"),
        DiskSource("network", protocol="nbd", export="web", server="::1", port=10809),
        DiskSource("network", protocol="nbd", export="web", server="192.0.2.1", port=1, tls="x509"),
    ],
)
def test_nbd_uris_read_back(source: DiskSource) -> None:
    assert uri_source(source.uri) == source


def test_a_huge_text_is_refused() -> None:
    with pytest.raises(UsageError, match="too many"):
        parse("a" * (5 * 1024**2))
