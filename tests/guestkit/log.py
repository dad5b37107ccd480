"""What the Linux guest wrote: its log, read back from the disk after it has gone, and its heartbeat, watched live."""

from __future__ import annotations

import re
import tempfile
import threading
import time
from dataclasses import dataclass, field
from pathlib import Path

from storkit.core.errors import CommandFailed, TimedOut
from storkit.system.run import run

_LINE = re.compile(rb"(\d{10}) (\d{16}) (\d{10}) (\d{10})")
LINE_LENGTH = 50


@dataclass(frozen=True)
class Report:
    """What the log says. `gaps` and `repeated` are the numbers that lines carry, `torn` their places in the file."""

    count: int
    first: int = 0
    last: int = 0
    gaps: list[int] = field(default_factory=list)
    """Numbers that are missing between the first and the last."""
    repeated: list[int] = field(default_factory=list)
    """Numbers that come again, or out of order."""
    torn: list[int] = field(default_factory=list)
    """Lines that are not whole, or whose checksum is wrong."""
    longest_stall_ms: float = 0.0
    """The longest that one line took to be on the disk, by the guest's clock, which stands still in a switchover."""
    longest_stall_at: int = 0
    """The number of that line."""
    starts: int = 0
    """How often the guest began to write: a guest that crashed, and started again, did so once more."""
    filesystem: str = ""
    """Empty: clean. Otherwise what e2fsck found wrong."""
    recovered: bool = False
    """The journal had to be replayed: the guest was not shut down, it was cut off."""

    @property
    def clean(self) -> bool:
        return self.count > 0 and not (self.gaps or self.repeated or self.torn or self.filesystem)


def parse(data: bytes) -> Report:
    """The report on a log's content."""
    gaps: list[int] = []
    repeated: list[int] = []
    torn: list[int] = []
    first = before = longest = longest_at = count = starts = 0
    lines = data.split(b"\n")
    if lines and not lines[-1]:
        lines.pop()
    for place, line in enumerate(lines, 1):
        match = _LINE.fullmatch(line)
        number, now, stall, checksum = map(int, match.groups()) if match else (0, 0, 0, -1)
        if checksum != checksum_of(number, now, stall):
            torn.append(place)
            continue
        count += 1
        starts += stall == 0  # there is no line before
        first = first or number
        if before and number <= before:
            repeated.append(number)
        elif before:
            gaps += range(before + 1, number)
        if stall > longest:
            # A line carries the stall of the line before it.
            longest, longest_at = stall, number - 1
        before = max(before, number)
    if data and not data.endswith(b"\n") and len(lines) not in torn:
        torn.append(len(lines))
    return Report(count, first, before, gaps, repeated, torn, longest / 1000, longest_at, starts)


def checksum_of(number: int, now: int, stall: int) -> int:
    """The checksum as the guest's shell computes it, in 64-bit arithmetic."""
    return (number * 2654435761 + now * 40503 + stall) & 0xFFFFFFFF


def verify(disk: Path, format: str = "raw") -> Report:
    """Check the file system and the log on the root disk of a guest that has ended. The disk itself is only read.

    A disk whose guest was killed needs its journal replayed first, which is done on the copy and reported.
    """
    with tempfile.TemporaryDirectory(prefix="guestkit-") as scratch:
        copy = Path(scratch, "root.img")
        log = Path(scratch, "log")
        run(["qemu-img", "convert", "-f", format, "-O", "raw", disk, copy], timeout=300, package="qemu-utils")
        # e2fsck(8): 1, errors corrected; with -p nothing else than the journal is mended unasked.
        replay = run(["e2fsck", "-p", copy], ok=(0, 1, 4), package="e2fsprogs")
        check = run(["e2fsck", "-fn", copy], ok=range(256))
        problem = "" if check.status == 0 else check.stdout.strip() or check.stderr.strip()
        run(["debugfs", "-R", f"dump /data/log {log}", copy])
        if not log.exists():
            raise CommandFailed(["debugfs"], 1, f"there is no /data/log on {disk}")
        report = parse(log.read_bytes())
    return Report(**{**vars(report), "filesystem": problem, "recovered": "recovering journal" in replay.stdout})


class Watch:
    """Follows the guest's heartbeat in one or more console files, and times it by this host's clock.

    Only from outside can a switchover be timed: the guest's own clocks stand still in it.
    """

    TICK = 0.004
    """Seconds between looks, so the error of every time."""

    def __init__(self, *consoles: Path) -> None:
        self._consoles = dict.fromkeys(consoles, (0, b""))
        self._changed = threading.Condition()
        self._stop = threading.Event()
        self._lines: list[str] = []
        self.last = 0
        """The highest number seen."""
        self.longest_gap_ms = 0.0
        """The longest time without a new number, between the first and the last one."""
        self.longest_gap_at = 0
        self._at = 0.0
        self._thread = threading.Thread(target=self._follow, name="guest watch", daemon=True)

    def __enter__(self) -> Watch:
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._stop.set()
        self._thread.join()

    def wait_for(self, number: int, timeout: float = 60.0) -> None:
        """Wait until the guest has written `number`. Raises TimedOut with the end of its console."""
        with self._changed:
            if not self._changed.wait_for(lambda: self.last >= number, timeout):
                end = " | ".join(self._lines[-5:]) or "it says nothing"
                raise TimedOut(f"the guest did not come to {number} in {timeout:g} s, it is at {self.last}: {end}")

    def wait_for_more(self, count: int, timeout: float = 60.0) -> None:
        """Wait for `count` further numbers."""
        self.wait_for(self.last + count, timeout)

    def _follow(self) -> None:
        while not self._stop.is_set():
            for path, (offset, rest) in self._consoles.items():
                try:
                    with path.open("rb") as file:
                        file.seek(offset)
                        data = file.read()
                except FileNotFoundError:
                    continue
                if data:
                    *lines, rest = (rest + data).split(b"\n")
                    self._consoles[path] = (offset + len(data), rest)
                    self._take(lines)
            self._stop.wait(self.TICK)

    def _take(self, lines: list[bytes]) -> None:
        now = time.monotonic()
        with self._changed:
            for line in lines:
                text = line.decode(errors="replace").strip()
                self._lines.append(text)
                word, _, number = text.partition(" ")
                if word != "seq" or not number.isdigit() or int(number) <= self.last:
                    continue
                if self.last and (now - self._at) * 1000 > self.longest_gap_ms:
                    self.longest_gap_ms, self.longest_gap_at = (now - self._at) * 1000, int(number)
                self.last, self._at = int(number), now
            self._changed.notify_all()
