"""What the contract tests stand on.

Every pool that storkit.core.registry finds inherits tests/contract/test_pools.py. A technology that needs more than its
default settings has a file `tests/contract/pool_NAME.py` with

    def setups() -> dict[str, Callable[[Path], ContextManager[settings]]]

from the name of a variant to a context manager which, given an empty directory, prepares the machine (a loop device, a
volume group) and yields the settings to test with; it may raise pytest.skip with the reason. With

    def damage(pool: Pool, volume: Volume) -> None        makes what the storage says of a volume nonsense
    def missing(settings) -> settings                     those of a pool whose place is not there
    def stranger(pool: Pool, name: str, size: int) -> str makes something of zeros there that is no volume; its path

it inherits the tests of what is damaged, missing and adopted as well.
"""

from __future__ import annotations

import importlib
import importlib.util
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, nullcontext
from functools import cache
from pathlib import Path
from typing import Any

import pytest

from storkit.core import registry
from storkit.core.backend import Pool, Site

Setup = Callable[[Path], AbstractContextManager[Any]]


@cache
def pool_module(name: str) -> Any:
    """The file of a pool technology, or None."""
    file = Path(__file__).with_name(f"pool_{name}.py")
    if not file.exists():
        return None
    spec = importlib.util.spec_from_file_location(f"contract_pool_{name}", file)
    assert spec is not None and spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def pool_setups() -> dict[str, tuple[type[Pool], Setup]]:
    """`technology-variant` to the pool's class and what prepares it."""
    found: dict[str, tuple[type[Pool], Setup]] = {}
    for name in registry.names(Pool):  # type: ignore[type-abstract]
        cls = registry.pool(name)
        module = pool_module(name)
        if module is None:
            found[name] = (cls, lambda path, cls=cls: nullcontext(cls.Settings()))  # type: ignore[misc]
            continue
        found |= {f"{name}-{variant}": (cls, setup) for variant, setup in module.setups().items()}
    return found


def pytest_generate_tests(metafunc: pytest.Metafunc) -> None:
    if "pool_setup" in metafunc.fixturenames:
        setups = pool_setups()
        if "harm" in metafunc.fixturenames:
            setups = {name: setup for name, setup in setups.items() if hasattr(pool_module(setup[0].name), "damage")}
        metafunc.parametrize("pool_setup", list(setups.values()), ids=list(setups))


@pytest.fixture
def harm(pool_setup: tuple[type[Pool], Setup]) -> Any:
    """What can be done to a pool from outside: `damage`, `missing` and `stranger`, see above."""
    return pool_module(pool_setup[0].name)


@pytest.fixture
def site(tmp_path: Path) -> Site:
    return Site("here", tmp_path / "state", tmp_path / "run", tmp_path / "dev")


@pytest.fixture
def pool(pool_setup: tuple[type[Pool], Setup], site: Site, tmp_path: Path) -> Iterator[Pool]:
    cls, setup = pool_setup
    place = tmp_path / "place"
    place.mkdir()
    with setup(place) as settings:
        yield cls(site, settings, "tested")
