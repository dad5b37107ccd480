"""Guests that a directory pool keeps, by commands that are killed at any point."""

from __future__ import annotations

from pathlib import Path
from uuid import uuid4

import pytest

from storkit.core.guest import KeptGuest
from storkit.core.model import Volume
from storkit.directory import Directory
from tests.unit.directories import killed, new, pool_at, states


def records(pool: Directory) -> dict[str, str]:
    return {kept.name: kept.record for kept in pool.texts([kept.uuid for kept in pool.kept().guests])}


def guest(volume: Volume, uuid: str, generation: int) -> KeptGuest:
    return KeptGuest(volume.name, volume.uuid, volume.name, uuid, generation, record=f"memory = {generation}\n" * 9000)


@pytest.mark.parametrize("before", [0, 10])
def test_keeping_and_taking_back(tmp_path: Path, before: int) -> None:
    (tmp_path / "pool").mkdir()
    pool, mine = pool_at(tmp_path / "pool", "raw"), str(uuid4())
    volumes = pool.create([new("a"), new("b")])
    for number in range(1, before + 1):
        pool.keep([guest(volume, mine, number) for volume in volumes])
    old, wanted = records(pool), [guest(volume, mine, before + 1) for volume in volumes]
    found = states(pool, lambda: pool.keep(wanted))
    new_ = records(pool)
    found += states(pool, lambda: pool.unkeep(wanted))
    assert records(pool) == old and len(found) > 8
    for state in found:
        left = killed(pool, state)
        assert left.kept().damaged == [] and all(record in (old.get(name), new_[name])
                                                 for name, record in records(left).items())  # fmt: skip
        left.keep(wanted)
        assert records(left) == new_
        left = killed(pool, state)
        left.unkeep(wanted)
        assert records(left) == old
