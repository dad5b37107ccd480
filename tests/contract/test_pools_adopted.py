"""What pools promise of bytes that were there before them, asked of every pool there is.

What there is that is no volume makes the pool's own file (`stranger` of pool_NAME.py).
"""

from __future__ import annotations

import os
from dataclasses import replace
from pathlib import Path
from typing import Any
from uuid import uuid4

import pytest

from storkit.core import codec
from storkit.core.backend import Pool
from storkit.core.errors import Conflict, NotFound, StorkitError, Unsafe, UsageError
from storkit.core.model import Existing, Volume
from storkit.system import locks
from tests.contract.test_pools import holds, write

MIB = 1 << 20
SIZE = 16 * MIB


def new(name: str) -> Volume:
    return Volume(name, str(uuid4()), 0)


def adopt(pool: Pool, place: str, name: str = "web") -> Volume:
    (volume,) = pool.adopt([new(name)], [Existing(place)])
    return volume


def filled(place: str) -> str:
    with Path(place).open("r+b") as disk:
        disk.write(bytes([7]) * MIB)
    return place


@pytest.fixture
def place(pool: Pool, harm: Any) -> str:
    """Something of 16 MiB that is no volume, under another name than its volume gets."""
    return filled(harm.stranger(pool, "old-disk", SIZE))


def test_what_lies_under_its_own_name_already_is_not_moved(pool: Pool, harm: Any) -> None:
    place = filled(harm.stranger(pool, "web", SIZE))
    assert not pool.adoptable([Existing(place)])[0].moved
    volume = adopt(pool, place)
    assert (volume.path, volume.was) == (place, place) and holds(volume, 7)
    assert pool.disown([volume]) == [place] and Path(place).exists()


def test_what_is_there_becomes_a_volume_and_is_given_back_with_every_byte(pool: Pool, place: str) -> None:
    (seen,) = pool.adoptable([Existing(place)])
    assert (seen.place, seen.size, seen.format) == (place, SIZE, "raw")
    assert pool.find() == [] and Path(place).exists(), "to look changes nothing"
    volume = adopt(pool, place)
    assert (volume.name, volume.size, volume.kind, volume.made) == ("web", SIZE, "disk", "adopted")
    assert (volume.was, volume.pool, volume.host) == (place, "tested", "here")
    assert pool.find() == [volume] == codec.load(list[Volume], codec.dump([volume]))
    assert holds(volume, 7) and holds(volume, 0, MIB)
    write(volume, 9)
    assert pool.disown([volume]) == [place]
    assert pool.find() == [] and Path(place).read_bytes()[:MIB] == bytes([9]) * MIB
    assert pool.disown([volume]) == [""], "it is none any more"


def test_the_inode_or_the_device_stays_the_same(pool: Pool, place: str) -> None:
    with Path(place).open("rb") as before:
        was = os.fstat(before.fileno())
    now = os.stat(adopt(pool, place).path)
    assert (was.st_ino, was.st_rdev) == (now.st_ino, now.st_rdev) or was.st_rdev == now.st_rdev != 0


def test_adopting_again_changes_nothing(pool: Pool, place: str) -> None:
    volume = adopt(pool, place)
    assert pool.adopt([volume], [Existing(place)]) == [volume]
    assert pool.find() == [volume] and holds(volume, 7)


def test_an_adopted_volume_is_as_any_other(pool: Pool, place: str) -> None:
    volume = adopt(pool, place)
    (copy,) = pool.clone(volume, [replace(new("copy"), size=SIZE)])
    assert holds(copy, 7) and copy.was == "" and copy.origin == volume.uuid
    (grown,) = pool.resize([replace(volume, size=2 * SIZE)])
    assert (grown.was, grown.size) == (volume.was, 2 * SIZE) and holds(grown, 7)
    pool.delete([grown, copy])
    assert pool.find() == []


def test_what_is_in_use_is_not_adopted(pool: Pool, place: str) -> None:
    volume = adopt(pool, place)
    lock = locks.acquire(locks.use_lock(pool.site.run, volume.uuid), volume.name, holder="a server")
    with pytest.raises(Conflict, match="in use"):
        pool.disown([volume])
    lock.release()
    (where,) = pool.disown([volume])
    import subprocess

    reader = subprocess.Popen(["sleep", "60"], stdin=Path(where).open("rb"))  # noqa: SIM115
    try:
        with pytest.raises(StorkitError, match=rf"open on here: by sleep \(pid {reader.pid}\)"):
            adopt(pool, where)
        (seen,) = pool.adoptable([Existing(where, processes=[reader.pid])])
        assert seen.size == SIZE
    finally:
        reader.kill()
        reader.wait()
    assert pool.find() == []


def test_all_that_is_wrong_is_said_at_once_and_nothing_is_adopted(pool: Pool, place: str) -> None:
    taken = adopt(pool, place)
    with pytest.raises(StorkitError) as caught:
        pool.adopt(
            [new("web"), new("../x"), new("again"), new("none")],
            [Existing(place), Existing(place), Existing(taken.path), Existing("/nowhere/at/all")],
        )
    assert len(caught.value.each) == 4
    assert pool.find() == [taken]


def test_a_taken_name_is_a_conflict_and_none_of_the_batch_is_adopted(pool: Pool, place: str, harm: Any) -> None:
    other = harm.stranger(pool, "other-disk", SIZE)
    (there,) = pool.create([replace(new("there"), size=SIZE)])
    with pytest.raises(Conflict, match="there"):
        pool.adopt([new("web"), new("there")], [Existing(place), Existing(other)])
    assert pool.find() == [there] and Path(place).exists() and Path(other).exists()
    with pytest.raises(UsageError, match="twice"):
        pool.adopt([new("one"), new("two")], [Existing(place), Existing(place)])
    assert pool.find() == [there]


def test_what_is_a_part_of_something_is_refused_unless_it_is_a_guests(pool: Pool, place: str) -> None:
    with Path(place).open("r+b") as disk:  # mkswap(8)
        disk.seek(4086)
        disk.write(b"SWAPSPACE2")
        disk.seek(1024)
        disk.write((1).to_bytes(4, "little") + (4000).to_bytes(4, "little"))
        os.fsync(disk.fileno())
    with pytest.raises(Unsafe, match="is swap space"):
        adopt(pool, place)
    assert pool.adoptable([Existing(place, in_guest=True)])[0].size == SIZE


def test_an_old_place_that_is_taken_is_not_written_over(pool: Pool, harm: Any) -> None:
    place = harm.stranger(pool, "old-disk", SIZE)
    volume = adopt(pool, place)
    again = harm.stranger(pool, "old-disk", SIZE)
    assert again == place
    with pytest.raises(Conflict, match="taken"):
        pool.disown([volume])
    assert pool.find() == [volume]


def test_a_volume_that_was_made_here_stays_where_it_is(pool: Pool) -> None:
    (made,) = pool.create([replace(new("made"), size=SIZE)])
    write(made, 3)
    (where,) = pool.disown([made])
    assert where == made.path and pool.find() == [] and holds(made, 3)


def test_what_nobody_knows_is_not_found(pool: Pool) -> None:
    for place in ("/nowhere/at/all", "no-such-group/lv", "/dev/null/x"):
        with pytest.raises(NotFound):
            pool.adoptable([Existing(place)])


def test_no_other_volume_of_the_name_is_given_back(pool: Pool, place: str) -> None:
    volume = adopt(pool, place)
    assert pool.disown([replace(volume, uuid=str(uuid4()))]) == [""]
    assert pool.find() == [volume]
