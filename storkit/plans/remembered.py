"""What a coordinator remembers from one command to the next, below its state directory.

Nothing here is needed: a file that is missing, damaged or cannot be written never fails a command.
"""

from __future__ import annotations

import json
from collections.abc import Iterable
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from storkit.core.errors import StorkitError
from storkit.core.model import Volume
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


@dataclass(frozen=True, slots=True)
class Hint:
    """Where a volume was when its name was last looked up everywhere."""

    pool: str
    uuid: str


class Hints:
    """Volumes' names, and where each was last. A hint says whom to ask first, never what is true: what is found there
    counts only with the hint's UUID, and without hints all pools are asked."""

    MOST = 5000
    """How many are kept; the oldest go first."""

    def __init__(self, state: Path | None = None) -> None:
        self._path = state / "hints.json" if state else None
        self._hints: dict[str, Hint] | None = None
        self._new: dict[str, Hint | None] = {}

    def get(self, name: str) -> Hint | None:
        if self._hints is None:
            self._hints = self._read()
        return self._hints.get(name)

    def names(self) -> list[str]:
        """The names that there are hints for."""
        self.get("")
        return sorted(self._hints or ())

    def put(self, volumes: Iterable[Volume]) -> None:
        """Remember where these volumes are."""
        for volume in volumes:
            hint = Hint(volume.pool, volume.uuid)
            if self.get(volume.name) != hint:
                self._set(volume.name, hint)

    def drop(self, name: str) -> None:
        """What was remembered of a name is not true any more."""
        if self.get(name):
            self._set(name, None)

    def save(self) -> None:
        """Keep what has changed, beside what other commands have kept meanwhile."""
        if self._new and self._path:
            hints = self._read()
            for name, hint in self._new.items():
                hints.pop(name, None)
                if hint:
                    hints[name] = hint
            write(self._path, {name: [hint.pool, hint.uuid] for name, hint in list(hints.items())[-self.MOST :]})
            self._new.clear()

    def _set(self, name: str, hint: Hint | None) -> None:
        assert self._hints is not None
        self._new[name] = hint
        if hint:
            self._hints[name] = hint
        else:
            self._hints.pop(name, None)

    def _read(self) -> dict[str, Hint]:
        found = read(self._path) if self._path else None
        hints: dict[str, Hint] = {}
        for name, place in found.items() if isinstance(found, dict) else ():
            if isinstance(place, list) and len(place) == 2 and all(isinstance(word, str) for word in place):
                hints[name] = Hint(*place)
        return hints


def read(path: Path) -> Any:
    """The JSON value in a file; None if there is none that can be read."""
    with suppress(OSError, StorkitError, ValueError, RecursionError):
        return json.loads(files.read_plain(path, MAX_BYTES))
    return None


def write(path: Path, value: Any) -> None:
    """Replace a file, if that can be done."""
    with suppress(OSError, StorkitError):
        files.make_private(path.parent)
        files.write_atomic(path, json.dumps(value))
