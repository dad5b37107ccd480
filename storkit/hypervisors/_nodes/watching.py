"""What `watch` starts: it waits for the kernel's word of a node, and has NodeMirrors look."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

from storkit.core.backend import Site
from storkit.core.errors import StorkitError
from storkit.hypervisors._nodes.mirroring import NodeMirrors
from storkit.system.block import dmioctl
from storkit.system.files import write_atomic

LATE = 2.0
"""Seconds until the next look where the kernel says nothing: of a command that was killed it has no word."""


def main(told: dict[str, Any], pid: str) -> None:
    where = told["site"]
    site = Site(where["host"], Path(where["state"]), Path(where["run"]), Path(where["dev"]), where["address"])
    os.chdir("/")
    write_atomic(Path(pid), f"{os.getpid()}\n")
    mirrors, disk = NodeMirrors(site, told["hypervisor"]), told["disk"]
    with dmioctl.events() as wait:
        while needed(mirrors, disk):
            wait(LATE)


def needed(mirrors: NodeMirrors, disk: str) -> bool:
    """Whether there is anything left to watch."""
    try:
        return mirrors.look(disk)
    except (StorkitError, OSError):
        return True  # a command has it, or device-mapper is busy: it is looked at again soon
