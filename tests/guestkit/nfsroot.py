"""The tiny Linux guest of linux.py with its root on an NFS server: a kernel, an initramfs, and a tar of the root.

python -m tests.guestkit.nfsroot OUTDIR     makes vmlinuz, initrd and root.tar there
"""

from __future__ import annotations

import sys
import tarfile
from pathlib import Path

from tests.guestkit import linux

HERE = Path(__file__).parent
MODULES = (
    *(module for module in linux.MODULES if "block" not in module),
    "net/core/failover",
    "drivers/net/net_failover",
    "drivers/net/virtio_net",
    "drivers/net/xen-netfront",
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


def build() -> linux.Kit:
    """The files of the guest from the cache, built if they are not there yet."""
    recipe = [HERE / name for name in ("linux.py", "nfsroot.py", "nfsroot.initramfs", "init.root")]
    target = linux.cached("nfsroot", recipe, _build)
    return linux.Kit(target / "vmlinuz", target / "initrd", target / "root.tar")


def _build(scratch: Path, done: Path) -> None:
    tree = scratch / "root"
    linux.tree(tree, linux.boot_files(scratch, done, HERE / "nfsroot.initramfs", MODULES))
    with tarfile.open(done / "root.tar", "w") as archive:
        archive.add(tree, ".", filter=_owned_by_root)


def _owned_by_root(member: tarfile.TarInfo) -> tarfile.TarInfo:
    member.uid = member.gid = 0
    member.uname = member.gname = "root"
    return member


if __name__ == "__main__":
    raise SystemExit(linux.hand_out(build, sys.argv[1:]))
