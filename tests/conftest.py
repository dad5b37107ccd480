"""What all tests share."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

os.environ.setdefault("HYPOTHESIS_STORAGE_DIRECTORY", str(Path(__file__).parents[1] / ".cache" / "hypothesis"))


def pytest_configure() -> None:
    """No deadline for a single example: a busy machine is no failure."""
    try:
        from hypothesis import settings
    except ImportError:
        return
    settings.register_profile("storkit", deadline=None)
    if settings.get_current_profile_name() == "default":
        settings.load_profile("storkit")


def pytest_addoption(parser: pytest.Parser) -> None:
    parser.addoption(
        "--regenerate",
        action="store_true",
        help="write golden files anew from what is rendered now; then read the diff",
    )


@pytest.fixture
def regenerate(request: pytest.FixtureRequest) -> bool:
    """Whether golden files are written rather than compared."""
    return bool(request.config.getoption("--regenerate"))
