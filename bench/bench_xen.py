"""Live migration of a Xen guest that writes, against `xl migrate` typed by hand on the same disks.

    python bench/bench_xen.py [RUNS]

Two dom0s of the lab (docs/lab.md), NBD in the kernel from the storage host. By hand both have the disk already, and it
is taken from the source afterwards, neither of which counts. The server sees how long no write came to the disk.

The dom0s are emulated, without KVM: ratios hold, times do not.
"""

from __future__ import annotations

import sys
import tempfile
import time
from collections import defaultdict
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from statistics import median

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

from bench import _table
from tests.lab import Host, Lab
from tests.lab.world import storage
from tests.lab.xen import Dom0, XenLab
from tests.lab.xen.world import PATIENT, XenWorld

RUNS = 3
# Prints the longest time between two changes of a file, in seconds, when another file is there.
WATCH = """\
import os, sys, time
file, end = sys.argv[1:]
seen, last, longest = os.stat(file).st_mtime_ns, time.monotonic(), 0.0
while not os.path.exists(end):
    time.sleep(0.005)
    now = time.monotonic()
    if (changed := os.stat(file).st_mtime_ns) != seen:
        seen, last = changed, now
    longest = max(longest, now - last)
print(longest)
"""
END = "/run/watched"


def main() -> None:
    runs = int(sys.argv[1]) if len(sys.argv) > 1 else RUNS
    with Lab(print) as lab, tempfile.TemporaryDirectory() as scratch:
        xen = XenLab(lab, print)
        try:
            measure(XenWorld(xen, Path(scratch), storage("nbd-kernel")), runs)
        finally:
            xen.close()


def measure(world: XenWorld, runs: int) -> None:
    world.define()
    world.storkit("guest", "start", "g1", "--on", "h1")
    world.wait_for_writes(world.h1, 10)
    path = world.storkit("volume", "show", "g1")["path"]
    seen: dict[str, dict[str, list[float]]] = defaultdict(lambda: defaultdict(list))
    for number in range(runs + 1):  # the first does not count
        for way, move in (("by hand", by_hand), ("storkit", with_storkit)):
            for source, to in ((world.h1, world.h2), (world.h2, world.h1)):
                for key, seconds in move(world, path, source, to).items():
                    if number:
                        seen[way][key].append(seconds)
    rows = []
    for key, alike in (("the move", "the move"), ("the whole command", "the move"), ("no write", "no write")):
        hand, ours = median(seen["by hand"][alike]), median(seen["storkit"][key])
        rows.append([key, f"{hand:.1f}", f"{ours:.1f}", f"{ours / hand:.2f} x"])
    _table.table(f"median of {2 * runs}", ["", "xl by hand, s", "storkit, s", ""], rows)


def by_hand(world: XenWorld, path: str, source: Dom0, to: Dom0) -> dict[str, float]:
    world.storkit("migrate", "prepare", "g1", "--to", to.name)
    with watched(world.s, path) as gap:
        started = time.monotonic()
        source.run(["xl", "migrate", "g1", to.name], timeout=PATIENT)
        took = time.monotonic() - started
    world.storkit("migrate", "finish", "g1")
    world.wait_for_writes(to)
    return {"the move": took, "no write": gap[0]}


def with_storkit(world: XenWorld, path: str, source: Dom0, to: Dom0) -> dict[str, float]:
    with watched(world.s, path) as gap:
        started = time.monotonic()
        moved = world.storkit("migrate", "run", "g1", "--to", to.name)
        took = time.monotonic() - started
    world.wait_for_writes(to)
    return {"the move": moved["migration"]["total_ms"] / 1000, "the whole command": took, "no write": gap[0]}


@contextmanager
def watched(s: Host, path: str) -> Iterator[list[float]]:
    """The longest time without a write to a file on the storage host; known at the end."""
    s.run(["rm", "-f", END])
    watching = s.spawn(["python3", "-c", WATCH, path, END], timeout=PATIENT)
    gap: list[float] = []
    try:
        yield gap
    finally:
        s.run(["touch", END])
        gap.append(float(watching.wait().stdout))


if __name__ == "__main__":
    main()
