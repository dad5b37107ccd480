"""Where a directory pool is: a file system that is not mounted is told from a pool that has just been begun."""

from __future__ import annotations

from pathlib import Path

import pytest

from storkit.core.errors import NotFound
from storkit.tech.files.place import PoolPlace
from storkit.tech.files.sidecar import VolumeDirectory


def place(directory: Path) -> PoolPlace:
    pool, state = directory / "pool", directory / "state"
    pool.mkdir(parents=True, mode=0o700)
    state.mkdir(mode=0o700)
    return PoolPlace(pool, "tank", state, given=True, others_write=False)


def begin(place: PoolPlace) -> None:
    """What a command does first that changes a pool."""
    with VolumeDirectory(place.path).locked("create"):
        place.remember()


def test_a_pool_whose_file_system_is_not_mounted(tmp_path: Path) -> None:
    tank = place(tmp_path)
    assert tank.exists()
    begin(tank)
    assert tank.exists()
    VolumeDirectory(tank.path).lock.unlink()
    with pytest.raises(NotFound, match="empty, and was in use before"):
        tank.exists()


@pytest.mark.parametrize("looks", range(1, 5))
def test_another_command_may_begin_in_it_between_any_two_looks(
    looks: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    tank, real, count = place(tmp_path), Path.exists, 0

    def exists(path: Path) -> bool:
        nonlocal count
        answer = real(path)
        count += 1
        if count == looks:
            begin(tank)
        return answer

    monkeypatch.setattr(Path, "exists", exists)
    assert tank.exists()
    while count < looks:
        assert tank.exists()
