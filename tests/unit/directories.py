"""Directory pools for tests, and what is in them."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from types import FrameType
from typing import Any
from uuid import uuid4

import storkit
from storkit.core.backend import Site
from storkit.core.model import Volume
from storkit.directory import Directory, DirectorySettings
from storkit.system import openers

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


def states(pool: Directory, act: Callable[[], Any]) -> list[Path]:
    """Copies of the pool's directory as a kill could have left it: one for each state between any two lines of
    storkit's code while `act` runs, but for those that look into /proc: they are many, and change nothing."""
    found: list[Path] = []
    last: list[Any] = []
    root = str(Path(storkit.__file__).parent)

    def entries() -> list[Any]:
        places = [each for place, _, _ in os.walk(pool.path) for each in os.scandir(place)]
        return sorted((each.path, (info := each.stat()).st_size, info.st_mtime_ns, info.st_ino) for each in places)

    def look(frame: FrameType, event: str, argument: Any) -> Any:
        if not frame.f_code.co_filename.startswith(root) or frame.f_code.co_filename == openers.__file__:
            return None
        now = entries()
        if not last or now != last[0]:
            last[:] = [now]
            copy = Path(tempfile.mkdtemp(prefix="state-", dir=pool.path.parent))
            found.append(copied(pool.path, copy))
        return look

    sys.settrace(look)
    try:
        act()
    finally:
        sys.settrace(None)
    return found


def copied(source: Path, target: Path) -> Path:
    """A copy of a directory, in which two names of one file are that as well."""
    first: dict[int, str] = {}

    def copy(one: str, other: str) -> None:
        known = first.setdefault(Path(one).stat().st_ino, other)
        shutil.copy2(one, other) if known == other else os.link(known, other)

    return Path(shutil.copytree(source, target, dirs_exist_ok=True, copy_function=copy))


def killed(pool: Directory, state: Path) -> Directory:
    """A pool in the state that a kill left, with every lock gone."""
    copy = state.with_name("killed")
    shutil.rmtree(copy, ignore_errors=True)
    copied(state, copy)
    return pool_at(copy, pool.settings.format)
