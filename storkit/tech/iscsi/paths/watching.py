"""The program that has lost paths used again, started by `watch`: it waits for the kernel's word that a path failed,
and looks every other second whether its session goes on. The kernel has no event of that.
"""

from __future__ import annotations

import os
from contextlib import suppress
from pathlib import Path
from typing import Any

from storkit.core.backend import Site
from storkit.core.errors import StorkitError, TimedOut
from storkit.system.block import udev
from storkit.system.files import write_atomic
from storkit.tech.iscsi.attach import IscsiAttachments
from storkit.tech.iscsi.names import IscsiSettings

SOON, LATE = 1.0, 30.0
"""Seconds until the next look while something is lost, and while nothing is known to be."""


def main(told: dict[str, Any], pid: str) -> None:
    where = told["site"]
    site = Site(where["host"], Path(where["state"]), Path(where["run"]), Path(where["dev"]), where["address"])
    os.chdir("/")
    write_atomic(Path(pid), f"{os.getpid()}\n")
    watch(IscsiAttachments(site, IscsiSettings(**told["settings"])))


def watch(attachments: IscsiAttachments) -> None:
    """Never ends: the last detach ends it."""
    with udev.Watch("block", processed=False) as events:
        while True:
            lost = [uuid for uuid in attachments.of_several_paths() if not mended(attachments, uuid)]
            with suppress(TimedOut, OSError):  # ENOBUFS: events were lost
                events.wait(_failed, SOON if lost else LATE, "a path that failed")


def mended(attachments: IscsiAttachments, uuid: str) -> bool:
    try:
        return attachments.mend(uuid)
    except (StorkitError, OSError):
        return False  # another command has it, or it is lost again


def _failed(device: Any) -> bool:
    return bool(device.properties.get("DM_ACTION") == "PATH_FAILED")
