"""A Linux guest that has QEMU's own guest agent (Debian's qemu-ga) on its virtio-serial port, and a root on ext4.

python -m tests.guestkit.agent OUTDIR       makes vmlinuz, initrd and root.img there
"""

from __future__ import annotations

import re
import shutil
import sys
from pathlib import Path

from storkit.system.run import run
from tests.guestkit import linux

HERE = Path(__file__).parent
NET = ("net/core/failover", "drivers/net/net_failover", "drivers/net/virtio_net")
MODULES = (*linux.MODULES, "drivers/char/virtio_console", *NET)
PACKAGES = ("qemu-guest-agent", "libc6", "libglib2.0-0", "libnuma1", "libudev1", "liburing2", "libpcre2-8-0")
MEMORY = 160 << 20


def build() -> linux.Kit:
    """The files of the guest from the cache, built if they are not there yet."""
    recipe = [HERE / name for name in ("linux.py", "agent.py", "agent.initramfs", "agent.root")]
    target = linux.cached("agent", recipe, _build)
    return linux.Kit(target / "vmlinuz", target / "initrd", target / "root.img")


def _build(scratch: Path, done: Path) -> None:
    root = scratch / "tree"
    linux.tree(root, linux.boot_files(scratch, done, HERE / "agent.initramfs", MODULES))
    shutil.copyfile(HERE / "agent.root", root / "sbin/init")
    for name in PACKAGES:
        _copy(linux._fetch(name, scratch), root)
    run(
        ["mke2fs", "-q", "-t", "ext4", "-L", "root", "-E", "root_owner=0:0", "-d", root,
         done / "root.img", f"{linux.ROOT_SIZE >> 10}k"],
        package="e2fsprogs",
    )  # fmt: skip


def _copy(content: Path, root: Path) -> None:
    """The programs and libraries of a package that was taken apart."""
    wanted = re.compile(r"(usr/sbin/qemu-ga|.*/lib[^/]*\.so[.\d]*|.*/ld-linux-x86-64\.so\.2|lib64/.*)")
    for file in sorted(content.rglob("*")):
        path = file.relative_to(content)
        if file.is_dir() or not wanted.fullmatch(str(path)) or "gconv" in path.parts:
            continue
        place = root / (path if path.parts[0] != "usr" or path.parts[1] == "sbin" else Path(*path.parts[1:]))
        place.parent.mkdir(parents=True, exist_ok=True)
        shutil.copy2(file, place, follow_symlinks=False)


if __name__ == "__main__":
    raise SystemExit(linux.hand_out(build, sys.argv[1:]))
