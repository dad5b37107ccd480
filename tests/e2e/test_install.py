"""README's way to install storkit, followed word for word with Debian's own Python: as root and as a user."""

from __future__ import annotations

import os
import re
import shutil
import subprocess
from collections.abc import Callable
from pathlib import Path

import pytest

from tests.e2e.world import ROOT, World

pytestmark = pytest.mark.e2e
SECTION = re.search(r"^## Install\n(.*?)^## ", (ROOT / "README.md").read_text(), re.MULTILINE | re.DOTALL)
assert SECTION
AS_ROOT, AS_USER, AS_ONE_FILE = re.findall(r"```sh\n(.*?)```", SECTION[1], re.DOTALL)
OF_SSH = "/usr/local/bin:/usr/bin:/bin:/usr/games"
"""The PATH of a command over ssh on Debian, if its user is not root (sshd's _PATH_STDPATH)."""


def follow(lines: str, root: Path) -> None:
    """Carry out a block's commands, all but apt's, with what they make below `root`."""
    for place in ("/opt", "/usr/local/bin"):
        lines = re.sub(rf"(?<=\s){place}\b", f"{root}{place}", lines)
    script = "\n".join(line for line in lines.splitlines() if not line.startswith("apt "))
    for place in ("opt", "usr/local/bin", "home"):
        (root / place).mkdir(parents=True)
    done = subprocess.run(
        ["bash", "-euc", script], cwd=ROOT, capture_output=True, text=True, check=False,
        env={"PATH": "/usr/bin:/bin", "HOME": str(root / "home")},
    )  # fmt: skip
    assert done.returncode == 0, f"{script}\n{done.stdout}{done.stderr}"


def storkit(path: str, home: Path, *words: str) -> str:
    """What an installed storkit prints, found on `path`."""
    return subprocess.run(
        ["storkit", *words], cwd="/", capture_output=True, text=True, check=True,
        env={"PATH": path, "HOME": str(home), "XDG_STATE_HOME": str(home / "state"),
             "XDG_CONFIG_HOME": str(home / "config")},
    ).stdout  # fmt: skip


@pytest.mark.parametrize(("lines", "place"), [(AS_ROOT, "usr/local/bin"), (AS_USER, "home/.local/bin")],
                         ids=["root", "user"])  # fmt: skip
def test_the_readmes_commands(tmp_path: Path, lines: str, place: str) -> None:
    if not Path("/usr/bin/python3").exists() or not shutil.which("bash"):
        pytest.skip("no Debian")
    follow(lines, tmp_path)
    path, home = OF_SSH.replace("/usr/local/bin", str(tmp_path / place)), tmp_path / "home"
    assert storkit(path, home, "--version").startswith("storkit ")
    storkit(path, home, "volume", "create", "v", "1MiB")
    storkit(path, home, "guest", "define", "g", "--disk", "v")
    assert "<domain" in storkit(path, home, "guest", "render", "g", "--for", "libvirt")
    hello = subprocess.run(["storkit", "agent"], input="{}\n", capture_output=True, text=True, check=False,
                           env={**os.environ, "PATH": path, "HOME": str(home)})  # fmt: skip
    assert "agent's protocol" in hello.stdout


def test_one_file_is_installed_as_one(tmp_path: Path) -> None:
    """What `make pyz` builds is tested in test_packaging: here, that the commands put it in its place."""
    packages, pyz, *commands = AS_ONE_FILE.strip().splitlines()
    assert packages.startswith("apt install make ")
    assert pyz == "make pyz" and re.search(
        r"^pyz:.*\n\t.*make_pyz.py build/storkit.pyz", (ROOT / "Makefile").read_text(), re.M
    )
    assert commands == ["install -m 755 build/storkit.pyz /usr/local/bin/storkit"]


def test_where_ssh_finds_no_storkit_the_hint_says_where_it_belongs(make_world: Callable[..., World]) -> None:
    """A shell over ssh, which has only the PATH that sshd gives it."""
    world = make_world(inventory='[hosts.a]\nurl = "ssh://me@a.example"\n[pools.default]\nhost = "a"\n')
    ssh = world.directory / "bin/ssh"
    ssh.parent.mkdir()
    ssh.write_text(f'#!/bin/sh\nfor command; do :; done\nPATH={world.directory} exec /bin/bash -c "$command"\n')
    ssh.chmod(0o755)
    world.environment["PATH"] = f"{ssh.parent}:{os.environ['PATH']}"
    done = world.storkit("--json", "volume", "create", "v", "1MiB", ok=7)
    assert done.json["error"]["kind"] == "host-unreachable"
    assert "no storkit where ssh finds it" in done.stderr and "/usr/local/bin/storkit" in done.stderr
    assert "storkit: command not found" in done.stderr
