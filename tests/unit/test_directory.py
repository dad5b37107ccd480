"""What only directory pools promise: kills, foreign files, damaged sidecars, full disks, how clones are made."""

from __future__ import annotations

import json
import os
import shutil
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path
from types import FrameType
from typing import Any
from uuid import uuid4

import pytest

import storkit
from storkit.core.backend import Site
from storkit.core.errors import Conflict, NotFound, Problems, StorkitError, Unsafe
from storkit.core.model import Volume
from storkit.directory import Directory, DirectorySettings
from storkit.system import clonefile, locks, qcow2
from tests.filesystems import mounted

MIB = 1 << 20
SIZE = 4 * MIB


def new(name: str, size: int = SIZE, **more: str) -> Volume:
    return Volume(name, str(uuid4()), size, **more)  # type: ignore[arg-type]


def pool_at(path: Path, format: str = "raw", base: Path | None = None, **options: Any) -> Directory:
    base = base or path.parent
    path.mkdir(exist_ok=True)
    site = Site("here", base / "state", base / "run", base / "dev", **options)
    return Directory(site, DirectorySettings(path=str(path), format=format))  # type: ignore[arg-type]


@pytest.fixture
def shm() -> Iterator[Path]:
    """A directory on a file system that cannot share blocks."""
    path = Path(f"/dev/shm/storkit-test-{uuid4().hex[:8]}")
    path.mkdir(mode=0o700)
    yield path
    shutil.rmtree(path)


@pytest.fixture(params=["raw", "qcow2"])
def pool(request: pytest.FixtureRequest, shm: Path) -> Directory:
    return pool_at(shm / "pool", request.param)


def golden(pool: Directory, megabytes: int = 1) -> Volume:
    (volume,) = pool.create([new("golden")])
    command = f"write -P 7 0 {megabytes}M"
    subprocess.run(["qemu-io", "-f", volume.format, "-c", command, volume.path], check=True, capture_output=True)
    return pool.relabel([replace(volume, kind="image", made="imported")])[0]


def listing(pool: Directory) -> list[str]:
    return sorted(path.name for path in pool.path.iterdir() if path.name != ".storkit.lock")


def disk(path: Path, format: str) -> bytes:
    flat = path.with_name("flat")
    subprocess.run(["qemu-img", "convert", "-f", format, "-O", "raw", path, flat], check=True)
    data = flat.read_bytes()
    flat.unlink()
    return data


# The layout


def test_files_are_private_and_named_after_the_volume(pool: Directory) -> None:
    image = golden(pool)
    (clone,) = pool.clone(image, [new("c")])
    assert listing(pool) == sorted(f"{n}.{e}" for n in ("c", "golden") for e in (clone.format, "json"))
    for path in pool.path.iterdir():
        assert path.stat().st_mode & 0o777 == (0o400 if path.name == f"golden.{image.format}" else 0o600)
    record = json.loads((pool.path / "c.json").read_text())
    assert record["version"] == 1 and record["volume"]["uuid"] == clone.uuid
    assert record["volume"]["path"] == record["volume"]["host"] == ""


def test_a_pool_can_be_moved(pool: Directory) -> None:
    image = golden(pool)
    pool.clone(image, [new("c")])
    moved = pool.path.rename(pool.path.with_name("elsewhere"))
    (volume,) = pool_at(moved, pool.settings.format).find(["c"])
    assert volume.path == str(moved / f"c.{volume.format}")
    assert disk(Path(volume.path), volume.format)[:MIB] == b"\7" * MIB


def test_the_default_place_is_made_when_needed_and_a_named_one_never(tmp_path: Path) -> None:
    site = Site("here", tmp_path / "state", tmp_path / "run", tmp_path / "dev")
    default = Directory(site)
    assert default.find() == [] and not default.path.exists()
    default.create([new("v")])
    assert default.path == tmp_path / "state" / "volumes" and default.path.stat().st_mode & 0o777 == 0o700
    named = Directory(site, DirectorySettings(path=str(tmp_path / "not-mounted")))
    for call in (named.find, named.capacity, lambda: named.create([new("v")]), lambda: named.delete([])):
        with pytest.raises(NotFound, match="not-mounted"):
            call()
    assert not named.path.exists()


# How clones are made


@pytest.mark.parametrize(
    ("kind", "format", "made"),
    [("tmpfs", "raw", "copy"), ("tmpfs", "qcow2", "overlay"), ("xfs", "raw", "reflink"), ("xfs", "qcow2", "reflink"),
     ("btrfs", "raw", "reflink"), ("btrfs", "qcow2", "reflink")],
)  # fmt: skip
def test_the_cheapest_means_is_taken_and_reported(tmp_path: Path, kind: str, format: str, made: str) -> None:
    place = tmp_path / "place"
    place.mkdir()
    with mounted(kind, place, 320 * MIB):
        pool = pool_at(place, format, tmp_path)
        image = golden(pool)
        before = os.statvfs(place).f_bfree
        clones = pool.clone(image, [new(f"c{number}") for number in range(20)])
        assert {clone.made for clone in clones} == {made}
        assert {clone.format for clone in clones} == {format}
        used = (before - os.statvfs(place).f_bfree) * os.statvfs(place).f_bsize
        assert used >= 20 * MIB if made == "copy" else used < 4 * MIB
        assert disk(Path(clones[-1].path), format)[: 2 * MIB] == b"\7" * MIB + bytes(MIB)
        lock = locks.acquire(locks.use_lock(pool.site.run, clones[0].uuid), "c0")
        if made == "reflink":
            assert pool.snapshot(clones[0], [new("s")])[0].made == "reflink"
        else:
            with pytest.raises(Conflict, match="in use"):
                pool.snapshot(clones[0], [new("s")])
        lock.release()


def test_overlays_are_sound_and_find_their_base(shm: Path) -> None:
    pool = pool_at(shm / "pool", "qcow2")
    image = golden(pool)
    sizes = [SIZE, SIZE + 512, 10 << 30, 5 << 40]
    clones = pool.clone(image, [new(f"c{number}", size) for number, size in enumerate(sizes)])
    for clone, size in zip(clones, sizes, strict=True):
        subprocess.run(["qemu-img", "check", "-q", clone.path], check=True)
        argv = ["qemu-img", "info", "--output=json", "--backing-chain", clone.path]
        chain = json.loads(subprocess.run(argv, check=True, capture_output=True, text=True).stdout)
        assert [link["virtual-size"] for link in chain] == [size, SIZE]
        assert chain[0]["backing-filename"] == "golden.qcow2" and chain[0]["backing-filename-format"] == "qcow2"
    copied = pool.clone(clones[0], [new("copied")])[0]
    assert copied.made == "copy"
    assert json.loads((pool.path / "copied.json").read_text())["backing"] == image.uuid
    with pytest.raises(Conflict, match="copied"):
        pool.delete([image, *clones])


def test_a_raw_image_in_a_qcow2_pool_is_a_base_too(shm: Path) -> None:
    image = golden(pool_at(shm / "pool", "raw"))
    pool = pool_at(shm / "pool", "qcow2")
    (clone,) = pool.clone(image, [new("c")])
    assert (clone.format, clone.made) == ("qcow2", "overlay")
    assert disk(Path(clone.path), "qcow2") == Path(image.path).read_bytes()


@pytest.mark.parametrize("size", [512, 1 << 20, (512 << 20) + 512, 4 << 40, (4 << 40) + 512, 64 << 40, qcow2.MAX_SIZE])
def test_empty_qcow2_files_are_what_qemu_would_write(tmp_path: Path, size: int) -> None:
    path = tmp_path / "v.qcow2"
    with path.open("wb") as file:
        qcow2.empty(size).write(file.fileno())
    subprocess.run(["qemu-img", "check", "-q", path], check=True)
    ours = qcow2.parse(path.read_bytes()[: qcow2.CLUSTER])
    other = tmp_path / "qemu.qcow2"
    subprocess.run(["qemu-img", "create", "-q", "-f", "qcow2", other, str(size)], check=True)
    assert ours == qcow2.parse(other.read_bytes()[: qcow2.CLUSTER])


def test_sparse_copies_keep_holes_and_every_byte(tmp_path: Path) -> None:
    source = tmp_path / "source"
    with source.open("wb") as file:
        for offset in (0, 5 * MIB + 3, 40 * MIB - 7):
            file.seek(offset)
            file.write(os.urandom(100_000))
        file.truncate(64 * MIB)
    for cross in (False, True):
        target = (Path("/dev/shm") if cross else tmp_path) / f"storkit-{uuid4().hex}"
        seen: list[int] = []
        with source.open("rb") as old, target.open("wb") as copy:
            clonefile.copy_sparse(old.fileno(), copy.fileno(), 64 * MIB, seen.append)
        try:
            assert target.read_bytes() == source.read_bytes()
            assert target.stat().st_blocks * 512 < 2 * MIB
            assert seen == sorted(seen) and seen[-1] <= 64 * MIB
        finally:
            target.unlink()


def test_copies_report_progress(shm: Path) -> None:
    seen: list[tuple[float, str]] = []
    pool = pool_at(shm / "pool", progress=lambda part, text: seen.append((part, text)))
    pool.clone(golden(pool, 4), [new("a"), new("b")])
    assert [part for part, _ in seen] == [0.5, 1.0] and "copying to b" in seen[-1][1]


# What is not ours, and what is damaged


def test_foreign_files_are_never_touched(pool: Directory) -> None:
    foreign = [
        "notes.txt",
        "disk.img",
        "x.partial",
        "mine.vmdk.partial",
        ".hidden.json",
        "v.raw",
        "w.qcow2",
        "-.raw.partial",
    ]
    for name in foreign:
        (pool.path / name).write_bytes(name.encode())
    for name in ("v", "w"):
        with pytest.raises(Conflict, match=f"{name}[.](raw|qcow2) is in the way"):
            pool.create([new("good"), new(name)])
    image = golden(pool)
    pool.delete(pool.clone(image, [new("c")]))
    assert [volume.name for volume in pool.find()] == ["golden"]
    for name in foreign:
        assert (pool.path / name).read_bytes() == name.encode()


DAMAGE = {
    "empty": b"",
    "not JSON": b"{",
    "binary": bytes(range(256)),
    "another shape": b"[1]",
    "no version": b'{"volume": {}}',
    "missing keys": b'{"version": 1, "volume": {"name": "bad"}}',
    "unknown keys": b'{"version": 1, "volume": {"name": "bad", "uuid": "u", "size": 1}, "extra": 1}',
    "newer": b'{"version": 2, "anything": 1}',
}


@pytest.mark.parametrize("damage", DAMAGE.values(), ids=DAMAGE.keys())
def test_a_damaged_sidecar_is_named_and_never_overwritten(pool: Directory, damage: bytes) -> None:
    good, bad = pool.create([new("good"), new("bad")])
    (pool.path / "bad.json").write_bytes(damage)
    for call in (
        lambda: pool.find(),
        lambda: pool.find(["bad", "good"]),
        lambda: pool.capacity(),
        lambda: pool.create([replace(bad), new("other")]),
        lambda: pool.resize([replace(bad, size=2 * SIZE)]),
        lambda: pool.relabel([replace(bad, kind="image")]),
        lambda: pool.delete([bad]),
        lambda: pool.clone(bad, [new("c")]),
    ):
        with pytest.raises(Unsafe, match=r"bad\.json") as caught:
            call()
        assert caught.value.hint
    assert (pool.path / "bad.json").read_bytes() == damage
    assert pool.find(["good"]) == [good]
    pool.delete([good])
    assert listing(pool) == ["bad.json", f"bad.{bad.format}"]


def test_all_damaged_sidecars_are_named(pool: Directory) -> None:
    pool.create([new("a"), new("b"), new("c")])
    (pool.path / "a.json").write_text("{")
    (pool.path / "c.json").write_bytes((pool.path / "b.json").read_bytes())
    with pytest.raises(Problems) as caught:
        pool.find()
    assert [name in problem.message for name, problem in zip("ac", caught.value.problems, strict=True)] == [True, True]
    assert caught.value.exit_code == Unsafe.exit_code


def test_a_damaged_volume_file_is_no_source(shm: Path) -> None:
    pool = pool_at(shm / "pool", "qcow2")
    image = golden(pool)
    with Path(image.path).open("r+b") as file:
        file.write(b"nonsense")
    with pytest.raises(Unsafe, match=r"golden.qcow2 is damaged"):
        pool.clone(image, [new("c")])


# Full disks


@pytest.mark.parametrize("format", ["raw", "qcow2"])
@pytest.mark.parametrize("kind", ["tmpfs", "xfs"])
def test_a_full_disk_leaves_no_half_volume(tmp_path: Path, kind: str, format: str) -> None:
    place = tmp_path / "place"
    place.mkdir()
    with mounted(kind, place, (24 if kind == "tmpfs" else 320) * MIB):
        pool = pool_at(place, format, tmp_path)
        image = golden(pool)
        before = listing(pool)
        room = os.statvfs(place)
        filler = place / "filler"
        with filler.open("wb") as file:
            leave = 2 * MIB if (kind, format) == ("tmpfs", "raw") else 40_000
            os.posix_fallocate(file.fileno(), 0, max(4096, room.f_bavail * room.f_frsize - leave))
        wanted = [new(f"c{number}") for number in range(3000)]
        with pytest.raises(Conflict, match="no space left"):
            pool.clone(image, wanted)
        assert listing(pool) == sorted([*before, "filler"])
        with pytest.raises(Conflict, match="no space left"):
            pool.create(wanted)
        assert listing(pool) == sorted([*before, "filler"])
        filler.unlink()
        assert len(pool.clone(image, [new("c1"), new("c2")])) == 2


def test_little_room_is_warned_of(tmp_path: Path) -> None:
    place = tmp_path / "place"
    place.mkdir()
    with mounted("tmpfs", place, 32 * MIB):
        pool = pool_at(place, "raw", tmp_path)
        assert pool.capacity().warnings == []
        with (place / "filler").open("wb") as file:
            os.posix_fallocate(file.fileno(), 0, 31 * MIB)
        assert ["nearly full" in warning for warning in pool.capacity().warnings] == [True]


# Kills


def states(pool: Directory, act: Callable[[], Any]) -> list[Path]:
    """Copies of the pool's directory as a kill could have left it: one for each state between any two lines of
    storkit's code while `act` runs."""
    found: list[Path] = []
    last: list[Any] = []
    root = str(Path(storkit.__file__).parent)

    def look(frame: FrameType, event: str, argument: Any) -> Any:
        if not frame.f_code.co_filename.startswith(root):
            return None
        now = sorted((e.name, e.stat().st_size, e.stat().st_mtime_ns, e.inode()) for e in os.scandir(pool.path))
        if not last or now != last[0]:
            last[:] = [now]
            copy = pool.path.with_name(f"state-{len(found)}")
            shutil.copytree(pool.path, copy)
            found.append(copy)
        return look

    sys.settrace(look)
    try:
        act()
    finally:
        sys.settrace(None)
    return found


def killed(pool: Directory, state: Path) -> Directory:
    """A pool in the state that a kill left, with every lock gone."""
    copy = state.with_name("killed")
    shutil.rmtree(copy, ignore_errors=True)
    shutil.copytree(state, copy)
    return pool_at(copy, pool.settings.format)


@pytest.mark.parametrize("verb", ["create", "clone", "snapshot"])
def test_making_volumes_killed_at_any_point_can_be_finished_and_undone(pool: Directory, verb: str) -> None:
    image = golden(pool)
    (source,) = pool.clone(image, [new("source")])
    before = listing(pool)
    wanted = [new("a"), new("b", 2 * SIZE)]

    def act(on: Directory) -> list[Volume]:
        if verb == "create":
            return on.create(wanted)
        return on.clone(image, wanted) if verb == "clone" else on.snapshot(source, wanted)

    found = states(pool, lambda: act(pool))
    after = listing(pool)
    assert len(found) > 8
    for state in found:
        undone = killed(pool, state)
        for volume in undone.find():
            filled = verb != "create" or volume.uuid in (image.uuid, source.uuid)
            assert disk(Path(volume.path), volume.format)[:MIB] == (b"\7" if filled else b"\0") * MIB
        there = {volume.uuid for volume in undone.find()}
        undone.delete([volume for volume in wanted if volume.uuid in there])
        assert listing(undone) == before

        finished = killed(pool, state)
        made = act(finished)
        assert [(volume.uuid, volume.size) for volume in made] == [(volume.uuid, volume.size) for volume in wanted]
        assert listing(finished) == after

        # A file that somebody put there after the kill is not ours, and survives.
        foreign = killed(pool, state)
        path = foreign.path / f"a.{pool.settings.format}"
        if not path.exists():
            path.write_bytes(b"precious")
            foreign.delete([])
            assert path.read_bytes() == b"precious"


def test_deleting_killed_at_any_point_can_be_finished(pool: Directory) -> None:
    image = golden(pool)
    clones = pool.clone(image, [new("a"), new("b")])
    found = states(pool, lambda: pool.delete([image, *clones]))
    assert len(found) > 6 and listing(pool) == []
    for state in found:
        finished = killed(pool, state)
        for volume in finished.find():
            assert Path(volume.path).exists()
        finished.delete([image, *clones])
        assert listing(finished) == []
        foreign = killed(pool, state)
        path = foreign.path / f"a.{pool.settings.format}"
        if not path.exists():
            path.write_bytes(b"precious")
            foreign.delete([])
            assert path.read_bytes() == b"precious"


@pytest.mark.parametrize("size", [SIZE // 2, SIZE * 2])
def test_changes_killed_at_any_point_can_be_finished(pool: Directory, size: int) -> None:
    (volume,) = pool.create([new("v")])

    def act(on: Directory) -> None:
        (now,) = on.resize([replace(volume, size=size)], shrink=True)
        on.relabel([replace(now, kind="image", made="imported")])

    found = states(pool, lambda: act(pool))
    assert len(found) > 4
    for state in found:
        finished = killed(pool, state)
        (now,) = finished.find()
        assert len(disk(Path(now.path), now.format)) >= now.size
        if now.kind == "disk":
            act(finished)
        (now,) = finished.find()
        assert (now.kind, now.size, len(disk(Path(now.path), now.format))) == ("image", size, size)
        assert listing(finished) == ["v.json", f"v.{now.format}"]


def test_a_copy_under_way_holds_its_names_until_it_is_killed(shm: Path) -> None:
    pool = pool_at(shm / "pool")
    image = golden(pool)
    wanted = [new("a"), new("b")]
    reader, writer = os.pipe()
    child = os.fork()
    if child == 0:
        # The first report of progress says that the copy is under way; then it stays there.
        def report(part: float, text: str) -> None:
            os.write(writer, b"x")
            time.sleep(60)

        pool_at(shm / "pool", progress=report).clone(image, wanted)
        os._exit(0)
    try:
        assert os.read(reader, 1) == b"x"
        pool.create([new("other")])  # the pool itself is free
        for call in (lambda: pool.create([new("a")]), lambda: pool.clone(image, wanted), lambda: pool.delete(wanted)):
            with pytest.raises((Conflict, Problems)) as caught:
                call()
            problems: list[StorkitError] = getattr(caught.value, "problems", [caught.value])
            assert f"is being made by clone of golden (pid {child})" in problems[0].message
        assert "a.raw.partial" in listing(pool) and [volume.name for volume in pool.find()] == ["golden", "other"]
    finally:
        os.kill(child, signal.SIGKILL)
        os.waitpid(child, 0)
    pool.delete([])
    assert listing(pool) == ["golden.json", "golden.raw", "other.json", "other.raw"]
    assert [volume.made for volume in pool.clone(image, wanted)] == ["copy", "copy"]


def test_a_command_waits_for_the_pool_rather_than_failing(pool: Directory) -> None:
    golden(pool)
    lock = locks.acquire(pool.path / ".storkit.lock", "pool", holder="someone")
    made: list[Volume] = []
    thread = threading.Thread(target=lambda: made.extend(pool.create([new("v")])))
    thread.start()
    assert [volume.name for volume in pool.find()] == ["golden"]  # reading needs no lock
    lock.release()
    thread.join(timeout=20)
    assert [volume.name for volume in made] == ["v"]
