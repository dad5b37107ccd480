"""Fixtures of the unit tests."""

from __future__ import annotations

import shutil
from collections.abc import Iterator
from pathlib import Path
from uuid import uuid4

import pytest

from storkit.directory import Directory
from tests.unit.directories import pool_at


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
