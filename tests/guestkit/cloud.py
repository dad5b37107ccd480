"""A golden image as clouds have it: the one of tests.guestkit.debian, with Debian's cloud-init in it.

python -m tests.guestkit.cloud OUTDIR       makes vmlinuz, initrd and root.img there
"""

from __future__ import annotations

import sys
from pathlib import Path

from tests.guestkit import debian, linux

HERE = Path(__file__).parent
MODULES = (*debian.MODULES, "drivers/cdrom/cdrom", "fs/isofs/isofs")
PACKAGES = (*debian.PACKAGES, "cloud-init")
CMDLINE = debian.CMDLINE
MEMORY = "384MiB"
SIZE = "640M"
CONFIG = "datasource_list: [NoCloud]\\nlocale: false\\n"
"""It asks for no other data source, and makes no locales, for which nothing is installed."""


def build() -> linux.Kit:
    """The files of the guest from the cache, built if they are not there yet."""
    recipe = [HERE / name for name in ("linux.py", "debian.py", "cloud.py", "debian.initramfs")]
    target = linux.cached("cloud", recipe, _build)
    return linux.Kit(target / "vmlinuz", target / "initrd", target / "root.img")


def _build(scratch: Path, done: Path) -> None:
    # The seed disk is a CD's image, whose file system the kernel has as a module.
    init = scratch / "init"
    init.write_text((HERE / "debian.initramfs").read_text().replace(" virtio_net;", " virtio_net cdrom isofs;"))
    linux.boot_files(scratch, done, init, MODULES)
    own = f'printf "{CONFIG}" > "$1/etc/cloud/cloud.cfg.d/99-own.cfg"'
    debian.make_root(scratch, done, PACKAGES, SIZE, [own])


if __name__ == "__main__":
    raise SystemExit(linux.hand_out(build, sys.argv[1:]))
