"""What only directory pools promise: foreign files, damaged sidecars, full disks, how clones are made."""

from __future__ import annotations

import json
import os
import subprocess
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from uuid import uuid4

import pytest

from storkit.core.backend import Site
from storkit.core.errors import Conflict, NotFound, Problems, Unsafe
from storkit.directory import Directory, DirectorySettings
from storkit.system import locks
from storkit.tech.files import clonefile
from storkit.tech.images import qcow2
from tests.filesystems import mounted
from tests.unit.directories import MIB, SIZE, disk, golden, listing, new, pool_at

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


def test_what_another_program_writes_is_not_deleted_resized_or_copied(shm: Path) -> None:
    pool = pool_at(shm / "pool", "raw")
    (volume,) = pool.create([new("v")])
    argv = ["sh", "-c", 'exec 3<>"$0"; echo ready; exec sleep 600', volume.path]
    with subprocess.Popen(argv, stdout=subprocess.PIPE) as other:
        assert other.stdout is not None and other.stdout.readline() == b"ready\n"
        acts: list[Callable[[], object]] = [
            lambda: pool.delete([volume]),
            lambda: pool.resize([replace(volume, size=2 * SIZE)]),
            lambda: pool.relabel([replace(volume, kind="image")]),
            lambda: pool.clone(volume, [new("c")]),
            lambda: pool.snapshot(volume, [new("s")]),  # without shared blocks it is a copy
        ]
        for act in acts:
            with pytest.raises(Conflict, match=rf"volume v is open for writing .*\(pid {other.pid}\)"):
                act()
        assert pool.find() == [volume]
        other.kill()
    pool.delete([volume])


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


def test_where_there_is_no_room_a_clone_stays_an_overlay(tmp_path: Path) -> None:
    place = tmp_path / "place"
    place.mkdir()
    with mounted("tmpfs", place, 24 * MIB):
        pool = pool_at(place, "qcow2", tmp_path)
        (clone,) = pool.clone(golden(pool, 3), [new("c")])
        before, room = listing(pool), os.statvfs(place)
        with (place / "filler").open("wb") as file:
            os.posix_fallocate(file.fileno(), 0, room.f_bavail * room.f_frsize - 2 * MIB)
        with pytest.raises(Conflict, match="no space left"):
            pool.flatten([clone])
        assert listing(pool) == sorted([*before, "filler"]) and pool.find(["c"]) == [clone]
        (place / "filler").unlink()
        (flat,) = pool.flatten([clone])
        assert flat.made == "flattened" and disk(Path(flat.path), "qcow2")[: 3 * MIB] == b"\7" * 3 * MIB


def test_little_room_is_warned_of(tmp_path: Path) -> None:
    place = tmp_path / "place"
    place.mkdir()
    with mounted("tmpfs", place, 32 * MIB):
        pool = pool_at(place, "raw", tmp_path)
        assert pool.capacity().warnings == []
        with (place / "filler").open("wb") as file:
            os.posix_fallocate(file.fileno(), 0, 31 * MIB)
        assert ["nearly full" in warning for warning in pool.capacity().warnings] == [True]
