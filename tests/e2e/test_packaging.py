"""What is shipped: a wheel with its templates, and one file that runs on a bare Python."""

from __future__ import annotations

import os
import subprocess
import sys
import zipfile
from pathlib import Path

import pytest

from tests.e2e.world import ROOT

pytestmark = pytest.mark.e2e
TEMPLATES = {f"storkit/templates/{path.relative_to(ROOT / 'templates')}" for path in (ROOT / "templates").rglob("*.j2")}


def test_wheel_and_sdist_carry_the_templates(tmp_path: Path) -> None:
    subprocess.run([sys.executable, "-m", "build", "--no-isolation", "--outdir", str(tmp_path), str(ROOT)],
                   check=True, capture_output=True)  # fmt: skip
    (wheel,) = tmp_path.glob("*.whl")
    assert set(zipfile.ZipFile(wheel).namelist()) >= TEMPLATES
    (sdist,) = tmp_path.glob("*.tar.gz")
    names = subprocess.run(["tar", "tzf", str(sdist)], check=True, capture_output=True, text=True).stdout
    for name in ("templates/qemu/guest.args.j2", "tests/conftest.py", "README.md", "Makefile"):
        assert name in names


def test_single_file_runs_on_a_bare_python(tmp_path: Path) -> None:
    """No site packages, no checkout: only the interpreter and storkit.pyz."""
    pyz = tmp_path / "storkit.pyz"
    subprocess.run([sys.executable, str(ROOT / "tools/make_pyz.py"), str(pyz)], check=True, capture_output=True)
    python = os.path.realpath(sys.executable)
    environment = {
        "PATH": os.environ["PATH"],
        "HOME": str(tmp_path),
        "XDG_STATE_HOME": str(tmp_path / "state"),
        "XDG_CONFIG_HOME": str(tmp_path / "config"),
    }

    def storkit(*words: str) -> str:
        argv = [python, "-I", "-S", str(pyz), *words]
        done = subprocess.run(argv, capture_output=True, text=True, env=environment, cwd=tmp_path, check=False)
        assert done.returncode == 0, done.stderr
        return done.stdout

    storkit("volume", "create", "web", "1MiB")
    assert "web" in storkit("volume", "list")
    storkit("guest", "define", "web", "--disk", "web")
    assert "<domain" in storkit("guest", "render", "web", "--for", "libvirt")
    assert "ready" in storkit("host", "check")
    storkit("attach", "web", "--on", f"local:{tmp_path}/b")
    storkit("detach", "web", "--on", f"local:{tmp_path}/b")
    storkit("volume", "delete", "web")
