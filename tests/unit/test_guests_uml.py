"""User-Mode Linux boots with what is rendered for it: a guest whose init reads its disks, and halts."""

from __future__ import annotations

import os
import shutil
from pathlib import Path

import pytest

from storkit.core.guest import Boot, Disk, Guest
from storkit.core.model import DiskSource
from storkit.guests.place import Place
from storkit.guests.render import read_args, render
from storkit.system.run import run, which
from tests import xstate

BUSYBOX = Path("/bin/busybox")
INIT = """#!/bin/busybox sh
/bin/busybox mount -t proc proc /proc
echo "memory: $(/bin/busybox awk '/MemTotal/ { print int($2 / 1024) }' /proc/meminfo)"
echo "words: $(/bin/busybox cat /proc/cmdline)"
echo "data: $(/bin/busybox head -c 9 /dev/ubdb)"
echo x 2>/dev/null >/dev/ubdb && echo "data: written" || echo "data: read-only"
/bin/busybox poweroff -f
"""


@pytest.mark.skipif(
    not (which("linux.uml") and which("mke2fs") and BUSYBOX.exists()),
    reason="linux.uml, mke2fs or busybox is not installed (user-mode-linux, e2fsprogs, busybox-static)",
)
def test_a_guest_boots_from_its_disks(tmp_path: Path) -> None:
    root = tmp_path / "root"
    for name in ("bin", "dev", "proc"):
        (root / name).mkdir(parents=True)
    shutil.copy(BUSYBOX, root / "bin" / "busybox")
    (root / "init").write_text(INIT)
    (root / "init").chmod(0o755)
    image, data = tmp_path / "root.img", tmp_path / "data=1.img"
    run(["mke2fs", "-q", "-t", "ext4", "-d", root, image, "16M"])
    data.write_bytes(b"storkit!\n".ljust(1024**2, b"\0"))
    guest = Guest(
        name=f"storkit-test-{os.getpid()}",
        uuid="a8098c1a-f86e-41da-bd1a-00112444be1e",
        memory=256 * 1024**2,
        hypervisor="uml",
        boot=Boot(cmdline="root=/dev/ubda ro quiet init=/init a='b c'"),
        disks=[Disk("root"), Disk("data", readonly=True)],
        console="/var/log/console",
    )
    disks = [DiskSource("file", str(image)), DiskSource("file", str(data))]
    args = read_args(render(guest, disks, place=Place(uml_dir=str(tmp_path))))
    environment = {"TMPDIR": str(tmp_path)}
    if xstate.needed():
        if not xstate.compiler():
            pytest.skip("linux.uml needs a library on a processor with AMX, and no C compiler is installed (tcc)")
        environment["LD_PRELOAD"] = str(xstate.build(tmp_path))
    seen = run(args, timeout=120, env=environment, ok=range(256)).stdout
    assert "data: storkit!" in seen
    assert "data: read-only" in seen
    assert "a='b c'" in seen
    # the kernel itself, and up to 32 MiB of a randomised program break, come off
    assert any(200 <= int(line.split()[-1]) <= 256 for line in seen.splitlines() if line.startswith("memory:")), seen
    assert data.read_bytes().startswith(b"storkit!\n")
