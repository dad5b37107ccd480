"""NFS pools to test: a directory of volume files as any, until a volume is exported."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any, Literal

from storkit.core.backend import Pool
from storkit.core.model import Volume
from storkit.nfs import NfsPoolSettings
from tests.filesystems import mounted


@contextmanager
def _on(kind: str, format: Literal["raw", "qcow2"], place: Path) -> Iterator[NfsPoolSettings]:
    with mounted(kind, place, 320 << 20) as path:
        yield NfsPoolSettings(path=str(path), format=format)


def setups() -> dict[str, Any]:
    return {f"{format}-xfs": partial(_on, "xfs", format) for format in ("raw", "qcow2")}


def damage(pool: Pool, volume: Volume) -> None:
    Path(volume.path).with_suffix(".json").write_text('{"version": 1, "volume": ')


def missing(settings: NfsPoolSettings) -> NfsPoolSettings:
    return replace(settings, path=f"{settings.path}/not-mounted")


def stranger(pool: Pool, name: str, size: int) -> str:
    """A file of zeros; `web` lies under the name that a volume's has."""
    directory = Path(pool.settings.path)
    path = directory / "web.raw" if name == "web" else directory / "strays" / f"{name}.img"
    path.parent.mkdir(mode=0o700, exist_ok=True)
    with path.open("wb") as file:
        file.truncate(size)
    path.chmod(0o600)
    return str(path)
