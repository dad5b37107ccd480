"""NFS pools to test: a directory of volume files as any, until a volume is exported."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any, Literal

from storkit.nfs import NfsPoolSettings
from tests.contract.pool_directory import damage as damage
from tests.contract.pool_directory import stranger as stranger
from tests.filesystems import mounted


@contextmanager
def _on(kind: str, format: Literal["raw", "qcow2"], place: Path) -> Iterator[NfsPoolSettings]:
    with mounted(kind, place, 320 << 20) as path:
        yield NfsPoolSettings(path=str(path), format=format)


def setups() -> dict[str, Any]:
    return {f"{format}-xfs": partial(_on, "xfs", format) for format in ("raw", "qcow2")}


def missing(settings: NfsPoolSettings) -> NfsPoolSettings:
    return replace(settings, path=f"{settings.path}/not-mounted")
