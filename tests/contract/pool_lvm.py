"""LVM pools to test, thin and thick. They need device-mapper: tests/lab/test_contract_pools.py runs these tests in a
host of the lab, where LAB_LVM_DISK names a disk that may be overwritten; elsewhere there are none."""

from __future__ import annotations

import os
import subprocess
from collections.abc import Iterator
from contextlib import AbstractContextManager, contextmanager
from dataclasses import replace
from functools import cache, partial
from pathlib import Path
from typing import Any

from storkit.core.backend import Pool
from storkit.core.model import Volume
from storkit.lvm import LvmSettings

VG = "contract"


@cache
def _prepare() -> None:
    """The volume group, once: it goes with the host of the lab."""
    _lvm("vgcreate", "-y", VG, os.environ["LAB_LVM_DISK"])
    _lvm("lvcreate", "-y", "--type", "thin-pool", "-L", "1G", "-n", "pool", VG)


@contextmanager
def _group(thin: bool, place: Path) -> Iterator[LvmSettings]:
    _prepare()
    try:
        yield LvmSettings(vg=VG, thinpool="pool" if thin else "")
    finally:
        if any(Path("/dev", VG).glob("*")):  # a link to each active volume; the thin pool has none
            _lvm("lvremove", "-y", "--select", "lv_name!=pool", VG)


def _lvm(*argv: str) -> None:
    done = subprocess.run(argv, capture_output=True, text=True)
    assert done.returncode == 0, f"{argv}: {done.stderr}"


def setups() -> dict[str, Any]:
    if "LAB_LVM_DISK" not in os.environ:
        return {}
    variants: dict[str, AbstractContextManager[Any] | Any] = {"thin": partial(_group, True)}
    return variants | {"thick": partial(_group, False)}


def damage(pool: Pool, volume: Volume) -> None:
    _lvm("lvchange", "-y", "--deltag", f"storkit.uuid={volume.uuid}", f"{VG}/{volume.name}")


def missing(settings: LvmSettings) -> LvmSettings:
    return replace(settings, vg="not-there")


def stranger(pool: Pool, name: str, size: int) -> str:
    """A logical volume of zeros."""
    settings: LvmSettings = pool.settings
    thin, thick = ["-V", f"{size}b", "-T", f"{VG}/pool"], ["-Wn", "-Zn", "-L", f"{size}b", VG]
    _lvm("lvcreate", "-y", "-n", name, *(thin if settings.thinpool else thick))
    path = f"/dev/{VG}/{name}"
    with Path(path).open("wb") as device:
        device.write(bytes(size))
    return path
