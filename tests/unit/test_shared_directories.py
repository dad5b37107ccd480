"""What other users put into a directory that they may write is not followed, not waited for and not written over."""

from __future__ import annotations

import ast
import os
import socket
import stat
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import pytest

from storkit import images
from storkit.core.backend import Site
from storkit.core.errors import StorkitError, Unsafe
from storkit.directory import Directory, DirectorySettings
from storkit.hosts.setup import Setup
from storkit.hosts.site import site
from storkit.system import files, locks, ownership
from storkit.tech.images import headers
from storkit.tech.nbd.arguments import image_node
from storkit.tech.nfs import layout
from tests.unit.directories import new

STRANGER = 12345
SECRET = b"of root alone\n"


@pytest.fixture
def victim(tmp_path: Path) -> Path:
    path = tmp_path / "victim"
    path.write_bytes(SECRET)
    path.chmod(0o600)
    return path


@pytest.fixture
def shared(tmp_path: Path) -> Directory:
    """A pool that others may write, as its administrator knows."""
    path = tmp_path / "pool"
    path.mkdir()
    path.chmod(0o777)
    place = Site("here", tmp_path / "state", tmp_path / "run", tmp_path / "dev")
    return Directory(place, DirectorySettings(path=str(path), others_write=True), "shared")


def link(path: Path, victim: Path) -> None:
    path.symlink_to(victim)


def endless(path: Path, victim: Path) -> None:
    path.symlink_to("/dev/zero")


def fifo(path: Path, victim: Path) -> None:
    os.mkfifo(path)


def device(path: Path, victim: Path) -> None:
    os.mknod(path, 0o666 | stat.S_IFCHR, os.makedev(1, 5))


def listener(path: Path, victim: Path) -> None:
    here = Path.cwd()
    os.chdir(path.parent)  # a socket's path is short
    with socket.socket(socket.AF_UNIX) as one:
        one.bind(path.name)
    os.chdir(here)


def directory(path: Path, victim: Path) -> None:
    path.mkdir()


PLANTED = [link, endless, fifo, device, listener, directory]
planted = pytest.mark.parametrize("plant", PLANTED, ids=lambda plant: plant.__name__)
Plant = Callable[[Path, Path], None]


@planted
def test_what_stands_in_a_sidecars_place_is_damage(shared: Directory, victim: Path, plant: Plant) -> None:
    (good,) = shared.create([new("good")])
    plant(shared.path / "bad.json", victim)
    found = shared.look()
    assert found.volumes == [good] and [each.name for each in found.damaged] == ["bad"]
    with pytest.raises(StorkitError):
        shared.create([new("bad")])
    assert victim.read_bytes() == SECRET


@planted
def test_what_stands_in_a_volumes_place_is_never_opened(shared: Directory, victim: Path, plant: Plant) -> None:
    (volume, _) = shared.create([new("v"), new("other")])
    data = Path(volume.path)
    data.unlink()
    plant(data, victim)
    assert [each.name for each in shared.look().damaged] == ["v"]
    for act in (
        lambda: shared.find(["v"]),
        lambda: shared.clone(volume, [new("c")]),
        lambda: shared.snapshot(volume, [new("c")]),
        lambda: shared.resize([replace(volume, size=2 * volume.size)]),
        lambda: shared.relabel([replace(volume, kind="image")]),
    ):
        with pytest.raises(Unsafe):
            act()
    assert victim.read_bytes() == SECRET and victim.stat().st_mode & 0o777 == 0o600


@planted
def test_leftovers_that_are_no_files_are_swept_away(shared: Directory, victim: Path, plant: Plant) -> None:
    for name in ("v.raw.partial", "v.json.partial", "v.spool.partial"):
        if plant is not directory or name != "v.raw.partial":
            plant(shared.path / name, victim)
    if plant is directory:  # no file of storkit's ever was one
        with pytest.raises(StorkitError):
            shared.create([new("v")])
    else:
        shared.create([new("v")])
        assert sorted(path.name for path in shared.path.iterdir()) == [".storkit.lock", "v.json", "v.raw"]
    assert victim.read_bytes() == SECRET


@planted
def test_the_lock_of_a_pool_is_a_file_of_its_own(shared: Directory, victim: Path, plant: Plant) -> None:
    plant(shared.path / ".storkit.lock", victim)
    with pytest.raises(StorkitError):
        shared.create([new("v")])
    assert victim.read_bytes() == SECRET


def test_a_second_name_of_another_file_is_not_written_over(shared: Directory, victim: Path) -> None:
    (shared.path / ".storkit.lock").hardlink_to(victim)
    with pytest.raises(Unsafe, match="another name"):
        shared.create([new("v")])
    assert victim.read_bytes() == SECRET


@planted
def test_a_fill_writes_to_the_volume_alone(shared: Directory, victim: Path, tmp_path: Path, plant: Plant) -> None:
    (volume,) = shared.create([new("v", made="importing")])
    image = tmp_path / "image"
    image.write_bytes(bytes(volume.size))
    Path(volume.path).unlink()
    plant(Path(volume.path), victim)
    with pytest.raises(Unsafe):
        images.fill(shared.site, volume, str(image), "raw")
    assert victim.read_bytes() == SECRET


@planted
def test_a_server_opens_the_volume_alone(shared: Directory, victim: Path, plant: Plant) -> None:
    """Also when it is started again, after the volume was looked at."""
    (volume,) = shared.create([new("v")])
    assert image_node(volume, "n", "none", "threads")["file"]["driver"] == "file"
    Path(volume.path).unlink()
    plant(Path(volume.path), victim)
    with pytest.raises(Unsafe):
        image_node(volume, "n", "none", "threads")


@planted
def test_an_export_follows_nothing(shared: Directory, victim: Path, tmp_path: Path, plant: Plant) -> None:
    (volume,) = shared.create([new("v")])
    place = tmp_path / "everyone"
    place.mkdir()
    place.chmod(0o777)
    plant(place / "out.raw.partial", victim)
    with pytest.raises(StorkitError):
        images.export_image(shared.site, volume, str(place / "out.raw"), "raw")
    assert victim.read_bytes() == SECRET


def test_an_export_does_not_fill_a_file_of_another_user(shared: Directory, tmp_path: Path) -> None:
    (volume,) = shared.create([new("v")])
    trap = tmp_path / "out.raw.partial"
    trap.touch()
    os.chown(trap, STRANGER, STRANGER)
    with pytest.raises(Unsafe, match=f"user {STRANGER}"):
        images.export_image(shared.site, volume, str(tmp_path / "out.raw"), "raw")
    assert trap.stat().st_size == 0


@pytest.mark.parametrize("format", headers.FORMATS)
def test_every_format_is_exported_by_descriptor(shared: Directory, tmp_path: Path, format: str) -> None:
    (volume,) = shared.create([new("v")])
    image = tmp_path / f"out.{format}"
    images.export_image(shared.site, volume, str(image), format)
    assert images.inspect(shared.site, str(image)).format == format
    assert image.stat().st_mode & 0o777 == 0o600 and image.stat().st_nlink == 1


def test_endless_and_deep_sidecars_are_damage(shared: Directory) -> None:
    (shared.path / "deep.json").write_text("[" * 100_000)
    with (shared.path / "long.json").open("wb") as file:
        file.truncate(1 << 40)
    assert [each.name for each in shared.look().damaged] == ["deep", "long"]


def test_a_directory_of_exports_that_is_a_link_is_not_emptied(tmp_path: Path) -> None:
    kept = tmp_path / "kept"
    kept.mkdir()
    (kept / "file").touch()
    place = tmp_path / "link"
    place.symlink_to(kept)
    layout.remove([place])
    assert (kept / "file").exists() and not place.is_symlink()


# Who may write a pool's directory


def opened(path: Path, mode: int = 0o700, owner: int = 0) -> None:
    path.chmod(mode)
    os.chown(path, owner, owner if owner else -1)


@pytest.mark.parametrize(
    ("open_up", "said"),
    [
        (lambda pool: opened(pool, 0o702), "chmod o-w"),
        (lambda pool: opened(pool, 0o1777), "chmod o-w"),
        (lambda pool: opened(pool, 0o720), "chmod g-w"),
        (lambda pool: opened(pool, 0o700, STRANGER), "chmod go-w"),
        (lambda pool: opened(pool.parent, 0o777), "chmod o-w"),
        (lambda pool: opened(pool.parent, 0o755, STRANGER), "chmod go-w"),
        (lambda pool: opened(pool.parent.parent, 0o770), "chmod g-w"),
    ],
)
def test_a_pool_that_others_may_write_is_refused(tmp_path: Path, open_up: Callable[[Path], None], said: str) -> None:
    path = tmp_path / "srv" / "storage" / "pool"
    path.mkdir(parents=True)
    place = Site("here", tmp_path / "state", tmp_path / "run", tmp_path / "dev")
    pool = Directory(place, DirectorySettings(path=str(path)), "p")
    (volume,) = pool.create([new("v")])
    open_up(path)
    for act in (pool.find, pool.capacity, lambda: pool.create([new("w")]), lambda: pool.delete([volume])):
        with pytest.raises(Unsafe) as caught:
            act()
        assert said in caught.value.hint and "others_write = true in [pools.p]" in caught.value.hint
    told = Directory(place, DirectorySettings(path=str(path), others_write=True), "p")
    assert told.find() == [volume]


def test_links_on_the_way_count_as_what_they_are(tmp_path: Path) -> None:
    """A link is as good as the directory that it is in, and the place that it leads to."""
    real, loose = tmp_path / "real", tmp_path / "loose"
    real.mkdir()
    loose.mkdir()
    (tmp_path / "link").symlink_to(real)
    (loose / "link").symlink_to("../real")
    assert ownership.exposed(tmp_path / "link") is None and ownership.exposed(loose / "link") is None
    loose.chmod(0o777)
    why = ownership.exposed(loose / "link")
    assert why and str(loose) in why.message
    loose.chmod(0o1777)
    assert ownership.exposed(loose / "link") is None
    os.chown(loose / "link", STRANGER, STRANGER, follow_symlinks=False)
    assert ownership.exposed(loose / "link")
    (tmp_path / "circle").symlink_to("circle")
    with pytest.raises(Unsafe, match="circle"):
        ownership.exposed(tmp_path / "circle")


# State


def modes(*paths: Path) -> list[int]:
    return [path.stat().st_mode & 0o777 for path in paths]


def test_the_directories_of_a_host_are_private_whoever_makes_them(tmp_path: Path) -> None:
    before = os.umask(0)
    try:
        place = site(Setup("a", state=str(tmp_path / "var/lib/storkit")))
        locks.use_lock(place.run, "x")
    finally:
        os.umask(before)
    made = (place.state.parent, place.state, place.run, place.dev, place.run / "use")
    assert modes(*made) == [0o700] * len(made)


def test_a_state_directory_that_was_open_is_closed(tmp_path: Path) -> None:
    place = site(Setup("a", state=str(tmp_path / "state")))
    for path in (place.state, place.run, place.dev):
        path.chmod(0o777)
    site(Setup("a", state=str(tmp_path / "state")))
    assert modes(place.state, place.run, place.dev) == [0o700] * 3


def test_a_directory_of_other_things_is_not_made_private(tmp_path: Path) -> None:
    (tmp_path / "home").mkdir()
    (tmp_path / "home").chmod(0o755)
    (tmp_path / "home/letter").touch()
    with pytest.raises(Unsafe, match="holds what is not storkit's") as caught:
        site(Setup("a", state=str(tmp_path / "home")))
    assert "chmod 700" in caught.value.hint and modes(tmp_path / "home") == [0o755]


def test_a_state_directory_of_another_user_is_refused(tmp_path: Path) -> None:
    (tmp_path / "state").mkdir(mode=0o700)
    os.chown(tmp_path / "state", STRANGER, STRANGER)
    with pytest.raises(Unsafe, match=f"belongs to user {STRANGER}"):
        site(Setup("a", state=str(tmp_path / "state")))


def test_whom_an_access_control_list_lets_through_stays_let_through(tmp_path: Path) -> None:
    from storkit.system import acl

    path = tmp_path / "dev"
    path.mkdir(mode=0o755)
    acl.let_search(path, STRANGER)
    files.make_private(path)
    assert files.has_acl(path) and modes(path) == [0o710]


# Nobody opens in another way

OPENING = {"open", "read_text", "read_bytes", "write_text", "write_bytes", "truncate", "chmod", "chown", "touch"}
ROOMS = (
    "tech/files/pool.py", "tech/nfs/treepool.py", "nfs.py", "tech/files/sidecar.py", "tech/files/volumefile.py",
    "system/locks.py", "tech/records.py", "tech/nfs/layout.py", "tech/nfs/names.py", "tech/grants.py",
)  # fmt: skip


@pytest.mark.parametrize("room", ROOMS)
def test_files_of_pools_are_opened_by_one_helper(room: str) -> None:
    path = Path(__file__).parents[2] / "storkit" / room
    raw = [
        f"{room}:{node.lineno}"
        for node in ast.walk(ast.parse(path.read_text()))
        if isinstance(node, ast.Call) and (getattr(node.func, "attr", "") or getattr(node.func, "id", "")) in OPENING
    ]
    assert not raw, f"use storkit.system.files.open_plain: {raw}"


@pytest.mark.parametrize("mode", [0o1777, 0o1755])
def test_a_directory_that_everybody_uses_is_not_closed(tmp_path: Path, mode: int) -> None:
    shared = tmp_path / "shared"
    shared.mkdir()
    shared.chmod(mode)
    with pytest.raises(Unsafe, match="the system's own") as caught:
        files.make_private(shared)
    assert caught.value.hint.endswith(f"{shared}/storkit") and shared.stat().st_mode & 0o7777 == mode
    files.make_private(shared / "storkit")


def test_a_directory_of_the_systems_is_not_closed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    assert {"/", "/dev", "/run", "/var/lib", "/srv"} <= files._SYSTEM_DIRECTORIES
    own = tmp_path / "own"
    own.mkdir(mode=0o755)
    (tmp_path / "link").symlink_to(own)
    monkeypatch.setattr(files, "_SYSTEM_DIRECTORIES", {str(own)})
    for path in (own, tmp_path / "link", tmp_path / "own/../own"):
        with pytest.raises(Unsafe, match="the system's own"):
            files.make_private(path)
    assert own.stat().st_mode & 0o7777 == 0o755


def test_only_a_file_gets_another_length(tmp_path: Path) -> None:
    """A link is not followed, and a FIFO not waited for."""
    file, link, fifo = tmp_path / "file", tmp_path / "link", tmp_path / "fifo"
    file.write_bytes(b"x")
    link.symlink_to(file)
    os.mkfifo(fifo)
    files.set_length(file, 4096)
    assert file.read_bytes() == b"x" + bytes(4095)
    for other in (link, fifo, tmp_path):
        with pytest.raises(Unsafe):
            files.set_length(other, 0)
    assert file.stat().st_size == 4096
