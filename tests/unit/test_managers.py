"""A directory that two managers share, each with servers of its own: who has a volume, and who takes it over."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator
from contextlib import nullcontext
from dataclasses import dataclass, replace
from pathlib import Path
from uuid import uuid4

import pytest

from storkit import images
from storkit.core.backend import Site
from storkit.core.errors import Conflict, NotFound, StorkitError, Unsafe, Unsupported, UsageError
from storkit.core.identities import check_name
from storkit.core.imagefiles import ImageFile
from storkit.core.model import IMPORTING, Client, Existing, Volume
from storkit.directory import Directory, DirectorySettings
from storkit.nbd import Nbd
from storkit.system import locks
from storkit.system.files import make_private
from storkit.system.qemu import imagelocks
from storkit.tech.files import managed, mounts
from storkit.tech.nbd import wire

D = Client("d", same_machine=True)
SIZE = 1 << 20


@dataclass
class Manager:
    """One host of the two, in this process."""

    site: Site
    pool: Directory
    nbd: Nbd

    def volume(self, name: str = "v") -> Volume:
        (found,) = self.pool.find([check_name("volume", name)])
        return found

    def serve(self, volume: Volume | None = None) -> None:
        """Let d write."""
        self.nbd.export([volume or self.volume()], [D])
        self.nbd.set_writers([self.volume()], ["d"])

    def end_servers(self) -> None:
        """As a power cut does: nothing of what is recorded goes."""
        for uuid in [grant.stem for grant in (self.site.state / "nbd").glob("*-*.json")]:
            exports = self.nbd._exports
            grants = super(type(exports._grants), exports._grants).find([uuid])[0]
            for grant in grants:
                exports._server(grant).daemon.stop(kill=True)


@dataclass
class Two:
    make: Callable[[str, list[str]], Manager]
    b: Manager
    c: Manager
    path: Path


@pytest.fixture
def two(tmp_path: Path) -> Iterator[Two]:
    path = make_private(tmp_path / "nas")
    made: list[Manager] = []

    def make(name: str, managers: list[str]) -> Manager:
        state = make_private(tmp_path / name)
        site = Site(name, state, make_private(state / "run"), make_private(state / "dev"))
        pool = Directory(site, DirectorySettings(path=str(path), managers=managers), "nas")
        made.append(Manager(site, pool, Nbd(site)))
        return made[-1]

    yield Two(make, make("b", ["b", "c"]), make("c", ["b", "c"]), path)
    for manager in made:
        manager.end_servers()


def new(name: str = "v", **fields: object) -> Volume:
    return replace(Volume(name, str(uuid4()), SIZE), **fields)  # type: ignore[arg-type]


def test_what_one_makes_the_other_sees_and_nobody_has_it(two: Two) -> None:
    (made,) = two.b.pool.create([new()])
    seen = two.c.volume()
    assert (seen.uuid, seen.manager, seen.term, seen.host, made.host) == (made.uuid, "", 1, "c", "b")
    b, c = two.b.pool.look(), two.c.pool.look()
    assert b.directory == c.directory != ""
    two.c.pool.delete([seen])
    assert two.b.pool.find() == []


def test_the_one_that_serves_a_volume_has_it_until_nobody_uses_it(two: Two) -> None:
    two.b.pool.create([new()])
    two.b.serve()
    seen = two.c.volume()
    assert (seen.manager, seen.term) == ("b", 2)
    with pytest.raises(Conflict, match=r"volume v is b's to serve, and cannot be export by c") as refused:
        two.c.nbd.export([seen], [D])
    assert refused.value.hint == "if b is off: storkit fence b --confirmed-off"
    changes: list[Callable[[], object]] = [
        lambda: two.c.pool.delete([seen]),
        lambda: two.c.pool.resize([replace(seen, size=2 * SIZE)]),
        lambda: two.c.pool.rename([seen], ["w"]),
        lambda: two.c.pool.clone(seen, [new("copy")]),
        lambda: two.c.pool.relabel([replace(seen, kind="image")]),
        lambda: images.export_image(two.c.site, seen, str(two.path.parent / "v.qcow2")),
    ]
    for change in changes:
        with pytest.raises(Conflict, match="b's to serve"):
            change()
    assert [export.client for export in two.b.nbd.find_exports()] == ["d"] and two.c.nbd.find_exports() == []
    two.b.nbd.unexport([two.b.volume()], ["d"])
    assert not list(two.path.glob(".storkit.served/*"))
    two.c.serve()
    assert (two.b.volume().manager, two.b.volume().term) == ("c", 3)
    with pytest.raises(Conflict, match="c's to serve"):
        two.b.serve()
    two.c.nbd.unexport([two.c.volume()], ["d"])


def test_generations_go_on_from_one_manager_to_the_other(two: Two) -> None:
    two.b.pool.create([new()])
    for _ in range(3):
        two.b.serve()
        last = two.b.nbd.find_exports()[0].generation
        two.b.nbd.unexport([two.b.volume()], ["d"])
    two.c.serve()
    assert two.c.nbd.find_exports()[0].generation > last
    two.c.nbd.unexport([two.c.volume()], ["d"])


def test_nobody_takes_over_what_is_not_known_to_be_let_go(two: Two) -> None:
    two.b.pool.create([new()])
    two.b.serve()
    two.b.end_servers()
    with pytest.raises(Unsafe, match=r"volume v is b's to serve, and b is not barred") as refused:
        two.c.nbd.take_over([two.c.volume()])
    assert refused.value.hint == "once you have seen that it is off: storkit fence b --confirmed-off"
    assert two.c.volume().manager == "b"


def test_who_is_said_to_be_off_and_has_its_lock_is_not_robbed(two: Two, monkeypatch: pytest.MonkeyPatch) -> None:
    """The storage knows better than the person."""
    monkeypatch.setattr(managed, "_LEASE", 0.2)
    two.b.pool.create([new()])
    two.b.serve()
    two.c.pool.bar("b")
    with pytest.raises(Conflict, match="volume v is locked by its server on b"):
        two.c.nbd.take_over([two.c.volume()])
    assert two.c.volume().manager == "b" and two.c.nbd.find_exports() == []


def test_what_a_manager_served_goes_on_from_the_other_under_the_same_name(two: Two) -> None:
    two.b.pool.create([new()])
    two.b.serve()
    before, (offer,) = two.b.nbd.find_exports()[0], two.b.nbd.offers([two.b.volume()], "d")
    two.b.end_servers()
    with (two.path / "v.raw").open("r+b") as file:
        file.write(b"b" * 4096)
    two.c.pool.bar("b")
    (after,) = two.c.nbd.take_over([two.c.volume()])
    assert (after.client, after.writable, after.live) == ("d", True, True)
    assert after.generation >= before.generation
    (again,) = two.c.nbd.offers([two.c.volume()], "d")
    assert (again.name, again.size) == (offer.name, offer.size) and again.socket != offer.socket
    with wire.NbdConnection(again.socket) as connection:
        connection.go(again.name)
        assert connection.read(0, 4096) == b"b" * 4096
    assert two.c.nbd.take_over([two.c.volume()]) == [after], "it can be said again"

    # b comes back: its time is over.
    assert two.b.nbd.find_exports() == []
    with pytest.raises(Unsafe, match="host b is barred"):
        two.b.serve()
    assert two.b.nbd.restore() == []
    assert not (two.b.site.state / "nbd" / f"{two.b.volume().uuid}.json").exists()
    with pytest.raises(Unsafe, match=r"host b is barred from .*: somebody has seen that it was off") as barred:
        two.b.pool.create([new("w")])
    assert barred.value.hint == "once it is known to be harmless: storkit unfence b"
    two.c.pool.unbar("b")
    two.b.pool.create([new("w")])
    two.c.nbd.unexport([two.c.volume()], ["d"])


def test_a_server_that_runs_on_is_ended_when_its_host_finds_out(two: Two, monkeypatch: pytest.MonkeyPatch) -> None:
    two.b.pool.create([new()])
    two.b.serve()
    volume = two.b.volume()
    # As if b had hung for longer than its lease: its locks are gone, and its server is not.
    managed.use_lock(two.path, volume.uuid).unlink()
    monkeypatch.setattr(imagelocks, "held", lambda *_, **__: nullcontext([]))
    two.c.pool.bar("b")
    two.c.nbd.take_over([two.c.volume()])
    held = locks.held(locks.use_lock(two.b.site.run, volume.uuid))
    assert held, "the old one still runs"
    two.b.nbd.restore()
    assert not locks.held(locks.use_lock(two.b.site.run, volume.uuid))
    assert [export.live for export in two.c.nbd.find_exports()] == [True]


def test_a_barred_manager_starts_nothing_though_nobody_has_taken_it_over_yet(two: Two) -> None:
    two.b.pool.create([new()])
    two.b.serve()
    two.b.end_servers()
    two.c.pool.bar("b")
    with pytest.raises(Unsafe, match="host b is barred"):
        two.b.nbd.restore()
    assert not locks.held(locks.use_lock(two.b.site.run, two.b.volume().uuid))
    two.c.pool.unbar("b")
    assert [export.live for export in two.b.nbd.restore()] == [True]


def test_a_client_that_is_fenced_does_not_come_along(two: Two) -> None:
    two.b.pool.create([new()])
    two.b.serve()
    two.b.nbd.export([two.b.volume()], [Client("e", same_machine=True)])
    two.b.end_servers()
    two.c.pool.bar("b")
    two.c.nbd.fence("d")
    served, lost = two.c.nbd.take_over([two.c.volume()])
    assert (served.client, served.writable, served.live) == ("e", False, True)
    assert (lost.client, lost.writable, lost.live, lost.endpoint) == ("d", True, False, "")
    assert two.c.nbd.take_over([two.c.volume()]) == [served]


def test_nothing_is_dropped_while_the_storage_is_away(two: Two) -> None:
    """A manager that boots before its storage keeps what it has to serve."""
    two.b.pool.create([new()])
    two.b.serve()
    two.b.end_servers()
    away = two.path.rename(two.path.with_name("away"))
    two.path.mkdir(mode=0o700)
    with pytest.raises(NotFound, match=r"there is no .*\.storkit\.managers"):
        two.b.nbd.restore()
    two.path.rmdir()
    away.rename(two.path)
    assert [export.live for export in two.b.nbd.restore()] == [True]


def test_a_volume_that_is_filled_is_its_managers_meanwhile(two: Two, monkeypatch: pytest.MonkeyPatch) -> None:
    image = two.path.parent / "image.raw"
    image.write_bytes(b"x" * SIZE)
    two.b.pool.create([new(made=IMPORTING)])
    seen: list[str] = []

    def look(*_: object) -> None:
        seen.append(two.c.volume().manager)
        with pytest.raises(Conflict, match="b's to serve"):
            two.c.pool.delete([two.c.volume()])

    monkeypatch.setattr(images, "_convert_in", look)
    images.fill(two.b.site, two.b.volume(), str(image), "raw")
    assert seen == ["b"] and two.c.volume().manager == ""


def test_sidecars_of_one_kind_of_pool_are_no_volumes_of_the_other(two: Two) -> None:
    alone = Directory(two.b.site, DirectorySettings(path=str(two.path)), "nas")
    two.b.pool.create([new()])
    with pytest.raises(Unsafe, match=r"is one that b, c share") as refused:
        alone.look()
    assert refused.value.hint == 'write hosts = ["b", "c"] in place of host into [pools.nas]'
    record = json.loads((two.path / "v.json").read_text())
    assert record["version"] == 2, "a storkit that knows nothing of managers uses no such volume"
    (two.path / "v.json").write_text(json.dumps({**record, "version": 1}))
    assert "of a pool with one host" in two.b.pool.look().damaged[0].message


def test_a_directory_with_volumes_of_one_host_is_not_shared_by_a_word(two: Two) -> None:
    alone = Directory(two.b.site, DirectorySettings(path=str(two.path)), "nas")
    alone.create([new()])
    with pytest.raises(Unsafe, match=r"has volumes of a pool with one host, as v"):
        two.b.pool.create([new("w")])
    assert not (two.path / managed.RECORD).exists()


def test_managers_come_and_go_but_those_that_have_volumes(two: Two) -> None:
    two.b.pool.create([new()])
    two.b.serve()
    only_c = two.make("c", ["c", "e"])
    with pytest.raises(Unsafe, match=r"b has volumes of .*, and is no manager by the inventory"):
        only_c.pool.create([new("w")])
    two.b.nbd.unexport([two.b.volume()], ["d"])
    only_c.pool.create([new("w")])
    found = managed.read(two.path)
    assert found and found.managers == ["c", "e"]


def test_what_such_a_pool_cannot_do_is_refused_by_name(two: Two, tmp_path: Path) -> None:
    with pytest.raises(Unsupported, match="pool nas has several managers, and adopts nothing"):
        two.b.pool.adoptable([Existing(str(tmp_path / "x.raw"))])
    two.b.pool.create([new()])
    with pytest.raises(UsageError, match="host b is asked to bar itself"):
        two.b.pool.bar("b")
    with pytest.raises(UsageError, match="x is no manager of"):
        two.b.pool.bar("x")
    alone = Directory(two.b.site, DirectorySettings(path=str(tmp_path)), "one")
    with pytest.raises(Unsupported, match="pool one has one host"):
        alone.bar("c")
    for wrong in ({"path": "/x", "others_write": True}, {}):
        with pytest.raises(UsageError):
            DirectorySettings(managers=["b"], **wrong)  # type: ignore[arg-type]


def test_a_file_of_a_shared_volume_is_adopted_by_no_other_pool(two: Two, tmp_path: Path) -> None:
    two.b.pool.create([new()])
    place = make_private(tmp_path / "other")
    other = Directory(two.b.site, DirectorySettings(path=str(place)), "other")
    with pytest.raises(StorkitError, match="lies in a directory that several managers share"):
        other.adoptable([Existing(str(two.path / "v.raw"))])


def test_a_manager_that_has_only_looked_does_not_take_the_mount_point_for_the_pool(two: Two) -> None:
    two.b.pool.create([new()])
    assert two.c.volume().name == "v"
    away = two.path.rename(two.path.with_name("away"))
    two.path.mkdir(mode=0o700)
    changes: list[Callable[[], object]] = [
        two.c.pool.look,
        lambda: two.c.pool.create([new("w")]),
        lambda: two.c.pool.bar("b"),
        lambda: two.c.pool.unbar("b"),
    ]
    for change in changes:
        with pytest.raises(NotFound, match="has no record of its managers, and had one before") as refused:
            change()
    assert refused.value.hint.endswith(f"mount {two.path}")
    assert list(two.path.iterdir()) == []
    other = two.make("c", ["b", "c"])
    record = json.loads((away / managed.RECORD).read_text())
    (two.path / managed.RECORD).write_text(json.dumps({**record, "id": str(uuid4())}))
    with pytest.raises(Unsafe, match="is another one than before"):
        other.pool.look()


def test_nobody_is_barred_in_a_directory_without_a_record(two: Two) -> None:
    with pytest.raises(NotFound, match=r"there is no .*\.storkit\.managers"):
        two.c.pool.bar("b")
    assert list(two.path.iterdir()) == []


LINE = "36 35 0:31 / /mnt/nas rw,relatime shared:1 - {} 10.0.0.9:/export rw,vers=4.2,{},addr=10.0.0.9"


@pytest.mark.parametrize(
    ("kind", "options", "why"),
    [
        ("nfs4", "local_lock=none", ""),
        ("nfs", "local_lock=all", "local_lock=all"),
        ("nfs", "nolock,local_lock=flock", "nolock"),
        ("ext4", "nolock", ""),
    ],
)
def test_a_mount_that_keeps_its_locks_to_itself_is_known(kind: str, options: str, why: str) -> None:
    assert mounts.alone(LINE.format(kind, options), "0:31") == why
    assert mounts.alone(LINE.format(kind, options), "0:32") == ""


def test_an_image_is_written_while_nobody_writes_the_volume(two: Two, tmp_path: Path) -> None:
    two.b.pool.create([new()])
    done = images.export_image(two.c.site, two.c.volume(), str(tmp_path / "v.qcow2"))
    assert isinstance(done, ImageFile) and two.c.volume().manager == ""
