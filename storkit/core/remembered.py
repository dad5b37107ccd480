"""What a coordinator remembers from one command to the next, below its state directory.

Nothing here is needed: a file that is missing, damaged or cannot be written never fails a command.
"""

from __future__ import annotations

import json
from contextlib import suppress
from pathlib import Path
from typing import Any

from storkit.core.errors import StorkitError
from storkit.system import files

MAX_BYTES = 4 << 20
"""A larger file is not ours."""


class Named:
    """Host URLs that were named on this machine's command line to be given a disk.

    A host may call the client of an export what it likes. A URL among these names is believed to be a host only if
    somebody here has said so; any other is shown, and never connected to.
    """

    def __init__(self, state: Path) -> None:
        self._path = state / "hosts.json"
        self._urls: dict[str, None] | None = None

    def __contains__(self, url: object) -> bool:
        return url in self._known()

    def add(self, url: str) -> None:
        known = self._known()
        if url not in known:
            known[url] = None
            write(self._path, list(known))

    def _known(self) -> dict[str, None]:
        if self._urls is None:
            found = read(self._path)
            urls = found if isinstance(found, list) else []
            self._urls = dict.fromkeys(url for url in urls if isinstance(url, str))
        return self._urls


def read(path: Path) -> Any:
    """The JSON value in a file; None if there is none that can be read."""
    with suppress(OSError, ValueError, RecursionError):
        if path.stat().st_size <= MAX_BYTES:
            return json.loads(path.read_bytes())
    return None


def write(path: Path, value: Any) -> None:
    """Replace a file, if that can be done."""
    with suppress(OSError, StorkitError):
        files.make_private(path.parent)
        files.write_atomic(path, json.dumps(value))
