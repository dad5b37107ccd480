"""The modules that this host's kernel has (modules.dep(5))."""

from __future__ import annotations

import platform
from pathlib import Path


def there(name: str) -> bool:
    """Whether a module is loaded, built in, or can be loaded."""
    wanted = name.replace("-", "_")  # the same to modprobe(8), and files have either
    if Path("/sys/module", wanted).exists():
        return True
    directory = Path("/lib/modules", platform.release())
    for index in ("modules.dep", "modules.builtin"):
        path = directory / index
        if path.exists() and f"/{wanted}.ko" in path.read_text().replace("-", "_"):
            return True
    return False
