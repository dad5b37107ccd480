"""Fixtures of the end-to-end tests."""

from __future__ import annotations

import tempfile
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from tests.e2e.qemuhosts import Hosts
from tests.e2e.world import World


@pytest.fixture
def make_world(tmp_path: Path) -> Iterator[Callable[..., World]]:
    """Makes worlds that are cleared at the end, also after a failure."""
    worlds: list[World] = []

    def make(format: str = "raw", inventory: str = "") -> World:
        directory = tmp_path / f"w{len(worlds)}"
        directory.mkdir()
        worlds.append(World(directory, format, inventory))
        return worlds[-1]

    yield make
    for world in worlds:
        world.clear()


@pytest.fixture(params=["raw", pytest.param("qcow2", marks=pytest.mark.slow)])
def world(request: pytest.FixtureRequest, make_world: Callable[..., World]) -> World:
    """A world of raw volumes, and in `make test-all` one of qcow2 volumes; with the mark `each_format` always both."""
    return make_world(request.param)


@pytest.fixture
def hosts() -> Iterator[Hosts]:
    with tempfile.TemporaryDirectory(prefix="sk-") as base:
        both = Hosts(Path(base))
        try:
            yield both
        finally:
            both.end()


@pytest.fixture
def impatient(monkeypatch: pytest.MonkeyPatch) -> None:
    """A QEMU that does not answer this process is given up soon, whatever the factor of the tests."""
    for name in ("_qemu.process.ASK_TIMEOUT", "_qemu.movable.ASK_TIMEOUT", "_qemu.process.QUIT_TIMEOUT"):
        monkeypatch.setattr(f"storkit.hypervisors.{name}", 1.0)
