"""How storkit is called by what is not a person's shell: a hypervisor's script, or a hook that asks its own host."""

from __future__ import annotations

import os
import shutil
import sys
from pathlib import Path


def command() -> list[str]:
    """The command line of storkit: the program that is running, or the one on the PATH; a hypervisor has another."""
    running = Path(sys.argv[0])
    program = str(running) if running.name == "storkit" and os.access(running, os.X_OK) else shutil.which("storkit")
    return [str(Path(program).absolute())] if program else [sys.executable, "-m", "storkit"]
