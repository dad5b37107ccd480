"""The modules of the hosts' kernel: those of Debian's User-Mode Linux, and NVMe/TCP, which it leaves out.

NVMe's host and target are built from the source of the very kernel, linux-source of its version: it has what they stand
on, and neither versions of symbols nor signatures, so they fit. Kept in the cache beside the image.
"""

from __future__ import annotations

import hashlib
import os
import shutil
import subprocess
import tempfile
import time
from collections.abc import Callable
from pathlib import Path

from tests.lab.errors import LabError, Unsupported
from tests.lab.image import cache, locked

DEBIAN = Path("/usr/lib/uml/modules")
_BUILT = ("NVME_CORE", "NVME_FABRICS", "NVME_TCP", "NVME_TARGET", "NVME_TARGET_TCP")
_WITH = ("NVME_MULTIPATH", "NVME_AUTH", "NVME_TARGET_AUTH")
_MAKE = """\
set -e
apt-get -q download "$PACKAGE=$DEBIAN_VERSION"
dpkg-deb --fsys-tarfile "$PACKAGE"_*.deb | tar -xO "./usr/src/$PACKAGE.tar.xz" | tar -xJ
rm -f ./*.deb
cd "$PACKAGE"
linux.uml --showconfig >.config
cp .config debian.config
scripts/config $OPTIONS
make -s ARCH=um olddefconfig
# what stands in the kernel itself must stay as it is, or the modules would not fit
! diff debian.config .config | grep '^[<>]' | grep -vE 'NVME|CRYPTO_DH_RFC7919'
make -s ARCH=um -j2 modules_prepare
# without the kernel's own table of symbols modpost only warns of those that it does not find
make -s ARCH=um -j2 KBUILD_MODPOST_WARN=1 M=drivers/nvme modules
"""


_TOOLS = {
    "depmod": "kmod", "gcc": "gcc", "make": "make", "flex": "flex", "bison": "bison", "bc": "bc", "xz": "xz-utils",
    "gencat": "libc6-dev",
}  # fmt: skip


def modules(say: Callable[[str], None] = lambda text: None) -> Path:
    """The directory that hosts have at /lib/modules, made first if it is not in the cache. Raises
    Unsupported."""
    if absent := sorted({package for tool, package in _TOOLS.items() if not shutil.which(tool)}):
        raise Unsupported(f"packages that are not installed: apt-get install {' '.join(absent)}")
    (version,) = [path.parent.name for path in DEBIAN.glob("*/modules.dep")]
    key = hashlib.sha256("\0".join([version, *_BUILT, *_WITH, _MAKE]).encode()).hexdigest()[:16]
    kept = cache() / "modules"
    kept.mkdir(parents=True, exist_ok=True)
    path = kept / f"{version}-{key}"
    with locked(kept / "lock"):
        if not path.exists():
            started = time.monotonic()
            say(f"building NVMe/TCP for the hosts' kernel {version} (once; two minutes)")
            _build(path, version)
            say(f"modules built in {time.monotonic() - started:.0f} s")
    return path


def _build(path: Path, version: str) -> None:
    package = f"linux-source-{'.'.join(version.split('.')[:2])}"
    with tempfile.TemporaryDirectory(prefix="build-", dir=path.parent) as scratch:
        options = [word for name in _BUILT for word in ("-m", name)] + [word for name in _WITH for word in ("-e", name)]
        environment = {
            **os.environ,
            "LC_ALL": "C",
            "PACKAGE": package,
            "DEBIAN_VERSION": _source(package, version),
            "OPTIONS": " ".join(options),
        }
        _run(["sh", "-c", _MAKE], scratch, environment)
        unfinished = Path(scratch, "modules")
        shutil.copytree(DEBIAN, unfinished, symlinks=True)
        extra = unfinished / version / "updates"
        extra.mkdir()
        for module in Path(scratch, package, "drivers/nvme").rglob("*.ko"):
            shutil.copy(module, extra)
        _run(["depmod", "-b", str(_as_root(Path(scratch), unfinished)), version], scratch, environment)
        unfinished.rename(path)


def _as_root(scratch: Path, tree: Path) -> Path:
    """A directory with this tree at lib/modules, as depmod(8) wants it."""
    root = scratch / "root"
    (root / "lib").mkdir(parents=True)
    (root / "lib/modules").symlink_to(tree)
    return root


def _source(package: str, version: str) -> str:
    """Debian's version of a kernel's source."""
    said = subprocess.run(["apt-cache", "madison", package], capture_output=True, text=True, timeout=60, check=True)
    for line in said.stdout.splitlines():
        words = [word.strip() for word in line.split("|")]
        if len(words) > 1 and words[1].startswith(f"{version}-"):
            return words[1]
    raise Unsupported(f"apt knows no {package} of the hosts' kernel, {version}: apt-get update, or upgrade both")


def _run(argv: list[str], directory: str, environment: dict[str, str]) -> None:
    done = subprocess.run(
        argv, cwd=directory, env=environment, stdin=subprocess.DEVNULL, stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT, text=True, errors="replace", timeout=1800,
    )  # fmt: skip
    if done.returncode:
        raise LabError(f"building the hosts' modules failed (status {done.returncode}):\n{done.stdout[-6000:]}")
