"""The libraries of storkit.pyz: which wheels, for whatever machine builds it, and their lock with hashes.

`python tools/wheels.py` (make lock) writes the lock anew from what pyproject.toml asks for; see the diff.
"""

import hashlib
import re
import subprocess
import sys
import tempfile
import tomllib
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
LOCK = ROOT / "packaging" / "pyz.lock"
# One wheel each, whoever builds: the native code in one of them (MarkupSafe) is left out of the pyz anyway.
WHEELS = ("--only-binary=:all:", "--platform=manylinux2014_x86_64", "--implementation=cp", "--python-version=3.11",
          "--abi=cp311", "--abi=none")  # fmt: skip
HEAD = """\
# The libraries in storkit.pyz. Written by `make lock` from pyproject.toml; pip takes no file with another hash.
"""


def pip(*words: str) -> None:
    """Run this Python's pip."""
    subprocess.run([sys.executable, "-m", "pip", *words, "-q", "--disable-pip-version-check"], check=True)


def write() -> None:
    """Resolve the dependencies and lock what came of it."""
    wanted = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]["dependencies"]
    with tempfile.TemporaryDirectory() as scratch:
        pip("download", "-d", scratch, *WHEELS, *wanted)
        lines = [_locked(wheel) for wheel in sorted(Path(scratch).glob("*.whl"), key=lambda wheel: wheel.name.lower())]
    LOCK.write_text(HEAD + "".join(lines))


def _locked(wheel: Path) -> str:
    """The line of a wheel (file names: packaging.python.org, binary distribution format)."""
    name, version = wheel.name.split("-")[:2]
    name = re.sub(r"[-_.]+", "-", name).lower()
    return f"{name}=={version} --hash=sha256:{hashlib.sha256(wheel.read_bytes()).hexdigest()}\n"


if __name__ == "__main__":
    write()
    print(LOCK)
