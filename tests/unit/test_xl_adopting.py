"""Domains that somebody else has started: what is said of them, and what changes in what libxl keeps of them."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pytest

from storkit.core.errors import Conflict, NotFound, StorkitError, Unsafe
from storkit.core.guest import Disk, Guest, TakenGuest
from storkit.core.model import DiskSource
from storkit.hypervisors._xl import adopting
from storkit.hypervisors.xl import Xl
from storkit.system import openers
from tests.unit.xenhost import UUID, base, hypervisor, line, listed, pids

__all__ = ["base", "hypervisor", "pids"]
OTHER = "11111111-2222-4333-8444-555555555555"
FIRST, SECOND = "aaaaaaaa-2222-4333-8444-555555555555", "bbbbbbbb-2222-4333-8444-555555555555"
DOCUMENT = """\
name = "old"
type = "pvh"
memory = 96
kernel = "/vmlinuz"
disk = [ "phy:/dev/vg0/old,xvda,w", "phy:/dev/vg0/data,xvdb,w", "phy:/dev/vg0/tools,xvdc,r" ]
"""
GUEST = Guest(
    "old", OTHER, 96 << 20, hypervisor="xl", document=DOCUMENT,
    disks=[Disk("old", uuid=FIRST, target="xvda"), Disk("data", uuid=SECOND, target="xvdb")], local=["xvdc"],
)  # fmt: skip
BEFORE = {"xvda": "/dev/vg0/old", "xvdb": "/dev/vg0/data", "xvdc": "/dev/vg0/tools"}
THERE = [DiskSource("block", "/dev/storkit/old"), DiskSource("block", "/dev/storkit/data")]
AFTER = BEFORE | {"xvda": "/dev/storkit/old", "xvdb": "/dev/storkit/data"}


@pytest.fixture
def kept(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """What libxl keeps of domain 3, which runs, and whose disks a thread of the kernel serves."""
    listed(tmp_path, line("old", "-b----", 3, OTHER))
    monkeypatch.setattr(adopting, "KEPT", tmp_path)
    monkeypatch.setattr(openers, "of_domain", lambda domain: [70, 71] if domain == 3 else [])
    monkeypatch.setattr(openers, "earlier", lambda run, uuid: frozenset({70}))
    (tmp_path / "info").write_text("xen_major : 4\nxen_minor : 17\n")
    (tmp_path / "list-l").write_text(json.dumps([{"domid": 3, "config": {"c_info": {"type": "pvh"}}}]))
    path = tmp_path / f"userdata-d.3.{OTHER}.libxl-json"
    disks = [{"pdev_path": place, "vdev": target, "readwrite": 1} for target, place in BEFORE.items()]
    path.write_text(
        json.dumps({"c_info": {"name": "old"}, "disks": [*disks, {"vdev": "xvdd"}], "on_reboot": "x"}) + "\0"
    )
    return path


def places(kept: Path) -> dict[str, str]:
    text = kept.read_text()
    assert text.endswith("\0")  # libxl reads it as a string of C's
    found: Mapping[str, Any] = json.loads(text[:-1])
    assert found["c_info"] == {"name": "old"} and found["on_reboot"] == "x" and len(found["disks"]) == 4
    return {disk["vdev"]: disk["pdev_path"] for disk in found["disks"] if "pdev_path" in disk}


def test_a_domain_is_looked_at_and_left_as_it_is(hypervisor: Xl, kept: Path) -> None:
    before = kept.read_bytes()
    (seen,) = hypervisor.originals(["old"])
    assert (seen.document, seen.uuid, seen.status, seen.processes) == ("", OTHER, "running", [70, 71])
    assert seen.places == BEFORE and kept.read_bytes() == before


def test_what_cannot_be_taken_is_named(hypervisor: Xl, kept: Path, tmp_path: Path) -> None:
    with pytest.raises(NotFound, match="runs no domain gone"):
        hypervisor.originals(["gone"])
    listed(tmp_path, line("g", "-b----", 3, UUID))
    with pytest.raises(Conflict, match="storkit's already"):
        hypervisor.originals(["g"])
    for lines in (
        [line("old--incoming", "--p---", 3, OTHER)],
        [line("old", "---s--", 3, OTHER)],
        [line("old", "-b----", 3, OTHER), line("old--migratedaway", "---ss-", 4, OTHER)],
    ):
        listed(tmp_path, *lines)
        with pytest.raises(Conflict, match="is just being moved, or has ended"):
            hypervisor.originals(["old"])
    listed(tmp_path, line("old", "-b----", 4, OTHER))
    with pytest.raises(Unsafe, match="what libxl keeps of domain old cannot be read"):
        hypervisor.originals(["old"])
    kept.rename(kept.with_name(f"userdata-d.4.{OTHER}.libxl-json"))
    with pytest.raises(Conflict, match="has not connected its disks"):
        hypervisor.originals(["old"])


@pytest.mark.parametrize("text", ["", "[]", "{", '{"disks": 3}', '{"disks": ["x"]}'])
def test_what_libxl_keeps_may_be_of_another_kind(hypervisor: Xl, kept: Path, text: str) -> None:
    kept.write_text(text)
    with pytest.raises(Unsafe):
        hypervisor.originals(["old"])


def test_a_domain_is_taken_and_given_back(hypervisor: Xl, kept: Path, tmp_path: Path) -> None:
    for _ in range(2):  # a command that was killed does it again
        hypervisor.take([TakenGuest(GUEST, THERE)])
        assert places(kept) == AFTER
    text = hypervisor._guests.config("old").read_text()
    assert "/dev/storkit/old" in text and "/dev/storkit/data" in text and "/dev/vg0/tools" in text
    assert not list(tmp_path.glob("userdata-l.*"))
    for _ in range(2):
        hypervisor.give_back(GUEST)
        assert places(kept) == BEFORE and not hypervisor._guests.directory("old").exists()


def test_one_whose_disks_nobody_else_may_open_is_known_and_unchanged(hypervisor: Xl, kept: Path) -> None:
    before = kept.read_bytes()
    hypervisor.take([TakenGuest(GUEST, [])])
    assert kept.read_bytes() == before and not hypervisor._guests.config("old").exists()
    hypervisor.give_back(GUEST)
    assert places(kept) == BEFORE


def test_one_that_has_ended_meanwhile_is_not_taken(
    hypervisor: Xl, kept: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    before = kept.read_bytes()
    monkeypatch.setattr(openers, "earlier", lambda run, uuid: frozenset({70} if uuid == FIRST else ()))
    refused: list[StorkitError] = []
    for lines in ([line("old", "-b----", 3, OTHER)], [line("old", "---s--", 3, OTHER)], []):
        listed(tmp_path, *lines)
        with pytest.raises(Conflict) as raised:
            hypervisor.take([TakenGuest(GUEST, THERE)])
        refused.append(raised.value)
    assert [each.message.partition(" ")[2] for each in refused] == [
        "old was started again while it was adopted", *["old has ended since it was looked at"] * 2
    ]  # fmt: skip
    assert kept.read_bytes() == before
