"""The Xen lab: two dom0s in a lab's cell, on its networks, and the lab's own storage host."""

from __future__ import annotations

import io
import platform
import shutil
import subprocess
import tarfile
import tempfile
from collections.abc import Callable
from pathlib import Path

from tests.lab.errors import Unsupported
from tests.lab.host import Host
from tests.lab.image import TREE
from tests.lab.lab import Lab
from tests.lab.xen import frozen, image
from tests.lab.xen.dom0 import Dom0

_LABEL = "storkit"
_DISK = f"/dev/disk/by-label/{_LABEL}"
NAMES = {"h1": 31, "h2": 32}
"""The dom0s, each with the number in its addresses, which are frozen with it."""


def missing() -> str:
    """Why this machine, which can run the lab, cannot run this one, or nothing."""
    wanted = {
        "qemu-system-x86_64": "qemu-system-x86", "qemu-img": "qemu-utils", "busybox": "busybox-static",
    }  # fmt: skip
    absent = {package for tool, package in wanted.items() if not shutil.which(tool)}
    if absent:
        return f"the Xen lab needs packages that are not installed: apt-get install {' '.join(sorted(absent))}"
    release = platform.freedesktop_os_release().get("VERSION_CODENAME", "")
    if release != "bookworm":
        return f"the Xen lab is made of Debian 12's packages, and this machine's are those of {release or 'another'}"
    return ""


class XenLab:
    """`h1` and `h2`; each is off until `thaw`."""

    def __init__(self, lab: Lab, say: Callable[[str], None] = lambda text: None) -> None:
        """Make the image and the frozen hosts if they are not in the cache. Raises Unsupported."""
        if reason := missing():
            raise Unsupported(reason)
        self.lab = lab
        self._image = image.build(frozen.recipe(), say)
        self._tree: Path | None = None
        self.h1, self.h2 = (
            Dom0(lab.cell, name, index, self._image.path, self._wake) for name, index in NAMES.items()
        )  # fmt: skip
        lab.add(self.h1, self.h2)
        self._frozen = frozen.frozen(self._image, (self.h1, self.h2), say)

    def thaw(self, state: str = frozen.IDLE) -> tuple[Dom0, Dom0, Host]:
        """h1 and h2 as they were frozen, and s, which is up already or boots: all with fresh disks and healed networks.
        With `frozen.GUEST`, g1 runs on h1."""
        dom0s = (self.h1, self.h2)
        for host in dom0s:
            host.discard()
            host.frozen = self._frozen / state
            host.start()
        storage = self.lab.host("s")
        for host in dom0s:
            host.wait_until_up()
        return self.h1, self.h2, storage

    @property
    def guest_disk(self) -> Path:
        """The root disk of the guest that writes, to be copied: that of frozen.config()."""
        return self._image.path / "guest.img"

    def _wake(self) -> tuple[str, bytes]:
        keys = self.lab.shared / "ssh"
        buffer = io.BytesIO()
        with tarfile.open(fileobj=buffer, mode="w") as archive:
            for name in ("id_ed25519", "authorized_keys", "known_hosts", "host_key"):
                archive.add(keys / name, arcname=name)
        return (self.lab.shared / "hosts").read_text(), buffer.getvalue()

    def install(self, *hosts: Dom0) -> None:
        """Plug storkit's tree into dom0s as a disk, at /storkit, compiled: by the serial line, and by emulation, either
        would take minutes. After a boot it is mounted again."""
        if not self._tree:
            self._tree = self.lab.cell.path(self.lab.cell.run_dir / "storkit.ext4")
            _pack(self._tree)
        for host in hosts:
            if host.run(["test", "-e", _DISK], check=False).status:
                host.add_disk(self._tree.stat().st_size, self._tree)
            host.run(["sh", "-euc", f"mkdir -p /storkit; mountpoint -q /storkit || mount -o ro {_DISK} /storkit"])

    def close(self) -> None:
        for host in (self.h1, self.h2):
            host.discard()
        self._image.lock.close()


def _pack(file: Path) -> None:
    """Write what of the working tree runs as a file system, with its compiled code, which Debian's Python there takes
    as it is. What this machine's tests have compiled already is not compiled again."""
    with tempfile.TemporaryDirectory() as scratch:
        tree = Path(scratch)
        for name in ("storkit", "templates"):
            shutil.copytree(TREE / name, tree / name)
        compiling = ["/usr/bin/python3", "-m", "compileall", "-q", "-s", scratch, "-p", "/storkit", scratch]
        subprocess.run(compiling, check=True, timeout=300)
        file.unlink(missing_ok=True)
        making = ["mke2fs", "-q", "-t", "ext4", "-L", _LABEL, "-O", "^has_journal", "-d", scratch, str(file), "16M"]
        subprocess.run(making, check=True, timeout=300, stdout=subprocess.DEVNULL)
