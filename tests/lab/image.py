"""The hosts' disk image: an ext4 file made by mmdebstrap from recipe.toml, kept under the hash of its recipe."""

from __future__ import annotations

import fcntl
import hashlib
import os
import shlex
import subprocess
import sys
import time
import tomllib
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import IO

from tests.lab.cell import Cell
from tests.lab.errors import LabError, Unsupported

HERE = Path(__file__).parent
TREE = HERE.parent.parent
# Where the image keeps the Python packages that storkit needs, in the versions that pip finds.
SITE = "/opt/storkit/site-packages"

# The one file of ours inside the image: everything else is seen through hostfs and needs no new image to change.
_INIT = """\
#!/bin/sh
mount -t proc proc /proc
mount -t hostfs -o "ro,$LAB_TREE" storkit /storkit
exec /storkit/tests/lab/guest/init
"""


def cache() -> Path:
    base = os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache"
    return Path(base) / "storkit-lab"


def image(say: Callable[[str], None] = lambda text: None) -> IO[bytes]:
    """The image, built first if it is not in the cache. Two labs that start together build it once.

    The open file holds a lock: as long as it is open, no other lab, of another recipe, removes this image.
    """
    images = cache() / "images"
    images.mkdir(parents=True, exist_ok=True)
    path = images / f"{_key()}.ext4"
    with locked(images / "lock"):
        if not path.exists():
            for other in images.iterdir():
                if other.name != "lock" and not in_use(other):
                    other.unlink()
            started = time.monotonic()
            say(f"building the hosts' image {path.name} (once; a few minutes)")
            _build(path)
            say(f"image built in {time.monotonic() - started:.0f} s, {path.stat().st_blocks * 512 >> 20} MiB")
        file = path.open("rb")
        fcntl.flock(file, fcntl.LOCK_SH)
    return file


def dependencies() -> list[str]:
    project = tomllib.loads((TREE / "pyproject.toml").read_text())["project"]
    return sorted(project["dependencies"])


def _key() -> str:
    hooks = _hooks(Path("site"), Path("init"))
    parts = [(HERE / "recipe.toml").read_text(), _INIT, *hooks, *dependencies(), *sources()]
    return hashlib.sha256("\0".join(parts).encode()).hexdigest()[:16]


def sources() -> list[str]:
    """This machine's own apt sources of its Debian release, as one-line entries."""
    release = dict(line.split("=", 1) for line in Path("/etc/os-release").read_text().splitlines() if "=" in line)
    suite = release.get("VERSION_CODENAME", "").strip('"')
    targets = subprocess.run(
        ["apt-get", "indextargets", "--format", "$(REPO_URI) $(RELEASE) $(COMPONENT)", "Created-By: Packages"],
        capture_output=True, text=True, timeout=60, check=True,
    ).stdout.splitlines()  # fmt: skip
    ours = (suite, f"{suite}-updates", f"{suite}-security")
    sources = sorted({f"deb {target}" for target in targets if target.split()[1] in ours})
    if not sources:
        raise Unsupported(f"apt has no package lists of this machine's release {suite!r}: run `apt-get update` first")
    return sources


def _hooks(site: Path, init: Path) -> list[str]:
    """Shell commands that mmdebstrap runs at the end, with the new root directory as $1."""
    return [
        f'mkdir -p "$1{SITE}" "$1/storkit" "$1/lab" "$1/lib/modules"',
        f'cp -a {shlex.quote(str(site))}/. "$1{SITE}/"',
        f'install -m 0755 {shlex.quote(str(init))} "$1/sbin/lab-init"',
        f'chroot "$1" python3 -m compileall -q {SITE} || true',
        'rm -f "$1"/etc/ssh/ssh_host_* "$1/etc/iscsi/initiatorname.iscsi"',
    ]


def _build(path: Path) -> None:
    """Build in a cell's tmpfs: it is quick, and nothing half-made is left whatever happens to us."""
    recipe = tomllib.loads((HERE / "recipe.toml").read_text())
    cell = Cell(cache() / "run", share_network=True)
    try:
        root, site = cell.run_dir / "root", cell.run_dir / "site"
        call(cell, [sys.executable, "-m", "pip", "install", "--quiet", "--disable-pip-version-check", "--no-compile",
                     "--target", str(site), *dependencies()])  # fmt: skip
        init = cell.run_dir / "lab-init"
        cell.path(init).write_text(_INIT)
        suite = sources()[0].split()[2].split("-")[0]
        call(cell, [
            "mmdebstrap", "--quiet", "--mode=root", "--format=directory", "--variant=minbase",
            "--components=main", f"--include={','.join(recipe['packages'])}",
            *(f"--dpkgopt=path-exclude={glob}" for glob in recipe["exclude"]),
            *(f"--customize-hook={hook}" for hook in _hooks(site, init)),
            suite, str(root), *sources(),
        ])  # fmt: skip
        unfinished = path.with_suffix(".new")
        call(cell, ["mke2fs", "-q", "-F", "-t", "ext4", "-E", "root_owner=0:0,lazy_itable_init=0", "-m", "0",
                     "-J", "size=16", "-L", "storkit-lab",
                     "-d", str(root), str(unfinished), recipe["size"]])  # fmt: skip
        unfinished.rename(path)
    finally:
        cell.close()


def call(cell: Cell, argv: list[str]) -> str:
    """Run a step of a build in the cell; what it said."""
    done = subprocess.run(cell.argv(argv), stdin=subprocess.DEVNULL, stdout=subprocess.PIPE,
                          stderr=subprocess.STDOUT, text=True, errors="replace", timeout=1800)  # fmt: skip
    if done.returncode:
        raise LabError(
            f"building the image failed (status {done.returncode}):\n{shlex.join(argv)}\n{done.stdout[-6000:]}"
        )
    return done.stdout


@contextmanager
def locked(path: Path) -> Iterator[None]:
    with path.open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        yield


def in_use(path: Path) -> bool:
    """Whether a lab that is up now boots from it."""
    with path.open("rb") as file:
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            return True
    return False
