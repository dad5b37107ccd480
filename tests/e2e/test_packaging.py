"""What is shipped: a wheel with its templates, and one file that runs on a bare Python."""

from __future__ import annotations

import os
import re
import shutil
import subprocess
import sys
import tomllib
import zipfile
from pathlib import Path

import pytest

from tests.e2e.world import ROOT

pytestmark = pytest.mark.e2e
TEMPLATES = {f"storkit/templates/{path.relative_to(ROOT / 'templates')}" for path in (ROOT / "templates").rglob("*.j2")}

SCRIPTS = {str(path.relative_to(ROOT)) for path in (ROOT / "storkit/hooks").glob("*.sh")}


def test_wheel_and_sdist_carry_the_templates(tmp_path: Path) -> None:
    subprocess.run([sys.executable, "-m", "build", "--no-isolation", "--outdir", str(tmp_path), str(ROOT)],
                   check=True, capture_output=True)  # fmt: skip
    (wheel,) = tmp_path.glob("*.whl")
    assert set(zipfile.ZipFile(wheel).namelist()) >= TEMPLATES | SCRIPTS
    (sdist,) = tmp_path.glob("*.tar.gz")
    names = subprocess.run(["tar", "tzf", str(sdist)], check=True, capture_output=True, text=True).stdout
    for name in ("templates/qemu/guest.args.j2", "tests/conftest.py", "README.md", "Makefile"):
        assert name in names


@pytest.fixture(scope="module")
def pyz(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return build(tmp_path_factory.mktemp("pyz"))


def build(directory: Path, **environment: str) -> Path:
    """storkit.pyz, as `make pyz` builds it."""
    pyz = directory / "storkit.pyz"
    subprocess.run([sys.executable, str(ROOT / "tools/make_pyz.py"), str(pyz)], check=True, capture_output=True,
                   env={**os.environ, **environment})  # fmt: skip
    return pyz


def test_single_file_is_the_same_every_time(pyz: Path, tmp_path: Path) -> None:
    """Another day, another directory, another user's umask, another seed."""
    (tmp_path / "elsewhere").mkdir()
    before = os.umask(0o027)
    try:
        again = build(tmp_path, TMPDIR=str(tmp_path / "elsewhere"), PYTHONHASHSEED="1", TZ="Asia/Tokyo")
    finally:
        os.umask(before)
    assert again.read_bytes() == pyz.read_bytes()
    assert again.stat().st_mode & 0o777 == 0o755
    names = zipfile.ZipFile(pyz).namelist()
    assert names == sorted(names) and len(names) == len(set(names))
    assert str(ROOT).encode() not in b"".join(zipfile.ZipFile(pyz).read(name) for name in names)
    assert {info.date_time for info in zipfile.ZipFile(pyz).infolist()} == {(1980, 1, 1, 0, 0, 0)}


@pytest.mark.slow
def test_single_file_has_the_date_that_is_asked_for(tmp_path: Path) -> None:
    dated = build(tmp_path, SOURCE_DATE_EPOCH="1790000000")
    assert {info.date_time for info in zipfile.ZipFile(dated).infolist()} == {(2026, 9, 21, 14, 13, 20)}


def test_its_libraries_are_locked() -> None:
    """Each with one version and one hash, and all that pyproject.toml asks for."""
    lines = [line for line in (ROOT / "packaging/pyz.lock").read_text().splitlines() if not line.startswith("#")]
    locked = [re.fullmatch(r"([a-z0-9-]+)==([0-9.]+) --hash=sha256:[0-9a-f]{64}", line) for line in lines]
    assert all(locked)
    wanted = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]["dependencies"]
    names = {re.split("[>=<]", text)[0].replace(".", "-").lower() for text in wanted}
    assert names <= {match[1] for match in locked if match}


def test_a_library_with_other_bytes_is_refused(tmp_path: Path) -> None:
    copy = tmp_path / "copy"
    shutil.copytree(ROOT / "tools", copy / "tools")
    (copy / "packaging").mkdir()
    text = (ROOT / "packaging/pyz.lock").read_text()
    (copy / "packaging/pyz.lock").write_text(
        re.sub("sha256:.", lambda match: "sha256:" + "10"[match[0][-1] == "1"], text)
    )
    done = subprocess.run([sys.executable, str(copy / "tools/make_pyz.py"), str(tmp_path / "x.pyz")],
                          capture_output=True, text=True, check=False)  # fmt: skip
    assert done.returncode != 0 and "DO NOT MATCH THE HASHES" in done.stderr
    assert not (tmp_path / "x.pyz").exists()


def test_single_file_runs_on_a_bare_python(pyz: Path, tmp_path: Path) -> None:
    """No site packages, no checkout: only the interpreter and storkit.pyz."""
    python = os.path.realpath(sys.executable)
    environment = {
        "PATH": os.environ["PATH"],
        "HOME": str(tmp_path),
        "XDG_STATE_HOME": str(tmp_path / "state"),
        "XDG_CONFIG_HOME": str(tmp_path / "config"),
    }

    def storkit(*words: str, status: int = 0) -> str:
        argv = [python, "-I", "-S", str(pyz), *words]
        done = subprocess.run(argv, capture_output=True, text=True, env=environment, cwd=tmp_path, check=False)
        assert done.returncode == status, done.stderr
        return done.stdout

    storkit("volume", "create", "web", "1MiB")
    assert "web" in storkit("volume", "list")
    storkit("guest", "define", "web", "--disk", "web")
    assert "<domain" in storkit("guest", "render", "web", "--for", "libvirt")
    assert "ready" in storkit("host", "check")
    storkit("attach", "web", "--on", f"local:{tmp_path}/b")
    storkit("detach", "web", "--on", f"local:{tmp_path}/b")
    storkit("volume", "delete", "web", status=5)
    storkit("guest", "delete", "web")
    storkit("volume", "delete", "web")
    storkit("volume", "show", "web", status=4)
    storkit("volume", "frobnicate", status=2)
