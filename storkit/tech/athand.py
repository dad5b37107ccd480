"""Volumes that are to be opened by their paths."""

from __future__ import annotations

from collections.abc import Iterable
from pathlib import Path

from storkit.core.model import Volume


def at_hand(volumes: Iterable[Volume]) -> None:
    """See that the paths of volumes are there: those of LVM have no device since the last boot, until they are asked
    for. Raises as storkit.tech.lvm.tools.activate."""
    if missing := [volume for volume in volumes if volume.path and not Path(volume.path).exists()]:
        from storkit.tech.lvm import tools

        tools.activate(missing)
