"""The tiny Linux guest of linux.py with its root on an NFS server: a kernel, an initramfs, and a tar of the root.

python -m tests.guestkit.nfsroot OUTDIR     makes vmlinuz, initrd and root.tar there
"""

from __future__ import annotations

import hashlib
import os
import shutil
import sys
import tarfile
import tempfile
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
    cache = Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "storkit"
    digest = hashlib.sha256()
    for file in (HERE / "linux.py", HERE / "nfsroot.py", HERE / "nfsroot.initramfs", HERE / "init.root"):
        digest.update(file.read_bytes())
    target = cache / f"nfsroot-{digest.hexdigest()[:16]}"
    if not target.is_dir():
        cache.mkdir(mode=0o700, parents=True, exist_ok=True)
        with tempfile.TemporaryDirectory(prefix="building-", dir=cache) as scratch:
            done = _build(Path(scratch))
            try:
                done.rename(target)
            except OSError:
                if not target.is_dir():  # no other build was faster
                    raise
    return Kit(target / "vmlinuz", target / "initrd", target / "root.tar")


def _build(scratch: Path) -> Path:
    done = scratch / "done"
    done.mkdir()
    kernel = linux._fetch(linux._kernel_package(), scratch)
    busybox = linux._busybox(scratch)
    (vmlinuz,) = (kernel / "boot").glob("vmlinuz-*")
    shutil.copyfile(vmlinuz, done / "vmlinuz")
    (modules,) = (kernel / "lib/modules").iterdir()
    files = {
        "init": (0o755, (HERE / "nfsroot.initramfs").read_bytes()),
        "bin/busybox": (0o755, busybox),
        **{f"lib/{Path(name).name}.ko": (0o644, linux._module(modules / "kernel", name)) for name in MODULES},
    }
    (done / "initrd").write_bytes(b"".join(linux._cpio(["bin", "dev", "lib", "proc", "root"], files)))
    tree = scratch / "root"
    linux.tree(tree, busybox)
    with tarfile.open(done / "root.tar", "w") as archive:
        archive.add(tree, ".", filter=_owned_by_root)
    return done


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
