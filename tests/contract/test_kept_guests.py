"""What a pool keeps of guests beside their volumes, asked of every pool there is."""

from __future__ import annotations

import threading
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from uuid import uuid4

import pytest

from storkit.core import codec
from storkit.core.backend import Pool
from storkit.core.errors import Conflict, NotFound, Problems, StorkitError, UsageError
from storkit.core.guest import KeptGuest, digest_of
from storkit.core.model import Volume

MIB = 1 << 20


@pytest.fixture
def web(pool: Pool) -> Volume:
    (volume,) = pool.create([Volume("web", str(uuid4()), 4 * MIB)])
    return volume


def guest(volume: Volume, generation: int = 1, of: str = "", **more: object) -> KeptGuest:
    record = f"memory = {generation}\n"
    kept = KeptGuest(volume.name, volume.uuid, "g", of or str(uuid4()), generation, "libvirt", record, "<domain/>",
                     by="ann@desk", since="2026-11-28T00:00:00Z")  # fmt: skip
    kept = replace(kept, **more)  # type: ignore[arg-type]
    return replace(kept, digest=digest_of(kept.record, kept.document))


def newest(pool: Pool, volume: Volume) -> list[tuple[int, str]]:
    return [(kept.generation, kept.record) for kept in pool.texts([volume.uuid])]


def test_nothing_is_kept_at_first(pool: Pool) -> None:
    assert pool.kept().guests == pool.kept([str(uuid4())]).guests == pool.texts([str(uuid4())]) == []
    absent = guest(Volume("none", str(uuid4()), MIB))
    pool.unkeep([absent])
    with pytest.raises(NotFound):
        pool.keep([absent])


def test_a_guest_is_kept_as_it_was_given_and_goes_with_its_volume(pool: Pool, web: Volume) -> None:
    first = guest(web, document="<domain>\n  <!-- \u00e4 -->\n</domain>\n")
    pool.keep([first])
    pool.keep([first])
    assert pool.texts([web.uuid]) == [first] == pool.texts([web.uuid], 1)
    assert codec.load(KeptGuest, codec.dump(first)) == first
    assert pool.kept().guests == pool.kept([web.uuid]).guests == [replace(first, record="", document="")]
    assert pool.texts([web.uuid], 2) == [] and pool.kept().damaged == []
    pool.delete([web])
    assert pool.kept().guests == [] and pool.texts([web.uuid]) == []


def test_a_generation_is_kept_once_and_the_next_one_only_after_it(pool: Pool, web: Volume) -> None:
    first = guest(web)
    pool.keep([first])
    second = guest(web, 2, first.guest)
    for wrong in (guest(web, 1, first.guest, record="x = 1\n"), guest(web, 3, first.guest)):
        with pytest.raises(Conflict, match=r"changed by ann@desk \(2026-11-28T00:00:00Z, generation 1\)"):
            pool.keep([wrong])
    pool.keep([second])
    with pytest.raises(Conflict, match="generation 2") as caught:
        pool.keep([guest(web, 2, first.guest, record="x = 1\n")])
    assert "guest diff g" in caught.value.hint
    assert newest(pool, web) == [(2, second.record)] and pool.texts([web.uuid], 1) == [first]


def test_what_another_pool_kept_goes_on_counting_here(pool: Pool, web: Volume) -> None:
    of = str(uuid4())
    third, fourth = guest(web, 3, of), guest(web, 4, of)
    with pytest.raises(Conflict, match="nothing is kept"):
        pool.keep([third])
    pool.keep([third], carried=True)
    pool.keep([fourth], carried=True)
    pool.keep([fourth], carried=True)
    assert pool.texts([web.uuid], 3) == [third] and newest(pool, web) == [(4, fourth.record)]
    with pytest.raises(Conflict):
        pool.keep([guest(web, 6, of)], carried=True)


def test_ten_generations_stay(pool: Pool, web: Volume) -> None:
    mine = str(uuid4())
    for number in range(1, 13):
        pool.keep([guest(web, number, mine)])
    assert [number for number in range(1, 13) if pool.texts([web.uuid], number)] == list(range(3, 13))
    assert newest(pool, web) == [(12, "memory = 12\n")]


def test_a_deleted_guest_leaves_its_volume_to_the_next(pool: Pool, web: Volume) -> None:
    first = guest(web)
    pool.keep([first])
    with pytest.raises(Conflict, match="volume web is the first disk of guest g"):
        pool.keep([guest(web, 2)])
    gone = replace(first, generation=2, record="", document="", gone=True, digest=digest_of("", ""))
    pool.keep([gone])
    pool.keep([gone])
    assert [kept.gone for kept in pool.kept().guests] == [True]
    with pytest.raises(Conflict, match="deleted by ann@desk"):
        pool.keep([guest(web, 2, first.guest)])
    pool.keep([guest(web, 3, name="other")])
    assert [kept.name for kept in pool.kept().guests] == ["other"]


def test_what_was_kept_last_is_taken_back_and_nothing_else(pool: Pool, web: Volume) -> None:
    first = guest(web)
    second = guest(web, 2, first.guest)
    pool.keep([first])
    pool.keep([second])
    for other in (first, guest(web, 2, first.guest, record="x = 1\n")):
        with pytest.raises(Conflict, match="generation 2"):
            pool.unkeep([other])
    pool.unkeep([second])
    pool.unkeep([second])
    assert newest(pool, web) == [(1, first.record)]
    pool.unkeep([first])
    assert pool.kept().guests == []
    pool.keep([guest(web)])


def test_all_of_a_call_are_kept_or_none(pool: Pool, web: Volume) -> None:
    (other,) = pool.create([Volume("other", str(uuid4()), 4 * MIB)])
    pool.keep([guest(other)])
    with pytest.raises(Conflict):
        pool.keep([guest(web), guest(other)])
    large = "#" * (1 << 20)
    bad = [guest(web, record=""), guest(other, 2, record=large, document="x"), guest(other, gone=True)]
    with pytest.raises(Problems) as caught:
        pool.keep([guest(web), *bad])
    assert len(caught.value.problems) == len(bad)
    with pytest.raises(Conflict, match="another one"):
        pool.keep([guest(replace(web, uuid=str(uuid4())))])
    assert [kept.uuid for kept in pool.kept().guests] == [other.uuid]
    pool.keep([guest(web)])


def test_no_uuid_leads_elsewhere(pool: Pool, web: Volume) -> None:
    pool.keep([guest(web)])
    for uuid in ("", "..", "../../etc", "/etc", "x"):
        wrong = guest(replace(web, uuid=uuid))
        acts: list[Callable[[], object]] = [
            lambda uuid=uuid: pool.kept([uuid]), lambda uuid=uuid: pool.texts([uuid]),  # type: ignore[misc]
            lambda wrong=wrong: pool.unkeep([wrong]), lambda wrong=wrong: pool.keep([wrong]),  # type: ignore[misc]
        ]  # fmt: skip
        for act in acts:
            with pytest.raises((UsageError, Conflict)):
                act()


def test_of_many_who_keep_one_generation_exactly_one_wins(pool: Pool, web: Volume) -> None:
    first = guest(web)
    pool.keep([first])
    start, won, lost = threading.Barrier(8), list[str](), list[StorkitError]()

    def contend(number: int) -> None:
        mine = guest(web, 2, first.guest, record=f"memory = {number}\n")
        start.wait()
        try:
            type(pool)(pool.site, pool.settings, pool.pool).keep([mine])
            won.append(mine.record)
        except StorkitError as error:
            lost.append(error)

    threads = [threading.Thread(target=contend, args=(number,)) for number in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert len(won) == 1 and len(lost) == 7 and all(isinstance(error, Conflict) for error in lost)
    assert newest(pool, web) == [(2, won[0])]


def generation_file(pool: Pool, volume: Volume, generation: int) -> Path:
    (file,) = [path for root in {pool.site.state, Path(volume.path).parent}
               for path in root.rglob(f"{volume.uuid}/{generation}.json")]  # fmt: skip
    return file


DAMAGED = ("", "{", "[]", '{"volume": "web"}', "\0" * 100, '{"a": ' * 100000)


def test_what_is_damaged_is_named_and_hides_no_other(pool: Pool, web: Volume) -> None:
    (other,) = pool.create([Volume("other", str(uuid4()), 4 * MIB)])
    first = guest(web)
    pool.keep([first, guest(other)])
    for content in DAMAGED:
        pool.keep([guest(web, 2, first.guest)])
        file = generation_file(pool, web, 2)
        assert file.stat().st_mode & 0o777 == 0o600 and file.parent.stat().st_mode & 0o777 == 0o700
        file.write_text(content)
        found = pool.kept()
        assert [kept.uuid for kept in found.guests] == [other.uuid], content
        assert [str(file) in each.message and str(file) in each.hint for each in found.damaged] == [True], content
        with pytest.raises(StorkitError, match="damaged"):
            pool.texts([web.uuid])
        with pytest.raises(StorkitError, match="damaged"):
            pool.keep([guest(web, 3, first.guest)])
        file.unlink()
        assert newest(pool, web) == [(1, first.record)], content


def test_a_file_of_another_guest_is_not_taken_for_this_one(pool: Pool, web: Volume) -> None:
    (other,) = pool.create([Volume("other", str(uuid4()), 4 * MIB)])
    pool.keep([guest(web), guest(other)])
    generation_file(pool, web, 1).write_bytes(generation_file(pool, other, 1).read_bytes())
    with pytest.raises(StorkitError, match="not what was written there"):
        pool.texts([web.uuid])
