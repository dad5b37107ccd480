"""Directory pools for tests, and what is in them."""

from __future__ import annotations

import subprocess
from dataclasses import replace
from pathlib import Path
from typing import Any
from uuid import uuid4

from storkit.core.backend import Site
from storkit.core.model import Volume
from storkit.directory import Directory, DirectorySettings

MIB = 1 << 20
SIZE = 4 * MIB


def new(name: str, size: int = SIZE, **more: str) -> Volume:
    return Volume(name, str(uuid4()), size, **more)  # type: ignore[arg-type]


def pool_at(path: Path, format: str = "raw", base: Path | None = None, **options: Any) -> Directory:
    base = base or path.parent
    path.mkdir(exist_ok=True)
    site = Site("here", base / "state", base / "run", base / "dev", **options)
    return Directory(site, DirectorySettings(path=str(path), format=format))  # type: ignore[arg-type]


def golden(pool: Directory, megabytes: int = 1) -> Volume:
    (volume,) = pool.create([new("golden")])
    command = f"write -P 7 0 {megabytes}M"
    subprocess.run(["qemu-io", "-f", volume.format, "-c", command, volume.path], check=True, capture_output=True)
    return pool.relabel([replace(volume, kind="image", made="imported")])[0]


def listing(pool: Directory) -> list[str]:
    return sorted(path.name for path in pool.path.iterdir() if path.name != ".storkit.lock")


def disk(path: Path, format: str) -> bytes:
    if format == "raw":
        return path.read_bytes()
    flat = path.with_name("flat")
    subprocess.run(["qemu-img", "convert", "-f", format, "-O", "raw", path, flat], check=True)
    data = flat.read_bytes()
    flat.unlink()
    return data
