"""Builds storkit.pyz: storkit and everything it needs at run time, in one file for any Python from 3.11 on.

The same sources give the same bytes, with the same minor version of Python: libraries by their hashes (wheels.py), no
paths, no order and no times of this machine. SOURCE_DATE_EPOCH (reproducible-builds.org) is the time of what is in it.
"""

import os
import shutil
import subprocess
import sys
import tempfile
import time
import zipfile
from pathlib import Path

from wheels import LOCK, ROOT, WHEELS, pip

EPOCH = 315532800
"""1980-01-01, the first time that a zip can hold."""
MAIN = "import sys\n\nfrom storkit.cli.main import main\n\nsys.exit(main())\n"
OF_THE_INSTALLATION = ("RECORD", "INSTALLER", "REQUESTED", "WHEEL", "direct_url.json")
"""What pip writes of how and where it installed."""
COMPILE = """
import compileall, py_compile, sys
done = compileall.compile_dir(sys.argv[1], quiet=1, legacy=True, stripdir=sys.argv[1], prependdir="storkit.pyz",
                              invalidation_mode=py_compile.PycInvalidationMode.UNCHECKED_HASH)
sys.exit(not done)
"""


def build(target: Path) -> None:
    """Put libraries and storkit into a scratch directory, compile, and zip it."""
    target.parent.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory() as scratch:
        tree = Path(scratch, "tree")
        pip("install", "--target", str(tree), "--no-compile", "--no-deps", "--require-hashes", *WHEELS, "-r", str(LOCK))
        # Native code falls back to pure Python.
        for pattern in ("*.so", *(f"*.dist-info/{name}" for name in OF_THE_INSTALLATION)):
            for file in list(tree.rglob(pattern)):
                file.unlink()
        shutil.rmtree(tree / "bin", ignore_errors=True)
        shutil.copytree(ROOT / "storkit", tree / "storkit", ignore=shutil.ignore_patterns("__pycache__", "*.pyc"))
        shutil.copytree(ROOT / "templates", tree / "storkit" / "templates")
        (tree / "__main__.py").write_text(MAIN)
        # Bytecode that is never checked against times: a zip has none to speak of. Another Python compiles anew.
        # Sets of strings are written in the order of their hashes.
        environment = {**os.environ, "PYTHONHASHSEED": "0"}
        subprocess.run([sys.executable, "-c", COMPILE, str(tree)], check=True, env=environment)
        archive = Path(scratch, "archive")
        _zip(tree, archive)
        archive.chmod(0o755)
        shutil.move(archive, target)


def _zip(tree: Path, target: Path) -> None:
    """As zipapp, in a fixed order, with one time and one mode."""
    stamp = time.gmtime(max(EPOCH, int(os.environ.get("SOURCE_DATE_EPOCH", EPOCH))))[:6]
    with target.open("wb") as file:
        file.write(b"#!/usr/bin/env python3\n")
        with zipfile.ZipFile(file, "w", zipfile.ZIP_DEFLATED) as archive:
            for name, path in sorted((_name(tree, path), path) for path in tree.rglob("*")):
                entry = zipfile.ZipInfo(name, stamp)
                entry.create_system = 3  # Unix
                # Directories too: to Python, a package without an __init__.py is a directory.
                entry.external_attr = (0o40755 << 16 | 0x10) if path.is_dir() else 0o100644 << 16
                entry.compress_type = zipfile.ZIP_STORED if path.is_dir() else zipfile.ZIP_DEFLATED
                archive.writestr(entry, b"" if path.is_dir() else path.read_bytes(), compresslevel=9)


def _name(tree: Path, path: Path) -> str:
    return path.relative_to(tree).as_posix() + ("/" if path.is_dir() else "")


if __name__ == "__main__":
    target = Path(sys.argv[1]).absolute()
    build(target)
    print(target)
