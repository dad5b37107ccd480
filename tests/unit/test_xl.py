"""What xl says, as it was captured, and what becomes of it: where a guest is, and what still moves it."""

from __future__ import annotations

import json
import os
import signal
import subprocess
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import pytest

from storkit.core.backend import Site
from storkit.core.errors import Conflict, NotFound, ServiceUnreachable, StorkitError, TimedOut, Unsafe
from storkit.core.guest import Disk, Guest
from storkit.core.model import DiskSource, GuestStatus
from storkit.hypervisors import xl
from storkit.hypervisors._qemu.definition import Definition
from storkit.hypervisors._xl import guests, processes, toolstack
from storkit.hypervisors._xl.guests import XenGuests, parse_config
from storkit.hypervisors._xl.host import machine_problems
from storkit.hypervisors._xl.processes import XlProcess, wait_until, xl_above, xl_processes
from storkit.hypervisors._xl.toolstack import XenDomain, parse_devices, parse_info, parse_list
from storkit.hypervisors.xl import Xl
from storkit.system.timeouts import scaled

DATA = Path(__file__).parent / "data"
UUID = "606063c6-f709-4bdf-87e4-d458aa1e59d8"
HEADER = "Name                                        ID   Mem VCPUs\tState\tTime(s)   UUID"


def said(name: str) -> str:
    return (DATA / name).read_text()


def line(name: str, flags: str, id: int = 1, uuid: str = UUID, seconds: float = 1.2) -> str:
    return f"{name:<40} {id:5}    96     1     {flags}  {seconds:8.1f} {uuid}        -                -"


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


# --- where a guest is


XL = """\
#!/bin/sh
cd "{base}"
case "$1 $2" in
"info "|"list -l") exec cat "$1$2" ;;
esac
case $1 in
create|destroy|shutdown|pause|unpause|rename) echo "$STORKIT_GUEST $*" >>done
    [ ! -e "after-$1" ] || cat "after-$1" >list; [ ! -e fails ] ;;
*) exec cat {file} ;;
esac
"""
"""An xl that prints `list`; what it is told to do it writes down, and `after-create` and so on is its list then."""


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
        ([line("g", "---sr-")], [], False, "starting"),
        ([line("g", "--psS-")], [], False, "starting"),
        ([line("g", "---s--")], [], False, "starting"),
        ([line("g", "---s?-")], [], False, "starting"),
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


def test_processes_of_xl_are_found(tmp_path: Path) -> None:
    fake = tmp_path / "xl"
    fake.symlink_to("/usr/bin/sleep")
    with subprocess.Popen([fake, "60"], env={"STORKIT_GUEST": "g"}, stdin=subprocess.PIPE) as process:
        try:
            # its words are there a moment after exec(2) has closed what Popen waits for
            assert wait_until(lambda: any(one.pid == process.pid for one in xl_processes()), 10)
            (found,) = [one for one in xl_processes() if one.pid == process.pid]
        finally:
            process.kill()
    assert (found.guest, found.verb, found.watches) == ("g", "60", False)


@pytest.mark.parametrize(("log", "watches"), [("xl-g.log", True), ("xl-g.log.1", True), ("service.log", False)])
def test_an_xl_in_the_background_has_its_own_log(tmp_path: Path, log: str, watches: bool) -> None:
    """A service's xl has no terminal either, and is not in the background."""
    fake = tmp_path / "xl"
    fake.symlink_to("/usr/bin/sleep")
    with (tmp_path / log).open("w") as out, subprocess.Popen([fake, "60"], stdin=subprocess.DEVNULL, stdout=out) as it:
        try:
            assert wait_until(lambda: xl_above(it.pid) is not None, 10)
            found = xl_above(it.pid)
        finally:
            it.kill()
    assert found and found.watches == watches


def test_the_xl_that_runs_a_script_is_found(tmp_path: Path) -> None:
    fake = tmp_path / "xl"
    fake.symlink_to("/bin/sh")
    # as the script does: a shell, a pipe, and a program in it
    line = 'x=$(sh -c "sleep 60 & echo \\$! >pid; wait"); echo $x'
    with subprocess.Popen([fake, "-c", line, "save"], cwd=tmp_path, stdin=subprocess.DEVNULL) as process:
        inner = process.pid
        try:
            assert wait_until(lambda: (tmp_path / "pid").exists() and bool((tmp_path / "pid").read_text().strip()), 20)
            inner = int((tmp_path / "pid").read_text())
            found = xl_above(inner)
            assert found and (found.pid, found.directory, found.watches) == (process.pid, str(tmp_path), False)
        finally:
            process.kill()
            if inner != process.pid:
                os.kill(inner, signal.SIGKILL)
    assert xl_above(os.getpid()) is None
    assert xl_above(1 << 22) is None


@pytest.mark.parametrize(
    ("line", "verb", "file"),
    [
        ("save g1 /a/b", "save", "/a/b"),
        ("-v save -c 4 b", "save", "/root/b"),
        ("save g1", "save", ""),
        ("restore b", "restore", "/root/b"),
        ("restore -p g1.cfg /b", "restore", "/b"),
        ("restore", "restore", ""),
        ("cr x", "create", ""),
        ("c x", "c", ""),
        ("mig g1 h2", "mig", ""),
        ("migrate g1 h2", "migrate", ""),
        ("migrate-rec", "migrate-receive", ""),
        ("", "", ""),
    ],
)
def test_words_of_xl(line: str, verb: str, file: str) -> None:
    found = XlProcess(1, ("xl", *line.split()), "", False, "/root")
    assert (found.verb, found.file) == (verb, file)


# --- what is done with it


@pytest.fixture
def hypervisor(base: XenGuests, tmp_path: Path) -> Xl:
    found = Xl(Site("here", tmp_path / "s", tmp_path / "run", tmp_path / "dev"))
    found._guests.make("g")
    return found


@pytest.fixture
def creator(tmp_path: Path, pids: list[int]) -> Iterator[subprocess.Popen[bytes]]:
    """A process that /proc shows as the `xl create` of g; it ends with its input."""
    (tmp_path / "create").write_text("read line")
    with subprocess.Popen(
        ["xl", "create"], executable="/bin/sh", cwd=tmp_path, env={"STORKIT_GUEST": "g"}, stdin=subprocess.PIPE
    ) as process:
        pids.append(process.pid)
        assert wait_until(lambda: any(one.pid == process.pid for one in xl_processes()), 10)
        yield process


def listed(tmp_path: Path, *lines: str, name: str = "list") -> None:
    (tmp_path / name).write_text("\n".join([HEADER, *lines]))


def done(tmp_path: Path) -> list[str]:
    return (tmp_path / "done").read_text().splitlines() if (tmp_path / "done").exists() else []


def test_nothing_is_done_while_xl_does_not_answer(hypervisor: Xl, tmp_path: Path) -> None:
    (tmp_path / "list").write_text("?")
    hypervisor._guests.expect("g")
    for act in (
        lambda: hypervisor.stop("g", force=True),
        lambda: hypervisor.stop("g"),
        lambda: hypervisor.start("g"),
        lambda: hypervisor._end("g", "migrated"),
    ):
        with pytest.raises(Unsafe, match="xl does not answer here"):
            act()
    assert done(tmp_path) == [] and hypervisor._guests.expected("g")


@pytest.mark.parametrize("fails", [True, False])
def test_what_is_known_of_a_migration_is_forgotten_when_the_guest_has_started(
    hypervisor: Xl, tmp_path: Path, fails: bool
) -> None:
    listed(tmp_path)
    listed(tmp_path, *([] if fails else [line("g", "-b----")]), name="after-create")
    hypervisor._guests.expect("g")
    log = hypervisor._guests.directory("g") / "sent.log"
    log.write_text("Migration successful.")
    if fails:
        (tmp_path / "fails").touch()
        with pytest.raises(StorkitError):
            hypervisor.start("g")
    else:
        assert hypervisor.start("g").status == "running"
    assert done(tmp_path) == [f"g create {hypervisor._guests.config('g')}"]
    assert (hypervisor._guests.expected("g"), log.exists()) == (fails, fails)


def test_force_ends_the_domains_that_there_are_by_then(
    hypervisor: Xl, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    listed(tmp_path, line("g", "-b----", 1))
    # it reboots meanwhile
    monkeypatch.setattr(Xl, "_stop_receiving", lambda self, name: listed(tmp_path, line("g", "-b----", 2)))
    hypervisor.stop("g", force=True)
    assert done(tmp_path) == [" destroy 2"]


def test_force_ends_what_would_build_the_domain_anew(
    hypervisor: Xl, tmp_path: Path, creator: subprocess.Popen[bytes]
) -> None:
    listed(tmp_path)
    assert [one.status for one in hypervisor.find(["g"])] == ["starting"]
    for act in (hypervisor.start, hypervisor.stop, hypervisor.undefine):
        with pytest.raises(Conflict):
            act("g")
    hypervisor.stop("g", force=True)
    assert creator.wait(10) == -signal.SIGKILL
    assert [one.status for one in hypervisor.find(["g"])] == ["stopped"]


def test_a_guest_that_reboots_has_not_stopped(hypervisor: Xl, tmp_path: Path, creator: subprocess.Popen[bytes]) -> None:
    listed(tmp_path, line("g", "-b----"))
    listed(tmp_path, name="after-shutdown")
    with pytest.raises(TimedOut):
        hypervisor.stop("g", timeout=scaled(3))
    assert done(tmp_path) == [" shutdown -F 1"]
    creator.communicate()
    hypervisor.stop("g")


@pytest.mark.parametrize(("flags", "seconds", "kept"), [("-b----", 1.2, False), ("--p---", 0, True)])
def test_a_guest_that_runs_has_not_just_arrived(
    hypervisor: Xl, tmp_path: Path, flags: str, seconds: float, kept: bool
) -> None:
    listed(tmp_path, line("g", flags, seconds=seconds))
    hypervisor._guests.expect("g")
    hypervisor.cancel("g")
    assert hypervisor._guests.expected("g") == kept


# --- what a command that was killed has left


@pytest.fixture
def unsuspended(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """Xen's Python modules, played: the domain runs on, and what was done is written down."""

    def unsuspend(domain: int) -> None:
        with (tmp_path / "done").open("a") as file:
            file.write(f" unsuspend {domain}\n")
        listed(tmp_path, line("g", "--p---"))

    monkeypatch.setattr(toolstack, "unsuspend", unsuspend)


@pytest.mark.parametrize("flags", ["---ss-", "--pss-"])
def test_a_guest_that_was_suspended_goes_on_with_its_device_model(
    hypervisor: Xl, tmp_path: Path, unsuspended: None, flags: str
) -> None:
    listed(tmp_path, line("g", flags))
    listed(tmp_path, line("g", "-b----"), name="after-unpause")
    assert hypervisor.wake("g").status == "running"
    paused = [] if flags[2] == "p" else [" pause 1"]
    assert done(tmp_path) == [*paused, " unsuspend 1", " unpause 1"]


@pytest.mark.parametrize("act", ["cancel", "send"])
@pytest.mark.parametrize("name", ["g", "g--migratedaway"])
def test_a_guest_that_a_dead_migration_has_suspended_goes_on_if_it_is_here(
    hypervisor: Xl, tmp_path: Path, unsuspended: None, name: str, act: str
) -> None:
    listed(tmp_path, line(name, "---ss-"))
    listed(tmp_path, line("g", "-b----"), name="after-unpause")
    if act == "cancel":
        hypervisor.cancel("g")
    elif name == "g":
        with pytest.raises(Unsafe, match="has made no key"):  # it would be sent, if there were one
            hypervisor.send("g", "xl:h:1")
    else:
        assert hypervisor.send("g", "xl:h:1").downtime_ms is None
    assert (" unpause 1" in done(tmp_path)) == (name == "g")


def test_force_lets_no_guest_go_on(hypervisor: Xl, tmp_path: Path, unsuspended: None) -> None:
    listed(tmp_path, line("g", "---ss-"))
    hypervisor.stop("g", force=True)
    assert done(tmp_path) == [" destroy 1"]


def test_a_guest_has_arrived_until_it_was_let_go_on(
    hypervisor: Xl, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    class Killed(BaseException):
        """The agent has ended."""

    def killed(domain: XenDomain) -> None:
        raise Killed

    listed(tmp_path, line("g", "--p---", seconds=0))
    hypervisor._guests.expect("g")
    with monkeypatch.context() as patched:
        patched.setattr(toolstack, "go_on", killed)
        with pytest.raises(Killed):
            hypervisor.resume("g")
    assert [one.status for one in hypervisor.find(["g"])] == ["arrived"]
    hypervisor.resume("g")
    assert done(tmp_path) == [" unpause 1"] and not hypervisor._guests.expected("g")


def test_a_domain_that_a_killed_xl_has_half_built_is_no_guest_that_has_started(hypervisor: Xl, tmp_path: Path) -> None:
    listed(tmp_path, line("g", "--p---", seconds=0))
    (tmp_path / "devices").write_text("")
    with pytest.raises(Conflict, match="it is starting"):
        hypervisor.start("g")
    assert done(tmp_path) == []


def test_a_guest_made_by_hand_that_has_moved_is_reported_again(hypervisor: Xl, tmp_path: Path) -> None:
    listed(tmp_path)
    hypervisor._guests.make("web")
    with pytest.raises(NotFound):
        hypervisor.send("web", "xl:h:1")
    (hypervisor._guests.directory("web") / "sent.log").write_text("Migration successful.\n")
    assert hypervisor.send("web", "xl:h:1").downtime_ms is None


@pytest.mark.parametrize(
    ("flags", "hint"),
    [("--p---", "guest resume g"), ("---ss-", "guest resume g"), ("---sc-", "guest stop g --force")],
)
def test_what_lets_a_guest_move_that_stands_still(hypervisor: Xl, tmp_path: Path, flags: str, hint: str) -> None:
    listed(tmp_path, line("g", flags))
    with pytest.raises(Conflict, match="is paused here") as caught:
        hypervisor.fingerprint(GUEST)
    assert caught.value.hint == f"storkit {hint}"
    assert ("crashed" in caught.value.message) == (flags == "---sc-")
    if flags == "---sc-":
        with pytest.raises(Unsafe):
            hypervisor.resume("g")


def test_a_receiver_of_another_s_is_told_of_and_not_to_be_killed(
    hypervisor: Xl, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    listed(tmp_path, line("g--incoming", "--p---", seconds=0))
    for module in (guests, xl):
        monkeypatch.setattr(module, "xl_processes", lambda: [replace(RECEIVER, guest="")])
    with pytest.raises(Unsafe, match="perhaps another guest") as caught:
        hypervisor.resume("g")
    assert "kill" not in caught.value.hint


@pytest.mark.parametrize(
    ("name", "hint"), [("g--incoming", "migrate cleanup g"), ("g--migratedaway", ""), ("g", "guest stop g")]
)
def test_what_is_left_of_a_guest_is_not_ended_where_it_runs(
    hypervisor: Xl, tmp_path: Path, name: str, hint: str
) -> None:
    listed(tmp_path, line(name, "---ss-" if name.endswith("away") else "--p---"))
    if hint:
        with pytest.raises(Conflict) as caught:
            hypervisor.undefine("g")
        assert caught.value.hint == f"storkit {hint}"
    taken = hypervisor._guests.taken(replace(GUEST, name="other"))
    assert [each.partition("here: storkit ")[2] for each in taken] == ([hint] if hint else [])
