"""A run of pytest says what its tests cost, with what they started and what they left running."""

from __future__ import annotations

import os
import re
import subprocess
import sys
from pathlib import Path

import pytest

from tests import costs

ROOT = Path(costs.__file__).parents[1]
CONFTEST = """\
from tests import costs
from tests.costs import pytest_runtest_makereport, pytest_runtest_protocol
pytest_configure, pytest_unconfigure = costs.configure, costs.unconfigure
def pytest_sessionfinish(session):
    costs.finish(session.config)
"""
TESTS = """\
import subprocess, sys, time
BURN = "import time\\nwhile time.process_time() < 1.05: pass"
def test_that_sleeps():
    time.sleep(0.1)
def test_whose_child_works():
    subprocess.run([sys.executable, "-c", BURN], check=True)
"""


@pytest.mark.parametrize("workers", ["0", "2"])
def test_a_run_says_what_its_tests_cost(tmp_path: Path, workers: str) -> None:
    (tmp_path / "conftest.py").write_text(CONFTEST)
    (tmp_path / "test_work.py").write_text(TESTS)
    argv = [sys.executable, "-m", "pytest", "-q", "-p", "xdist", "-n", workers, "-p", "no:cacheprovider"]
    argv += ["--rootdir", str(tmp_path), str(tmp_path)]
    environment = {**os.environ, "PYTHONPATH": str(ROOT), "PYTEST_DISABLE_PLUGIN_AUTOLOAD": "1"}
    done = subprocess.run(argv, capture_output=True, text=True, cwd=tmp_path, env=environment)
    assert done.returncode == 0, done.stdout + done.stderr
    lines = re.findall(r"^ +([\d.]+) +([\d.]+)  \S*test_work.py::(\w+)$", done.stdout, re.MULTILINE)
    assert [name for _, _, name in lines] == ["test_whose_child_works"] and float(lines[0][0]) >= 1.05
    total, tests, count = re.findall(r"^CPU (\d+) s in all, (\d+) s of it in (\d+) tests", done.stdout, re.MULTILINE)[0]
    assert int(total) >= int(tests) >= 1 and int(count) == 2


def test_children_count_while_they_run_and_when_they_have_ended() -> None:
    counter = costs._Family()
    before = counter.seconds()
    burn = "import sys, time\nwhile time.process_time() < 0.3: pass\nprint(flush=True)\nsys.stdin.read()"
    child = subprocess.Popen([sys.executable, "-c", burn], stdin=subprocess.PIPE, stdout=subprocess.PIPE)
    assert child.stdout is not None
    child.stdout.readline()
    while_running = counter.seconds()
    child.communicate()
    # the kernel rounds the seconds of each process to its ticks
    assert while_running >= before + 0.25 and counter.seconds() >= while_running
