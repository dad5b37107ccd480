"""Commands measured in turn, so that a busy machine is equally busy for all of them, and tables of what came of it."""

from __future__ import annotations

import os
import resource
import subprocess
import sys
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from statistics import median

ROOT = Path(__file__).resolve().parent.parent
OWN_RSS = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
"""KiB. exec(2) leaves a child the maximum of the process that forked it, so nothing below this can be seen."""


@dataclass
class Sample:
    """The runs of one command. Seconds; KiB."""

    wall: list[float] = field(default_factory=list)
    cpu: list[float] = field(default_factory=list)
    rss: int = 0
    scale: float = 1.0
    """What a shortened loop is multiplied by."""

    def add(self, argv: Sequence[str], cwd: Path | None = None) -> None:
        """Run a command once. Raises CalledProcessError."""
        start = time.perf_counter()
        with subprocess.Popen(argv, cwd=cwd, stdout=subprocess.DEVNULL, env=environment()) as child:
            _, status, usage = os.wait4(child.pid, 0)
            took = time.perf_counter() - start
            child.returncode = os.waitstatus_to_exitcode(status)
        if child.returncode:
            raise subprocess.CalledProcessError(child.returncode, argv)
        self.wall.append(took * self.scale)
        self.cpu.append((usage.ru_utime + usage.ru_stime) * self.scale)
        self.rss = max(self.rss, usage.ru_maxrss)


def environment() -> dict[str, str]:
    """The same for every command: storkit is taken from this tree, compiled once as an installed package is."""
    kept = {name: value for name, value in os.environ.items() if name != "PYTHONDONTWRITEBYTECODE"}
    return {**kept, "PYTHONPATH": str(ROOT)}


def interleave(commands: Mapping[str, Sequence[str]], runs: int) -> dict[str, Sample]:
    """Run each command in turn, `runs` times; one round before does not count."""
    samples = {title: Sample() for title in commands}
    for number in range(runs + 1):
        for title, argv in commands.items():
            (samples[title] if number else Sample()).add(argv)
    return samples


def show(title: str, samples: Mapping[str, Sample], base: str, notes: Mapping[str, str] | None = None) -> None:
    """Print the times in milliseconds, and each as a multiple of `base`'s, by medians and by the fastest runs."""
    first = samples[base]
    rows = []
    for name, sample in samples.items():
        ratio, least = median(sample.wall) / median(first.wall), min(sample.wall) / min(first.wall)
        memory = f"{sample.rss / 1024:.0f} MiB" if sample.rss > OWN_RSS else f"< {OWN_RSS / 1024:.0f} MiB"
        rows.append([name + (notes or {}).get(name, ""), f"{median(sample.wall) * 1000:.1f}",
                     f"{min(sample.wall) * 1000:.1f}", f"{median(sample.cpu) * 1000:.1f}",
                     f"{ratio:.2f} x", f"{least:.2f} x", memory])  # fmt: skip
    table(title, ["", "median ms", "least ms", "CPU ms", "ratio", "of least", "max RSS"], rows)


def table(title: str, header: Sequence[str], rows: Sequence[Sequence[str]]) -> None:
    """Print aligned columns, the first to the left, the others to the right."""
    widths = [max(len(row[column]) for row in [header, *rows]) for column in range(len(header))]
    print(f"\n{title}")
    for row in [header, *rows]:
        cells = [row[0].ljust(widths[0]), *(cell.rjust(width) for cell, width in zip(row[1:], widths[1:], strict=True))]
        print("  " + "  ".join(cells).rstrip())
    sys.stdout.flush()
