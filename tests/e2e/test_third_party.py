"""A transport of another package (tests/packages/storkit-nbdkit), installed by pip, inherits storkit's own tests.

They are run as its author runs them: by a Python of its own that has the package, in a checkout of storkit.
"""

from __future__ import annotations

import ast
import json
import os
import re
import shutil
import subprocess
import sys
import sysconfig
from pathlib import Path

import pytest

from storkit.system.timeouts import scaled

ROOT = Path(__file__).resolve().parents[2]
PACKAGE = ROOT / "tests/packages/storkit-nbdkit"

pytestmark = pytest.mark.e2e


@pytest.fixture(scope="module")
def python(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A Python that has what this one has, and the package."""
    if shutil.which("nbdkit") is None:
        pytest.skip("nbdkit is not installed")
    place = tmp_path_factory.mktemp("author")
    subprocess.run([sys.executable, "-m", "venv", "--without-pip", place], check=True)
    program = place / "bin/python"
    (own,) = place.glob("lib/python*/site-packages")
    (own / "tests.pth").write_text(f"import site; site.addsitedir({sysconfig.get_path('purelib')!r})\n")
    words = ["--no-index", "--no-deps", "--no-build-isolation", "--disable-pip-version-check"]
    done = subprocess.run(
        [sys.executable, "-m", "pip", f"--python={program}", "install", "-q", *words, PACKAGE],
        capture_output=True, text=True, check=False,
    )  # fmt: skip
    assert done.returncode == 0, done.stdout + done.stderr
    return program


def inherited(python: Path, *words: str, transport: str = "", patience: float = 300.0) -> int:
    """Run tests of storkit's by that Python; how many passed. None may fail, or be left out."""
    environment = {name: value for name, value in os.environ.items() if not name.startswith("PYTEST_")}
    if transport:
        environment["STORKIT_TEST_TRANSPORT"] = transport
    done = subprocess.run(
        [python, "-m", "pytest", "-q", "-p", "no:cacheprovider", *words],
        cwd=ROOT, env=environment, capture_output=True, text=True, timeout=scaled(patience), check=False,
    )  # fmt: skip
    assert done.returncode == 0, done.stdout[-6000:] + done.stderr
    assert "skipped" not in done.stdout, done.stdout[-2000:]
    found = re.search(r"(\d+) passed", done.stdout)
    return int(found[1]) if found else 0


def test_it_is_found_and_its_server_decides_who_writes(python: Path, tmp_path: Path) -> None:
    """Attached, written to, the right taken from one and given to the other, and what may not write is refused."""
    inventory = tmp_path / "i.toml"
    inventory.write_text('[hosts.a]\nurl = "local:a"\n[pools.p]\nhost = "a"\ntransport = "nbdkit"\n')
    words = [python, "-m", "storkit", "--inventory", inventory, "--json", "--state", tmp_path / "s", "host", "check"]
    done = subprocess.run([str(word) for word in words], capture_output=True, text=True, cwd=ROOT, check=False)
    assert "nbdkit" not in done.stderr and json.loads(done.stdout), done.stderr
    contract = "tests/contract/test_transports.py"
    assert inherited(python, contract, "-k", "nbdkit-unix and the_server_decides_who_writes") == 1


def test_it_imports_what_the_page_for_authors_names_and_no_more() -> None:
    page = (ROOT / "docs/add-a-backend.md").read_text()
    rows = [line.split("|")[1] for line in page.splitlines() if line.startswith("| `")]
    public = {name for row in rows for name in re.findall(r"`([a-z_.]+)`", row)}
    imported: set[str] = set()
    for file in PACKAGE.rglob("*.py"):
        for node in ast.walk(ast.parse(file.read_text())):
            if isinstance(node, ast.Import):
                imported |= {alias.name for alias in node.names}
            if isinstance(node, ast.ImportFrom) and node.module:
                assert not any(alias.name.startswith("_") for alias in node.names)
                imported.add(node.module)
    used = {name for name in imported if name.split(".")[0] in ("storkit", "tests")}
    wholly = tuple(f"{name}." for name in ("storkit.core", "storkit.system"))
    assert {"storkit.core", "storkit.system"} <= public and used
    assert {name for name in used if name not in public and not name.startswith(wholly)} == set()


@pytest.mark.slow
def test_it_keeps_the_whole_contract(python: Path) -> None:
    assert inherited(python, "tests/contract/test_transports.py", "-k", "nbdkit") >= 38


@pytest.mark.slow
@pytest.mark.parametrize("mends", ["resume and rollback", "resume", "rollback"])
def test_it_is_mended_wherever_a_migration_is_killed(python: Path, mends: str) -> None:
    words = [f"tests/e2e/test_kill_points.py::test_migration[{mends}]"]
    assert inherited(python, *words, transport="nbdkit", patience=900.0) == 1


@pytest.mark.slow
@pytest.mark.parametrize("file", ["test_hostile_host.py", "test_silent_hosts.py", "test_sick_hosts.py"])
def test_hosts_that_lie_hang_or_are_silent_spoil_nothing(python: Path, file: str) -> None:
    words = ["-m", "not slow", f"tests/e2e/{file}"]
    assert inherited(python, *words, transport="nbdkit", patience=900.0) > 2
