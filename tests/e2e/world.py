"""A machine of its own for one test: hosts a and b as directories, a real guest, and the real command line."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from contextlib import suppress
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any

import pytest

from storkit.system.timeouts import scaled
from tests import kept
from tests.e2e.forked import Forks
from tests.guestkit import bootsector

ROOT = Path(__file__).resolve().parent.parent.parent

TRANSPORT = os.environ.get("STORKIT_TEST_TRANSPORT", "")
"""Of the volumes of these worlds, where it is not storkit's default: one that another package brings is tried so."""
INVENTORY = (
    (f'[defaults]\ntransport = "{TRANSPORT}"\n' if TRANSPORT else "")
    + """\
[hosts.a]
url = "local:a"
[hosts.b]
url = "local:b"
[pools.default]
host = "a"
format = "{format}"
[hypervisors.qemu]
accel = "tcg"
"""
)
"""A busy machine may find KVM on one host of a test and not on the other."""


REST = 4
"""Ticks, 18 a second, that a guest rests before each record."""


@dataclass(frozen=True)
class Done:
    """A command that has ended."""

    status: int
    stdout: str
    stderr: str

    @property
    def json(self) -> Any:
        return json.loads(self.stdout)


each_format = pytest.mark.parametrize("world", ["raw", "qcow2"], indirect=True)
"""For a test of the fixture `world` whose promise each format keeps by code of its own."""


@cache
def the_forks() -> Forks:
    return Forks()


def commands() -> Iterator[tuple[int, list[str]]]:
    """The processes and the words that each was started with. To make a Path of each costs more than to read it."""
    for name in os.listdir("/proc"):  # noqa: PTH208
        if name.isdigit():
            with suppress(OSError), open(f"/proc/{name}/cmdline", "rb") as file:  # noqa: PTH123
                yield int(name), file.read().decode(errors="replace").split("\0")


class World:
    """One inventory, in one directory."""

    def __init__(self, directory: Path, format: str = "raw", inventory: str = "") -> None:
        self.directory = directory
        self.inventory = directory / "inventory.toml"
        self.inventory.write_text(inventory or INVENTORY.format(format=format))
        self.environment = {**os.environ, "PYTHONPATH": str(ROOT)}
        self.argv = [sys.executable, "-m", "storkit"]

    def words(self, *words: object) -> list[str]:
        options = ["--inventory", str(self.inventory), "--state", str(self.directory / "coordinator")]
        return [*options, *(str(word) for word in words)]

    def storkit(
        self, *words: object, ok: int | None = 0, argv: list[str] | None = None, patience: float = 120.0
    ) -> Done:
        """Run a command, in a fork unless `argv` names a program; `ok` is the status it must have, None for any.
        `patience`: seconds that it may take."""
        if argv is None and (forks := the_forks()).fit(self.environment):
            done = Done(*forks.run(self.words(*words), self.environment, scaled(patience)))
        else:
            program = subprocess.run(
                [*(argv or self.argv), *self.words(*words)],
                capture_output=True, text=True, env=self.environment, timeout=scaled(patience), check=False,
            )  # fmt: skip
            done = Done(program.returncode, program.stdout, program.stderr)
        if ok is not None:
            assert done.status == ok, f"storkit {' '.join(map(str, words))}: {done.status}\n{done.stderr}"
        return done

    def killed(self, point: str, *words: object, patience: float = 120.0) -> Done:
        """Run a command that is killed at a point of its journal (tests.e2e.killed), if it comes to it."""
        forks = the_forks()
        assert forks.fit(self.environment)
        return Done(*forks.run(self.words(*words), self.environment, scaled(patience), point))

    def popen(self, *words: object) -> subprocess.Popen[str]:
        return subprocess.Popen(
            [*self.argv, *self.words(*words)],
            stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, env=self.environment,
            # Tests that run in the background have SIGINT ignored, and would pass that on.
            preexec_fn=lambda: signal.signal(signal.SIGINT, signal.SIG_DFL),
        )  # fmt: skip

    def guest(self, name: str = "g") -> None:
        """Define a guest of one boot sector, with its disk."""
        image = self.directory / "boot.img"
        bootsector.make_disk(image, rest=REST)
        self.storkit("volume", "import", image, name)
        self.storkit("guest", "define", name, "--disk", name, "--memory", "16MiB")

    def disk(self, name: str = "g") -> Path:
        """The raw bytes of a volume that nobody has open."""
        volume = self.storkit("--json", "volume", "show", name).json
        path = Path(volume["path"])
        if volume["format"] == "raw":
            return path
        raw = self.directory / f"{name}.check"
        subprocess.run(["qemu-img", "convert", "-O", "raw", str(path), str(raw)], check=True)
        return raw

    def status(self, name: str = "g") -> dict[str, Any]:
        found: dict[str, Any] = self.storkit("--json", "migrate", "status", name).json[0]
        return found

    def running(self, name: str = "g") -> list[str]:
        return [host for host, status in self.status(name)["places"].items() if status in ("running", "paused")]

    def written(self, name: str = "g") -> int:
        """The number of the guest's last record, as the server's file has it now."""
        volume = self.storkit("--json", "volume", "show", name).json
        return bootsector.last_record(Path(volume["path"]))

    def wait_for_writes(self, path: Path, above: int, deadline: float = scaled(20.0)) -> int:
        """Wait until the guest has written a record with a number above `above` into a raw or qcow2 file."""
        end = time.monotonic() + deadline
        while (last := self._last_record(path)) <= above:
            assert time.monotonic() < end, f"no record after {last} within {deadline} s"
            time.sleep(0.02)
        return last

    @staticmethod
    def _last_record(path: Path) -> int:
        """Its number, also while the guest has the file open. A guest that writes over what it wrote changes no map."""
        if path.suffix != ".qcow2":
            return bootsector.last_record(path)
        with tempfile.NamedTemporaryFile() as raw:
            subprocess.run(["qemu-img", "convert", "-U", "-O", "raw", str(path), raw.name], check=True)
            return bootsector.last_record(Path(raw.name))

    def processes(self) -> list[str]:
        """The command lines of processes that have to do with this directory."""
        lines = ((pid, " ".join(words)) for pid, words in commands())
        return [
            f"{pid}: {line}"
            for pid, line in lines
            if pid != os.getpid() and str(self.directory) in line
            if any(word in line for word in ("qemu", "storkit", "/uml-"))
        ]

    def leftovers(self) -> list[str]:
        """Sockets, links, grants, locks and guests' files that are still there."""
        left = self.processes()
        for host in ("a", "b"):
            base = self.directory / host
            for path in base.rglob("*") if base.exists() else ():
                if path.is_dir() and not path.is_symlink():
                    continue
                relative = str(path.relative_to(base))
                if relative.startswith("volumes/") or kept.by_right(relative, kept.STATE):
                    continue
                if not kept.by_right(relative.removeprefix("run/"), kept.RUN):
                    left.append(str(path))
        return left

    def clear(self) -> None:
        """End whatever a failed test left running in this directory, by its own pid."""
        for line in self.processes():
            pid = int(line.partition(":")[0])
            try:
                os.kill(pid, 9)
            except ProcessLookupError:
                continue
