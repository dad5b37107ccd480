"""A volume that is moved under its guest: what is compared, who may write the copy, which of two is the disk."""

from __future__ import annotations

import hashlib
import os
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any, cast

import pytest

from storkit.core.errors import NotFound, StorkitError, TimedOut, Unsafe, Unsupported
from storkit.core.inventory import PoolConfig, parse
from storkit.core.model import FILLING, IMPORTING, MIRRORING, MOVED, MOVING, SWITCHING, Volume, closed, closes
from storkit.hosts.remote.asked import compared
from storkit.hosts.remote.wire import Malformed
from storkit.plans.intent.relocating import live
from storkit.plans.lookup import disk_of
from storkit.plans.plan import Step
from storkit.plans.verb import Run
from storkit.plans.verbs.mirroring import CompareCopy, MirrorDisk
from storkit.tech.grants import refused_writers

MIB = 1 << 20
UUID = "2f1c7a3e-55d0-4e0f-8a0c-0d6c7f6f9a01"


def volume(made: str, pool: str = "p") -> Volume:
    return Volume("g", UUID, 3 * MIB, pool, "a" if pool == "p" else "b", made=made)


class Sides:
    """Both homes. `meanwhile` is called before each reading, as a guest writes at any moment."""

    def __init__(self, one: bytearray, other: bytearray, meanwhile: Callable[[], None]) -> None:
        self.bytes = {"a": one, "b": other}
        self.meanwhile = meanwhile

    def on(self, host: str) -> Any:
        return Side(self, host)


class Side:
    def __init__(self, sides: Sides, host: str) -> None:
        self.sides, self.host = sides, host

    def transport(self, target: str) -> Side:
        return self

    def digests(self, volume: Volume, client: str, offset: int, length: int, block: int) -> list[str]:
        self.sides.meanwhile()
        data = bytes(self.sides.bytes[self.host])
        return [hashlib.sha256(data[at : at + block]).hexdigest() for at in range(offset, offset + length, block)]


def compare(one: bytearray, other: bytearray, meanwhile: Callable[[], None] = lambda: None) -> str:
    verb = CompareCopy(volume(MIRRORING), volume(FILLING, "q"), "h")
    step = Step("1", "compare", "a", "transport:nbd", "", {}, "b")
    return verb.act(cast(Run, Sides(one, other, meanwhile)), step)


def test_one_byte_of_a_copy_that_is_another_is_found() -> None:
    one = bytearray(os.urandom(3 * MIB))
    assert compare(one, bytearray(one)) == compare(one, bytearray(one))
    for place in (0, MIB + 5, 3 * MIB - 1):
        other = bytearray(one)
        other[place] ^= 1
        with pytest.raises(Unsafe, match="another than the disk"):
            compare(one, other)


def test_what_is_written_meanwhile_is_read_again_and_hides_nothing() -> None:
    one, count = bytearray(3 * MIB), 0
    other = bytearray(one)

    def write() -> None:
        nonlocal count
        count += 1
        one[count % 512] = count % 256
        if count % 3:
            other[:512] = one[:512]

    compare(one, other, write)
    other[2 * MIB] ^= 1
    with pytest.raises(Unsafe):
        compare(one, other, write)


def test_one_host_alone_fills_a_copy_and_nobody_writes_it_otherwise() -> None:
    def refused(made: str, hosts: list[str], fills: bool) -> bool:
        said = [each.message for each in refused_writers(volume(made), None, hosts, ("disk",), fills=fills)]
        return any("not exported" not in each for each in said)

    assert not refused(FILLING, ["a"], True)
    assert refused(FILLING, ["a"], False) and refused(FILLING, ["a", "b"], True)
    for made in (IMPORTING, MOVING, MIRRORING, SWITCHING):
        assert refused(made, ["a"], True) and closed(volume(made))
    assert not refused(MOVED, ["a"], False)


@pytest.mark.parametrize(
    ("old", "new", "disk"),
    [("created", FILLING, "p"), (MIRRORING, FILLING, "p"), (SWITCHING, FILLING, "p"), (SWITCHING, MOVED, "q")],
)
def test_one_of_two_is_the_disk(old: str, new: str, disk: str) -> None:
    both = [volume(old), volume(new, "q")]
    for volumes in (both, both[::-1]):
        found = disk_of(volumes)
        assert found is not None and found.pool == disk


def test_the_words_of_a_move_under_a_guest_are_given_while_it_has_the_volume() -> None:
    plain, mirroring = volume("created"), volume(MIRRORING)
    assert closes(plain, volume(MOVING)) and closes(plain, volume(IMPORTING)) and closes(mirroring, volume(MOVING))
    assert not closes(plain, mirroring) and not closes(mirroring, volume(SWITCHING)) and not closes(mirroring, plain)


def test_a_host_names_no_device_but_that_of_the_copy_it_was_asked_about() -> None:
    """It is what its own kernel fills."""

    def answered(path: str) -> list[dict[str, str]]:
        asked = {"offers": [{"volume": "g", "name": "n"}]}
        found: list[dict[str, str]] = compared(
            "a", "transport:iscsi", "sources", asked, [{"kind": "block", "path": path}]
        )
        return found

    assert answered("/dev/mapper/storkit:g:fill.attached")
    for path in ("/dev/sda", "/dev/mapper/storkit:h:fill.attached", "/dev/mapper/storkit:g:local", ""):
        with pytest.raises(Malformed, match="no copy of volume g"):
            answered(path)
    with pytest.raises(Malformed, match="0 records"):
        compared("a", "transport:iscsi", "sources", {"offers": [{"volume": "g", "name": "n"}]}, [])


BLOCKS = """
[hosts.a]
url = "local"
address = "10.0.0.1"
[hosts.b]
url = "ssh://b"
address = "10.0.0.2"
[hosts.s]
url = "ssh://s"
address = "10.0.0.3"
[pools.there]
host = "s"
type = "lvm"
vg = "there"
transport = "iscsi"
[pools.far]
host = "b"
type = "lvm"
vg = "far"
transport = "iscsi"
[pools.near]
host = "a"
type = "lvm"
vg = "near"
transport = "iscsi"
[pools.files]
host = "s"
type = "directory"
path = "/srv/files"
transport = "nbd"
[pools.others]
host = "b"
type = "directory"
path = "/srv/others"
transport = "nbd"
[pools.fast]
host = "b"
type = "lvm"
vg = "fast"
transport = "nvme"
[pools.shared]
host = "s"
type = "nfs"
path = "/srv/shared"
transport = "nfs"
"""
KERNEL = '[transports.nbd]\nattach = "kernel"\n'


@pytest.mark.parametrize(
    ("own", "new", "more", "rate", "why"),
    [
        ("there", "near", "", 0, ""),
        ("near", "there", "", 0, ""),
        ("files", "far", KERNEL, 0, ""),
        ("near", "files", KERNEL, 0, ""),
        ("there", "far", "", 0, "by iscsi, and would have its copy by it as well"),
        ("files", "others", KERNEL, 0, "by nbd, and would have its copy by it as well"),
        ("there", "files", "", 0, "nbd of pool files is no transport"),
        ("there", "fast", "", 0, "nvme of pool fast is no transport"),
        ("there", "shared", "", 0, "nfs of pool shared is no transport"),
        ("there", "near", "", 1 << 20, "as fast as it can"),
    ],
)
def test_between_which_pools_a_kernel_moves_a_disk(own: str, new: str, more: str, rate: int, why: str) -> None:
    """Of a guest on a, whose disk is a block device; what it does not do is refused by name before anything changes."""
    inventory = parse(BLOCKS + more, Path("i.toml"))
    old, pool = inventory.pool(own), inventory.pool(new)
    moved = Volume("g", UUID, MIB, own, old.host)
    seen = live.UnderGuest(host="a", guest="g", hypervisor="qemu", status="running")
    coordinator = cast(Any, SimpleNamespace(inventory=inventory))
    said = "; ".join(each.message for each in live._not_by_nodes(coordinator, moved, pool, seen, rate))
    assert why in said and bool(said) is bool(why)


class Answering:
    """Hosts that answer to what a move under a guest asks them, or know nothing of it."""

    def __init__(self, **answers: StorkitError | None) -> None:
        self.answers, self.asked = answers, list[tuple[str, str]]()

    def to(self, host: str) -> Any:
        return self if not self.asked.append(("", host)) else None

    inventory = connections = property(lambda self: self)

    def transport(self, target: str) -> Any:
        return self if ":" in target else f"transport:{target}"

    def hypervisor(self, target: str) -> Any:
        return self

    def _say(self, verb: str) -> None:
        host = self.asked[-1][1]
        self.asked.append((verb, host))
        if error := self.answers.get(host):
            raise error

    def mirrored(self, disk: str) -> str:
        self._say("mirrored")
        return "none"

    def digests(self, *asked: object) -> list[str]:
        self._say("digests")
        return []


@pytest.mark.parametrize("old", ["g", "a", "b"])
def test_a_host_whose_storkit_is_older_is_named_before_anything_changes(old: str) -> None:
    """That of the guest, of the disk, or of the copy; a home that exports the volume to nobody yet is none."""
    pool, seen = PoolConfig("q", "b", "directory"), live.UnderGuest(host="g", hypervisor="qemu")
    fine: dict[str, StorkitError | None] = {"b": NotFound("it is exported to nobody")}
    hosts = Answering(**fine)
    assert live._too_old(cast(Any, hosts), volume("created"), pool, seen) == []
    assert {each for each in hosts.asked if each[0]} == {("mirrored", "g"), ("digests", "a"), ("digests", "b")}
    hosts = Answering(**{**fine, old: Unsupported("there is no verb")})
    (problem,) = live._too_old(cast(Any, hosts), volume("created"), pool, seen)
    assert problem.message.startswith(f"host {old} does not move volume g") and problem.hint.endswith(f" on {old}")


class Hanging(Sides):
    """A guest's QEMU that ends no copy before its server has ended."""

    def __init__(self) -> None:
        super().__init__(bytearray(), bytearray(), lambda: None)
        self.said: list[str] = []

    def on(self, host: str) -> Any:
        return self

    def transport(self, target: str) -> Any:
        return self

    hypervisor = transport

    def unexport(self, volumes: list[Volume], clients: list[str]) -> None:
        self.said.append("unexport")

    def unmirror(self, name: str, disk: str) -> None:
        self.said.append("unmirror")
        if "unexport" not in self.said:
            raise TimedOut("the copy does not end")


def test_a_copy_that_does_not_end_is_ended_with_its_server() -> None:
    hosts, it = Hanging(), MirrorDisk("g", volume(FILLING, "q"), "transport:nbd")
    step = Step("1", "mirror", "g", "hypervisor:qemu", "", {}, "b")
    it.undo(cast(Run, hosts), step, None)
    assert hosts.said == ["unmirror", "unexport", "unmirror"]
