"""What `host check` reports of a machine."""

from __future__ import annotations

import os
import platform
import time
from pathlib import Path
from typing import Any

import storkit
from storkit.core import registry
from storkit.core.backend import Backend
from storkit.core.errors import NotAllowed
from storkit.hosts.site import Performer
from storkit.system.run import which


def gather(performer: Performer) -> dict[str, Any]:
    """Versions, clock, and what the backends in use on this host want and do not find.

    `clock` is seconds since the epoch; `missing` lists backend, program or module, and the package that has it;
    `refused` what this host does not accept of what it was told (errors).
    """
    setup = performer.setup
    in_use: dict[str, type[Backend]] = {}
    for pool in setup.pools.values():
        in_use[pool.type] = registry.pool(pool.type)
    for target in setup.served_by:
        name = target.partition(":")[2]
        in_use.setdefault(name, registry.transport(name))
    for name in setup.runs:
        in_use.setdefault(name, registry.hypervisor(name))
    missing = [
        {"backend": name, "needs": tool, "package": package}
        for name, backend in sorted(in_use.items())
        for tool, package in backend.needs.tools.items()
        if which(tool) is None
    ]
    missing += [
        {"backend": name, "needs": f"kernel module {module}", "package": ""}
        for name, backend in sorted(in_use.items())
        for module in backend.needs.modules
        if not _has_module(module)
    ]
    refused = []
    for target in (
        *(f"pool:{name}" for name in setup.pools),
        *setup.served_by,
        *(f"hypervisor:{name}" for name in setup.runs),
    ):
        try:
            performer.backend(target)
        except NotAllowed as error:
            refused.append(error.to_json())
    return {
        "version": storkit.__version__,
        "python": platform.python_version(),
        "kernel": platform.release(),
        "clock": time.time(),
        "root": os.geteuid() == 0,
        "state": str(performer.site.state),
        "missing": missing,
        "refused": refused,
    }


def _has_module(name: str) -> bool:
    wanted = name.replace("-", "_")  # the same to modprobe(8), and files have either
    if Path("/sys/module", wanted).exists():
        return True
    directory = Path("/lib/modules", platform.release())
    for index in ("modules.dep", "modules.builtin"):
        path = directory / index
        if path.exists() and f"/{wanted}.ko" in path.read_text().replace("-", "_"):
            return True
    return False
