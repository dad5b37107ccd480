"""Fleets: N machines of one image, each itself, against a shell loop that makes N overlays, all alike; started, against
a loop of QEMUs; and one of them set back to the image.

    python bench/bench_fleet.py [COUNT...]      20, 100 and 1,000 by default

The image is an ext4 of 64 MiB that has what is looked for in one, and nothing that boots: a QEMU that waits for its
disk costs the same for both. What the loop leaves out: names, keys, records, rights, a journal, and that the disks are
durable when it returns.
"""

from __future__ import annotations

import os
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Sequence
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

from bench import _table

RUNNING = 20
LOOP = 'for i in $(seq "$1"); do qemu-img create -q -f qcow2 -b "$2" -F raw "$3/m$i.qcow2"; done'
START = (
    f'{LOOP}; for i in $(seq "$1"); do qemu-system-x86_64 -accel tcg -display none -nodefaults -m 16 -S '
    '-drive file="$3/m$i.qcow2",if=virtio -daemonize -pidfile "$3/m$i.pid"; done'
)


class Place:
    """An inventory of one host, with a golden image."""

    def __init__(self, directory: Path) -> None:
        self.directory = directory
        (directory / "inventory.toml").write_text(
            '[hosts.a]\nurl = "local:a"\n[pools.default]\nhost = "a"\n[hypervisors.qemu]\naccel = "tcg"\n'
        )
        tree = directory / "tree"
        for name in ("etc/ssh", "usr/sbin", "usr/lib/systemd", "etc/network"):
            (tree / name).mkdir(parents=True)
        for name in ("usr/sbin/sshd", "usr/lib/systemd/systemd", "etc/network/interfaces"):
            (tree / name).touch()
        self.image = directory / "golden.img"
        path = {**os.environ, "PATH": f"{os.environ['PATH']}:/usr/sbin:/sbin"}
        subprocess.run(["mke2fs", "-q", "-t", "ext4", "-d", tree, self.image, "64M"], check=True, env=path)
        self.run(self.storkit("volume", "import", "--golden", self.image, "golden"))

    def storkit(self, *words: object) -> list[str]:
        options = ["--inventory", str(self.directory / "inventory.toml"), "--state", str(self.directory / "plans")]
        return [sys.executable, "-m", "storkit", *options, *map(str, words)]

    def create(self, name: str, count: int, *more: str) -> list[str]:
        return self.storkit("fleet", "create", name, "--image", "golden", "--count", count, "--memory", "16MiB", *more)

    def run(self, argv: Sequence[str]) -> None:
        subprocess.run(argv, check=True, stdout=subprocess.DEVNULL, env=_table.environment())

    def shell(self, script: str, count: int) -> list[str]:
        target = self.directory / f"loop-{time.monotonic_ns()}"
        target.mkdir()
        return ["bash", "-ec", script, "bash", str(count), str(self.image), str(target)]

    def end_loops(self) -> None:
        for file in self.directory.glob("loop-*/*.pid"):
            os.kill(int(file.read_text()), 9)
            file.unlink()


def measured(act: Callable[[], None]) -> tuple[float, float]:
    """The seconds that it takes, and those of the processors, of all programs that it starts and waits for."""
    before, start = os.times(), time.perf_counter()
    act()
    after, took = os.times(), time.perf_counter() - start
    used = (after.children_user - before.children_user) + (after.children_system - before.children_system)
    return took, used


def row(title: str, took: tuple[float, float], base: tuple[float, float]) -> list[str]:
    return [title, f"{took[0]:.2f}", f"{took[1]:.2f}", f"{took[0] / base[0]:.2f} x", f"{took[1] / base[1]:.2f} x"]


HEADER = ["", "s", "CPU s", "ratio", "of CPU"]


def main(counts: list[int]) -> None:
    with tempfile.TemporaryDirectory(prefix="storkit-bench-") as base:
        place = Place(Path(base))
        for count in counts:
            loop = measured(lambda count=count: place.run(place.shell(LOOP, count)))  # type: ignore[misc]
            fleet = measured(lambda count=count: place.run(place.create(f"n{count}", count)))  # type: ignore[misc]
            again = measured(lambda count=count: place.run(place.create(f"n{count}", count)))  # type: ignore[misc]
            clone = measured(
                lambda count=count: place.run(  # type: ignore[misc]
                    place.storkit("volume", "clone", "golden", *(f"c{count}-{n}" for n in range(count)))
                )
            )
            rows = [
                row("a loop of qemu-img create -b", loop, loop),
                row("storkit volume clone, in one command", clone, loop),
                row("storkit fleet create: clones, each itself", fleet, loop),
                row("the same again, with nothing to do", again, loop),
            ]
            _table.table(f"{count} disks of one image", HEADER, rows)
        try:
            loop = measured(lambda: place.run(place.shell(START, RUNNING)))
            fleet = measured(lambda: place.run(place.create("run", RUNNING, "--start")))
            rows = [
                row("loops of qemu-img and qemu -daemonize", loop, loop),
                row("storkit fleet create --start", fleet, loop),
            ]
            _table.table(f"from nothing to {RUNNING} running guests", HEADER, rows)
            reset = measured(lambda: place.run(place.storkit("fleet", "reset", "run", "run-03")))
            stopped = measured(lambda: place.run(place.storkit("fleet", "stop", "run", "--force")))
            cold = measured(lambda: place.run(place.storkit("fleet", "reset", "run", "run-03")))
            rows = [row("fleet reset of one that runs, and runs again", reset, reset),
                    row("fleet reset of one that is stopped", cold, reset),
                    row(f"fleet stop --force of {RUNNING}", stopped, reset)]  # fmt: skip
            _table.table("one of them back to the image", HEADER, rows)
        finally:
            place.end_loops()
            place.run(place.storkit("fleet", "destroy", "run"))


if __name__ == "__main__":
    main([int(word) for word in sys.argv[1:]] or [20, 100, 1000])
