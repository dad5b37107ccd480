"""What storkit's contract tests need to try this transport: two hosts on one machine (tests/contract/rig.py)."""

from __future__ import annotations

import os
import shutil
import signal
import subprocess
import tempfile
import uuid
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

import pytest

from storkit.core.backend import Site
from storkit.core.model import Attachment, Client, Volume
from storkit.system import locks
from storkit_nbdkit import Nbdkit, NbdkitSettings
from tests.contract.rig import Rig, RigSetup, wait_until


class NbdkitRig(Rig):
    def __init__(self, root: Path, same_machine: bool) -> None:
        self._root = root
        self.home, self.far = self._host("a"), self._host("b")
        self.a, self.b = Client("a", True), Client("b", same_machine)

    def _host(self, name: str) -> Nbdkit:
        for directory in ("state", "run", "dev"):
            (self._root / name / directory).mkdir(parents=True)
        base = self._root / name
        return Nbdkit(Site(name, base / "state", base / "run", base / "dev", "127.0.0.1"), NbdkitSettings())

    def volume(self, name: str, size: int = 16 << 20, **fields: Any) -> Volume:
        path = self._root / f"{name}.raw"
        path.touch()
        os.truncate(path, size)
        return Volume(name, str(uuid.uuid4()), size, "pool", "a", format="raw", path=str(path), **fields)

    def grow(self, volume: Volume, size: int) -> Volume:
        os.truncate(volume.path, size)
        return replace(volume, size=size)

    def kill_servers(self) -> None:
        for pid in self._servers():
            os.kill(pid, signal.SIGKILL)
        wait_until(lambda: not any(map(locks.held, self._root.rglob("*.lock"))))

    def _servers(self) -> list[int]:
        found = subprocess.run(["pgrep", "-f", f"nbdkit .*{self._root}/"], capture_output=True, text=True, check=False)
        return [int(pid) for pid in found.stdout.split()]

    def disconnect(self, attachment: Attachment) -> None:
        Path(attachment.path).unlink()

    def leftovers(self) -> list[str]:
        left = [f"process {pid}" for pid in self._servers()]
        for path in self._root.glob("[ab]/**/*"):
            if (path.is_symlink() or not path.is_dir()) and path.parent.name != "use":
                left.append(str(path))
        return left


@contextmanager
def _rig(same_machine: bool) -> Iterator[Rig]:
    if shutil.which("nbdkit") is None:
        pytest.skip("nbdkit is not installed")
    root = Path(tempfile.mkdtemp(prefix="kit", dir="/tmp"))  # a short path, for Unix sockets
    rig = NbdkitRig(root, same_machine)
    try:
        yield rig
    finally:
        rig.kill_servers()
        shutil.rmtree(root)


def setups() -> dict[str, RigSetup]:
    return {"unix": partial(_rig, True), "psk": partial(_rig, False)}
