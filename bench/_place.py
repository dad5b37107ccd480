"""Fresh file systems to measure on."""

from __future__ import annotations

import os
import shutil
import subprocess
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path


def possible() -> bool:
    """Whether file systems can be made and mounted here."""
    return os.geteuid() == 0 and shutil.which("mkfs.ext4") is not None and shutil.which("mkfs.xfs") is not None


@contextmanager
def fresh(kind: str, base: Path, size: int = 32 << 30) -> Iterator[Path]:
    """A new file system in a sparse file below `base`, so that what was on the disk before has no say."""
    image, place = base / f"{kind}.image", base / kind
    image.touch()
    os.truncate(image, size)
    place.mkdir()
    subprocess.run([f"mkfs.{kind}", "-q", image], check=True)
    subprocess.run(["mount", "-o", "loop", image, place], check=True)
    try:
        yield place
    finally:
        subprocess.run(["umount", place], check=True)
        image.unlink()


def file_system(path: Path) -> str:
    """The type of the file system that a directory is on."""
    argv = ["findmnt", "-n", "-o", "FSTYPE", "-T", str(path)]
    return subprocess.run(argv, check=True, capture_output=True, text=True).stdout.strip()
