"""What the dom0s boot, from Debian's packages: Xen, a kernel, a first file system, a root disk with a guest's in it.

A directory in the cache under the hash of its recipe, with `xen`, `vmlinux`, `initrd`, `root.raw` and `guest.img`.
Beside them stand the frozen hosts (frozen.py), whose disks are layers over it.
"""

from __future__ import annotations

import fcntl
import gzip
import hashlib
import lzma
import shutil
import subprocess
import sys
import time
import tomllib
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import IO, Any

from tests.lab import image
from tests.lab.cell import Cell
from tests.lab.errors import LabError, Unsupported

HERE = Path(__file__).parent
INSIDE = HERE / "inside"
AGENT = [HERE.parent / "guest" / name for name in ("agent.py", "interpreter.py")]
_LOCK = "lock"


@dataclass(frozen=True)
class Image:
    """The directory, which stays while `lock` is open."""

    path: Path
    lock: IO[bytes]

    @contextmanager
    def alone(self) -> Iterator[None]:
        """While one lab adds to the directory, others wait."""
        with image.locked(self.path / "adding"):
            yield


def build(more: Sequence[str], say: Callable[[str], None] = lambda text: None) -> Image:
    """The image, made first if it is not in the cache. `more` is what else its hash is of: that of the frozen hosts."""
    images = image.cache() / "xen"
    images.mkdir(parents=True, exist_ok=True)
    path = images / _key(more)
    with image.locked(images / _LOCK):
        if not path.exists():
            for other in images.iterdir():
                if other.is_dir() and not ((other / _LOCK).exists() and image.in_use(other / _LOCK)):
                    shutil.rmtree(other)
            started = time.monotonic()
            say(f"building the image of the Xen hosts {path.name} (once; a few minutes)")
            unfinished = images / f"{path.name}.new"
            unfinished.mkdir()
            (unfinished / _LOCK).touch()
            _make(unfinished)
            unfinished.rename(path)
            size = sum(file.stat().st_blocks * 512 for file in path.iterdir())
            say(f"image built in {time.monotonic() - started:.0f} s, {size >> 20} MiB")
        lock = (path / _LOCK).open("rb")
        fcntl.flock(lock, fcntl.LOCK_SH)
    return Image(path, lock)


def _key(more: Sequence[str]) -> str:
    recipe = [HERE / "recipe.toml", HERE / "image.py", *AGENT, *sorted(INSIDE.iterdir())]
    parts = [*(file.read_text() for file in recipe), *image.dependencies(), *image.sources(), *more]
    return hashlib.sha256("\0".join(parts).encode()).hexdigest()[:16]


def _make(out: Path) -> None:
    recipe = tomllib.loads((HERE / "recipe.toml").read_text())
    cell = Cell(image.cache() / "run", share_network=True)
    try:
        _Building(cell, recipe, out).all()
    finally:
        cell.close()


class _Building:
    """Everything is made in the cell's tmpfs; `out` gets what is finished."""

    def __init__(self, cell: Cell, recipe: dict[str, Any], out: Path) -> None:
        self.cell, self.recipe, self.out = cell, recipe, out
        self.run = cell.run_dir
        self.root = self.run / "root"
        """The dom0's root, as a path in the cell; `there` is the same from outside."""
        self.there = cell.path(self.root)

    def all(self) -> None:
        self._packages()
        version = self._kernel()
        self._first_files(version)
        self._guest()
        self._furnish()
        self._disk(self.root, self.out / "root.raw", self.recipe["size"])

    def _call(self, *argv: str | Path) -> str:
        return image.call(self.cell, [str(word) for word in argv])

    def _sh(self, script: str, *args: str | Path) -> str:
        return self._call("sh", "-euc", script, "sh", *args)

    def _packages(self) -> None:
        """The root file system, with the packages that Python needs for storkit."""
        suite = image.sources()[0].split()[2].split("-")[0]
        self._call(
            "mmdebstrap", "--quiet", "--mode=root", "--format=directory", "--variant=minbase", "--components=main",
            f"--include={','.join(self.recipe['packages'])}",
            *(f"--dpkgopt=path-exclude={glob}" for glob in self.recipe["exclude"]),
            suite, self.root, *image.sources(),
        )  # fmt: skip
        self._call(sys.executable, "-m", "pip", "install", "--quiet", "--disable-pip-version-check", "--no-compile",
                   "--target", f"{self.root}{image.SITE}", *image.dependencies())  # fmt: skip
        self._sh('chroot "$1" python3 -m compileall -q "$2" || true', self.root, image.SITE)

    def _kernel(self) -> str:
        """Xen and the kernel, both unpacked here rather than by emulation at each boot; the kernel's version."""
        kernel = _kernel_package(self.recipe["kernel"])
        self._sh(
            'mkdir -p "$1/lab-kernel"; cd "$1/lab-kernel"; shift\n'
            'apt-get -qq -o APT::Sandbox::User=root download "$@"; for deb in *.deb; do dpkg-deb -x "$deb" .; done',
            self.root, self.recipe["hypervisor"], kernel,
        )  # fmt: skip
        unpacked = self.there / "lab-kernel"
        (xen,) = (file for file in (unpacked / "boot").glob("xen-*.gz") if not file.is_symlink())
        (self.out / "xen").write_bytes(gzip.decompress(xen.read_bytes()))
        (vmlinuz,) = (unpacked / "boot").glob("vmlinuz-*")
        packed = vmlinuz.read_bytes()
        # a bzImage holds the kernel as an XZ stream, with the length behind it
        (self.out / "vmlinux").write_bytes(lzma.LZMADecompressor().decompress(packed[packed.index(b"\xfd7zXZ\0") :]))
        version = vmlinuz.name.removeprefix("vmlinuz-")
        self._sh('chroot "$1" depmod -b /lab-kernel "$2"', self.root, version)
        return version

    def _module_files(self, version: str, names: list[str]) -> list[str]:
        """These modules and what they need, in the order of loading, as paths below the unpacked kernel."""
        found = self._sh(
            'root=$1 version=$2; shift 2\n'
            'for name; do chroot "$root" modprobe -d /lab-kernel -S "$version" --show-depends "$name"; done',
            self.root, version, *names,
        )  # fmt: skip
        lines = [line.split() for line in found.splitlines()]
        return list(dict.fromkeys(words[1].removeprefix("/lab-kernel/") for words in lines if words[0] == "insmod"))

    def _first_files(self, version: str) -> None:
        """The initrd of dom0s and guests, and the dom0's modules."""
        first = self._module_files(version, self.recipe["first_modules"])
        tree = self.cell.path(self.run / "initrd")
        for directory in ("bin", "dev", "lib", "proc", "root"):
            (tree / directory).mkdir(parents=True)
        shutil.copy(self.there / "bin/busybox", tree / "bin/busybox")
        for module in first:
            shutil.copy(self.there / "lab-kernel" / module, tree / "lib")
        (tree / "lib/order").write_text("\n".join(Path(module).name for module in first))
        _program(INSIDE / "initrd-init", tree / "init")
        self._sh(
            'cd "$1"; find . | busybox cpio -o -H newc >"$2" 2>/dev/null', self.run / "initrd", self.out / "initrd"
        )
        for module in self._module_files(version, self.recipe["modules"]):
            target = self.there / module
            target.parent.mkdir(parents=True, exist_ok=True)
            shutil.copy(self.there / "lab-kernel" / module, target)
        self._sh(
            'cp "$1/lab-kernel/lib/modules/$2"/modules.order "$1/lab-kernel/lib/modules/$2"/modules.builtin* '
            '"$1/lib/modules/$2"; rm -r "$1/lab-kernel"; chroot "$1" depmod "$2"',
            self.root, version,
        )  # fmt: skip

    def _guest(self) -> None:
        """The root disk of a guest."""
        tree = self.cell.path(self.run / "guest")
        for directory in ("bin", "data", "dev", "proc", "run", "sbin", "sys"):
            (tree / directory).mkdir(parents=True)
        shutil.copy(self.there / "bin/busybox", tree / "bin/busybox")
        (tree / "data/log").touch()
        _program(INSIDE / "guest-init", tree / "sbin/init")
        _program(INSIDE / "guest-poweroff", tree / "sbin/poweroff")
        self._disk(self.run / "guest", self.out / "guest.img", "64M")

    def _furnish(self) -> None:
        """The lab's own files in the dom0's root."""
        (self.there / "sbin/init").unlink(missing_ok=True)
        _program(INSIDE / "dom0-init", self.there / "sbin/init")
        _program(INSIDE / "storkit", self.there / "usr/local/bin/storkit")
        (self.there / "usr/local/lib/lab").mkdir()
        for program in AGENT:
            shutil.copy(program, self.there / "usr/local/lib/lab" / program.name)
        for file in ("vmlinux", "initrd", "guest.img"):
            self._call("cp", "--sparse=always", self.out / file, self.root / "root")
        for gone in (self.there / "etc/ssh").glob("ssh_host_*"):
            gone.unlink()
        with (self.there / "etc/default/xen").open("a") as settings:
            settings.write("XENCONSOLED_ARGS=--log=guest\n")

    def _disk(self, tree: Path, disk: Path, size: str) -> None:
        self._call("mke2fs", "-q", "-F", "-t", "ext4", "-E", "root_owner=0:0", "-m", "0", "-d", tree, disk, size)


def _kernel_package(name: str) -> str:
    """The package that a meta-package stands for now."""
    done = subprocess.run(["apt-cache", "depends", name], capture_output=True, text=True, timeout=60, check=False)
    for line in done.stdout.splitlines():
        what, _, package = line.strip().partition(": ")
        if what == "Depends" and package.startswith("linux-image-"):
            return package
    raise Unsupported(f"apt knows no {name}: run `apt-get update` first")


def _program(source: Path, target: Path) -> None:
    shutil.copyfile(source, target)
    target.chmod(0o755)


def size(path: Path) -> int:
    """Bytes that a directory takes on the disk."""
    if not path.is_dir():
        raise LabError(f"{path} is no directory")
    return sum(file.stat().st_blocks * 512 for file in path.rglob("*") if file.is_file())
