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
        self._tree = b""
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
        """Put storkit's tree on dom0s, below /storkit, compiled: by emulation that would take minutes."""
        if not self._tree:
            self._tree = _packed()
        for host in hosts:
            host.put(self._tree, "/tmp/storkit.tar.gz")
            host.run(["sh", "-euc", "mkdir -p /storkit; tar -xf /tmp/storkit.tar.gz -C /storkit; rm /tmp/storkit*"])

    def close(self) -> None:
        for host in (self.h1, self.h2):
            host.discard()
        self._image.lock.close()


def _packed() -> bytes:
    """What of the working tree runs, with its compiled code, which Debian's Python there takes as it is."""
    with tempfile.TemporaryDirectory() as scratch:
        tree = Path(scratch)
        for name in ("storkit", "templates"):
            shutil.copytree(TREE / name, tree / name, ignore=shutil.ignore_patterns("__pycache__"))
        subprocess.run(
            ["/usr/bin/python3", "-m", "compileall", "-q", "--invalidation-mode", "unchecked-hash", "-s", scratch,
             "-p", "/storkit", scratch],
            check=True, timeout=300,
        )  # fmt: skip
        buffer = io.BytesIO()
        with tarfile.open(fileobj=buffer, mode="w:gz", compresslevel=6) as archive:
            archive.add(tree, arcname=".")
    return buffer.getvalue()
