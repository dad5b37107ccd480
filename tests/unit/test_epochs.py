"""A command that was held up changes no right that a later one has given or taken: every kind of grant refuses it."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from storkit.core.backend import Site
from storkit.core.errors import Conflict, Unsafe
from storkit.core.host import Claim, changes
from storkit.core.model import Volume
from storkit.hosts.guard import Guard, Mark
from storkit.system import files, locks
from storkit.tech.grants import GrantStore
from storkit.tech.iscsi.names import IscsiGrant
from storkit.tech.nbd.names import NbdGrant
from storkit.tech.nfs.names import NfsGrant

VOLUME = Volume("v", "cc18ff28-316c-43a9-9f2c-38e3cc63bc95", 1 << 20, "default", "a")


KINDS = {kind.transport: kind for kind in (NbdGrant, IscsiGrant, NfsGrant)}


@pytest.fixture
def site(tmp_path: Path) -> Site:
    return Site("a", tmp_path / "a", tmp_path / "a/run", tmp_path / "a/dev")


@pytest.fixture(params=KINDS)
def kind(request: pytest.FixtureRequest) -> Any:
    return KINDS[request.param]


def grants(kind: Any, site: Site, epoch: int) -> Any:
    """The grants as the command with this epoch has them."""
    return GrantStore[Any](replace(site, epoch=epoch), kind)


def test_each_command_has_a_larger_epoch_also_after_a_crash(site: Site) -> None:
    guard = Guard(site)
    assert [guard.epoch(), guard.epoch()] == [1, 2]
    assert Guard(site).epoch() == 3
    assert changes([Claim(["x"]), Claim(["y"], shared=True)]) and not changes([Claim(["y"], shared=True)])
    (site.state / "epoch").write_text("x")
    with pytest.raises(Unsafe, match="is damaged"):
        guard.epoch()


@pytest.mark.parametrize("text", ["{}", "[1]", "", '{"plan": "p", "names": "x", "title": "", "coordinator": ""}'])
def test_a_mark_that_is_damaged_is_named_and_one_that_goes_meanwhile_is_not_missed(
    site: Site, monkeypatch: pytest.MonkeyPatch, text: str
) -> None:
    guard = Guard(site)
    guard.mark("p", ["x"], "attach x on b", "desk")
    assert guard.marks() == [Mark("p", ["x"], "attach x on b", "desk")]
    path = site.state / "pending/p.json"
    path.write_text(text)
    with pytest.raises(Unsafe, match=rf"the mark {path} is damaged"):
        guard.lock([Claim(["y"])], "somebody")
    read = files.read_json

    def ended_meanwhile(path: Path, what: str) -> Any:
        path.unlink()
        return read(path, what)

    monkeypatch.setattr(files, "read_json", ended_meanwhile)
    assert guard.marks() == []


def test_a_grant_that_a_later_command_has_changed_is_not_changed(kind: Any, site: Site) -> None:
    late, later = (grants(kind, site, epoch) for epoch in (4, 5))
    grant = kind(VOLUME)
    later.admit([grant])
    later.save([grant])
    (found,), _ = late.find()
    assert found.epoch == 5
    with pytest.raises(Unsafe, match="volume v was changed on a by a later command"):
        late.admit([found])
    for same in (5, 6):
        (found,), _ = later.find()
        grants(kind, site, same).admit([found])
        assert found.epoch == same


def test_a_command_of_an_older_coordinator_has_no_epoch(kind: Any, site: Site) -> None:
    """It is let through as ever, and does not make those that have one late."""
    grant = kind(VOLUME, epoch=7)
    grants(kind, site, 0).admit([grant])
    assert grant.epoch == 7


def test_a_late_unfence_lets_nobody_in(kind: Any, site: Site) -> None:
    grants(kind, site, 3).fence("b")
    grants(kind, site, 5).fence("b")
    with pytest.raises(Unsafe, match="the fence of host b was changed"):
        grants(kind, site, 4).unfence("b")
    assert grants(kind, site, 0).fenced("b")
    grants(kind, site, 6).unfence("b")
    assert not grants(kind, site, 0).fenced("b")


def test_a_late_fence_cuts_nobody_off(kind: Any, site: Site) -> None:
    grants(kind, site, 3).fence("b")
    grants(kind, site, 5).unfence("b")
    with pytest.raises(Unsafe, match="by a later command"):
        grants(kind, site, 4).fence("b")
    assert not grants(kind, site, 0).fenced("b")
    grants(kind, site, 6).fence("b")
    assert grants(kind, site, 0).fenced("b")


def test_a_late_export_gives_nothing_to_a_host_that_was_fenced_and_let_in_meanwhile(kind: Any, site: Site) -> None:
    grants(kind, site, 3).fence("b")
    grants(kind, site, 5).unfence("b")
    (problem,) = grants(kind, site, 4).refused(["b", "c"])
    assert "by a later command" in problem.message
    assert grants(kind, site, 6).refused(["b", "c"]) == []


def test_marks_of_before_there_were_epochs_are_kept(kind: Any, site: Site) -> None:
    marks = site.state / kind.transport / "fenced"
    marks.mkdir(parents=True)
    (marks / "b").write_text("b\n")
    assert [problem.message for problem in grants(kind, site, 1).refused(["b"])] == ["host b is fenced on a"]
    grants(kind, site, 2).unfence("b")
    assert grants(kind, site, 3).refused(["b"]) == []


def test_who_is_stopped_between_look_and_act_keeps_others_out(
    kind: Any, site: Site, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The mark is looked at and written under one lock: another command waits, and then says who has it."""
    monkeypatch.setattr("storkit.tech.grants._WAIT", 0.1)
    site.run.mkdir(parents=True)
    lock = locks.acquire(site.run / f"{kind.transport}-fence.lock", "the fence", holder="process 4711")
    for act in (grants(kind, site, 9).fence, grants(kind, site, 9).unfence):
        with pytest.raises(Conflict, match="process 4711"):
            act("b")
    lock.release(remove=True)
    grants(kind, site, 9).fence("b")
