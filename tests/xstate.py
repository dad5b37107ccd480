"""What lets linux.uml run on this machine's processor: xstate.c says what it is about."""

from __future__ import annotations

import shutil
import subprocess
from pathlib import Path

LIBRARY = "xstate.so"
SOURCE = Path(__file__).with_name("xstate.c")


def needed() -> bool:
    return "amx_tile" in Path("/proc/cpuinfo").read_text().split()


def compiler() -> str | None:
    return next(filter(None, map(shutil.which, ("cc", "gcc", "tcc"))), None)


def build(directory: Path) -> Path:
    """The library, made in this directory; LD_PRELOAD is for its path."""
    library, program = directory / LIBRARY, compiler()
    assert program, "no C compiler: apt install tcc"
    subprocess.run(
        [program, "-nostdlib", "-shared", "-fPIC", "-o", str(library), str(SOURCE)], check=True, capture_output=True
    )
    return library
