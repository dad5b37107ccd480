"""The command line against what a user would run instead, each command a process of its own, all in one run.

    python bench/bench_cli.py [VOLUMES] [RUNS] [DIRECTORY]

Start: `storkit --help` against an interpreter that imports argparse. List: VOLUMES volumes against `ls -l`.
Clone: VOLUMES clones, with interpreter start, checks, plan, journal, sidecars and fsync, against shell loops: as root,
with xfsprogs, on a fresh ext4 (overlays) and a fresh XFS (reflinks) in files of DIRECTORY, otherwise in DIRECTORY
itself. Long loops are measured for fewer clones, which the table states, and scaled.

Nothing is deleted between runs, each has a directory of its own: on ext4 without a journal a new file costs 30 times
as much for the five seconds after thousands have been deleted (recently_deleted() in fs/ext4/ialloc.c).
"""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
import tempfile
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

from bench import _place, _table
from bench._table import Sample

SIZE, DATA = 2 << 30, 300 << 20
PYTHON = sys.executable
INVENTORY = """\
[hosts.a]
url = "local:a"
[pools.default]
host = "a"
format = "qcow2"
"""
LOOPS = {
    "overlay": "qemu-img create -q -f qcow2 -F qcow2 -b golden.qcow2 c$i",
    "reflink": "cp --reflink=auto golden.qcow2 c$i",
}
FEW = 5
"""Copies measured where cp shares no blocks."""


def storkit(base: Path, *words: str) -> list[str]:
    """What pip's console script does, on hosts below `base`."""
    options = ["--inventory", str(base / "inventory.toml"), "--state", str(base / "plans")]
    return [*program(), *options, *words]


def program() -> list[str]:
    return [PYTHON, "-c", "import sys; from storkit.cli.main import main; sys.exit(main())"]


def start(runs: int) -> None:
    commands: dict[str, list[str]] = {
        "python -c 'import argparse'": [PYTHON, "-c", "import argparse"],
        "python -c pass": [PYTHON, "-c", "pass"],
        "storkit --help": [*program(), "--help"],
        "storkit volume list --help": [*program(), "volume", "list", "--help"],
        "storkit completion bash": [*program(), "completion", "bash"],
    }
    samples = _table.interleave(commands, runs)
    _table.show(f"Start, {runs} runs each in turn", samples, "python -c 'import argparse'")


def world(base: Path, image: Path) -> Path:
    """A host with a golden image in a directory pool."""
    base.mkdir()
    (base / "inventory.toml").write_text(INVENTORY)
    Sample().add(storkit(base, "volume", "import", str(image), "golden", "--golden"))
    return base


def clones(place: Path, image: Path, count: int, runs: int) -> Path:
    """Measure cloning below `place`; the last run's host."""
    names = [f"c{number}" for number in range(count)]
    kind = _place.file_system(place)
    copies = count if kind in ("xfs", "btrfs") else min(FEW, count)
    loops = [
        ("for i: qemu-img create -b", LOOPS["overlay"], "", count),
        ("for i: qemu-img create -b; sync -f", LOOPS["overlay"], "sync -f .", count),
        ("for i: cp --reflink=auto", LOOPS["reflink"], "", copies),
        ("for i: cp --reflink=auto; sync -f", LOOPS["reflink"], "sync -f .", copies),
    ]
    ours = "storkit volume clone"
    samples = {title: Sample(scale=count / number) for title, _, _, number in loops}
    samples = {ours: Sample(), **samples}
    for run in range(runs):
        base = world(place / f"storkit{run}", image)
        os.sync()
        samples[ours].add(storkit(base, "volume", "clone", "golden", *names))
        for number, (title, body, end, wanted) in enumerate(loops):
            here = place / f"loop{run}.{number}"
            here.mkdir()
            shutil.copy(base / "a/volumes/golden.qcow2", here)
            os.sync()
            script = f"set -e; for i in $(seq {wanted}); do {body}; done; {end}"
            samples[title].add(["bash", "-c", script], cwd=here)
            if wanted < count:
                shutil.rmtree(here)
    notes = {title: f" ({number} measured)" for title, _, _, number in loops if number < count}
    show = storkit(base, "--json", "volume", "show", "c0")
    shown = subprocess.run(show, env=_table.environment(), check=True, capture_output=True).stdout
    made = json.loads(shown)["made"]
    _table.show(f"{count} clones by {made} on {kind}, {runs} runs each in turn", samples, ours, notes)
    return base


def lists(base: Path, count: int, runs: int) -> None:
    volumes = base / "a/volumes"
    commands: dict[str, list[str]] = {
        "ls -l": ["ls", "-l", str(volumes)],
        "python -c 'import argparse'": [PYTHON, "-c", "import argparse"],
        "storkit volume list": storkit(base, "volume", "list"),
        "storkit --json volume list": storkit(base, "--json", "volume", "list"),
        "storkit volume show (one)": storkit(base, "volume", "show", "c0"),
    }
    samples = _table.interleave(commands, runs)
    _table.show(f"List of {count + 1} volumes, {runs} runs each in turn", samples, "ls -l")


def main() -> None:
    count = int(sys.argv[1]) if len(sys.argv) > 1 else 1000
    runs = int(sys.argv[2]) if len(sys.argv) > 2 else 3
    place = Path(tempfile.mkdtemp(prefix="bench-cli-", dir=sys.argv[3] if len(sys.argv) > 3 else None)).absolute()
    print(f"load {os.getloadavg()[0]:.1f} on {os.cpu_count()} processors")
    try:
        start(10 * runs)
        image = place / "image"
        with image.open("wb") as file:
            for number in range(DATA >> 22):
                file.write(bytes([1 + number % 250]) * (4 << 20))
                file.seek(4 << 20, os.SEEK_CUR)
            file.truncate(SIZE)
        if _place.possible():
            with _place.fresh("ext4", place) as fresh:
                lists(clones(fresh, image, count, runs), count, 5 * runs)
            with _place.fresh("xfs", place) as fresh:
                clones(fresh, image, count, runs)
        else:
            print("\nno fresh ext4 and XFS: that wants root and xfsprogs")
            (place / "here").mkdir()
            lists(clones(place / "here", image, count, runs), count, 5 * runs)
    finally:
        shutil.rmtree(place)
    print(f"\nload {os.getloadavg()[0]:.1f}; own max RSS {_table.OWN_RSS / 1024:.0f} MiB, the least that can be seen")


if __name__ == "__main__":
    main()
