"""What xl says, as it was captured, and what becomes of it: where a guest is."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path

import pytest

from storkit.core.errors import ServiceUnreachable, Unsafe
from storkit.core.model import GuestStatus
from storkit.hypervisors._xl import guests, toolstack
from storkit.hypervisors._xl.guests import XenGuests, parse_config
from storkit.hypervisors._xl.host import machine_problems
from storkit.hypervisors._xl.processes import XlProcess
from storkit.hypervisors._xl.toolstack import XenDomain, parse_devices, parse_info, parse_list
from storkit.hypervisors.xl import Xl
from tests.unit.xenhost import (
    BY_HAND,
    CREATED,
    CREATOR,
    GUEST,
    HEADER,
    OTHER,
    RECEIVER,
    SAVER,
    SENDER,
    SENDER_BEHIND,
    TO_A_HOST_OF_ITS_NAME,
    UUID,
    WATCHER,
    base,
    done,
    hypervisor,
    line,
    listed,
    pids,
    said,
)

__all__ = ["base", "hypervisor", "pids"]


def test_list_and_info_as_they_were_captured() -> None:
    assert parse_list(said("xl-4.17-list-v-running.txt")) == [XenDomain("g1", 1, "------", UUID, 299.6)]
    (paused,) = parse_list(said("xl-4.17-list-v-paused.txt"))
    assert paused.paused and not paused.ended and not paused.dying
    info = parse_info(said("xl-4.17-info-pv-hvm.txt"))
    assert info.version == "4.17" and info.free == 211 << 20
    assert {"pv", "hvm"} <= info.abilities and "shadow" not in info.abilities
    running = said("xl-4.17-list-l-running.json")
    assert parse_config(running) == ("pvh", ["/dev/mapper/guest"])
    scripted = running.replace('"/dev/mapper/guest",', '"g1", "script": "/etc/xen/scripts/block-storkit",')
    assert parse_config(scripted) == ("pvh", ["/dev/storkit/g1"])


@pytest.mark.parametrize(
    ("machine", "refused"), [("", False), ("pvh", False), ("pvh-4.9", False), ("pvh-4.17", False), ("pvh-4.18", True)]
)
def test_a_guest_never_comes_from_a_newer_xen(monkeypatch: pytest.MonkeyPatch, machine: str, refused: bool) -> None:
    monkeypatch.setattr(toolstack, "xl", lambda *words: said("xl-4.17-info-pv-hvm.txt"))
    problems = machine_problems(replace(GUEST, machine=machine), arrives=True, running=False)
    assert any("older" in problem for problem in problems) == refused and len(problems) == refused


def test_what_xen_here_cannot_run(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(toolstack, "xl", lambda *words: said("xl-4.17-info-pv-hvm.txt").replace(" hvm hap", ""))
    (wrong,) = machine_problems(GUEST, arrives=False, running=False)
    assert wrong.startswith("Xen here cannot run pvh guests")
    assert machine_problems(replace(GUEST, machine="pv"), arrives=False, running=True) == []
    (live,) = machine_problems(replace(GUEST, machine="pv"), arrives=True, running=False)
    assert "no shadow paging" in live and "storkit guest save g FILE, and storkit guest restore g FILE --on" in live
    (memory,) = machine_problems(replace(GUEST, machine="pv", memory=1 << 30), arrives=False, running=False)
    assert "1GiB of memory are wanted, and Xen here has 211MiB" in memory


def test_memory_that_dom0_would_give_is_not_known() -> None:
    text = said("xl-4.17-info-pv-hvm.txt").replace("dom0_mem=448M,max:448M ", "")
    assert parse_info(text).free is None


def test_a_domain_is_ready_when_all_its_devices_are() -> None:
    text = said("xenstore-4.17-ls-backend-connected.txt")
    assert parse_devices(text) == {1: True}
    assert parse_devices(text.replace('hotplug-status = "connected"', 'hotplug-status = "error"')) == {1: False}
    without = "\n".join(each for each in text.splitlines() if "hotplug-status" not in each)
    assert parse_devices(without) == {1: False}
    assert parse_devices("") == {}


def test_the_first_error_is_the_cause() -> None:
    said = (
        "Parsing config from /var/lib/storkit/xl/g1/guest.cfg\n"
        "libxl: error: libxl_aoutils.c:539:async_exec_timeout: killing execution of /etc/xen/scripts/block add"
        " because of timeout\n"
        "libxl: error: libxl_create.c:1672:domcreate_launch_dm: Domain 1:unable to add disk devices\n"
        "libxl: error: libxl_domain.c:1064:domain_destroy_cb: Domain 1:Destruction of domain failed"
    )
    assert toolstack.cause(said) == "killing execution of /etc/xen/scripts/block add because of timeout"
    assert toolstack.cause(said.splitlines()[-1]) == ""


def test_names_of_digits_and_spaces() -> None:
    found = parse_list("\n".join([HEADER, line("12 3", "-b----", 7), line("g--incoming", "--p---", 8)]))
    assert [(domain.name, domain.id) for domain in found] == [("12 3", 7), ("g--incoming", 8)]
    assert found[1].incoming and found[1].guest == "g"


@pytest.mark.parametrize(
    "text",
    [
        "",
        line("g", "r-----"),
        f"{HEADER}\nwhat is this?",
        f"{HEADER}\n{line('g', 'r-----')}\n{line('h', 'r---')}",
        f"{HEADER}\n{line('g', 'r-----', uuid='-')}",
    ],
)
def test_a_list_that_is_not_understood_says_nothing_of_any_guest(text: str) -> None:
    with pytest.raises(Unsafe, match="xl list says what storkit does not understand"):
        parse_list(text)


@pytest.mark.parametrize(
    ("domains", "processes", "marked", "status"),
    [
        ([], [], False, "stopped"),
        ([], [], True, "incoming"),
        ([line("g", "r-----")], [], False, "running"),
        ([line("g", "r-----")], [], True, "running"),
        ([line("renamed", "-b----")], [], False, "running"),
        ([line("g", "--p---")], [], False, "paused"),
        ([line("g", "--p---")], [], True, "paused"),
        ([line("g", "--p---", seconds=0)], [], True, "arrived"),
        ([line("g", "--p---", seconds=0)], [WATCHER], True, "arrived"),
        ([line("g", "--p---", seconds=0)], [CREATED], False, "paused"),
        ([line("g", "--p---", 9, seconds=0)], [], False, "starting"),
        ([line("g", "--p---", 9, seconds=0)], [], True, "incoming"),
        ([line("g", "--p---", seconds=0)], [CREATOR], True, "starting"),
        ([], [CREATOR], False, "starting"),
        ([], [CREATED], True, "starting"),
        ([], [WATCHER], False, "starting"),
        ([line("g", "--psrd")], [CREATED], False, "starting"),
        ([], [RECEIVER], True, "incoming"),
        ([], [replace(CREATED, guest="other")], False, "stopped"),
        ([], [SENDER_BEHIND], False, "stopped"),
        ([line("g", "-b----")], [CREATED], False, "running"),
        ([line("g", "---ss-")], [SENDER], False, "running"),
        ([line("g", "---ss-")], [BY_HAND], False, "running"),
        ([line("g", "---ss-")], [TO_A_HOST_OF_ITS_NAME], False, "paused"),
        ([line("g--migratedaway", "---ss-")], [BY_HAND], False, "running"),
        ([line("g--migratedaway", "---ss-")], [OTHER], False, "migrated"),
        ([line("g", "---ss-")], [], False, "paused"),
        ([line("g", "---ss-")], [SAVER], False, "starting"),
        ([line("g", "---sr-")], [CREATED], False, "starting"),
        ([line("g", "--psS-")], [WATCHER], False, "starting"),
        ([line("g", "---s--")], [replace(CREATED, guest="")], False, "starting"),
        ([line("g", "---s?-")], [CREATED], False, "starting"),
        # nobody takes it apart, or builds it anew
        ([line("g", "---sr-")], [], False, "paused"),
        ([line("g", "---s--")], [replace(CREATED, guest="other")], False, "paused"),
        ([line("g", "--psS-")], [OTHER], False, "paused"),
        ([line("g", "---sc-")], [], False, "paused"),
        ([line("g", "--ps-d")], [], False, "stopped"),
        ([line("g--incoming", "--p---")], [RECEIVER], True, "incoming"),
        ([line("g--incoming", "--p---")], [WATCHER], True, "arrived"),
        ([line("g--incoming", "--p---", 9)], [], True, "incoming"),
        ([line("g--migratedaway", "---ss-", 1), line("g", "-b----", 2)], [], False, "running"),
        ([line("g", "-b----", uuid=UUID.replace("6", "7"))], [], False, "stopped"),
    ],
)
def test_status(
    base: XenGuests, tmp_path: Path, monkeypatch: pytest.MonkeyPatch,
    domains: list[str], processes: list[XlProcess], marked: bool, status: GuestStatus,
) -> None:  # fmt: skip
    (tmp_path / "list").write_text("\n".join([HEADER, *domains]))
    monkeypatch.setattr(guests, "xl_processes", lambda: processes)
    has_disks(tmp_path)
    if marked:
        base.expect("g")
    found = base.one("g")
    assert found and found.status == status
    assert base.expected("g") == marked, "who only asks changes nothing"


def test_a_guest_that_was_created_by_hand_from_its_file_is_known_while_it_reboots(
    base: XenGuests, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "list").write_text(HEADER)
    words = ("xl", "create", str(base.config("g")))
    monkeypatch.setattr(guests, "xl_processes", lambda: [XlProcess(6, words, "", True)])
    found = base.one("g")
    assert found and found.status == "starting"


def test_a_line_that_is_not_understood_makes_guests_unknown(base: XenGuests, tmp_path: Path) -> None:
    (tmp_path / "list").write_text(f"{HEADER}\n{line('g', '-b----', uuid='?')}")
    found = base.one("g")
    assert found and found.status == "unknown"


def has_disks(tmp_path: Path, *paths: str) -> None:
    """What xl says of every domain's configuration."""
    config = json.loads(said("xl-4.17-list-l-running.json"))
    config[-1]["config"]["disks"] = [{"pdev_path": path} for path in paths]
    (tmp_path / "list-l").write_text(json.dumps(config))


def disk_of(tmp_path: Path, uuid: str, name: str = "g") -> str:
    """The path of a volume in a file, as attach makes it."""
    (tmp_path / "run").mkdir(exist_ok=True)
    path = tmp_path / name
    path.symlink_to(tmp_path / "run/nfs" / uuid / "disk.raw")
    return str(path)


def test_a_domain_started_by_hand_is_found_by_its_name(base: XenGuests, tmp_path: Path) -> None:
    (tmp_path / "list").write_text("\n".join([HEADER, line("web", "-b----")]))
    has_disks(tmp_path, "/dev/null", disk_of(tmp_path, UUID))
    found = base.one("web")
    assert found and (found.status, found.uuid, found.record) == ("running", UUID, None)
    assert base.one("other") is None
    assert [one.name for one in base.look(None)] == ["g"]


@pytest.mark.parametrize("mine", [False, True])
def test_only_a_domain_with_a_disk_of_storkit_is_a_guest_that_has_no_record(
    hypervisor: Xl, tmp_path: Path, mine: bool
) -> None:
    listed(tmp_path, line("web", "-b----", 9, uuid=UUID.replace("6", "7")))
    has_disks(tmp_path, "/dev/null", *([disk_of(tmp_path, UUID)] if mine else []))
    (tmp_path / "info").write_text(said("xl-4.17-info-pv-hvm.txt"))
    found = hypervisor.find(["web"])
    assert [(one.volumes, one.machine) for one in found] == ([({UUID: "g"}, "pvh-4.17")] if mine else [])
    hypervisor.stop("web", force=True)
    assert done(tmp_path) == ([" destroy 9"] if mine else [])


def test_a_volume_is_told_by_its_directory_while_its_server_is_away(base: XenGuests, tmp_path: Path) -> None:
    listed(tmp_path, line("web", "-b----"))
    has_disks(tmp_path, str(tmp_path / "run/nfs" / UUID / "disk.qcow2"))
    assert [one.name for one in base.look(["web"])] == ["web"]
    for path in (tmp_path / "run/nfs/other/disk.qcow2", tmp_path / UUID / "disk", tmp_path / "gone"):
        has_disks(tmp_path, str(path))
        assert base.look(["web"]) == []


@pytest.mark.parametrize(
    ("text", "counts"), [("[]", False), ("?", True), ("{}", False), ('[{"config": 3}]', True), ("[3]", True)]
)
def test_a_configuration_that_is_not_understood_says_nothing_of_the_guest(
    base: XenGuests, tmp_path: Path, text: str, counts: bool
) -> None:
    listed(tmp_path, line("g", "-b----", uuid=UUID.replace("6", "7")))
    (tmp_path / "list-l").write_text(text)
    found = base.one("g")
    assert found and found.status == ("unknown" if counts else "stopped")


@pytest.mark.parametrize(
    ("kind", "uuid", "asked"),
    [("xen", "00000000-0000-0000-0000-000000000000", True), ("xen", None, True), ("xen", UUID, False),
     ("kvm", None, False), (None, None, False)],
)  # fmt: skip
def test_xl_is_asked_wherever_it_may_have_guests(
    base: XenGuests, tmp_path: Path, kind: str | None, uuid: str | None, asked: bool
) -> None:
    listed(tmp_path, line("g", "-b----"))
    for name, text in (("type", kind), ("uuid", uuid)):
        (tmp_path / name).write_text(f"{text}\n") if text else (tmp_path / name).unlink()
    found = base.one("g")
    assert found and found.status == ("running" if asked else "stopped")


def test_a_domain_of_another_uuid_is_the_guest_if_it_has_its_disk(base: XenGuests, tmp_path: Path) -> None:
    other = UUID.replace("6", "7")
    (tmp_path / "list").write_text("\n".join([HEADER, line("g", "-b----", uuid=other)]))
    has_disks(tmp_path, disk_of(tmp_path, UUID))
    found = base.one("g")
    assert found and (found.status, found.uuid) == ("running", other)


def test_an_xl_that_fails_leaves_guests_unknown(base: XenGuests, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PATH", "/usr/bin:/bin")
    found = base.one("g")
    assert found and found.status == "unknown"
    with pytest.raises(ServiceUnreachable, match="xl does not answer here"):
        base.look(["g", "web"])


def test_a_mark_of_an_earlier_boot_does_not_count(
    base: XenGuests, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    base.expect("g")
    assert base.expected("g")
    monkeypatch.setattr(guests, "_boot", lambda: "another")
    assert not base.expected("g")
