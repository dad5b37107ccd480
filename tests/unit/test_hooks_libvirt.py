"""libvirt's hook: which disks are storkit's, why a guest has ended, and what is done about it."""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from storkit.core.errors import Conflict, UsageError
from storkit.hooks import install, libvirt, program
from storkit.hooks.engine import GuestDisk, GuestId, Hooks, agent_argv
from storkit.hooks.hostfile import HostFile, Manager

UUID = "0f1d0c2e-5a44-4f7c-9d53-3c1a4b6f2f10"
DISK = "<disk type='block' device='disk'><source {source}/><target dev='vda'/>{more}</disk>"
ROOT = Path(install.__file__).parents[2]


def domain(*disks: str, uuid: str = UUID) -> bytes:
    return f"<domain><name>g</name><uuid>{uuid}</uuid><devices>{''.join(disks)}</devices></domain>".encode()


def disk(source: str, more: str = "") -> str:
    return DISK.format(source=source, more=more)


DEV = Path("/dev/storkit")


def parsed(*disks: str) -> list[GuestDisk]:
    return libvirt.parse("g", "prepare", "begin", "-", domain(*disks), DEV).disks


def test_disks_below_the_stable_paths_are_ours_and_no_others() -> None:
    found = parsed(
        disk("dev='/dev/storkit/web'"),
        disk("file='/dev/storkit/image'", "<readonly/>"),
        disk("dev='/dev/storkit/web'", "<readonly/>"),
        disk("dev='/dev/storkit-other/x'"),
        disk("dev='/dev/storkit/a/b'"),
        disk("dev='/dev/storkit/../sda'"),
        disk("dev='/dev/sda'"),
        disk("protocol='nbd' name='web'"),
        disk("pool='p' volume='v'"),
        "<disk device='cdrom'><target dev='hda'/></disk>",
    )
    assert found == [GuestDisk("web", device=True), GuestDisk("image", read_only=True, device=True)]


@pytest.mark.parametrize("xml", [
    b"", b"<domain>", b"\xff\xfe", b"<domain/>" + b" " * (4 << 20),
    b'<!DOCTYPE d [<!ENTITY a "b">]><domain>&a;</domain>',
    domain(disk("dev='/dev/storkit/-x y'")), domain(uuid="no uuid"),
])  # fmt: skip
def test_what_libvirt_never_writes_is_refused(xml: bytes) -> None:
    with pytest.raises(UsageError):
        libvirt.parse("g", "prepare", "begin", "-", xml, DEV)


def test_a_name_that_leads_elsewhere_is_refused() -> None:
    with pytest.raises(UsageError):
        libvirt.parse("../../etc/x", "release", "end", "-", domain(), DEV)


class Recorded(Hooks):
    """Hooks that note what is asked of them."""

    def __init__(self, directory: Path) -> None:
        super().__init__(HostFile("h", state=str(directory)))
        self.asked: list[tuple[Any, ...]] = []
        self.planned = False
        """Whether a plan has done what is asked for, and goes on with it."""

    def enter(self, disks: Any, guest: Any, why: Any, ask: bool = False) -> bool:
        self.asked.append(("enter", guest.uuid, why))
        return not self.planned

    def woken(self, disks: Any, guest: Any) -> None:
        self.asked.append(("woken",))

    def leave(self, disks: Any, guest: Any, why: Any) -> None:
        self.asked.append(("leave", why))

    def hold(self, disks: Any, guest: Any, file: str) -> None:
        self.asked.append(("hold", file))


@pytest.fixture
def hooks(tmp_path: Path) -> Recorded:
    return Recorded(tmp_path / "state")


@pytest.fixture
def called(tmp_path: Path, hooks: Recorded) -> Callable[..., list[tuple[Any, ...]]]:
    (tmp_path / "save").mkdir()

    def call(operation: str, sub: str, extra: str = "-", log: str = "", name: str = "web") -> list[tuple[Any, ...]]:
        (tmp_path / "g.log").write_text(log)
        xml = domain(disk(f"dev='{hooks.site.dev}/{name}'"))
        hooks.asked = []
        event = libvirt.parse("g", operation, sub, extra, xml, hooks.site.dev)
        libvirt.act(hooks, event, logs=tmp_path, managed=tmp_path / "save")
        return hooks.asked

    return call


def ended(reason: str) -> str:
    return f"2026-11-21 16:26:17.360+0000: shutting down, reason={reason}\n"


STARTED = "2026-11-21 16:20:00.000+0000: starting up libvirt version: 9.0.0, package: 9.0.0-4\nLC_ALL=C \\\n"


@pytest.mark.parametrize(("call", "asked"), [
    (("migrate", "begin"), ("enter", UUID, "arrive")),
    (("restore", "begin"), ("enter", UUID, "wake")),
    (("prepare", "begin"), ("enter", UUID, "start")),
    (("release", "end", "-", STARTED + ended("migrated")), ("leave", "moved")),
    (("release", "end", "-", STARTED + ended("shutdown")), ("leave", "ended")),
    (("release", "end", "-", STARTED + ended("destroyed")), ("leave", "ended")),
    (("release", "end", "-", STARTED + ended("failed")), ("leave", "failed")),
    (("release", "end", "-", STARTED + ended("crashed")), ("leave", "unknown")),
    (("release", "end", "-", STARTED + ended("daemon")), ("leave", "unknown")),
    (("release", "end", "-", ended("shutdown") + STARTED), ("leave", "unknown")),
    (("release", "end", "-", ""), ("leave", "unknown")),
    (("release", "end", "from snapshot"), ("leave", "unknown")),
    (("release", "end", "migrated", STARTED + ended("shutdown")), ("leave", "moved")),
    (("release", "end", "saved"), ("hold", "the file of virsh save")),
])  # fmt: skip
def test_what_is_done_about_each_call(call: Any, asked: Any, called: Callable[..., Any]) -> None:
    assert called(*call) == [asked]


@pytest.mark.parametrize("call", [
    ("start", "begin"), ("started", "begin"), ("stopped", "end"), ("reconnect", "begin"), ("attach", "begin"),
    ("define", "begin"), ("prepare", "end"), ("-", "-"),
])  # fmt: skip
def test_all_other_calls_do_nothing(call: tuple[str, str], called: Callable[..., Any]) -> None:
    assert called(*call) == []


def test_a_guest_is_awake_once_qemu_runs_and_only_if_it_was_read_from_a_file(called: Callable[..., Any]) -> None:
    called("restore", "begin")
    assert called("started", "begin") == [("woken",)]
    assert called("started", "begin") == []
    called("restore", "begin")
    called("release", "end", "failed")
    assert called("started", "begin") == []


def test_a_guest_that_a_plan_wakes_up_is_left_to_the_plan(called: Callable[..., Any], hooks: Recorded) -> None:
    called("restore", "begin")
    hooks.planned = True
    called("restore", "begin")
    called("prepare", "begin")
    assert called("started", "begin") == []


@pytest.mark.parametrize("operation", ["migrate", "restore", "prepare"])
def test_a_disk_that_another_guest_of_this_host_writes_is_refused(
    operation: str, tmp_path: Path, called: Callable[..., Any]
) -> None:
    path = tmp_path / "state/dev/web"
    path.write_bytes(bytes(4096))
    with path.open("r+b") as writing, path.open("rb") as reading:
        assert called(operation, "begin")  # this process does not count
        for stream, refused in ((writing, True), (reading, False)):
            with subprocess.Popen(["sleep", "600"], stdin=stream) as other:
                try:
                    if refused:
                        with pytest.raises(
                            Conflict, match=f"is open for writing on this host: by sleep .pid {other.pid}"
                        ):
                            called(operation, "begin")
                    else:
                        assert called(operation, "begin")
                finally:
                    other.kill()


def test_a_memory_of_libvirt_s_own_is_named(tmp_path: Path, called: Callable[..., Any]) -> None:
    (tmp_path / "save/g.save").write_text("")
    assert called("release", "end", "saved") == [("hold", str(tmp_path / "save/g.save"))]


def test_the_log_of_9_0_says_why(tmp_path: Path) -> None:
    log, said = tmp_path / "g.log", dict[int, str]()
    lines = (Path(__file__).parent / "data/virsh-9.0-qemu.log").read_text().splitlines(keepends=True)
    for number, line in enumerate(lines, 1):
        if "shutting down" in line:
            log.write_text("".join(lines[:number]))
            said[number] = libvirt.last_reason(log)
    assert said == {38: "migrated", 77: "failed"}


# The script, and where it is put


def wish(directory: Path, **more: Any) -> install.InstallWish:
    given = {"name": "xen2", "managers": {"s": "ssh://root@10.0.0.1"}, "identity": "/etc/storkit/key", **more}
    return install.InstallWish(file=directory / "etc/storkit/host.toml", **given)


@pytest.fixture
def root(tmp_path: Path) -> Path:
    (tmp_path / "etc/libvirt").mkdir(parents=True, mode=0o755)
    return tmp_path


def test_install_and_remove_touch_nothing_else(root: Path) -> None:
    hooks = root / "etc/libvirt/hooks"
    (hooks / "qemu.d").mkdir(parents=True)
    (hooks / "qemu").write_text("#!/bin/sh\n")
    (hooks / "qemu.d/other").write_text("#!/bin/sh\n")
    found = install.install(wish(root), root)
    assert found.scripts == {"libvirt": "/etc/libvirt/hooks/qemu.d/storkit"}
    script = hooks / "qemu.d/storkit"
    again = install.install(install.InstallWish(file=found.file, settings=["nbd.attach=kernel"]), root)
    assert again.content.transports == {"nbd": {"attach": "kernel"}}
    found = install.install(install.InstallWish(file=found.file), root)
    assert found.content == again.content
    assert script.stat().st_mode & 0o777 == 0o755 and "@" not in script.read_text().replace("$@", "")
    assert install.install(install.InstallWish(file=found.file), root).content == found.content
    assert install.remove(root) == ["/etc/libvirt/hooks/qemu.d/storkit"] and install.remove(root) == []
    assert sorted(path.name for path in hooks.rglob("*")) == ["other", "qemu", "qemu.d"]


def test_somebody_else_s_file_stays(root: Path) -> None:
    place = root / "etc/libvirt/hooks/qemu.d/storkit"
    place.parent.mkdir(parents=True)
    place.write_text("#!/bin/sh\n# mine\n")
    with pytest.raises(Exception, match="storkit did not make it"):
        install.install(wish(root), root)
    assert place.read_text() == "#!/bin/sh\n# mine\n" and not (root / "etc/storkit").exists()
    assert install.remove(root) == []


def test_what_is_wrong_with_a_wish_is_said_before_anything_is_written(root: Path) -> None:
    for wrong, words in (
        ({"name": ""}, "needs a name, and a manager"),
        ({"managers": {}}, "needs a name, and a manager"),
        ({"managers": {"s": "10.0.0.1"}}, "is none of a manager"),
        ({"managers": {"s": "ssh://-oProxyCommand=x"}}, "managers.s.url"),
        ({"managers": {"../s": "local"}}, "cannot name a host"),
        ({"identity": "key"}, "no absolute path"),
        ({"settings": ["nbd"]}, "is not TRANSPORT.KEY=VALUE"),
        ({"settings": ["nbd.nothing=1"]}, "nothing"),
        ({"settings": ["nbd.attach=x"]}, "attach"),
    ):
        with pytest.raises(Exception, match=words):
            install.install(wish(root, **wrong), root)
        assert not (root / "etc/storkit").exists() and not (root / "etc/libvirt/hooks").exists()


def test_the_script_calls_storkit_for_its_own_disks_and_events_alone(root: Path) -> None:
    install.install(wish(root), root)
    script = root / "etc/libvirt/hooks/qemu.d/storkit"
    calls = root / "calls"
    program = root / "program"
    program.write_text(f'#!/bin/sh\nprintf "%s|" "$@" >> {calls}\ncat >> {calls}\nexit 3\n')
    program.chmod(0o755)
    text = script.read_text()
    line = next(line for line in text.splitlines() if "hook libvirt" in line)
    script.write_text(text.replace(line.partition("| ")[2].partition(" hook libvirt")[0], str(program)))

    def call(xml: bytes, *words: str) -> int:
        return subprocess.run([script, *words], input=xml, env=os.environ, check=False).returncode

    ours, theirs = domain(disk("dev='/dev/storkit/web'")), domain(disk("dev='/dev/sda'"))
    assert call(theirs, "g", "prepare", "begin", "-") == 0
    assert call(ours, "g", "reconnect", "begin", "-") == 0
    assert not calls.exists()
    assert call(ours, "-g x", "prepare", "begin", "-") == 3
    said = calls.read_text()
    assert said.endswith(f"|--|-g x|prepare|begin|-|{ours.decode()}\n")


def test_scripts_call_the_program_that_was_run_or_is_on_the_path(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    mine, other = tmp_path / "mine/storkit", tmp_path / "bin/storkit"
    for path in (mine, other):
        path.parent.mkdir()
        path.write_text("#!/bin/sh\n")
        path.chmod(0o755)
    monkeypatch.setenv("PATH", str(other.parent))
    for running, said in (
        (str(mine), [str(mine)]),
        (str(tmp_path / "storkit/__main__.py"), [str(other)]),
        (str(tmp_path / "storkit.pyz"), [str(other)]),
    ):
        monkeypatch.setattr(sys, "argv", [running])
        assert program.command() == said
    assert agent_argv(Manager("local"), "h1") == [str(other), "agent", "--for", "h1"]
    monkeypatch.setenv("PATH", str(tmp_path))
    assert program.command() == [sys.executable, "-m", "storkit"]


def test_guests_have_their_names() -> None:
    assert libvirt.parse("g", "prepare", "begin", "-", domain(), DEV).guest == GuestId("g", UUID)
