"""Volumes that change hands between managers while commands hang, are killed, or know less than the storage."""

from __future__ import annotations

import json
from contextlib import nullcontext
from dataclasses import replace
from pathlib import Path

import pytest

from storkit import images
from storkit.core.errors import Conflict, NotFound, StorkitError, Unsafe
from storkit.core.model import IMPORTING, Client
from storkit.system import locks
from storkit.system.qemu import imagelocks
from storkit.tech import strangers
from storkit.tech.files import managed
from storkit.tech.nbd import wire
from storkit.tech.nbd.shared import NbdGrants, copy_of
from tests.unit.test_managers import SIZE, D, Two, new, two

__all__ = ["two"]
E = Client("e", same_machine=True)


def served_past_its_lease(two: Two, monkeypatch: pytest.MonkeyPatch) -> str:
    """b hung, was fenced, c has its volume, and b goes on: the socket at which its server lets d write still."""
    two.b.pool.create([new()])
    two.b.serve()
    (offer,) = two.b.nbd.offers([two.b.volume()], "d")
    managed.use_lock(two.path, two.b.volume().uuid).unlink()
    monkeypatch.setattr(imagelocks, "held", lambda *_, **__: nullcontext([]))
    monkeypatch.setattr(strangers, "find", lambda *_: [])  # they are two machines
    two.c.pool.bar("b")
    two.c.nbd.take_over([two.c.volume()])
    with wire.NbdConnection(offer.socket) as connection:
        assert connection.go(offer.name).writable
    return offer.socket


@pytest.mark.parametrize("how", ["fence", "unfence", "unexport"])
def test_a_server_whose_time_is_over_is_ended_by(how: str, two: Two, monkeypatch: pytest.MonkeyPatch) -> None:
    socket = served_past_its_lease(two, monkeypatch)
    volume = two.b.volume()
    if how == "fence":
        two.b.nbd.fence("d")
    elif how == "unfence":
        two.b.nbd.unfence("b")
    else:
        two.b.nbd.unexport([volume], ["d"])
    with pytest.raises(StorkitError):
        wire.NbdConnection(socket).__enter__()
    assert not locks.held(locks.use_lock(two.b.site.run, volume.uuid))
    assert [export.client for export in two.c.nbd.find_exports()] == ["d"]


def test_a_storage_that_is_away_keeps_nothing_else_from_being_fenced(two: Two) -> None:
    two.b.pool.create([new()])
    two.b.serve()
    alone = replace(new("own"), path=str(two.b.site.state / "own.raw"), format="raw")
    Path(alone.path).write_bytes(bytes(SIZE))
    two.b.nbd.export([alone], [D])
    away = two.path.rename(two.path.with_name("away"))
    with pytest.raises(NotFound, match=r"there is no .*\.storkit\.managers"):
        two.b.nbd.fence("d")
    away.rename(two.path)
    assert [(export.volume, export.client) for export in two.b.nbd.find_exports()] == [("v", "d")]


def test_a_take_over_that_is_killed_goes_on_under_the_same_names(two: Two, monkeypatch: pytest.MonkeyPatch) -> None:
    """Who was granted what is kept before the volume changes hands."""
    two.b.pool.create([new("v"), new("w")])
    two.b.nbd.export([two.b.volume("v"), two.b.volume("w")], [D])
    before = {name: two.b.nbd.offers([two.b.volume(name)], "d")[0].name for name in ("v", "w")}
    two.b.end_servers()
    two.c.pool.bar("b")
    real = NbdGrants.inherit

    def killed(self: NbdGrants, volume: object) -> tuple[bool, int]:
        real(self, volume)  # type: ignore[arg-type]
        raise KeyboardInterrupt

    with monkeypatch.context() as patch, pytest.raises(KeyboardInterrupt):
        patch.setattr(NbdGrants, "inherit", killed)
        two.c.nbd.take_over([two.c.volume("v"), two.c.volume("w")])
    assert [two.c.volume(name).manager for name in ("v", "w")] == ["b", "b"] and two.c.nbd.find_exports() == []
    with monkeypatch.context() as patch, pytest.raises(KeyboardInterrupt):
        patch.setattr(two.c.nbd._exports, "_give", lambda _: (_ for _ in ()).throw(KeyboardInterrupt))
        two.c.nbd.take_over([two.c.volume("v"), two.c.volume("w")])
    assert all(export.live for export in two.c.nbd.restore())
    assert {name: two.c.nbd.offers([two.c.volume(name)], "d")[0].name for name in ("v", "w")} == before
    two.c.nbd.unexport([two.c.volume("v"), two.c.volume("w")], ["d"])


def test_a_volume_that_is_not_let_go_keeps_no_other_from_being_served(
    two: Two, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(managed, "_LEASE", 0.2)
    two.b.pool.create([new("v"), new("w")])
    for name in ("v", "w"):
        two.b.nbd.export([two.b.volume(name)], [D])
    exports = two.b.nbd._exports
    (grant,) = exports._grants.find([two.b.volume("v").uuid])[0]
    exports._server(grant).daemon.stop(kill=True)
    two.c.pool.bar("b")
    with pytest.raises(Conflict, match="volume w is locked by its server on b"):
        two.c.nbd.take_over([two.c.volume("w"), two.c.volume("v")])
    assert [(export.volume, export.client, export.live) for export in two.c.nbd.find_exports()] == [("v", "d", True)]
    assert [two.c.volume(name).manager for name in ("v", "w")] == ["c", "b"]


def test_a_command_that_hung_changes_nothing_of_the_manager_after_it(two: Two) -> None:
    two.b.pool.create([new()])
    two.b.serve()
    held = two.b.nbd._exports._grants.find()[0]
    two.b.end_servers()
    two.c.pool.bar("b")
    two.c.nbd.take_over([two.c.volume()])
    two.c.nbd.export([two.c.volume()], [E])
    two.c.nbd.set_writers([two.c.volume()], ["e"])
    two.c.nbd.unexport([two.c.volume()], ["d"])
    with pytest.raises(Unsafe, match="volume v is not b's to serve any more: another manager has it"):
        two.b.nbd._exports._grants.save(held)
    copy = json.loads(copy_of(two.c.volume()).read_text())
    assert (copy["writers"], list(copy["clients"])) == (["e"], ["e"])
    two.b.nbd._exports._grants.forget([two.b.volume().uuid])
    assert copy_of(two.c.volume()).exists() and two.c.volume().manager == "c"


def test_what_another_manager_has_changed_holds_for_who_looked_before(two: Two) -> None:
    two.b.pool.create([new()])
    seen = two.b.volume()
    two.c.pool.relabel([replace(two.c.volume(), kind="image")])
    two.b.nbd.export([seen], [D])
    with pytest.raises(Unsafe, match="v is a image: nobody writes it"):
        two.b.nbd.set_writers([two.b.volume()], ["d"])
    two.b.nbd.unexport([two.b.volume()], ["d"])


def test_what_a_killed_command_claimed_does_not_stay_its_hosts_for_ever(two: Two) -> None:
    two.b.pool.create([new(made=IMPORTING)])
    image = two.path.parent / "i.raw"
    image.write_bytes(b"x" * SIZE)
    managed.claim(two.b.site, [two.b.volume()], "changed")  # and killed
    used = managed.use(two.b.site, two.b.volume(), holder="another command")
    two.b.nbd.unexport([two.b.volume()], ["d"])
    assert two.c.volume().manager == "b", "a command has it"
    used.release()
    two.b.nbd.unexport([two.b.volume()], ["d"])
    assert two.c.volume().manager == ""
    images.fill(two.c.site, two.c.volume(), str(image), "raw")


def test_the_generation_goes_on_though_nobody_is_inherited(two: Two) -> None:
    two.b.pool.create([new()])
    two.b.serve()
    before = two.b.nbd.find_exports()[0].generation
    two.b.end_servers()
    two.c.pool.bar("b")
    two.c.nbd.fence("d")
    (lost,) = two.c.nbd.take_over([two.c.volume()])
    assert lost.client == "d" and two.c.volume().manager == "" and not copy_of(two.c.volume()).exists()
    assert two.c.volume().generation == before
    assert two.c.nbd.take_over([two.c.volume()]) == []
