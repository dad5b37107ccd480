"""`storkit hook xen`: what it reads of the xenstore, what it asks the engine for, and what it tells Xen."""

from __future__ import annotations

import json
import threading
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Literal

import pytest

from storkit.core.backend import Site
from storkit.core.contracts.hooks import EnterReason, LeaveReason
from storkit.core.errors import Conflict, ServiceUnreachable, StorkitError, UsageError
from storkit.hooks import xen
from storkit.hooks.engine import GuestDisk, GuestId, Hooks
from storkit.hooks.xen import XenDisk, XenHook, parse_path
from storkit.hooks.xenstore import Xenstore
from storkit.hypervisors._xl.processes import XlProcess
from storkit.hypervisors._xl.toolstack import XenDomain
from storkit.system.block import devmapper
from tests.xenstored import UUID, Daemon

OTHER = UUID.replace("6", "7")


@pytest.fixture
def daemon(tmp_path: Path) -> Iterator[Daemon]:
    found = Daemon(tmp_path / "socket")
    yield found
    found.close()


class Engine(Hooks):
    """In the engine's place: writes down what it is asked for, and attaches a device or refuses."""

    def __init__(self, base: Path) -> None:
        self.site = Site("h1", base / "state", base / "run", base)
        self.asked: list[tuple[object, ...]] = []
        self.refuses: StorkitError | None = None
        self.stays_asleep: StorkitError | None = None
        self.attaches = True

    def __enter__(self) -> Engine:
        return self

    def __exit__(self, *_: object) -> None:
        pass

    def path(self, volume: str) -> Path:
        return self.site.dev / volume

    def enter(self, disks: Sequence[GuestDisk], guest: GuestId, why: EnterReason, ask: bool = False) -> bool:
        self.asked.append(("enter", disks[0].name, disks[0].read_only, guest.name, guest.uuid, why))
        if self.refuses:
            raise self.refuses
        if self.attaches:
            self.path(disks[0].name).touch()
        return True

    def woken(self, disks: Sequence[GuestDisk], guest: GuestId) -> None:
        self.asked.append(("woken", disks[0].name, guest.uuid))
        if self.stays_asleep:
            raise self.stays_asleep

    def leave(self, disks: Sequence[GuestDisk], guest: GuestId, why: LeaveReason) -> None:
        self.asked.append(("leave", disks[0].name, guest.name, why))

    def hold(self, disks: Sequence[GuestDisk], guest: GuestId, file: str) -> None:
        self.asked.append(("hold", disks[0].name, guest.name, guest.uuid, file))


class Here:
    """A host with one call of the script to make."""

    def __init__(self, daemon: Daemon, engine: Engine, monkeypatch: pytest.MonkeyPatch) -> None:
        self.daemon, self.engine, self.monkeypatch = daemon, engine, monkeypatch
        monkeypatch.setattr(xen, "Xenstore", lambda: Xenstore(daemon.place))
        monkeypatch.setattr(Hooks, "load", lambda file: engine)
        monkeypatch.setattr(xen, "device_number", lambda path: "fd:b" if path.exists() else "")
        monkeypatch.setattr(devmapper, "find", list)
        self.called("")
        self.sees(None)

    def called(self, line: str, watches: bool = False) -> None:
        found = XlProcess(9, ("xl", *line.split()), "", watches, "/root") if line else None
        self.monkeypatch.setattr(xen, "xl_above", lambda pid: found)

    def sees(self, domain: XenDomain | None) -> None:
        self.monkeypatch.setattr(xen, "_listed", lambda number: domain)

    def hook(self, kind: Literal["add", "remove"], place: str) -> None:
        xen.hook(kind, place)


@pytest.fixture
def here(daemon: Daemon, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Here:
    return Here(daemon, Engine(tmp_path), monkeypatch)


def test_add_lets_a_guest_have_its_disk(here: Here, daemon: Daemon) -> None:
    daemon.domain(4, "g1")
    place = daemon.disk(4, "g1")
    here.called("create g1.cfg")
    here.hook("add", "backend/vbd/4/51712")
    assert here.engine.asked == [("enter", "g1", False, "g1", UUID, "start")]
    assert daemon.written == [
        (f"{place}/storkit-entering", "start"),
        (f"{place}/physical-device", "fd:b"),
        (f"{place}/physical-device-path", str(here.engine.path("g1"))),
        (f"{place}/hotplug-status", "connected"),
    ]
    assert f"{place}/storkit-entering" not in daemon.keys
    here.hook("add", place)
    assert len(here.engine.asked) == 1, "a disk that is connected is left alone"


def test_add_of_a_guest_that_arrives(here: Here, daemon: Daemon) -> None:
    daemon.domain(4, "g1--incoming")
    daemon.disk(4, "data", mode="r")
    here.hook("add", "backend/vbd/4/51712")
    assert here.engine.asked == [("enter", "data", True, "g1", UUID, "arrive")]


def test_add_that_is_refused_leaves_nothing(here: Here, daemon: Daemon) -> None:
    daemon.domain(4, "g1")
    place = daemon.disk(4, "g1")
    here.engine.refuses = Conflict("volume g1 is written by h1", "storkit status")
    with pytest.raises(Conflict, match="written by h1"):
        here.hook("add", place)
    assert not [key for key in daemon.keys if "physical" in key or "entering" in key]
    here.called("destroy g1")
    here.hook("remove", place)
    assert len(here.engine.asked) == 1, "there is nothing to leave"


def test_what_a_killed_add_has_been_given_is_left(here: Here, daemon: Daemon) -> None:
    daemon.domain(4, "g1")
    place = daemon.disk(4, "g1")
    daemon.keys[f"{place}/storkit-entering"] = "start"
    here.called("create g1.cfg")
    here.hook("remove", place)
    assert here.engine.asked == [("leave", "g1", "g1", "failed")]


def test_a_file_is_no_disk_for_it(here: Here, daemon: Daemon) -> None:
    daemon.domain(4, "g1")
    place = daemon.disk(4, "g1")
    here.monkeypatch.setattr(xen, "device_number", lambda path: "")
    with pytest.raises(StorkitError, match="no block device"):
        here.hook("add", place)
    assert [asked[0] for asked in here.engine.asked] == ["enter", "leave"]
    here.engine.asked.clear()
    with pytest.raises(StorkitError, match="no block device"):
        here.hook("add", place)
    assert here.engine.asked == [], "what somebody has attached stays"


@pytest.mark.parametrize(
    ("params", "script", "number", "mode", "refused"),
    [
        ("g1", "block-storkit", "fd:b", "w", True),
        ("{path}", "block", "fd:b", "w", True),
        ("/dev/mapper/other-name", "block", "fd:b", "w", True),
        ("aio:{path}", "", "", "w", True),
        ("g1", "block-storkit", "fd:b", "r", True),
        ("g1", "block-storkit", "", "w", False),
        ("g1", "block-iscsi", "8:0", "w", False),
        ("g2", "block-storkit", "fd:c", "w", False),
    ],
)
def test_add_of_a_disk_of_another_guest_here(
    here: Here, daemon: Daemon, params: str, script: str, number: str, mode: str, refused: bool
) -> None:
    here.engine.path("g1").touch()
    daemon.domain(3, "other", OTHER)
    daemon.disk(3, params.format(path=here.engine.path("g1")), mode, number, script)
    daemon.domain(4, "g1")
    place = daemon.disk(4, "g1")
    if refused:
        with pytest.raises(Conflict, match="a disk of guest other here"):
            here.hook("add", place)
    else:
        here.hook("add", place)
    assert bool(here.engine.asked) != refused


def test_two_guests_may_read_a_volume(here: Here, daemon: Daemon) -> None:
    daemon.domain(3, "other", OTHER)
    daemon.disk(3, "iso", "r", "fd:b")
    daemon.domain(4, "g1")
    here.hook("add", daemon.disk(4, "iso", "r"))
    assert here.engine.asked


def test_a_guest_that_moves_within_its_host_keeps_its_disk(here: Here, daemon: Daemon) -> None:
    """`add` of the new domain comes before `remove` of the old one."""
    daemon.domain(2, "g1--migratedaway")
    old = daemon.disk(2, "g1", number="fd:b")
    daemon.domain(3, "g1--incoming")
    new = daemon.disk(3, "g1")
    here.hook("add", new)
    daemon.domain(3, "g1")
    here.hook("remove", old)
    assert [asked[0] for asked in here.engine.asked] == ["enter"]
    # a domain whose name is gone is none any more
    del daemon.keys["/local/domain/3/name"]
    here.hook("remove", old)
    assert here.engine.asked[-1] == ("leave", "g1", "g1", "moved")


def test_save_holds(here: Here, daemon: Daemon) -> None:
    daemon.domain(4, "g1")
    place = daemon.disk(4, "g1", number="fd:b")
    here.called("save g1 g1.save")
    here.sees(XenDomain("g1", 4, "--pss-", UUID, 9.0))
    here.hook("remove", place)
    assert here.engine.asked == [("hold", "g1", "g1", UUID, "/root/g1.save")]


def test_restore_wakes(here: Here, daemon: Daemon) -> None:
    daemon.domain(4, "g1")
    place = daemon.disk(4, "g1")
    here.called("restore g1.save")
    here.hook("add", place)
    assert here.engine.asked == [("enter", "g1", False, "g1", UUID, "wake"), ("woken", "g1", UUID)]
    assert daemon.keys[f"{place}/hotplug-status"] == "connected"
    # another disk of it is refused, and xl takes the domain apart
    here.engine.asked.clear()
    here.sees(XenDomain("g1", 4, "--p---", UUID, 0.0))
    here.hook("remove", place)
    assert here.engine.asked == [("hold", "g1", "g1", UUID, "/root/g1.save")]


def test_a_guest_that_cannot_wake_sleeps_on(here: Here, daemon: Daemon) -> None:
    daemon.domain(4, "g1")
    place = daemon.disk(4, "g1")
    here.called("restore g1.save")
    here.engine.stays_asleep = ServiceUnreachable("the manager went away")
    with pytest.raises(ServiceUnreachable):
        here.hook("add", place)
    assert here.engine.asked[-1] == ("hold", "g1", "g1", UUID, "/root/g1.save")
    assert not [key for key in daemon.keys if "physical" in key or "entering" in key]


def test_a_reboot_keeps_and_a_shutdown_leaves(here: Here, daemon: Daemon, tmp_path: Path) -> None:
    here.monkeypatch.setattr(xen, "CONFIGURATIONS", tmp_path)
    kept = tmp_path / f"userdata-d.4.{UUID}.libxl-json"
    # As libxl 4.17 writes it: with the end of its string.
    kept.write_text(json.dumps({"c_info": {"name": "g1"}, "on_reboot": "restart"}) + "\n\0")
    daemon.domain(4, "g1")
    place = daemon.disk(4, "g1", number="fd:b")
    here.called("create g1.cfg", watches=True)
    here.sees(XenDomain("g1", 4, "--psr-", UUID, 9.0))
    here.hook("remove", place)
    assert here.engine.asked == []
    here.sees(XenDomain("g1", 4, "--ps--", UUID, 9.0))
    here.hook("remove", place)
    assert here.engine.asked == [("leave", "g1", "g1", "ended")]
    for text in ("", "[]", "{", "[" * 100_000, '{"on_poweroff": 1, "on_poweroff ": "destroy"}\0'):
        here.engine.asked.clear()
        kept.write_text(text)
        here.hook("remove", place)
        assert here.engine.asked == [], text[:20]


def test_a_remove_without_a_domain_keeps(here: Here, daemon: Daemon) -> None:
    place = daemon.disk(4, "g1", number="fd:b")
    here.hook("remove", place)
    assert here.engine.asked == []
    here.called("destroy g1")
    here.hook("remove", place)
    assert here.engine.asked == [("leave", "g1", "g1", "ended")]


def test_one_call_for_a_volume_at_a_time(here: Here, daemon: Daemon, tmp_path: Path) -> None:
    daemon.domain(4, "g1")
    place = daemon.disk(4, "g1")
    waiting = threading.Thread(target=here.hook, args=("add", place))
    with XenHook(here.engine, Xenstore(daemon.place), XenDisk("vbd", 5, 1))._alone("g1"):
        waiting.start()
        waiting.join(0.3)
        assert waiting.is_alive() and here.engine.asked == []
    waiting.join(20)
    assert here.engine.asked


# --- hostile and broken input


@pytest.mark.parametrize(
    "volume", ["", "../x", "a/b", "/dev/sda", "a b", "a\nb", "x" * 4000, "-x", "g1;reboot", "a\0b"]
)
def test_a_target_that_is_no_name(here: Here, daemon: Daemon, volume: str) -> None:
    daemon.domain(4, "g1")
    place = daemon.disk(4, volume)
    kinds: list[Literal["add", "remove"]] = ["add", "remove"]
    for kind in kinds:
        with pytest.raises(UsageError):
            here.hook(kind, place)
    assert here.engine.asked == [] and daemon.written == []


@pytest.mark.parametrize("name", ["a/b", "g 1", "-x", "--incoming"])
def test_a_domain_whose_name_storkit_cannot_have(here: Here, daemon: Daemon, name: str) -> None:
    daemon.domain(4, name)
    with pytest.raises(UsageError):
        here.hook("add", daemon.disk(4, "g1"))
    assert here.engine.asked == []


@pytest.mark.parametrize(
    "text",
    [
        "", "backend", "backend/vbd/4", "backend/vif/4/0", "backend/vbd/4/51712/", "backend/vbd/../51712",
        "/local/domain/0/backend/vbd/4/x", "backend/vbd/4/51712\n", "backend/vbd/٤/1", "x/backend/vbd/4/51712",
    ],
)  # fmt: skip
def test_a_path_that_is_none(text: str) -> None:
    with pytest.raises(UsageError, match="XENBUS_PATH"):
        parse_path(text)


def test_a_path() -> None:
    assert parse_path("backend/vbd/4/51712") == XenDisk("vbd", 4, 51712)
    assert parse_path("/local/domain/0/backend/vbd/4/51712").path == "/local/domain/0/backend/vbd/4/51712"
