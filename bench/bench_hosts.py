"""One command among many hosts: the coordinator's CPU seconds and its ssh connections.

    python bench/bench_hosts.py [RUNS]

A fake ssh with canned agents (tests/cannedhosts.py) stands for the hosts. `attach` among 2 hosts, among 200, and among
200 of which 20 hang, with the hint where the volume was last, and without it, when all are asked. The CPU seconds are
of storkit alone: the shell scripts that stand for ssh are not counted.
"""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from statistics import median

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

from bench import _table
from tests.cannedhosts import CannedHosts

FEW, MANY, HANGING = 2, 200, range(100, 120)
MEASURE = """\
import atexit, os, resource, sys
def tell():
    used = resource.getrusage(resource.RUSAGE_SELF)
    open(os.environ["CPU_FILE"], "w").write(str(used.ru_utime + used.ru_stime))
atexit.register(tell)
from storkit.cli.main import main
sys.exit(main())
"""


class Place:
    """Hosts, and what one `attach` among them cost, each time."""

    def __init__(self, directory: Path, count: int, hanging: bool, hint: bool) -> None:
        directory.mkdir()
        self.hosts = CannedHosts(directory, count)
        self.hosts.ready_to_attach(0, "s1")
        if hanging:
            self.hosts.how("hang", [f"s{number}" for number in HANGING])
        self.hint = hint
        self.cpu: list[float] = []
        self.wall: list[float] = []
        self.connections = 0

    def run(self) -> None:
        base, told = self.hosts.directory, self.hosts.directory / "cpu"
        if not self.hint:
            (base / "plans/hints.json").unlink(missing_ok=True)
        environment = {**_table.environment(), "CPU_FILE": str(told)}
        environment["PATH"] = f"{self.hosts.path}:{os.environ['PATH']}"
        options = ["--inventory", str(self.hosts.inventory), "--state", str(base / "plans")]
        self.hosts.connections()
        start = time.perf_counter()
        argv = [sys.executable, "-c", MEASURE, *options, "attach", "v0", "--on", "s1"]
        subprocess.run(argv, env=environment, check=True, capture_output=True)
        self.wall.append(time.perf_counter() - start)
        self.cpu.append(float(told.read_text()))
        self.connections = self.hosts.connections().total()


def main() -> None:
    runs = int(sys.argv[1]) if len(sys.argv) > 1 else 5
    base = Path(tempfile.mkdtemp(prefix="bench-hosts-"))
    print(f"load {os.getloadavg()[0]:.1f} on {os.cpu_count()} processors")
    try:
        places = {
            f"{FEW} hosts, hint": Place(base / "few", FEW, hanging=False, hint=True),
            f"{FEW} hosts, no hint": Place(base / "few-asked", FEW, hanging=False, hint=False),
            f"{MANY} hosts, hint": Place(base / "many", MANY, hanging=False, hint=True),
            f"{MANY} hosts, {len(HANGING)} hang, hint": Place(base / "sick", MANY, hanging=True, hint=True),
            f"{MANY} hosts, no hint": Place(base / "asked", MANY, hanging=False, hint=False),
        }
        for number in range(runs + 1):
            for place in places.values():
                place.run()
                if not number:
                    place.cpu.clear()
                    place.wall.clear()
        first = next(iter(places.values()))
        rows = []
        for title, place in places.items():
            rows.append([title, str(place.connections), f"{median(place.cpu) * 1000:.0f}",
                         f"{median(place.cpu) / median(first.cpu):.2f} x", f"{median(place.wall) * 1000:.0f}",
                         f"{median(place.wall) / median(first.wall):.2f} x"])  # fmt: skip
        header = ["", "connections", "CPU ms", "ratio", "wall ms", "ratio"]
        _table.table(f"attach, {runs} runs each in turn", header, rows)
    finally:
        shutil.rmtree(base)


if __name__ == "__main__":
    main()
