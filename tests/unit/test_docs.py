"""The documentation says what is so: the tour runs, every key, code and JSON shape is there, every link leads somewhere.

`pytest tests/unit/test_docs.py --regenerate` writes the tour's output anew from what is printed now; read the diff.
"""

from __future__ import annotations

import dataclasses
import os
import re
import shutil
import subprocess
import sys
import tempfile
import textwrap
import tomllib
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from storkit.cli.commands import COMMANDS
from storkit.cli.manpage import KINDS
from storkit.core import inventory, registry
from storkit.core.backend import Backend, Hypervisor, Pool, Transport
from storkit.core.errors import Problems, StorkitError
from storkit.core.inventory import Defaults

ROOT = Path(__file__).resolve().parents[2]
DOCS = ROOT / "docs"
PAGES = sorted([ROOT / "README.md", ROOT / "CHANGELOG.md", *DOCS.glob("*.md")])
TOUR = "/tmp/tour"


# The tour of README.md: every ```console block, in order, in one shell.

BLOCK = re.compile(r"^```console\n(.*?)^```$", re.MULTILINE | re.DOTALL)


@dataclasses.dataclass
class Said:
    """One command of the tour, what the page says it prints, and what it printed."""

    command: str
    expected: str
    printed: str = ""
    status: int = 0


def commands(block: str) -> list[Said]:
    """The commands of a console block; lines without a prompt are the output of the one before."""
    found: list[Said] = []
    for line in block.splitlines():
        if line.startswith("$ "):
            found.append(Said(line[2:], ""))
        else:
            found[-1].expected += line + "\n"
    return found


def stable(text: str) -> list[str]:
    """Lines without what differs from run to run: times, UUIDs, plan numbers, column widths, the kernel's version."""
    for pattern, word in (
        (r"[0-9a-f]{8}(-[0-9a-f]{4}){3}-[0-9a-f]{12}", "UUID"),
        (r"UUID:[0-9a-f]{16}", "UUID:INSTANCE"),
        (r"\b\d{8}-\d{6}-[0-9a-f]{5}\b", "PLAN"),
        (r"\d+\.\d{3} s", "SECONDS"),
        (r"\d+ ms", "MS"),
        (r"\b(reflink|copy)\b", "CLONED"),
        (r" +", " "),
    ):
        text = re.sub(pattern, word, text)
    return text.strip().splitlines()


def run_all(said: list[Said], place: str) -> None:
    """Run the commands one after the other in one bash, with /tmp/tour standing for `place`."""
    with tempfile.TemporaryDirectory() as scratch:
        for name, arguments in (("storkit", " -m storkit"), ("python3", "")):
            shim = Path(scratch, name)
            shim.write_text(f'#!/bin/sh\nexec "{sys.executable}"{arguments} "$@"\n')
            shim.chmod(0o755)
        script = ["exec 2>&1"]
        for one in said:
            mark = r"printf '\001%s\001' $status; (exit $status)"
            script += [one.command.replace(TOUR, place), f"status=$?; {mark}"]
        environment = {
            **{key: value for key, value in os.environ.items() if not key.startswith(("XDG_", "STORKIT_"))},
            "PATH": f"{scratch}:{os.environ['PATH']}",
            "PYTHONPATH": str(ROOT),
        }
        done = subprocess.run(
            ["bash", "-s"], input="\n".join(script), capture_output=True, text=True, cwd=ROOT, env=environment,
            timeout=120, check=False,
        )  # fmt: skip
    parts = done.stdout.split("\x01")
    assert len(parts) == 2 * len(said) + 1, f"the shell ended early: {done.stdout[-500:]} {done.stderr}"
    for number, one in enumerate(said):
        one.printed = parts[2 * number].replace(place, TOUR)
        one.status = int(parts[2 * number + 1])


@pytest.fixture
def place() -> Iterator[str]:
    """A path as long as the tour's, for the columns; what a failed tour left running there is ended by its own pid."""
    directory = f"/tmp/t{os.urandom(2).hex()[:3]}"
    assert len(directory) == len(TOUR) and not Path(directory).exists()
    yield directory
    for entry in Path("/proc").iterdir():
        try:
            line = (entry / "cmdline").read_bytes() if entry.name.isdigit() else b""
        except OSError:
            continue
        if directory.encode() in line and b"qemu" in line:
            os.kill(int(entry.name), 9)
    shutil.rmtree(directory, ignore_errors=True)


def test_the_tour_prints_what_the_readme_says(place: str, regenerate: bool) -> None:
    if shutil.which("qemu-system-x86_64") is None or shutil.which("qemu-storage-daemon") is None:
        pytest.skip("qemu-system-x86 not installed")
    page = ROOT / "README.md"
    text = page.read_text()
    blocks = [commands(match[1]) for match in BLOCK.finditer(text)]
    said = [one for block in blocks for one in block]
    assert len(said) > 20
    run_all(said, place)
    assert not Path(place).exists()
    if regenerate:
        bodies = iter("".join(f"$ {one.command}\n{one.printed}" for one in block) for block in blocks)
        page.write_text(BLOCK.sub(lambda _: f"```console\n{next(bodies)}```", text))
        return
    for one, after in zip(said, [*said[1:], None], strict=True):
        asked = after is not None and after.command == "echo $?"
        assert asked or one.status == 0, f"{one.command}: status {one.status}\n{one.printed}"
        assert stable(one.printed) == stable(one.expected), one.command
