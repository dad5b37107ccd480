"""Directory pools to test: both formats, where blocks cannot be shared and where they can."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import AbstractContextManager, contextmanager
from functools import partial
from pathlib import Path
from typing import Any, Literal

from storkit.directory import DirectorySettings
from tests.filesystems import mounted


@contextmanager
def _on(kind: str, format: Literal["raw", "qcow2"], place: Path) -> Iterator[DirectorySettings]:
    with mounted(kind, place, 320 << 20) as path:
        yield DirectorySettings(path=str(path), format=format)


def setups() -> dict[str, Any]:
    made: dict[str, Any] = {}
    for kind in ("tmpfs", "xfs"):
        for format in ("raw", "qcow2"):
            setup: AbstractContextManager[Any] | Any = partial(_on, kind, format)
            made[f"{format}-{kind}"] = setup
    return made
