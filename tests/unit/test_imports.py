"""What a process imports before it does anything: an agent is started on every host for every command."""

from __future__ import annotations

import json
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import Any

import pytest

from storkit.hosts.remote import wire

AT_ITS_END = "import atexit, sys; atexit.register(lambda: print(*sys.modules, file=sys.stderr)); "
STORKIT = AT_ITS_END + "from storkit.cli.main import main; main(sys.argv[1:])"
AGENT = """
    asyncio bz2 concurrent.futures ctypes email hashlib importlib.metadata jinja2 logging lzma platform qemu random rich
    secrets sh shutil socket ssl subprocess tempfile tomllib uuid
    storkit.cli.manual.examples storkit.core.inventory storkit.guests storkit.hooks storkit.hypervisors storkit.plans
    storkit.tech
"""
LOOKS = """
    asyncio bz2 email importlib.metadata jinja2 logging lzma qemu random rich secrets sh shutil ssl
    storkit.cli.manual.examples storkit.guests.parse storkit.hooks storkit.plans.engine storkit.plans.planner
    storkit.plans.verbs
"""


def imported(*words: str, told: bytes = b"") -> set[str]:
    """The modules that a command has imported when it ends."""
    done = subprocess.run([sys.executable, "-c", STORKIT, *words], input=told, capture_output=True, check=True)
    return set(done.stderr.decode().splitlines()[-1].split())


def test_an_agent_that_is_asked_nothing() -> None:
    setup: dict[str, Any] = {"host": "a", "pools": {"p": {"type": "directory", "settings": {}}}}
    # Not tmp_path: where the sockets of a state directory would not fit, a hash stands in for its name.
    with tempfile.TemporaryDirectory(prefix="sk-") as state:
        told = json.dumps({**wire.hello(), "setup": {**setup, "state": state}}).encode() + b"\n"
        found = imported("agent", told=told)
    assert "storkit.hosts.remote.agent" in found and not found & set(AGENT.split())


@pytest.mark.parametrize("command", ["volume list", "pool list"])
def test_a_command_that_looks(tmp_path: Path, command: str) -> None:
    (tmp_path / "inventory.toml").write_text('[hosts.a]\nurl = "local:a"\n[pools.default]\nhost = "a"\n')
    options = ("--inventory", str(tmp_path / "inventory.toml"), "--state", str(tmp_path / "coordinator"))
    found = imported(*options, *command.split())
    assert "storkit.directory" in found and not found & set(LOOKS.split())
