"""What is done with a guest of Xen, by what xl says of it, and after commands that were killed."""

from __future__ import annotations

import signal
import subprocess
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import pytest

from storkit.core.errors import Conflict, NotFound, StorkitError, TimedOut, Unsafe
from storkit.hypervisors._xl import ending, guests, toolstack
from storkit.hypervisors._xl.ending import XlEnding
from storkit.hypervisors._xl.processes import wait_until, xl_processes
from storkit.hypervisors._xl.toolstack import XenDomain
from storkit.hypervisors.xl import Xl
from storkit.system.timeouts import scaled
from tests.unit.xenhost import GUEST, RECEIVER, base, done, hypervisor, line, listed, pids

__all__ = ["base", "hypervisor", "pids"]


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


def test_nothing_is_done_while_xl_does_not_answer(hypervisor: Xl, tmp_path: Path) -> None:
    (tmp_path / "list").write_text("?")
    hypervisor._guests.expect("g")
    for act in (
        lambda: hypervisor.stop("g", force=True),
        lambda: hypervisor.stop("g"),
        lambda: hypervisor.start("g"),
        lambda: hypervisor._ending.end("g", "migrated"),
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
    monkeypatch.setattr(XlEnding, "stop_receiving", lambda self, name: listed(tmp_path, line("g", "-b----", 2)))
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


def test_a_guest_that_no_xl_watches_is_taken_apart_when_it_has_shut_down(hypervisor: Xl, tmp_path: Path) -> None:
    listed(tmp_path, line("g", "-b----"))
    listed(tmp_path, line("g", "---s--"), name="after-shutdown")
    listed(tmp_path, name="after-destroy")
    hypervisor.stop("g", timeout=scaled(10))
    assert done(tmp_path) == [" shutdown -F 1", " destroy 1"]
    # it was shut down from within
    listed(tmp_path, line("g", "---s--"))
    assert hypervisor.find(["g"])[0].reason == "it has shut down, and the xl that would take it apart has ended"
    hypervisor.stop("g", timeout=scaled(10))
    assert done(tmp_path)[2:] == [" destroy 1"]
    # it wants to go on, and nobody lets it
    listed(tmp_path, line("g", "---sr-"))
    with pytest.raises(Conflict, match="is paused"):
        hypervisor.stop("g")
    hypervisor.stop("g", force=True)
    assert done(tmp_path)[3:] == [" destroy 1"]


def test_a_guest_that_its_xl_takes_apart_at_the_same_moment_has_stopped(hypervisor: Xl, tmp_path: Path) -> None:
    (tmp_path / "fails").touch()
    listed(tmp_path, line("g", "---s--"))
    with pytest.raises(StorkitError):
        hypervisor.stop("g", timeout=scaled(10))
    listed(tmp_path, name="after-destroy")
    hypervisor.stop("g", timeout=scaled(10))
    assert done(tmp_path) == [" destroy 1", " destroy 1"]


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
    for module in (guests, ending):
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
