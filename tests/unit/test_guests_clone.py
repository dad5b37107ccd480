"""Guests cloned from guests."""

from __future__ import annotations

from dataclasses import replace
from uuid import UUID

import pytest

from storkit.core.errors import Problems, UsageError
from storkit.core.guest import Boot, Disk, Guest, Nic
from storkit.guests.check import MIB, check
from storkit.guests.clone import clone, volume_names

WEB = Guest(
    name="web",
    uuid="0f1d0c2e-5a44-4f7c-9d53-3c1a4b6f2f10",
    memory=512 * MIB,
    boot=Boot("/srv/vmlinuz", cmdline="quiet"),
    disks=[
        Disk("web", uuid="6f9d6a70-3d19-4a0e-9f5b-02a3f6b1c7aa"),
        Disk("web-data", target="vdb"),
        Disk("tools", readonly=True, uuid="11111111-2222-4333-8444-555555555555"),
        Disk("webmail"),
    ],
    nics=[Nic("br0"), Nic("br1", "52:54:00:12:34:56")],
    console="/var/log/web.log",
)


def test_a_clone_shares_nothing_that_must_be_its_own() -> None:
    new = clone(WEB, "web2")
    assert check(new) == []
    assert new.name == "web2" and new.uuid != WEB.uuid and UUID(new.uuid).version == 4
    assert [disk.volume for disk in new.disks] == ["web2", "web2-data", "tools", "web2-webmail"]
    assert [disk.uuid for disk in new.disks] == ["", "", WEB.disks[2].uuid, ""]
    assert {new.mac(n) for n in range(2)}.isdisjoint(WEB.mac(n) for n in range(2))
    assert new.console == "/var/log/web2.log"
    same = replace(new, name="web", uuid=WEB.uuid, disks=WEB.disks, nics=WEB.nics, console=WEB.console)
    assert same == WEB


def test_two_clones_differ() -> None:
    assert clone(WEB, "a").uuid != clone(WEB, "a").uuid


def test_the_volumes_to_clone_are_named_beforehand() -> None:
    assert volume_names(WEB, "web2") == {"web": "web2", "web-data": "web2-data", "webmail": "web2-webmail"}


def test_given_volumes_are_taken() -> None:
    names = {"web": "w-1", "web-data": "w-2", "webmail": "w-3"}
    assert [disk.volume for disk in clone(WEB, "web2", volumes=names).disks] == ["w-1", "w-2", "tools", "w-3"]


def test_a_console_file_that_is_not_named_after_the_guest() -> None:
    assert clone(replace(WEB, console="/var/log/serial"), "b").console == "/var/log/b-serial"


def test_overrides() -> None:
    new = clone(
        WEB,
        "web2",
        [
            "memory=1.5GiB",
            "vcpus=4",
            "boot.cmdline=a=b c",
            "disks.0.volume=other",
            "disks.2.readonly=false",
            "disks.2.volume=my-tools",
            "disks.4.volume=fifth",
            "nics.0.bridge=br7",
            "nics.2.bridge=br8",
            "extra.0=-rtc",
            "extra.1=base=utc",
            "console=",
        ],
    )
    assert (new.memory, new.vcpus, new.boot.cmdline) == (1536 * MIB, 4, "a=b c")
    assert [disk.volume for disk in new.disks] == ["other", "web2-data", "my-tools", "web2-webmail", "fifth"]
    assert new.disks[2].uuid == "" and not new.disks[2].readonly
    assert [nic.bridge for nic in new.nics] == ["br7", "br1", "br8"]
    assert new.extra == ["-rtc", "base=utc"] and new.console == ""


@pytest.mark.parametrize(
    ("override", "message"),
    [
        ("memory", "sets nothing"),
        ("=5", "sets nothing"),
        ("memory=much", "not a size"),
        ("vcpus=two", "whole number"),
        ("vcpus=0", "at least 1"),
        ("colour=red", "no 'colour'"),
        ("boot.colour=red", "no 'colour'"),
        ("boot=x", "has parts"),
        ("disks=x", "has parts"),
        ("disks.9.volume=x", "no index"),
        ("disks.-1.volume=x", "no index"),
        ("disks.0.readonly=yes", "true or false"),
        ("disks.0.bus=floppy", "not one of"),
        ("disks.0=x", "has parts"),
        ("disks.4.target=vdx", "'volume' is missing"),
        ("memory.unit=x", "memory has no parts"),
        ("name=x", "cannot be set"),
        ("uuid=x", "cannot be set"),
        ("disks.0.volume=web", "both would write"),
        ("disks.2.readonly=false", "both would write"),
        ("boot.kernel=relative", "absolute"),
    ],
)
def test_overrides_that_are_refused(override: str, message: str) -> None:
    with pytest.raises(UsageError, match=message):
        clone(WEB, "web2", [override])


def test_all_problems_come_at_once() -> None:
    with pytest.raises(Problems) as caught:
        clone(WEB, "web2", ["vcpus=two", "colour=red", "memory=0"])
    assert len(caught.value.problems) == 3


@pytest.mark.parametrize("name", ["../x", "", "-a"])
def test_a_bad_name(name: str) -> None:
    with pytest.raises(UsageError):
        clone(WEB, name)


def test_a_clone_of_the_same_name() -> None:
    with pytest.raises(UsageError):
        clone(WEB, "web")
