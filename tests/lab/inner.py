"""Tests run inside a host: the outer machine's own pytest and working tree, the host's kernel."""

from __future__ import annotations

import io
import tarfile
from collections.abc import Mapping
from importlib.metadata import distribution
from pathlib import Path

from tests.lab.host import Host

_PYTEST = ("pytest", "pluggy", "iniconfig", "packaging")
"""All that pytest needs; each is pure Python."""
_PLACE = "/opt/pytest"
_PROGRAM = "import gc, sys, pytest; gc.disable(); sys.exit(pytest.main(sys.argv[1:]))"
"""Each collection would write to every page, and a page written after a fork is copied: what costs most in a host."""


def run_tests(host: Host, *words: str, timeout: float, env: Mapping[str, str] | None = None) -> str:
    """Run pytest in a host with these arguments, paths as below the working tree; its output if all passed.

    Raises AssertionError with the output otherwise, also if there was no test.
    """
    host.put(_bundle(), f"{_PLACE}.tar")
    host.run(["mkdir", "-p", _PLACE])
    host.run(["tar", "-xf", f"{_PLACE}.tar", "-C", _PLACE])
    variables = {
        "PYTHONPATH": f"/storkit:/opt/storkit/site-packages:{_PLACE}",
        "PYTHONPYCACHEPREFIX": "/lab/common/pyc",
        **(env or {}),
    }
    argv = ["/usr/bin/python3", "-c", _PROGRAM, "-p", "no:cacheprovider", "-q", "--durations=10", *words]
    done = host.run(argv, check=False, timeout=timeout, env=variables, cwd="/storkit")
    assert done.status == 0, f"inside host {host.name}:\n{done.stdout}\n{done.stderr}"
    return done.stdout


def _bundle() -> bytes:
    """pytest, as this machine has it installed."""
    buffer = io.BytesIO()
    with tarfile.open(fileobj=buffer, mode="w") as archive:
        for name in _PYTEST:
            for file in distribution(name).files or []:
                if ".." not in file.parts and file.suffix != ".pyc":
                    archive.add(str(Path(str(file.locate()))), arcname=str(file))
    return buffer.getvalue()
