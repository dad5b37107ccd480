"""QEMU commands as people write them: the one command is found, and no disk of it is left behind."""

from __future__ import annotations

import pytest

from storkit.core.errors import StorkitError, UsageError
from storkit.core.guest import Guest
from storkit.guests.command import arguments
from storkit.guests.parse import parse, sniff
from storkit.guests.render import render

DRIVE = "-drive file=/srv/shop.img,format=raw,if=virtio"
UUID = "11111111-2222-4333-8444-555555555555"


@pytest.mark.parametrize(
    "text",
    [
        f"qemu-system-x86_64 -name shop -m 512 {DRIVE} -smp 2\n",
        f"qemu-system-x86_64 -name shop -m 512 \\\n{DRIVE} \\\n-smp 2",
        f"qemu-system-x86_64 \\\r\n -name shop -m 512 {DRIVE} -smp 2\r\n",
        f"#!/bin/sh\nset -e\n# ours\nqemu-system-x86_64 -name shop -m 512 {DRIVE} -smp 2\n",
        f"#!/bin/bash\ncd /srv && exec /usr/bin/kvm -name shop -m 512 {DRIVE} -smp 2 >/dev/null 2>&1 &\n",
        f"LC_ALL=C PATH=/usr/bin HOME='/a b' /usr/bin/qemu-system-x86_64 -name shop -m 512 {DRIVE} -smp 2",
        f"cd /srv && qemu-kvm -name shop -m 512 {DRIVE} -smp 2",
        f"sudo env A=b qemu-kvm -name shop -m 512 {DRIVE} -smp 2",
        f"2026-01-02 10:00:00.123+0000: starting up\nLC_ALL=C \\\nqemu-system-x86_64 -name shop -m 512 {DRIVE} -smp 2",
    ],
)
def test_the_command_is_found_wherever_it_stands(text: str) -> None:
    assert sniff(text) == "qemu"
    found = parse(text)
    assert (found.guest.name, found.guest.memory, found.guest.vcpus) == ("shop", 512 << 20, 2)
    assert [source.path for source in found.sources] == ["/srv/shop.img"]


def test_what_a_quote_holds_is_no_command() -> None:
    text = "qemu-system-x86_64 -append 'a; qemu-kvm & \"b\"' -m 512"
    assert arguments(text) == ["-append", 'a; qemu-kvm & "b"', "-m", "512"]


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("qemu-system-x86_64 -name a -m 1 &\nqemu-system-x86_64 -name b -m 1 &\n", "there are 2 commands"),
        ("qemu-kvm -name a; kvm -name b", "there are 2 commands"),
        ("#!/bin/sh\necho nothing\n", "there is no command of QEMU"),
        ("qemu-system-x86_64 -name 'a", "cannot be taken apart"),
    ],
)
def test_what_is_not_one_command_is_refused(text: str, message: str) -> None:
    with pytest.raises(UsageError, match=message):
        parse(text, kind="qemu")


@pytest.mark.parametrize(
    "words",
    [
        "-drive file=shop.img,format=raw,if=virtio",
        "-drive file=rbd:pool/shop,format=raw,if=virtio",
        "-drive file=iscsi://a/b/0,format=raw",
        "-sd /srv/card.img",
        "-mtdblock /srv/flash.img",
        "-pflash /srv/code.fd",
        "-fda /srv/floppy.img",
        "-virtfs local,path=/srv,mount_tag=t,security_model=none",
        "-device virtio-blk-pci,drive=nobody",
        "-blockdev driver=luks,node-name=l,key-secret=s,file.driver=file,file.filename=/l -device virtio-blk,drive=l",
        "/srv/stray.img",
    ],
)
def test_no_disk_is_left_behind(words: str) -> None:
    with pytest.raises(StorkitError, match="a disk that storkit cannot make a volume of") as caught:
        parse(f"qemu-system-x86_64 -name shop -m 512 {DRIVE} {words}")
    assert len(caught.value.each) == 1


def test_every_disk_that_is_left_behind_is_named_at_once() -> None:
    with pytest.raises(StorkitError) as caught:
        parse("qemu-system-x86_64 -name shop -m 512 -sd /srv/a -pflash /srv/b c.img")
    assert len(caught.value.each) == 3


def test_each_of_the_four_is_a_disk() -> None:
    found = parse("qemu-system-x86_64 -name shop -m 512 -hda /srv/a -hdb /srv/b -hdc '/srv/c,d' -hdd /dev/vg/d")
    assert [source.path for source in found.sources] == ["/srv/a", "/srv/b", "/srv/c,d", "/dev/vg/d"]
    assert {disk.bus for disk in found.guest.disks} == {"ide"}


@pytest.mark.parametrize(
    ("words", "count"),
    [
        ("2", 2),
        ("cpus=3", 3),
        ("sockets=1,cores=4,threads=1", 4),
        ("sockets=2,cores=2,threads=2", 8),
        ("4,sockets=2,cores=2", 4),
        ("maxcpus=8,cores=2", 2),
    ],
)
def test_processors_are_counted_as_qemu_does(words: str, count: int) -> None:
    assert parse(f"qemu-system-x86_64 -name shop -m 512 -smp {words}").guest.vcpus == count


def test_a_device_keeps_what_it_speaks_through() -> None:
    agent = "-chardev socket,id=ga,path=/run/a,,b,server=on,wait=off -device virtio-serial-pci"
    port = "-device virtserialport,chardev=ga,name=org.qemu.guest_agent.0"
    found = parse(f"qemu-system-x86_64 -name shop -m 512 {DRIVE} {agent} {port}")
    assert found.guest.extra[:2] == ["-chardev", "socket,id=ga,path=/run/a,,b,server=on,wait=off"]
    assert not any("nothing that is kept" in warning for warning in found.warnings)


def test_a_cdrom_goes_with_its_drive() -> None:
    cd = "-drive if=none,id=cd,media=cdrom,file=/srv/cd.iso -device ide-cd,drive=cd"
    found = parse(f"qemu-system-x86_64 -name shop -m 512 {DRIVE} {cd}")
    assert found.guest.extra == [] and len(found.guest.disks) == 1
    assert sum("cdrom" in warning for warning in found.warnings) == 2


@pytest.mark.parametrize("hypervisor", ["qemu", "libvirt"])
def test_a_record_that_somebody_edited_opens_nothing_else(hypervisor: str) -> None:
    guest = Guest("shop", UUID, 512 << 20, hypervisor=hypervisor, extra=["-hdb", "/srv/b.img", "-no-hpet"])
    with pytest.raises(StorkitError, match=r"extra: -hdb opens /srv/b\.img, which is no volume of shop"):
        render(guest, [])


@pytest.mark.parametrize(
    "words", ["-object secret,id=s,data=sesame", "-spice port=1,password=sesame", "-object secret,data=sesame"]
)
def test_a_secret_is_refused_and_not_shown(words: str) -> None:
    with pytest.raises(UsageError, match="a secret stands in the command") as caught:
        parse(f"qemu-system-x86_64 -name shop -m 512 {words}")
    assert "sesame" not in str(caught.value) + caught.value.hint
    found = parse("qemu-system-x86_64 -name shop -m 512 -vnc :1,password=on -object secret,id=s,file=/etc/s")
    assert "-vnc" in found.guest.extra
