"""A tiny Linux guest: Debian's cloud kernel, busybox, and a root disk to whose file it appends numbered lines.

    python -m tests.guestkit.linux OUTDIR       makes vmlinuz, initrd and root.img there

Needs apt, dpkg-deb and mke2fs, no root, and installs nothing: the packages come from the machine's own registries.
What is built is kept below $XDG_CACHE_HOME/storkit, by a hash of everything in this directory that goes into it.
"""

from __future__ import annotations

import hashlib
import os
import shutil
import stat
import sys
import tempfile
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path

from storkit.core.errors import Unsupported
from storkit.core.guest import Boot, Disk, Guest
from storkit.system.run import run

HERE = Path(__file__).parent
KERNEL_PACKAGE = "linux-image-cloud-amd64"
MODULES = (
    "drivers/virtio/virtio",
    "drivers/virtio/virtio_ring",
    "drivers/virtio/virtio_pci_modern_dev",
    "drivers/virtio/virtio_pci_legacy_dev",
    "drivers/virtio/virtio_pci",
    "drivers/block/virtio_blk",
    "drivers/input/evdev",
    "drivers/acpi/button",
)
ROOT_SIZE = 64 << 20
MEMORY = 112 << 20
CMDLINE = "console=ttyS0 quiet no_timer_check tsc_early_khz=2000000 mitigations=off nokaslr panic=-1"
"""The timer options keep a kernel under TCG from calibrating its clocks against a translator that is at work."""


@dataclass(frozen=True)
class Kit:
    """The files of a guest. `root` is a template: copy it before a guest writes to it."""

    kernel: Path
    initrd: Path
    root: Path


def guest(kit: Kit, name: str, uuid: str, disk: Disk, console: str = "") -> Guest:
    """The guest's record, with `disk` as its root disk."""
    boot = Boot(str(kit.kernel), str(kit.initrd), CMDLINE)
    return Guest(name, uuid, MEMORY, machine="pc", boot=boot, disks=[disk], console=console)


def build() -> Kit:
    """The files of the guest from the cache, built if they are not there yet."""
    target = cached("guest", sorted([*HERE.glob("init.*"), HERE / "linux.py"]), _build)
    return Kit(target / "vmlinuz", target / "initrd", target / "root.img")


def cached(name: str, recipe: Iterable[Path], make: Callable[[Path, Path], None]) -> Path:
    """The directory in the cache of what `make` makes, given a scratch directory and an empty one for its results: made
    anew when a file of the recipe changes. Several may make it at once."""
    digest = hashlib.sha256()
    for file in recipe:
        digest.update(file.read_bytes())
    cache = Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "storkit"
    target = cache / f"{name}-{digest.hexdigest()[:16]}"
    if not target.is_dir():
        cache.mkdir(mode=0o700, parents=True, exist_ok=True)
        with tempfile.TemporaryDirectory(prefix="building-", dir=cache) as scratch:
            done = Path(scratch, "done")
            done.mkdir()
            make(Path(scratch), done)
            try:
                done.rename(target)
            except OSError:
                if not target.is_dir():  # no other build was faster
                    raise
    return target


def boot_files(scratch: Path, done: Path, init: Path, modules: Iterable[str]) -> bytes:
    """Make vmlinuz, and an initrd of busybox, these modules and `init`; the busybox."""
    kernel = _fetch(_kernel_package(), scratch)
    busybox = _busybox(scratch)
    (vmlinuz,) = (kernel / "boot").glob("vmlinuz-*")
    shutil.copyfile(vmlinuz, done / "vmlinuz")
    (there,) = (kernel / "lib/modules").iterdir()
    files = {
        "init": (0o755, init.read_bytes()),
        "bin/busybox": (0o755, busybox),
        **{f"lib/{Path(module).name}.ko": (0o644, _module(there / "kernel", module)) for module in modules},
    }
    (done / "initrd").write_bytes(b"".join(_cpio(["bin", "dev", "lib", "proc", "root"], files)))
    return busybox


def _build(scratch: Path, done: Path) -> None:
    tree(scratch / "tree", boot_files(scratch, done, HERE / "init.initramfs", MODULES))
    run(
        ["mke2fs", "-q", "-t", "ext4", "-L", "root", "-E", "root_owner=0:0", "-d", scratch / "tree",
         done / "root.img", f"{ROOT_SIZE >> 10}k"],
        package="e2fsprogs",
    )  # fmt: skip


def _kernel_package() -> str:
    """The package that the meta-package stands for now."""
    for line in run(["apt-cache", "depends", KERNEL_PACKAGE], package="apt").stdout.splitlines():
        what, _, name = line.strip().partition(": ")
        if what == "Depends" and name.startswith("linux-image-"):
            return name
    raise Unsupported(f"the package registry has no {KERNEL_PACKAGE}", "apt update")


def _fetch(package: str, scratch: Path) -> Path:
    """The content of a package, not installed."""
    directory = scratch / package
    directory.mkdir()
    run(["env", "-C", directory, "apt-get", "-q", "download", package], timeout=600, package="apt")
    (archive,) = directory.glob("*.deb")
    run(["dpkg-deb", "-x", archive, directory / "content"], timeout=120, package="dpkg")
    return directory / "content"


def _busybox(scratch: Path) -> bytes:
    """A busybox that needs no libraries."""
    content = _fetch("busybox-static", scratch)
    for place in ("bin/busybox", "usr/bin/busybox"):
        if (content / place).is_file():
            return (content / place).read_bytes()
    raise Unsupported("the package busybox-static has no busybox in it")


def _module(kernel: Path, name: str) -> bytes:
    file = kernel / f"{name}.ko"
    if file.exists():
        return file.read_bytes()
    import lzma

    return lzma.decompress(file.with_suffix(".ko.xz").read_bytes())


def _cpio(directories: list[str], files: dict[str, tuple[int, bytes]]) -> Iterator[bytes]:
    """An initramfs in the kernel's own format (Documentation/driver-api/early-userspace/buffer-format.rst)."""
    entries = [(name, stat.S_IFDIR | 0o755, b"", (0, 0)) for name in directories]
    entries.append(("dev/console", stat.S_IFCHR | 0o600, b"", (5, 1)))
    entries += [(name, stat.S_IFREG | mode, data, (0, 0)) for name, (mode, data) in files.items()]
    entries.append(("TRAILER!!!", 0, b"", (0, 0)))
    for number, (name, mode, data, device) in enumerate(entries, 1):
        path = name.encode() + b"\0"
        fields = (number, mode, 0, 0, 1, 0, len(data), 0, 0, *device, len(path), 0)
        yield b"070701" + b"".join(b"%08X" % value for value in fields) + path
        yield bytes(-(110 + len(path)) % 4) + data + bytes(-len(data) % 4)


def tree(tree: Path, busybox: bytes) -> None:
    """The guest's root file system as a directory."""
    for name in ("bin", "data", "dev", "proc", "run", "sbin", "sys"):
        (tree / name).mkdir(parents=True)
    (tree / "bin/busybox").write_bytes(busybox)
    shutil.copyfile(HERE / "init.root", tree / "sbin/init")
    (tree / "sbin/poweroff").write_text("#!/bin/busybox sh\n: >/run/stop\n")
    for program in ("bin/busybox", "sbin/init", "sbin/poweroff"):
        (tree / program).chmod(0o755)
    (tree / "data/log").touch()


def hand_out(build: Callable[[], Kit], argv: list[str]) -> int:
    """Copy the files of a guest to the directory that a command line names."""
    if len(argv) != 1:
        print("usage: python -m tests.guestkit.linux OUTDIR; as well nfsroot, debian", file=sys.stderr)
        return 2
    kit = build()
    out = Path(argv[0])
    out.mkdir(parents=True, exist_ok=True)
    for file in (kit.kernel, kit.initrd, kit.root):
        run(["cp", "--sparse=always", "--reflink=auto", file, out / file.name])
        print(out / file.name)
    return 0


if __name__ == "__main__":
    raise SystemExit(hand_out(build, sys.argv[1:]))
