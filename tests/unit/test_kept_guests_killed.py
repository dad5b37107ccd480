"""Guests that a directory pool keeps, by commands that are killed at any point."""

from __future__ import annotations

import os
import shutil
import sys
from collections.abc import Callable
from pathlib import Path
from types import FrameType
from typing import Any
from uuid import uuid4

import pytest

import storkit
from storkit.core.guest import KeptGuest
from storkit.core.model import Volume
from storkit.directory import Directory
from tests.unit.directories import new, pool_at


def states(pool: Directory, name: str, act: Callable[[], Any]) -> list[Path]:
    """Copies of the pool as a kill could have left it: one for each state between two lines of storkit's code."""
    found, last, root = list[Path](), list[Any](), str(Path(storkit.__file__).parent)

    def look(frame: FrameType, event: str, argument: Any) -> Any:
        if not frame.f_code.co_filename.startswith(root):
            return None
        now = sorted(
            (path, file, (info := os.stat(f"{path}/{file}")).st_size, info.st_ino)
            for path, _, names in os.walk(pool.path) for file in names
        )  # fmt: skip
        if not last or now != last[0]:
            last[:] = [now]
            found.append(Path(shutil.copytree(pool.path, pool.path.with_name(f"{name}-{len(found)}"))))
        return look

    sys.settrace(look)
    try:
        act()
    finally:
        sys.settrace(None)
    return found


def killed(pool: Directory, state: Path) -> Directory:
    copy = state.with_name("killed")
    shutil.rmtree(copy, ignore_errors=True)
    shutil.copytree(state, copy)
    return pool_at(copy, pool.settings.format)


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
    found = states(pool, "keep", lambda: pool.keep(wanted))
    new_ = records(pool)
    found += states(pool, "unkeep", lambda: pool.unkeep(wanted))
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
