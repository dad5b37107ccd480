"""Hooks of hypervisors, for whoever calls them, installs them and lets them ask."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Literal

if TYPE_CHECKING:
    from storkit.core.inventory import Inventory
    from storkit.hooks.admission import Admission, AdmitWish
    from storkit.hooks.install import Installed, InstallWish


def libvirt(words: tuple[str, str, str, str], xml: bytes, file: Path | None = None) -> None:
    """Do what libvirt's hook is called for. Raises StorkitError: the guest must not go on."""
    from storkit.hooks import libvirt
    from storkit.hooks.engine import PATIENCE, Hooks, deadline
    from storkit.system.timeouts import scaled

    with deadline(scaled(PATIENCE)):  # libvirt itself waits for as long as it takes
        libvirt.run(words, xml, lambda: Hooks.load(file))


def xen(event: Literal["add", "remove"], place: str, file: Path | None = None) -> None:
    """Attach a disk for xl, or give it up; `place` is its XENBUS_PATH. Raises StorkitError: it must not go on."""
    from storkit.hooks import xen
    from storkit.hooks.engine import deadline

    with deadline(xen.PATIENCE):
        xen.hook(event, place, file)


def install(wish: InstallWish) -> Installed:
    """Write this host's file, and the scripts that its hypervisors call."""
    from storkit.hooks.install import install

    return install(wish)


def status(file: Path | None = None) -> Installed:
    """What is installed on this host, and whether its managers answer."""
    from storkit.hooks.install import status

    return status(file)


def remove() -> list[str]:
    """Take the scripts away; the paths of what was there."""
    from storkit.hooks.install import remove

    return remove()


def admit(wish: AdmitWish, inventory: Inventory) -> Admission:
    """At a manager: let a host's hooks ask for volumes."""
    from storkit.hooks.admission import admit

    return admit(wish, inventory)
