"""Builds storkit.pyz: storkit and everything it needs at run time, in one file for any Python from 3.11 on."""

import compileall
import py_compile
import shutil
import subprocess
import sys
import tempfile
import zipapp
from pathlib import Path


def build(target: Path) -> None:
    """Install the project into a scratch directory and zip it; wheels with native code fall back to pure Python."""
    root = Path(__file__).resolve().parent.parent
    target.parent.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory() as scratch:
        tree = Path(scratch, "tree")
        subprocess.run(
            [sys.executable, "-m", "pip", "install", "-q", "--disable-pip-version-check", "--no-compile",
             "--target", str(tree), str(root)],
            check=True,
        )  # fmt: skip
        for native in [*tree.rglob("*.so"), *tree.rglob("__pycache__"), tree / "bin"]:
            if native.is_dir():
                shutil.rmtree(native)
            else:
                native.unlink(missing_ok=True)
        # Bytecode that is never checked against times: a zip has none to speak of. Another Python compiles anew.
        compileall.compile_dir(
            str(tree), quiet=1, legacy=True, invalidation_mode=py_compile.PycInvalidationMode.UNCHECKED_HASH
        )
        zipapp.create_archive(
            tree, target, interpreter="/usr/bin/env python3", main="storkit.cli.main:main", compressed=True
        )
    target.chmod(0o755)


if __name__ == "__main__":
    target = Path(sys.argv[1]).absolute()
    build(target)
    print(target)
