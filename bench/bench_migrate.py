"""`storkit migrate run` against the same migration driven by hand over QMP, in one run.

    python bench/bench_migrate.py [RUNS]

Two hosts on one machine; a boot-sector guest of 16 MiB and a Linux guest of 112 MiB that write all the time. By hand:
the same kind of storage server (qemu-storage-daemon, one export per host), the same QEMU arguments, capabilities and
limits, but no locks, journal, proof or rights: an export is added for the destination, QEMU started there, the guest
migrated, the source's QEMU ended and its export deleted; the guest goes on when it has arrived, not when the source is
known to have let go. The two take turns, and the one that waits is paused.

Total and downtime are QEMU's own. Switchover and stall are the longest times without a new write, seen from outside:
during the move itself, and during the whole command, in which the guest also loses processors to everything else that
runs here. The wall time is the whole command's.
"""

from __future__ import annotations

import asyncio
import json
import os
import re
import shutil
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from statistics import median
from typing import Any

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

from bench import _table
from storkit.core.guest import Guest
from storkit.core.model import DiskSource, Volume
from storkit.guests.place import Place
from storkit.guests.render import read_args, render
from storkit.hosts.setup import Setup
from storkit.hosts.site import site
from storkit.hypervisors._qemu import definition as definitions
from storkit.hypervisors._qemu.process import process
from storkit.hypervisors._qemu.settings import QemuSettings
from storkit.system.qemu import qmp
from storkit.system.run import run
from storkit.tech.nbd.arguments import image_node
from tests.guestkit import bootsector, linux

BETWEEN = 40
"""Writes before and after each migration."""
INVENTORY = """\
[hosts.a]
url = "local:a"
[hosts.b]
url = "local:b"
[pools.default]
host = "a"
"""


class Writes:
    """The guest's writes as they are seen from outside, and the gaps between them; a thread looks every millisecond."""

    TICK = 0.001

    def __init__(self, look: Callable[[int], int]) -> None:
        """`look` gives the number of the last write there is, from the one that was last before."""
        self.gaps: list[tuple[float, float]] = []
        """Begin and end (time.monotonic)."""
        self.last = 0
        self._look = look
        self._stop = threading.Event()
        self._thread = threading.Thread(target=self._follow, daemon=True)

    def __enter__(self) -> Writes:
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._stop.set()
        self._thread.join()

    def wait_for_more(self, count: int, timeout: float = 60.0) -> None:
        wanted, end = self.last + count, time.monotonic() + timeout
        while self.last < wanted:
            if time.monotonic() > end:
                raise TimeoutError(f"no write {wanted} within {timeout:g} s, the last is {self.last}")
            time.sleep(self.TICK)

    def longest(self, begin: float, end: float) -> float:
        """The longest gap that overlaps a time, in milliseconds."""
        return max((to - since for since, to in self.gaps if since < end and to > begin), default=0.0) * 1000

    def _follow(self) -> None:
        at = time.monotonic()
        while not self._stop.wait(self.TICK):
            now_at = self._look(self.last)
            if now_at > self.last:
                now = time.monotonic()
                self.gaps.append((at, now))
                self.last, at = now_at, now


def boot_writes(disk: Path) -> Callable[[int], int]:
    """Looks for the boot sector's records in the server's file: each next one has its place."""
    file = disk.open("rb", buffering=0)

    def number(wanted: int) -> int:
        place = (1 + wanted % bootsector.REGION) * bootsector.SECTOR
        sector = os.pread(file.fileno(), 16, place)
        return int.from_bytes(sector[4:8], "little") if sector[:4] == bootsector.MAGIC else 0

    def look(last: int) -> int:
        last = last or bootsector.last_record(disk)
        while number(last + 1) == last + 1:
            last += 1
        return last

    return look


def linux_writes(console: Path) -> Callable[[int], int]:
    """Looks for the Linux guest's words on its console: one for each fsync that has ended."""
    offset, rest = 0, b""

    def look(last: int) -> int:
        nonlocal offset, rest
        if console.exists():
            with console.open("rb") as file:
                file.seek(offset)
                read = file.read()
            offset += len(read)
            *lines, rest = (rest + read).split(b"\n")
            numbers = [int(line[4:]) for line in lines if line.startswith(b"seq ") and line[4:].strip().isdigit()]
            last = max([last, *numbers])
        return last

    return look


@dataclass(frozen=True)
class Moved:
    """One migration, in milliseconds."""

    total: float
    downtime: float
    switchover: float
    stall: float
    wall: float


_MOVE = re.compile(r"(\d+) ms  move g from")


class Storkit:
    """storkit's own way, by its command line."""

    moving_since = moved_at = 0.0

    def __init__(self, base: Path, image: Path, define: list[str]) -> None:
        self.base = base
        base.mkdir()
        (base / "inventory.toml").write_text(INVENTORY)
        self.here, self.there = "a", "b"
        self.command("volume", "import", str(image), "g")
        self.command("guest", "define", "g", "--disk", "g", "--console", str(base / "console"), *define)
        self.disk = Path(self.command("volume", "show", "g")["path"])
        self.command("guest", "start", "g", "--on", "a")

    def command(self, *words: str) -> Any:
        options = [
            "--inventory",
            str(self.base / "inventory.toml"),
            "--state",
            str(self.base / "plans"),
            "--json",
            "-v",
        ]
        process = subprocess.Popen([sys.executable, "-m", "storkit", *options, *words], env=_table.environment(),
                                   stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)  # fmt: skip
        with process:
            assert process.stdout is not None and process.stderr is not None
            said = []
            for line in process.stderr:
                said.append(line)
                if match := _MOVE.search(line):
                    self.moved_at = time.monotonic()
                    self.moving_since = self.moved_at - int(match[1]) / 1000
            output = process.stdout.read()
        if process.returncode:
            raise SystemExit(f"storkit {' '.join(words)}: {''.join(said)}")
        return json.loads(output) if output else None

    @property
    def monitor(self) -> Path:
        return process(site(Setup(self.here, state=str(self.base / self.here))), "g").monitor

    def definition(self) -> definitions.Definition:
        return definitions.load(self.base / self.here / "qemu/g")

    def migrate(self) -> dict[str, Any]:
        moved: dict[str, Any] = self.command("migrate", "run", "g", "--to", self.there)["migration"]
        self.here, self.there = self.there, self.here
        return {"total-time": moved["total_ms"], "downtime": moved["downtime_ms"]}

    def end(self) -> None:
        self.command("guest", "stop", "g", "--force")


class ByHand:
    """What an administrator's script does."""

    moving_since = moved_at = 0.0

    def __init__(self, base: Path, image: Path, definition: definitions.Definition) -> None:
        self.base = base
        base.mkdir()
        self.here, self.there = "a", "b"
        self.disk = base / "disk.raw"
        shutil.copyfile(image, self.disk)
        self.guest: Guest = replace(definition.guest, console=str(base / "console"))
        self.definition = definition
        volume = Volume("g", self.guest.uuid, self.disk.stat().st_size, format="raw", path=str(self.disk))
        run(["qemu-storage-daemon", "--daemonize", "--pidfile", base / "qsd.pid",
             "--chardev", f"socket,id=qmp,path={base / 'qsd.qmp'},server=on,wait=off", "--monitor", "qmp",
             "--nbd-server", f"addr.type=unix,addr.path={base / 'nbd'}",
             "--blockdev", json.dumps(image_node(volume, "disk", "writeback", "io_uring"))])  # fmt: skip
        self.export("a")
        self.launch("a", incoming=False)

    @property
    def monitor(self) -> Path:
        return self.qmp(self.here)

    def qmp(self, host: str) -> Path:
        return self.base / f"{host}.qmp"

    def export(self, host: str) -> None:
        export = {"type": "nbd", "id": host, "node-name": "disk", "name": f"g.{host}", "writable": True}
        qmp.call(self.base / "qsd.qmp", "block-export-add", export)

    def launch(self, host: str, *, incoming: bool) -> None:
        place = Place(
            accel="kvm" if self.definition.accel == "kvm" else "tcg", machine=self.definition.machine,
            incoming=incoming, daemonize=True, qmp=str(self.qmp(host)), pidfile=str(self.base / f"{host}.pid"),
        )  # fmt: skip
        disk = DiskSource("network", protocol="nbd", export=f"g.{host}", socket=str(self.base / "nbd"))
        words = [word for word in read_args(render(self.guest, [disk], "qemu", place)) if word != "-S"]
        run(["qemu-system-x86_64", *words])

    def migrate(self) -> dict[str, Any]:
        self.export(self.there)
        self.launch(self.there, incoming=True)
        self.moving_since = time.monotonic()
        status = asyncio.run(self._move())
        self.moved_at = time.monotonic()
        quit_qemu(self.qmp(self.here), self.base / f"{self.here}.pid")
        qmp.call(self.base / "qsd.qmp", "block-export-del", {"id": self.here, "mode": "hard"})
        self.here, self.there = self.there, self.here
        return status

    async def _move(self) -> dict[str, Any]:
        both = ["events", "late-block-activate"]
        uri = f"unix:{self.base / 'in'}"
        async with qmp.connect(self.qmp(self.there)) as there, qmp.connect(self.qmp(self.here)) as here:
            await capabilities(there, both)
            await there.execute("migrate-incoming", {"uri": uri})
            await capabilities(here, [*both, "return-path", "auto-converge"])
            limits = {"downtime-limit": QemuSettings().downtime_limit, "max-bandwidth": 0}
            await here.execute("migrate-set-parameters", limits)
            with here.events("MIGRATION") as events:
                await here.execute("migrate", {"uri": uri})
                while (await events.next(60))["data"]["status"] not in ("completed", "failed"):
                    pass
            while (await here.execute("query-status"))["status"] != "postmigrate":
                await asyncio.sleep(0.001)
            status: dict[str, Any] = await here.execute("query-migrate")
            if status["status"] != "completed":
                raise SystemExit(f"by hand: {status}")
            return status

    def end(self) -> None:
        for name in (self.here, "qsd"):
            quit_qemu(self.base / f"{name}.qmp", self.base / f"{name}.pid")


async def capabilities(monitor: qmp.Monitor, names: list[str]) -> None:
    wanted = [{"capability": name, "state": True} for name in names]
    await monitor.execute("migrate-set-capabilities", {"capabilities": wanted})


def quit_qemu(monitor: Path, pidfile: Path) -> None:
    handle = os.pidfd_open(int(pidfile.read_text()))
    try:
        qmp.call(monitor, "quit")
        import select

        select.select([handle], [], [], 10)
    finally:
        os.close(handle)


Side = Storkit | ByHand


def measure(side: Side, other: Side, writes: Writes) -> Moved:
    """One migration while the other side's guest is paused."""
    qmp.call(other.monitor, "stop")
    try:
        writes.wait_for_more(BETWEEN)
        writes.gaps.clear()
        start = time.monotonic()
        status = side.migrate()
        end = time.monotonic()
        writes.wait_for_more(BETWEEN)
        switchover = writes.longest(side.moving_since, side.moved_at)
        return Moved(
            status["total-time"], status["downtime"], switchover, writes.longest(start, end), (end - start) * 1000
        )
    finally:
        qmp.call(other.monitor, "cont")


def compare(
    title: str, runs: int, image: Path, define: list[str], watch: Callable[[Side], Callable[[int], int]]
) -> None:
    with scratch() as base:
        own = Storkit(base / "s", image, define)
        hand = ByHand(base / "h", image, own.definition())
        taken: dict[str, list[Moved]] = {"by hand over QMP": [], "storkit migrate run": []}
        with Writes(watch(own)) as ours_writes, Writes(watch(hand)) as hand_writes:
            ours_writes.wait_for_more(BETWEEN)
            hand_writes.wait_for_more(BETWEEN)
            turns: list[tuple[Side, Side, Writes]] = [(hand, own, hand_writes), (own, hand, ours_writes)]
            for number in range(runs + 1):
                for name, (side, other, writes) in zip(taken, turns, strict=True):
                    moved = measure(side, other, writes)
                    if number:  # the first round warms the caches
                        taken[name].append(moved)
        own.end()
        hand.end()
    figures = ("total", "downtime", "switchover", "stall", "wall")
    rows = []
    for word, of in (("median", median), ("least", min)):
        values = [[of(getattr(one, what) for one in moves) for what in figures] for moves in taken.values()]
        for name, each in zip(taken, values, strict=True):
            rows.append([f"{name}, {word}", *(f"{value:.0f}" for value in each)])
        rows.append(["  ratio", *(f"{ours / max(1.0, hand):.2f} x" for hand, ours in zip(*values, strict=True))])
    _table.table(f"{title}, {runs} migrations each in turn", ["", *(f"{what} ms" for what in figures)], rows)


@contextmanager
def scratch() -> Iterator[Path]:
    """A directory, and no process of it left behind."""
    base = Path(tempfile.mkdtemp(prefix="stk-bench-"))
    try:
        yield base
    finally:
        for entry in Path("/proc").iterdir():
            try:
                line = (entry / "cmdline").read_bytes() if entry.name.isdigit() else b""
            except OSError:
                continue
            if str(base).encode() in line and b"qemu" in line:
                os.kill(int(entry.name), 9)
        shutil.rmtree(base)


def main() -> None:
    runs = int(sys.argv[1]) if len(sys.argv) > 1 else 10
    print(f"load {os.getloadavg()[0]:.1f} on {os.cpu_count()} processors")
    with tempfile.TemporaryDirectory() as directory:
        image = Path(directory) / "boot.img"
        bootsector.make_disk(image)
        compare("Boot sector guest, 16 MiB", runs, image, ["--memory", "16MiB"], lambda side: boot_writes(side.disk))
    kit = linux.build()
    define = ["--memory", "112MiB", "--machine", "pc", "--kernel", str(kit.kernel), "--initrd", str(kit.initrd),
              "--cmdline", linux.CMDLINE]  # fmt: skip
    compare("Linux guest, 112 MiB", runs, kit.root, define, lambda side: linux_writes(side.base / "console"))
    print(f"\nload {os.getloadavg()[0]:.1f}")


if __name__ == "__main__":
    main()
