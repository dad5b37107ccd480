"""`storkit migrate run` against the same migration driven by hand over QMP, in one run.

    python bench/bench_migrate.py [RUNS]

Two hosts on one machine; a boot-sector guest of 16 MiB and a Linux guest of 112 MiB that write all the time. By hand:
the same kind of storage server (qemu-storage-daemon, one export per host), the same QEMU arguments, capabilities and
limits, but no locks, journal, proof or rights: an export is added for the destination, QEMU started there, the guest
migrated, the source's QEMU ended and its export deleted; the guest goes on when it has arrived, not when the source is
known to have let go. The two take turns, and the one that waits is paused. Total and downtime are QEMU's own; the
stall is the longest time without a new write, seen from outside; the wall time is the whole command's.
"""

from __future__ import annotations

import asyncio
import json
import os
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
from typing import Any, Protocol

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

from bench import _table
from storkit.core.model import DiskSource, Volume
from storkit.guests.record import Guest
from storkit.guests.render import Place, read_args, render
from storkit.hosts.site import Setup, site
from storkit.hypervisors import _qemu_definition as definitions
from storkit.hypervisors._qemu_process import process
from storkit.hypervisors.qemu import QemuSettings
from storkit.system import qmp
from storkit.system.nbdserver import image_node
from storkit.system.run import run
from tests.guestkit import bootsector, linux, log

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


class Writes(Protocol):
    """The guest's writes, seen from outside."""

    longest_gap_ms: float

    def wait_for_more(self, count: int, timeout: float = 60.0) -> None: ...


class BootWrites:
    """Follows the boot sector's records in the server's file: each next one has its place."""

    TICK = 0.001

    def __init__(self, disk: Path) -> None:
        self.longest_gap_ms = 0.0
        self._disk = disk
        self._last = 0
        self._stop = threading.Event()
        self._thread = threading.Thread(target=self._follow, daemon=True)

    def __enter__(self) -> BootWrites:
        self._last = bootsector.last_record(self._disk)
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._stop.set()
        self._thread.join()

    def wait_for_more(self, count: int, timeout: float = 60.0) -> None:
        wanted, end = self._last + count, time.monotonic() + timeout
        while self._last < wanted:
            if time.monotonic() > end:
                raise TimeoutError(f"no record {wanted} within {timeout:g} s, the last is {self._last}")
            time.sleep(self.TICK)

    def _follow(self) -> None:
        at = time.monotonic()
        with self._disk.open("rb", buffering=0) as disk:
            while not self._stop.wait(self.TICK):
                before = self._last
                while self._number(disk.fileno(), self._last + 1) == self._last + 1:
                    self._last += 1
                if self._last > before:
                    now = time.monotonic()
                    self.longest_gap_ms, at = max(self.longest_gap_ms, (now - at) * 1000), now

    def _number(self, descriptor: int, number: int) -> int:
        sector = os.pread(descriptor, 16, (1 + number % bootsector.REGION) * bootsector.SECTOR)
        return int.from_bytes(sector[4:8], "little") if sector[:4] == bootsector.MAGIC else 0


@dataclass(frozen=True)
class Moved:
    """One migration, in milliseconds."""

    total: float
    downtime: float
    stall: float
    wall: float


class Storkit:
    """storkit's own way, by its command line."""

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
        options = ["--inventory", str(self.base / "inventory.toml"), "--state", str(self.base / "plans"), "--json"]
        done = subprocess.run([sys.executable, "-m", "storkit", *options, *words], env=_table.environment(), text=True,
                              capture_output=True, check=False)  # fmt: skip
        if done.returncode:
            raise SystemExit(f"storkit {' '.join(words)}: {done.stderr}")
        return json.loads(done.stdout) if done.stdout else None

    @property
    def monitor(self) -> Path:
        return process(site(Setup(self.here, state=str(self.base / self.here)), separate=True), "g").monitor

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
        status = asyncio.run(self._move())
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
        writes.longest_gap_ms = 0.0
        start = time.perf_counter()
        status = side.migrate()
        wall = (time.perf_counter() - start) * 1000
        writes.wait_for_more(BETWEEN)
        return Moved(status["total-time"], status["downtime"], writes.longest_gap_ms, wall)
    finally:
        qmp.call(other.monitor, "cont")


def compare(title: str, runs: int, image: Path, define: list[str], watch: Callable[[Side], Any]) -> None:
    with scratch() as base:
        ours = Storkit(base / "s", image, define)
        hand = ByHand(base / "h", image, ours.definition())
        taken: dict[str, list[Moved]] = {"by hand over QMP": [], "storkit migrate run": []}
        with watch(ours) as ours_writes, watch(hand) as hand_writes:
            ours_writes.wait_for_more(BETWEEN)
            hand_writes.wait_for_more(BETWEEN)
            turns: list[tuple[Side, Side, Writes]] = [(hand, ours, hand_writes), (ours, hand, ours_writes)]
            for number in range(runs + 1):
                for name, (side, other, writes) in zip(taken, turns, strict=True):
                    moved = measure(side, other, writes)
                    if number:  # the first round warms the caches
                        taken[name].append(moved)
        ours.end()
        hand.end()
    figures = [(what, of) for of in (median, min) for what in ("total", "downtime", "stall", "wall")]
    values = {name: [of(getattr(one, what) for one in moves) for what, of in figures] for name, moves in taken.items()}
    rows = [[name, *(f"{value:.0f}" for value in each)] for name, each in values.items()]
    by_hand, by_storkit = values.values()
    ratios = [theirs / max(1.0, mine) for mine, theirs in zip(by_hand, by_storkit, strict=True)]
    rows.append(["ratio", *(f"{ratio:.2f} x" for ratio in ratios)])
    header = [*(f"{what} ms" for what, _ in figures[:4]), *(f"least {what}" for what, _ in figures[4:])]
    _table.table(f"{title}, {runs} migrations each in turn, medians and least", ["", *header], rows)


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
        compare("Boot sector guest, 16 MiB", runs, image, ["--memory", "16MiB"], lambda side: BootWrites(side.disk))
    kit = linux.build()
    define = ["--memory", "112MiB", "--machine", "pc", "--kernel", str(kit.kernel), "--initrd", str(kit.initrd),
              "--cmdline", linux.CMDLINE]  # fmt: skip
    compare("Linux guest, 112 MiB", runs, kit.root, define, lambda side: log.Watch(side.base / "console"))
    print(f"\nload {os.getloadavg()[0]:.1f}")


if __name__ == "__main__":
    main()
