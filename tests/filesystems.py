"""Small file systems of a kind, for tests of what differs between them: shared blocks, and being full."""

from __future__ import annotations

import os
import shutil
import subprocess
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest


@contextmanager
def mounted(kind: str, at: Path, size: int) -> Iterator[Path]:
    """A fresh file system of `size` bytes mounted on the directory `at`; skips where this machine cannot."""
    if os.geteuid() != 0:
        pytest.skip("mounting needs root")
    image = at.with_name(f"{at.name}.{kind}")
    if kind == "tmpfs":
        subprocess.run(["mount", "-t", "tmpfs", "-o", f"size={size},mode=700", "none", at], check=True)
    else:
        if shutil.which(f"mkfs.{kind}") is None:
            pytest.skip(f"mkfs.{kind} is not installed")
        image.touch()
        os.truncate(image, size)
        subprocess.run([f"mkfs.{kind}", "-q", image], check=True, capture_output=True)
        done = subprocess.run(["mount", "-o", "loop", image, at], capture_output=True, text=True)
        if done.returncode:
            pytest.skip(f"no {kind} mount here: {done.stderr.strip()}")
    try:
        yield at
    finally:
        subprocess.run(["umount", at], check=True)
        image.unlink(missing_ok=True)
