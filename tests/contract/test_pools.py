"""What storkit.core.backend.Pool promises, asked of every pool there is."""

from __future__ import annotations

import subprocess
import threading
from dataclasses import replace
from pathlib import Path
from typing import Any
from uuid import uuid4

import pytest

from storkit.core import codec
from storkit.core.backend import Pool, Site
from storkit.core.errors import Conflict, NotFound, Problems, StorkitError, Unsafe, UsageError
from storkit.core.model import Usage, Volume, VolumeHold
from storkit.system import locks

MIB = 1 << 20
SIZE = 16 * MIB
PIECE = 1 << 16


def new(name: str, size: int = SIZE, **more: str) -> Volume:
    return Volume(name, str(uuid4()), size, **more)  # type: ignore[arg-type]


def write(volume: Volume, pattern: int, offset: int = 0, length: int = MIB) -> None:
    if volume.format == "raw":
        with Path(volume.path).open("r+b") as disk:
            disk.seek(offset)
            disk.write(bytes([pattern]) * length)
        return
    command = f"write -P {pattern} {offset} {length}"
    subprocess.run(["qemu-io", "-f", volume.format, "-c", command, volume.path], check=True, capture_output=True)


def holds(volume: Volume, pattern: int, offset: int = 0, length: int = MIB) -> bool:
    """Whether the volume reads as `pattern` there."""
    if volume.format == "raw":  # a small buffer used again: new pages are what costs most in a host of the lab
        with Path(volume.path).open("rb", buffering=0) as disk:
            disk.seek(offset)
            same = bytes([pattern]) * PIECE
            return all(disk.read(PIECE) == same for _ in range(length // PIECE))
    argv = ["qemu-io", "-r", "-f", volume.format, "-c", f"read -P {pattern} {offset} {length}", volume.path]
    done = subprocess.run(argv, capture_output=True, text=True)
    return done.returncode == 0 and "verification failed" not in done.stdout


def names(pool: Pool) -> list[str]:
    return [volume.name for volume in pool.find()]


def in_use(pool: Pool, volume: Volume) -> locks.Lock:
    return locks.acquire(locks.use_lock(pool.site.run, volume.uuid), volume.name, holder="a server")


def golden(pool: Pool) -> Volume:
    """An image with the pattern 7 in its first and last MiB."""
    (volume,) = pool.create([new("golden")])
    write(volume, 7)
    write(volume, 7, SIZE - MIB)
    (image,) = pool.relabel([replace(volume, kind="image", made="imported")])
    return image


def test_a_new_pool_is_empty(pool: Pool) -> None:
    assert pool.find() == [] and pool.find(["any"]) == []
    pool.delete([new("any")])


def test_created_volumes_are_found_and_read_as_zeros(pool: Pool) -> None:
    wanted = [new("b"), new("a", 2 * SIZE), new("a.b-c_1")]
    made = pool.create(wanted)
    assert names(pool) == ["a", "a.b-c_1", "b"]
    assert [volume.name for volume in made] == [volume.name for volume in wanted]
    assert sorted(made, key=lambda volume: volume.name) == pool.find()
    by_name = {volume.name: volume for volume in made}
    for volume in wanted:
        found = by_name[volume.name]
        assert (found.uuid, found.size, found.kind) == (volume.uuid, volume.size, "disk")
        assert (found.pool, found.host, found.made) == ("tested", "here", "created")
        assert found.path and found.format and found.created
        assert holds(found, 0, 0, volume.size)
        assert codec.load(Volume, codec.dump(found)) == found
    assert pool.find(["b", "none", "a"]) == [by_name["a"], by_name["b"]]


def test_creating_again_changes_nothing(pool: Pool) -> None:
    (volume,) = pool.create([new("v")])
    write(volume, 5)
    assert pool.create([volume, new("w")])[0] == volume
    assert holds(volume, 5) and names(pool) == ["v", "w"]


def test_a_taken_name_is_a_conflict_and_nothing_of_the_batch_is_made(pool: Pool) -> None:
    (volume,) = pool.create([new("v")])
    for wanted in (new("v"), replace(volume, size=2 * SIZE)):
        with pytest.raises(Conflict, match="exists already"):
            pool.create([new("w"), wanted])
    assert pool.find() == [volume]


BAD_NAMES = ["", "a/b", "..", ".", "a..b", "-a", "a\0b", "a\nb", "a b", "x" * 64, "ä", ".hidden"]


@pytest.mark.parametrize("name", BAD_NAMES, ids=repr)
def test_bad_names_are_refused_before_anything_changes(pool: Pool, name: str) -> None:
    with pytest.raises(UsageError):
        pool.create([new("good"), new(name)])
    with pytest.raises(UsageError):
        pool.find([name])
    assert pool.find() == []


def test_all_problems_of_a_request_are_reported_at_once(pool: Pool) -> None:
    pool.create([new("taken")])
    same = new("twice")
    bad = [new("taken"), new("a/b"), new("none", 0), new("minus", -SIZE), new("odd", 1000), new("huge", 2**63)]
    with pytest.raises(Problems) as caught:
        pool.create([new("good"), *bad, same, replace(same, uuid=str(uuid4())), Volume("id", "../x", SIZE)])
    assert len(caught.value.problems) == len(bad) + 2
    assert names(pool) == ["taken"]


def test_clones_have_the_content_and_are_independent(pool: Pool) -> None:
    image = golden(pool)
    one, two = pool.clone(image, [new("one"), new("two")])
    assert one.made == two.made and one.made in ("reflink", "overlay", "copy", "thin")
    assert one.origin == two.origin == image.uuid
    for volume in (one, two):
        assert holds(volume, 7) and holds(volume, 7, SIZE - MIB) and holds(volume, 0, MIB, SIZE - 2 * MIB)
    write(one, 9)
    assert holds(one, 9) and holds(two, 7) and holds(image, 7)
    assert pool.clone(image, [one]) == [one]


def test_a_clone_may_be_larger_and_reads_zeros_beyond_but_never_smaller(pool: Pool) -> None:
    image = golden(pool)
    small, large, also = pool.clone(image, [new("small"), new("large", 2 * SIZE), new("also", 2 * SIZE)])
    assert (small.size, large.size, also.size) == (SIZE, 2 * SIZE, 2 * SIZE)
    for volume in (large, also):
        assert holds(volume, 7, SIZE - MIB) and holds(volume, 0, SIZE, SIZE)
        write(volume, 3, 2 * SIZE - MIB)
    with pytest.raises(UsageError, match="smaller"):
        pool.clone(image, [new("good"), new("bad", SIZE - MIB)])
    assert "good" not in names(pool)


def test_a_disk_is_cloned_only_while_nobody_writes_it(pool: Pool) -> None:
    (disk,) = pool.create([new("disk")])
    write(disk, 4)
    lock = in_use(pool, disk)
    with pytest.raises(Conflict, match="in use"):
        pool.clone(disk, [new("c")])
    lock.release()
    (clone,) = pool.clone(disk, [new("c")])
    write(disk, 5)
    assert holds(clone, 4)


def test_nothing_is_cloned_from_a_half_import_or_a_volume_that_is_another(pool: Pool) -> None:
    (half,) = pool.create([new("half", made="importing")])
    assert half.made == "importing"
    with pytest.raises(Conflict, match="import"):
        pool.clone(half, [new("c")])
    with pytest.raises(Conflict, match="another one"):
        pool.clone(replace(half, uuid=str(uuid4())), [new("c")])
    with pytest.raises(NotFound):
        pool.clone(new("none"), [new("c")])
    assert names(pool) == ["half"]


def test_an_image_with_dependents_can_be_deleted_only_with_them(pool: Pool) -> None:
    image = golden(pool)
    clones = pool.clone(image, [new(f"c{number}") for number in range(7)])
    if clones[0].made == "overlay":
        with pytest.raises(Conflict, match="c0, c1, c2, c3, c4 and 2 more"):
            pool.delete([image])
        with pytest.raises(Conflict):
            pool.relabel([replace(image, kind="disk")])
        pool.delete([image, *clones])
        assert pool.find() == []
    else:
        pool.delete([image])
        assert all(holds(clone, 7) for clone in clones)


def test_images_and_snapshots_are_never_resized(pool: Pool) -> None:
    image = golden(pool)
    for shrink in (False, True):
        with pytest.raises(Conflict, match="never changed"):
            pool.resize([replace(image, size=2 * SIZE)], shrink=shrink)
    assert pool.find() == [image]


def test_a_snapshot_keeps_the_moment(pool: Pool) -> None:
    if not pool.snapshots:
        pytest.skip("this pool makes no snapshots")
    (disk,) = pool.create([new("disk")])
    write(disk, 1)
    (kept,) = pool.snapshot(disk, [new("kept")])
    assert (kept.kind, kept.origin, kept.size) == ("snapshot", disk.uuid, SIZE)
    write(disk, 2)
    assert holds(kept, 1) and holds(disk, 2)
    assert pool.snapshot(disk, [replace(kept)]) == [kept] and holds(kept, 1)
    (back,) = pool.clone(kept, [new("back")])
    assert back.kind == "disk" and holds(back, 1)
    write(back, 3)
    assert holds(kept, 1)


def test_a_snapshot_of_a_disk_in_use_is_whole_or_refused(pool: Pool) -> None:
    (disk,) = pool.create([new("disk")])
    write(disk, 1)
    lock = in_use(pool, disk)
    try:
        (kept,) = pool.snapshot(disk, [new("kept")])
        assert holds(kept, 1)
    except Conflict as error:
        assert "in use" in error.message and names(pool) == ["disk"]
    lock.release()


def test_what_is_served_becomes_larger_and_not_smaller(pool: Pool) -> None:
    """Its server has it open, and goes on."""
    (disk,) = pool.create([new("disk")])
    lock = in_use(pool, disk)
    try:
        with pytest.raises(Conflict):
            pool.resize([replace(disk, size=2 * SIZE)])
        (grown,) = pool.resize([replace(disk, size=2 * SIZE)], served=True)
        assert grown.size == 2 * SIZE and pool.find(["disk"]) == [grown]
        assert pool.resize([grown], served=True) == [grown]
        for shrink in (False, True):
            with pytest.raises(StorkitError, match="cannot become smaller"):
                pool.resize([disk], shrink=shrink, served=True)
        (grown,) = pool.find(["disk"])
        assert grown.size == 2 * SIZE
    finally:
        lock.release()


def test_resize_grows_and_shrinks_only_when_told(pool: Pool) -> None:
    disk, other = pool.create([new("disk"), new("other")])
    write(disk, 6)
    (grown,) = pool.resize([replace(disk, size=2 * SIZE)])
    assert grown.size == 2 * SIZE and holds(grown, 6) and holds(grown, 0, SIZE, SIZE)
    write(grown, 8, 2 * SIZE - MIB)
    with pytest.raises(Conflict, match="cuts off"):
        pool.resize([replace(other, size=2 * SIZE), replace(grown, size=SIZE)])
    assert pool.find(["other"])[0].size == SIZE
    (shrunk,) = pool.resize([replace(grown, size=SIZE)], shrink=True)
    assert shrunk.size == SIZE and holds(shrunk, 6)
    (again,) = pool.resize([replace(shrunk, size=2 * SIZE)])
    assert holds(again, 0, SIZE, SIZE)
    assert pool.resize([again]) == [again]
    lock = in_use(pool, again)
    with pytest.raises(Conflict, match="in use"):
        pool.resize([replace(again, size=3 * SIZE)])
    lock.release()
    for size in (0, -SIZE, SIZE + 1, 2**63):
        with pytest.raises(UsageError):
            pool.resize([replace(again, size=size)], shrink=True)
    assert pool.find(["disk"]) == [again]


def test_a_flat_clone_reads_as_before_and_outlives_its_source(pool: Pool) -> None:
    image = golden(pool)
    one, two = pool.clone(image, [new("one"), new("two", 2 * SIZE)])
    write(one, 9, MIB)
    lock = in_use(pool, two)
    if two.made == "overlay":
        with pytest.raises(Conflict, match="in use"):
            pool.flatten([one, two])
    lock.release()
    flat = pool.flatten([one, two, image])
    assert [(each.uuid, each.size, each.kind, each.origin) for each in flat] == [
        (each.uuid, each.size, each.kind, each.origin) for each in (one, two, image)
    ]
    assert pool.flatten(flat) == flat
    pool.delete([image])
    one, two = pool.find(["one", "two"])
    assert holds(one, 7) and holds(one, 9, MIB) and holds(one, 7, SIZE - MIB)
    assert holds(two, 7) and holds(two, 0, MIB, SIZE - 2 * MIB) and holds(two, 7, SIZE - MIB) and holds(two, 0, SIZE)
    write(one, 3)
    assert holds(one, 3) and holds(two, 7)
    with pytest.raises(NotFound):
        pool.flatten([new("none")])
    with pytest.raises(Conflict, match="another one"):
        pool.flatten([replace(one, uuid=str(uuid4()))])


def test_a_flat_image_still_carries_its_clones(pool: Pool) -> None:
    image = golden(pool)
    (base,) = pool.relabel([replace(pool.clone(image, [new("base")])[0], kind="image", made="prepared")])
    (member,) = pool.clone(base, [new("member")])
    write(member, 2)
    (flat,) = pool.flatten([base])
    assert flat.kind == "image"
    pool.delete([image])
    assert holds(flat, 7) and holds(member, 2) and holds(member, 7, SIZE - MIB)


def test_a_volume_gets_another_name_and_is_the_same(pool: Pool) -> None:
    volume, other = pool.create([new("volume"), new("other")])
    write(volume, 5)
    lock = in_use(pool, volume)
    with pytest.raises(Conflict, match="in use"):
        pool.rename([volume], ["name"])
    lock.release()
    with pytest.raises(Conflict):
        pool.rename([volume], ["other"])
    with pytest.raises(NotFound):
        pool.rename([new("none")], ["name"])
    with pytest.raises(UsageError):
        pool.rename([volume], ["a/b"])
    (renamed,) = pool.rename([volume], ["name"])
    assert renamed == replace(volume, name="name", path=renamed.path) and names(pool) == ["name", "other"]
    assert pool.rename([volume], ["name"]) == [renamed] and holds(renamed, 5)
    (again,) = pool.create([new("volume")])
    assert holds(again, 0) and pool.find(["other"]) == [other]
    pool.delete([renamed, again, other])
    assert names(pool) == []


def test_nothing_is_made_of_what_is_being_moved(pool: Pool) -> None:
    (volume,) = pool.create([new("volume")])
    lock = in_use(pool, volume)
    with pytest.raises(Conflict, match="in use"):
        pool.relabel([replace(volume, made="moving")])
    lock.release()
    (moving,) = pool.relabel([replace(volume, made="moving")])
    assert moving.made == "moving"
    for refused in (
        lambda: pool.clone(moving, [new("c")]),
        lambda: pool.snapshot(moving, [new("s")]),
        lambda: pool.resize([replace(moving, size=2 * SIZE)]),
    ):
        with pytest.raises(Conflict, match="is being moved"):
            refused()
    assert pool.relabel([volume]) == [volume]
    write(volume, 5)


def test_relabel_seals_an_image_and_nothing_else(pool: Pool) -> None:
    disk, other = pool.create([new("disk", made="importing"), new("other")])
    (image,) = pool.relabel([replace(disk, kind="image", made="imported")])
    assert (image.kind, image.made, image.uuid, image.size) == ("image", "imported", disk.uuid, SIZE)
    assert pool.find(["other"]) == [other]
    lock = in_use(pool, other)
    with pytest.raises(Conflict, match="in use"):
        pool.relabel([replace(other, kind="image")])
    lock.release()
    (back,) = pool.relabel([replace(image, kind="disk")])
    write(back, 1)


def test_a_sealed_image_keeps_its_checksum_and_what_it_is_said_to_be_made_of(pool: Pool) -> None:
    image = golden(pool)
    checksum, origin = f"sha256:{'0a' * 32}", str(uuid4())
    (sealed,) = pool.relabel([replace(image, checksum=checksum, origin=origin)])
    assert sealed == replace(image, checksum=checksum, origin=origin) and pool.find(["golden"]) == [sealed]
    assert pool.relabel([sealed]) == [sealed]
    (clone,) = pool.clone(sealed, [new("clone")])
    assert (clone.checksum, clone.origin) == ("", sealed.uuid)
    assert pool.relabel([image]) == [image]


def test_delete_knows_volumes_by_uuid_and_is_all_or_none(pool: Pool) -> None:
    one, two, three = pool.create([new("one"), new("two"), new("three")])
    with pytest.raises(Conflict, match="another one"):
        pool.delete([one, replace(two, uuid=str(uuid4()))])
    lock = in_use(pool, two)
    with pytest.raises(Conflict, match="in use"):
        pool.delete([one, two])
    lock.release()
    assert len(pool.find()) == 3
    pool.delete([one, two, new("never-was")])
    pool.delete([one, two])
    assert pool.find() == [three]


def test_capacity(pool: Pool) -> None:
    (volume,) = pool.create([new("v")])
    write(volume, 1, 0, 4 * MIB)
    usage = pool.capacity()
    assert (usage.pool, usage.host, usage.provisioned) == ("tested", "here", SIZE)
    assert 0 < usage.free < usage.total and usage.warnings == []
    assert 4 * MIB <= usage.allocated <= 2 * SIZE and not usage.used
    (taken,) = pool.capacity(volumes=True).used.values()
    assert 4 * MIB <= taken <= 2 * SIZE
    try:
        pool.create([new("vast", -(-2 * usage.total // MIB) * MIB)])
    except Conflict as error:  # of a pool that sets all space aside when it makes a volume
        assert "no room" in error.message and names(pool) == ["v"]
    else:
        assert any("over-committed" in warning for warning in pool.capacity().warnings)
    assert codec.load(Usage, codec.dump(usage)) == usage


def test_of_many_who_make_one_name_at_once_exactly_one_wins(pool: Pool) -> None:
    start = threading.Barrier(8)
    won: list[Volume] = []
    lost: list[StorkitError] = []

    def contend(number: int) -> None:
        mine = [new("same"), new(f"own{number}")]
        other = type(pool)(pool.site, pool.settings, pool.pool)
        start.wait()
        try:
            won.extend(other.create(mine))
        except Conflict as error:
            lost.append(error)

    threads = [threading.Thread(target=contend, args=[number]) for number in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert len(won) == 2 and len(lost) == 7
    assert pool.find() == sorted(won, key=lambda volume: volume.name)


def test_a_damaged_volume_is_named_and_hides_no_other(pool: Pool, harm: Any) -> None:
    bad, good = pool.create([new("bad"), new("good")])
    harm.damage(pool, bad)
    found = pool.look()
    assert found.volumes == [good] and pool.find(["good"]) == [good]
    (named,) = found.damaged
    assert (named.name, named.pool, named.host) == ("bad", "tested", "here") and "damaged" in named.message
    assert pool.look(["good"]).damaged == [] and pool.look(["bad"]).damaged == [named]
    usage = pool.capacity()
    assert usage.provisioned == good.size and any("bad" in warning for warning in usage.warnings)


def test_the_others_go_on_beside_a_damaged_volume(pool: Pool, harm: Any) -> None:
    bad, good = pool.create([new("bad"), new("good")])
    harm.damage(pool, bad)
    write(good, 3)
    (copy,) = pool.clone(good, [new("copy")])
    assert holds(copy, 3)
    pool.resize([replace(good, size=2 * SIZE)])
    pool.create([new("more")])
    pool.relabel([replace(copy, kind="image")])
    pool.delete([new("other"), pool.find(["good"])[0]])
    assert [volume.name for volume in pool.look().volumes] == ["copy", "more"]


def test_a_damaged_volume_is_refused_and_keeps_its_name(pool: Pool, harm: Any) -> None:
    (bad,) = pool.create([new("bad")])
    harm.damage(pool, bad)
    for act in (
        lambda: pool.find(["bad"]),
        lambda: pool.create([new("good"), new("bad")]),
        lambda: pool.create([bad]),
        lambda: pool.clone(bad, [new("copy")]),
        lambda: pool.snapshot(bad, [new("copy")]),
        lambda: pool.resize([replace(bad, size=2 * SIZE)]),
        lambda: pool.relabel([replace(bad, kind="image")]),
        lambda: pool.delete([bad]),
    ):
        with pytest.raises((Unsafe, Conflict, Problems)):
            act()
    assert pool.look().volumes == [] and [each.name for each in pool.look().damaged] == ["bad"]


def test_a_pool_whose_place_is_missing_is_not_an_empty_one(pool: Pool, harm: Any, site: Site) -> None:
    gone = type(pool)(site, harm.missing(pool.settings), "tested")
    for act in (
        gone.find,
        gone.look,
        lambda: gone.find(["v"]),
        gone.capacity,
        lambda: gone.create([new("v")]),
    ):
        with pytest.raises(NotFound) as caught:
            act()
        assert caught.value.hint and "mkdir" not in caught.value.hint


def hold(volume: Volume, **more: Any) -> VolumeHold:
    fields = {
        "guest": GUEST,
        "name": "g",
        "id": SLEEP,
        "generation": 7,
        "since": "2026-01-02T03:04:05Z",
        "host": "here",
    }
    return VolumeHold(**{**fields, "file": "/srv/a b,c/g.memory", **more})


GUEST, SLEEP = str(uuid4()), str(uuid4())


def test_a_held_volume_keeps_its_hold_and_is_not_changed(pool: Pool) -> None:
    held, free = pool.create([new("held"), new("free")])
    assert held.hold is None and held.generation == 0
    asleep = replace(held, hold=hold(held))
    (made,) = pool.hold([asleep])
    assert made == replace(asleep, generation=7)
    assert pool.hold([asleep]) == [made] and pool.find(["held", "free"]) == [free, made]
    assert pool.capacity().held == {"held": hold(held)}
    for change in (
        lambda: pool.delete([free, made]),
        lambda: pool.resize([replace(free, size=2 * SIZE), replace(made, size=2 * SIZE)]),
        lambda: pool.relabel([replace(made, kind="image", made="imported")]),
        lambda: pool.relabel([replace(made, made="importing")]),  # an import goes on to write
    ):
        with pytest.raises(Conflict, match="guest g sleeps on volume held") as caught:
            change()
        assert "storkit guest restore g" in caught.value.hint
    assert pool.find() == [free, made]
    (clone,) = pool.clone(made, [new("clone")])
    assert (clone.hold, clone.generation) == (None, 0)


def test_a_hold_ends_by_its_own_id_alone_and_its_generation_stays(pool: Pool) -> None:
    one, two = pool.create([new("one"), new("two")])
    asleep = pool.hold([replace(one, hold=hold(one)), replace(two, hold=hold(two, generation=3))])
    other = str(uuid4())
    with pytest.raises(Problems) as caught:
        pool.hold([replace(volume, hold=hold(volume, id=other)) for volume in asleep])
    assert all(isinstance(each, Conflict) for each in caught.value.problems)
    with pytest.raises(StorkitError, match="another sleep"):
        pool.release(asleep, other)
    assert pool.find() == asleep
    awake = pool.release(asleep, SLEEP)
    assert [(volume.hold, volume.generation) for volume in awake] == [(None, 7), (None, 3)]
    assert pool.release(awake, SLEEP) == awake == pool.find() and pool.capacity().held == {}
    (again,) = pool.hold([replace(awake[0], hold=hold(one, id=other, generation=9))])
    assert again.hold and (again.hold.id, again.generation) == (other, 9)
    pool.release([again], other)
    pool.delete(awake)


def test_a_volume_that_is_another_is_not_held(pool: Pool) -> None:
    (volume,) = pool.create([new("v")])
    stranger = replace(volume, uuid=str(uuid4()), hold=hold(volume))
    with pytest.raises(Conflict, match="another one"):
        pool.hold([stranger])
    with pytest.raises(NotFound):
        pool.release([new("none")], SLEEP)
    assert pool.find() == [volume]
