"""Directory pools whose commands are killed at any point, and commands that meet."""

from __future__ import annotations

import os
import signal
import threading
import time
from dataclasses import replace
from pathlib import Path

import pytest

from storkit.core.errors import Conflict, Problems, StorkitError
from storkit.core.model import Volume
from storkit.directory import Directory
from storkit.system import locks
from tests.unit.directories import MIB, SIZE, disk, golden, killed, listing, new, pool_at, states


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


def test_renaming_killed_at_any_point_is_one_volume_and_can_be_finished_and_undone(shm: Path) -> None:
    pool = pool_at(shm / "pool")
    image = golden(pool)
    (volume,) = pool.clone(image, [new("old")])
    before = listing(pool)
    found = states(pool, lambda: pool.rename([volume], ["new"]))
    after = listing(pool)
    assert len(found) > 6
    for state in found:
        for way in ("finish", "undo", "another"):
            there = killed(pool, state)
            (now,) = (each for each in there.find() if each.uuid == volume.uuid)
            assert now.name in ("old", "new") and disk(Path(now.path), now.format)[:MIB] == b"\7" * MIB
            if way == "finish":
                (now,) = there.rename([volume], ["new"])
                assert now.name == "new" and listing(there) == after
            elif way == "undo":
                (now,) = there.rename([replace(volume, name="new")], ["old"])
                assert now.name == "old" and listing(there) == before
            else:
                there.create([])  # as any change of the directory
                assert listing(there) in (before, after)
            (now,) = (each for each in there.find() if each.uuid == volume.uuid)
            assert disk(Path(now.path), now.format)[:MIB] == b"\7" * MIB


def test_flattening_killed_at_any_point_can_be_finished(shm: Path) -> None:
    pool = pool_at(shm / "pool", "qcow2")
    image = golden(pool)
    clones = pool.clone(image, [new("a"), new("b", 2 * SIZE)])
    found = states(pool, lambda: pool.flatten(clones))
    after = listing(pool)
    assert len(found) > 8
    for state in found:
        finished = killed(pool, state)
        for volume in finished.find(["a", "b"]):
            assert disk(Path(volume.path), volume.format)[: 2 * MIB] == b"\7" * MIB + b"\0" * MIB
        finished.flatten(clones)
        assert listing(finished) == after
        finished.delete([image])
        for volume in finished.find():
            assert disk(Path(volume.path), volume.format)[: 2 * MIB] == b"\7" * MIB + b"\0" * MIB
            assert volume.made == "flattened"

        # Or not finished: it stands on the image until it is, and nothing is left of the other file.
        again = killed(pool, state)
        again.create([])
        assert listing(again) == after


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
