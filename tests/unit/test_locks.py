"""Locks and who holds them: also the programs that a killed command leaves behind, which change what it had locked."""

from __future__ import annotations

import os
import signal
from collections.abc import Callable
from pathlib import Path

import pytest

from storkit.core.errors import Conflict
from storkit.system import locks
from storkit.system.block import devmapper
from storkit.system.run import run
from storkit.tech.iscsi import initiator
from storkit.tech.iscsi.initiator import InitiatorRecord, IscsiSession
from storkit.tech.nfs import attach, server
from storkit.tech.nfs.names import NfsSettings
from storkit.tech.nfs.server import Entry


@pytest.mark.parametrize("locked", [True, False])
def test_a_lock_lasts_until_the_program_has_ended_too(
    locked: bool, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    for name in ("begun", "go", "done"):
        os.mkfifo(name)
    path = tmp_path / "lock"
    child = os.fork()
    if child == 0:
        try:
            locks.acquire(path, "it")
            run(["sh", "-c", "echo > begun; read go < go; echo > done"], locked=locked)
        finally:
            os._exit(1)
    Path("begun").read_text()
    os.kill(child, signal.SIGKILL)
    os.waitpid(child, 0)
    assert locks.held(path) == locked
    if locked:
        with pytest.raises(Conflict) as refused:
            locks.acquire(path, "it")
        assert f"fuser -v {path}" in refused.value.hint
    Path("go").write_text("\n")
    Path("done").read_text()
    locks.acquire(path, "it", wait=30).release()


def test_a_program_is_lent_no_lock_that_was_let_go(tmp_path: Path) -> None:
    kept, gone = locks.acquire(tmp_path / "kept", "it"), locks.acquire(tmp_path / "gone", "it")
    gone.release()
    with locks.lent() as lent:
        places = [Path(f"/proc/self/fd/{descriptor}").readlink() for descriptor in lent]
        assert kept.path in places and gone.path not in places
        kept.release()
        assert locks.held(kept.path)
    assert not locks.held(kept.path)


ENTRY = Entry("/srv/pool", "10.0.0.1", True)
IQN = "iqn.2026-11.org.storkit:1"
NODE = InitiatorRecord(IQN, "10.0.0.1", 3260, "iqn.2026-11.org.storkit:b")
SESSION = IscsiSession(1, IQN, NODE.initiator, NODE.portal, "LOGGED_IN", Path("/none"))


@pytest.mark.parametrize(
    ("program", "lent", "act"),
    [
        ("dmsetup", True, lambda: devmapper._dmsetup(["create", "--concise"])),
        ("dmsetup", True, lambda: devmapper._dmsetup(["load", "name"])),
        ("dmsetup", True, lambda: devmapper._dmsetup(["remove", "name"])),
        ("dmsetup", False, lambda: devmapper._dmsetup(["resume", "name"])),
        ("dmsetup", False, lambda: devmapper._dmsetup(["wipe_table", "name"])),
        ("iscsiadm", True, lambda: initiator.login(NODE)),
        ("iscsiadm", True, lambda: initiator.logout(SESSION)),
        ("exportfs", True, lambda: server.apply([ENTRY], [], NfsSettings())),
        ("exportfs", True, lambda: server.apply([], [ENTRY], NfsSettings())),
        ("mount", True, lambda: attach.mount("10.0.0.1", "/srv/pool", Path("point"), "ro")),
    ],
)
def test_who_changes_what_is_locked_is_lent_the_locks(
    program: str, lent: bool, act: Callable[[], object], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Only those that may wait for a device or a server that does not answer are not."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("PATH", str(tmp_path), prepend=":")
    monkeypatch.setattr(attach, "_answers", lambda server: None)
    Path(program).write_text(f"#!/bin/sh\nls -l /proc/self/fd > {tmp_path}/saw\n")
    Path(program).chmod(0o755)
    lock = locks.acquire(tmp_path / "the-lock", "it")
    try:
        act()
    finally:
        lock.release()
    assert ("the-lock" in Path("saw").read_text()) == lent
