"""The kernel's target subsystem (LIO): its modules, its lock, its places in configfs(5) (target_core_mod)."""

from __future__ import annotations

import contextlib
import os
from collections.abc import Iterator
from pathlib import Path

from storkit.system.block import configfs
from storkit.system.block.configfs import CONFIGFS, modprobe, read, write
from storkit.system.files import make_private
from storkit.system.locks import acquire
from storkit.system.timeouts import scaled

TARGET = CONFIGFS / "target"
FABRIC = TARGET / "iscsi"
CORE = TARGET / "core"
DATABASES = (Path("/etc/rtslib-fb-target"), Path("/etc/target"), Path("/var/target"))
"""Where Debian's rtslib puts the target's database, rtslib's own and recent kernels' place, older kernels'."""
LOCK = Path("/run/storkit/lio.lock")
"""One for the machine: all storkit processes share its kernel's target, whatever directory their host's state is in."""
LOCK_WAIT = scaled(600.0)
MODULES = ("target_core_mod", "target_core_iblock", "iscsi_target_mod")


@contextlib.contextmanager
def lock() -> Iterator[None]:
    """Keep other storkit processes from changing this machine's targets and their save file meanwhile."""
    make_private(LOCK.parent)
    held = acquire(LOCK, "the iSCSI target of this machine", holder=f"process {os.getpid()}", wait=LOCK_WAIT)
    try:
        yield
    finally:
        held.release()


def prepare(save_directory: Path) -> None:
    """Load the target's modules and give it its database's directories. Raises Unsupported, naming what is missing.

    The kernel chooses /etc/target if it is there when the first module is loaded; it is told `save_directory`, where
    rtslib would move it, as long as no fabric is registered: reservations that survive a restart are kept there.
    """
    configfs.mount("target")
    if not FABRIC.is_dir():
        for kind in ("pr", "alua"):
            (save_directory / kind).mkdir(mode=0o700, parents=True, exist_ok=True)
        modprobe(MODULES[0])
        with contextlib.suppress(OSError):  # in use already: it stays where it is
            write(TARGET / "dbroot", str(save_directory))
        for module in MODULES[1:]:
            modprobe(module)
        FABRIC.mkdir(exist_ok=True)
    elif not Path("/sys/module/target_core_iblock").is_dir():
        modprobe("target_core_iblock")
    root = database()
    for kind in ("pr", "alua"):
        (root / kind).mkdir(mode=0o700, parents=True, exist_ok=True)


def database() -> Path:
    """Where the kernel keeps reservations that survive a restart."""
    return Path(read(TARGET / "dbroot") or DATABASES[-1])


def databases() -> list[Path]:
    """That, and where it may have been before the last boot."""
    return list(dict.fromkeys([database(), *DATABASES]))
