"""configfs(5): kernel objects that are made by directories and links, set by files; and the modules behind them."""

from __future__ import annotations

import contextlib
import os
from pathlib import Path

from storkit.core.errors import CommandFailed, Unsupported
from storkit.system.run import run

CONFIGFS = Path("/sys/kernel/config")


def mount(kind: str) -> None:
    """Have configfs mounted, unless the subsystem `kind` is there already."""
    if (CONFIGFS / kind).is_dir() or os.path.ismount(CONFIGFS):
        return
    if not CONFIGFS.is_dir():
        modprobe("configfs")
    run(["mount", "-t", "configfs", "configfs", CONFIGFS], package="mount")


def modprobe(module: str) -> None:
    try:
        run(["modprobe", module], package="kmod")
    except CommandFailed as error:
        hint = "install the kernel's full set of modules (Debian: linux-image-amd64, not -cloud); modinfo " + module
        raise Unsupported(f"the kernel module {module} cannot be loaded: {error.stderr}", hint) from error


def entries(directory: Path) -> list[str]:
    try:
        return [entry.name for entry in os.scandir(directory)]
    except FileNotFoundError:
        return []


def rmdir(path: Path) -> None:
    with contextlib.suppress(FileNotFoundError):
        path.rmdir()


def read(path: Path) -> str:
    """An attribute's text; empty if it is not there."""
    try:
        return path.read_text().strip()
    except FileNotFoundError:
        return ""


def write(path: Path, text: str) -> None:
    """One write(2): an attribute is stored by each."""
    descriptor = os.open(path, os.O_WRONLY | os.O_CLOEXEC)
    try:
        os.write(descriptor, text.encode())
    except OSError as error:
        error.filename = str(path)
        raise
    finally:
        os.close(descriptor)


def put(path: Path, value: str) -> None:
    """Write an attribute unless it is so already: some refuse to be written while in use."""
    if read(path) != value:
        write(path, value)
