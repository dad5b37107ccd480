"""A host whose xl prints what a test has written, and what it may print."""

from __future__ import annotations

import os
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import pytest

from storkit.core.backend import Site
from storkit.core.guest import Disk, Guest
from storkit.core.model import DiskSource
from storkit.hypervisors._qemu.definition import Definition
from storkit.hypervisors._xl import processes, toolstack
from storkit.hypervisors._xl.guests import XenGuests
from storkit.hypervisors._xl.processes import XlProcess
from storkit.hypervisors.xl import Xl

DATA = Path(__file__).parent / "data"
UUID = "606063c6-f709-4bdf-87e4-d458aa1e59d8"
HEADER = "Name                                        ID   Mem VCPUs\tState\tTime(s)   UUID"


def said(name: str) -> str:
    return (DATA / name).read_text()


def line(name: str, flags: str, id: int = 1, uuid: str = UUID, seconds: float = 1.2) -> str:
    return f"{name:<40} {id:5}    96     1     {flags}  {seconds:8.1f} {uuid}        -                -"


XL = """\
#!/bin/sh
cd "{base}"
case "$1 $2" in
"info "|"list -l") exec cat "$1$2" ;;
esac
case $1 in
create|destroy|shutdown|pause|unpause|rename) echo "$STORKIT_GUEST $*" >>done
    [ ! -e "after-$1" ] || cat "after-$1" >list; [ ! -e fails ] ;;
migrate-receive) [ -e came ] && cat came >&2 ;;
*) exec cat {file} ;;
esac
"""
"""An xl that prints `list`; what it is told to do it writes down, and `after-create` and so on is its list then.
It receives a guest whole where `came` is."""


@pytest.fixture
def pids(monkeypatch: pytest.MonkeyPatch) -> list[int]:
    """The processes that there are: other tests, which run at the same time, have an xl for their g as well."""
    found = list[int]()
    monkeypatch.setattr(processes, "_pids", lambda: iter(found))
    return found


@pytest.fixture
def base(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, pids: list[int]) -> Iterator[XenGuests]:
    """Records of one guest, g, on a host whose xl prints what LIST has."""
    monkeypatch.setattr(toolstack, "HYPERVISOR", tmp_path)
    (tmp_path / "type").write_text("xen\n")
    (tmp_path / "uuid").write_text("00000000-0000-0000-0000-000000000000\n")
    tools = tmp_path / "bin"
    tools.mkdir()
    for name, file in (("xl", "list"), ("xenstore-ls", "devices")):
        (tools / name).write_text(XL.format(base=tmp_path, file=file))
        (tools / name).chmod(0o755)
    monkeypatch.setenv("PATH", f"{tools}:{os.environ['PATH']}")
    (tmp_path / "devices").write_text(said("xenstore-4.17-ls-backend-connected.txt"))
    found = XenGuests(tmp_path / "state", tmp_path / "run/xl")
    monkeypatch.setattr(
        XenGuests, "record", lambda self, name: Definition(GUEST, [DISK], "pvh", "") if name == "g" else None
    )
    found.make("g")
    yield found


GUEST = Guest("g", UUID, 96 << 20, hypervisor="xl", disks=[Disk("g", uuid=UUID)])
DISK = DiskSource("block", "/dev/storkit/g")
SENDER = XlProcess(4, ("xl", "migrate", "-s", "", "1", "x"), "g", False)
BY_HAND = XlProcess(4, ("/usr/lib/xen-4.17/bin/xl", "migrate", "g", "h2"), "", False)
TO_A_HOST_OF_ITS_NAME = XlProcess(4, ("xl", "migrate", "-s", "g", "web", "g"), "", False)
SAVER = XlProcess(4, ("xl", "save", "g", "/file"), "", False)
OTHER = XlProcess(4, ("xl", "migrate", "other", "h2"), "", False)
RECEIVER = XlProcess(5, ("xl", "migrate-receive", "-p"), "g", False)
WATCHER = XlProcess(5, ("xl", "migrate-receive", "-p"), "g", True)
SENDER_BEHIND = replace(SENDER, watches=True)
CREATOR = XlProcess(6, ("xl", "create", "/g.cfg"), "g", False)
CREATED = replace(CREATOR, watches=True)


@pytest.fixture
def hypervisor(base: XenGuests, tmp_path: Path) -> Xl:
    found = Xl(Site("here", tmp_path / "s", tmp_path / "run", tmp_path / "dev"))
    found._guests.make("g")
    return found


def listed(tmp_path: Path, *lines: str, name: str = "list") -> None:
    (tmp_path / name).write_text("\n".join([HEADER, *lines]))


def done(tmp_path: Path) -> list[str]:
    return (tmp_path / "done").read_text().splitlines() if (tmp_path / "done").exists() else []
