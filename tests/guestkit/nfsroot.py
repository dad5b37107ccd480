"""The tiny Linux guest of linux.py with its root on an NFS server: a kernel, an initramfs, and a tar of the root.

python -m tests.guestkit.nfsroot OUTDIR     makes vmlinuz, initrd and root.tar there
"""

from __future__ import annotations

import shutil
import sys
import tarfile
from dataclasses import dataclass
from pathlib import Path

from tests.guestkit import linux

HERE = Path(__file__).parent
MODULES = (
    *(module for module in linux.MODULES if "block" not in module),
    "net/core/failover",
    "drivers/net/net_failover",
    "drivers/net/virtio_net",
    "net/sunrpc/sunrpc",
    "fs/nfs_common/grace",
    "fs/lockd/lockd",
    "fs/netfs/netfs",
    "fs/fscache/fscache",
    "fs/nfs/nfs",
    "net/dns_resolver/dns_resolver",
    "fs/nfs/nfsv4",
)
CMDLINE = linux.CMDLINE
MEMORY = "144MiB"


@dataclass(frozen=True)
class Kit:
    """The files of the guest; `root` is what becomes a tree."""

    kernel: Path
    initrd: Path
    root: Path


def build() -> Kit:
    """The files of the guest from the cache, built if they are not there yet."""
    recipe = [HERE / name for name in ("linux.py", "nfsroot.py", "nfsroot.initramfs", "init.root")]
    target = linux.cached("nfsroot", recipe, _build)
    return Kit(target / "vmlinuz", target / "initrd", target / "root.tar")


def _build(scratch: Path, done: Path) -> None:
    tree = scratch / "root"
    linux.tree(tree, linux.boot_files(scratch, done, HERE / "nfsroot.initramfs", MODULES))
    with tarfile.open(done / "root.tar", "w") as archive:
        archive.add(tree, ".", filter=_owned_by_root)


def _owned_by_root(member: tarfile.TarInfo) -> tarfile.TarInfo:
    member.uid = member.gid = 0
    member.uname = member.gname = "root"
    return member


def main(argv: list[str]) -> int:
    if len(argv) != 1:
        print("usage: python -m tests.guestkit.nfsroot OUTDIR", file=sys.stderr)
        return 2
    kit = build()
    out = Path(argv[0])
    out.mkdir(parents=True, exist_ok=True)
    for file in (kit.kernel, kit.initrd, kit.root):
        shutil.copyfile(file, out / file.name)
        print(out / file.name)
    return 0


if __name__ == "__main__":
    raise SystemExit(main(sys.argv[1:]))
