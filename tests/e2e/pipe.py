"""An agent at the other end of a pipe, asked for whatever a coordinator could write there."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path
from types import TracebackType
from typing import Any

from storkit.hosts.remote.wire import hello
from tests.e2e.world import ROOT


class Pipe:
    """`storkit agent OPTIONS`, told `setup`. It ends with the block."""

    def __init__(self, setup: dict[str, Any], *options: str) -> None:
        self._process = subprocess.Popen(
            [sys.executable, "-m", "storkit", "agent", *options],
            stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True, cwd=ROOT,
        )  # fmt: skip
        self._number = 0
        self.welcome = self._say({**hello(), "setup": setup})

    def __enter__(self) -> Pipe:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, at: TracebackType | None) -> None:
        self._process.communicate(timeout=60)

    def ask(self, **request: Any) -> dict[str, Any]:
        """The answer to a request, with `result` or `error`."""
        self._number += 1
        return self._say({"id": self._number, **request})

    def call(self, target: str, verb: str, **args: Any) -> dict[str, Any]:
        return self.ask(do="call", target=target, verb=verb, args=args)

    def _say(self, message: dict[str, Any]) -> dict[str, Any]:
        assert self._process.stdin and self._process.stdout
        self._process.stdin.write(json.dumps(message) + "\n")
        self._process.stdin.flush()
        while True:
            answer: dict[str, Any] = json.loads(self._process.stdout.readline())
            if not answer.keys() & {"progress", "moved"}:
                return answer


def content(directory: Path) -> dict[str, tuple[int, bytes]]:
    """Everything below a directory: mode and bytes of each file (a link's target), by its path."""
    found = {}
    for path in sorted(directory.rglob("*")):
        data = str(path.readlink()).encode() if path.is_symlink() else path.read_bytes() if path.is_file() else b""
        found[str(path.relative_to(directory))] = (path.lstat().st_mode, data)
    return found
