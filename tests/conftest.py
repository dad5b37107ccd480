"""What all tests share."""

from __future__ import annotations

import fnmatch
import os
import sys
from pathlib import Path

import pytest

from tests import costs, order
from tests.costs import pytest_runtest_makereport, pytest_runtest_protocol

__all__ = ["pytest_runtest_makereport", "pytest_runtest_protocol"]

# Before storkit is imported. A busy machine is no failure; a test about a deadline sets its own.
os.environ.setdefault("STORKIT_TIMEOUT_FACTOR", "5")
# What tests give and take is no news for the log of the machine they run on.
os.environ.setdefault("STORKIT_LOG_SOCKET", "/nowhere")
# Thousands of commands are not to compile storkit anew each.
os.environ.pop("PYTHONDONTWRITEBYTECODE", None)
sys.dont_write_bytecode = False
os.environ.setdefault("HYPOTHESIS_STORAGE_DIRECTORY", str(Path(__file__).parents[1] / ".cache" / "hypothesis"))


def pytest_configure(config: pytest.Config) -> None:
    """Count costs; no deadline for a single example: a busy machine is no failure."""
    costs.configure(config)
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


SKIPS = Path(__file__).with_name("allowed-skips.txt")
"""What may be skipped where CI is set: `NODEID-GLOB: why`, a line each."""


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    order.arrange(items)


def pytest_unconfigure(config: pytest.Config) -> None:
    costs.unconfigure(config)


@pytest.hookimpl(trylast=True)
def pytest_sessionfinish(session: pytest.Session) -> None:
    """A test that CI skips without being allowed to is a failure."""
    costs.finish(session.config)
    if not os.environ.get("CI") or hasattr(session.config, "workerinput"):
        return
    lines = [line for line in SKIPS.read_text().splitlines() if line and not line.startswith("#")]
    allowed = [line.partition(": ")[0] for line in lines]
    reporter = session.config.pluginmanager.get_plugin("terminalreporter")
    skipped = {report.nodeid for report in (reporter.stats.get("skipped", []) if reporter else [])}
    wrong = sorted(name for name in skipped if not any(fnmatch.fnmatch(name, glob) for glob in allowed))
    if wrong and reporter:
        reporter.write_line(f"skipped, and not in {SKIPS.name}: {', '.join(wrong)}", red=True)
        session.exitstatus = pytest.ExitCode.TESTS_FAILED


@pytest.fixture
def regenerate(request: pytest.FixtureRequest) -> bool:
    """Whether golden files are written rather than compared."""
    return bool(request.config.getoption("--regenerate"))
