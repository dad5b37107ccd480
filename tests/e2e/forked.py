"""storkit's commands in forks of one process that has it imported, for tests that start many.

Most of what a short command costs is an interpreter's start and end. A fork runs the same `main` with the same words,
environment and descriptors. At its end it waits for threads, calls what `atexit` knows, and flushes, as every
interpreter does; what it does not do is to take its objects apart, which writes to nearly every page that it shares
with its parent. Where the start itself, ssh or a signal from outside is tested, a command is a program of its own
(`World.popen`, `argv`).
"""

from __future__ import annotations

import atexit
import gc
import importlib
import json
import os
import pkgutil
import select
import signal
import subprocess
import sys
import tempfile
import threading
import traceback
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, NoReturn

from storkit.system import timeouts
from tests.e2e import killed

ROOT = Path(__file__).resolve().parents[2]
FIXED = ("PYTHONPATH", timeouts.VARIABLE)
"""Variables that are read when storkit is imported."""


class Forks:
    """The process that forks; one for each process that tests."""

    def __init__(self) -> None:
        environment = {**os.environ, "PYTHONPATH": str(ROOT)}
        self._fixed = [environment.get(name) for name in FIXED]
        self._process = subprocess.Popen(
            [sys.executable, "-m", "tests.e2e.forked"], stdin=subprocess.PIPE, stdout=subprocess.PIPE,
            # Nothing is read ahead: `select` would wait for an answer that is in the buffer already.
            bufsize=0, env=environment, cwd=ROOT,
        )  # fmt: skip

    def fit(self, environment: Mapping[str, str]) -> bool:
        """Whether a command of this environment can run in a fork."""
        return [environment.get(name) for name in FIXED] == self._fixed

    def run(
        self, words: Sequence[str], environment: Mapping[str, str], timeout: float, killed: str = ""
    ) -> tuple[int, str, str]:
        """Status (negative: the signal that ended it), standard output, standard error. `killed`: where it kills itself
        (tests.e2e.killed)."""
        with tempfile.TemporaryDirectory(prefix="forked-") as place:
            files = [f"{place}/out", f"{place}/err"]
            request = {
                "words": list(words), "environment": dict(environment), "cwd": str(Path.cwd()), "files": files,
                "killed": killed,
            }  # fmt: skip
            assert self._process.stdin is not None
            self._process.stdin.write(json.dumps(request).encode() + b"\n")
            pid = self._answer()
            assert self._process.stdout is not None
            if not select.select([self._process.stdout], [], [], timeout)[0]:
                os.kill(pid, signal.SIGKILL)
                self._answer()
                raise subprocess.TimeoutExpired(["storkit", *words], timeout)
            status = self._answer()
            out, err = (Path(file).read_bytes().decode() for file in files)
        return status, out, err

    def _answer(self) -> int:
        assert self._process.stdout is not None
        return int(self._process.stdout.readline())


def serve() -> int:
    """Fork for each line of standard input, until there is no more."""
    for module in pkgutil.walk_packages(importlib.import_module("storkit").__path__, "storkit."):
        if not module.name.endswith("__main__"):
            importlib.import_module(module.name)
    importlib.import_module("sh")
    # A collection would write to every page of what is here by now.
    gc.collect()
    gc.freeze()
    asked, told = os.fdopen(os.dup(0)), os.dup(1)
    os.dup2(os.open(os.devnull, os.O_RDWR), 0)
    os.dup2(2, 1)
    while line := asked.readline():
        request = json.loads(line)
        child = os.fork()
        if child == 0:
            asked.close()
            os.close(told)
            _end(_command(request))
        os.write(told, f"{child}\n".encode())
        status = os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])
        os.write(told, f"{status}\n".encode())
    return 0


def _command(request: dict[str, Any]) -> int:
    from storkit.cli.main import main

    for descriptor, file in enumerate(request["files"], 1):
        opened = os.open(file, os.O_WRONLY | os.O_CREAT | os.O_CLOEXEC, 0o600)
        os.dup2(opened, descriptor)
        os.close(opened)
    os.chdir(request["cwd"])
    os.environ.clear()
    os.environ.update(request["environment"])
    sys.argv = ["storkit", *request["words"]]
    if request["killed"]:
        killed.arm(request["killed"])
    try:
        return main(request["words"])
    except Exception:
        traceback.print_exc()
        return 1


def _end(status: int) -> NoReturn:
    """As an interpreter ends (Py_FinalizeEx), but for its objects."""
    threading._shutdown()  # type: ignore[attr-defined]
    atexit._run_exitfuncs()
    for stream in (sys.stdout, sys.stderr):
        # what cannot be written makes the status 120 there; a stream that storkit has closed is left out
        try:
            if not stream.closed:
                stream.flush()
        except OSError:
            status = 120
    os._exit(status)


if __name__ == "__main__":
    sys.exit(serve())
