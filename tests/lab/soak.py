"""Many migrations of one guest between two hosts, with a table of what each took, and a verdict.

python -m tests.lab.soak --rounds 20 --storage iscsi --hypervisor libvirt
"""

from __future__ import annotations

import argparse
import sys
import tempfile
import time
from dataclasses import replace
from pathlib import Path
from statistics import median

from tests.guestkit import linux, log
from tests.lab.errors import LabError, Unsupported
from tests.lab.lab import Lab
from tests.lab.world import STORAGES, Move, World, hypervisors, storage

FILES = "/srv/guest"
"""Where QEMU may read them under libvirt too."""


def say(text: str) -> None:
    print(f"{time.strftime('%H:%M:%S')} {text}", file=sys.stderr, flush=True)


def define_linux(world: World) -> None:
    """A guest with a file system: the guestkit's Linux."""
    kit = linux.build()
    for host in (world.a, world.b):
        host.put(kit.kernel, f"{FILES}/vmlinuz")
        host.put(kit.initrd, f"{FILES}/initrd")
    world.import_(kit.root, "g")
    boot = ["--kernel", f"{FILES}/vmlinuz", "--initrd", f"{FILES}/initrd", "--cmdline", linux.CMDLINE]
    world.storkit("guest", "define", "g", "--disk", "g", "--memory", f"{linux.MEMORY}B", "--machine", "pc", *boot)


def soak(world: World, rounds: int, kind: str) -> list[str]:
    """What was wrong; nothing if all is well."""
    define_linux(world) if kind == "linux" else world.define()
    world.storkit("guest", "start", "g", "--on", "a")
    say("the guest runs on a")
    moves: list[Move] = []
    print("  #  to  command s  memory ms  downtime ms  last record", flush=True)
    for number in range(1, 2 * rounds + 1):
        move = world.migrate("b" if number % 2 else "a", written=kind != "linux")
        if kind == "linux":
            move = replace(move, last=wait_for_line(world))
        moves.append(move)
        print(f"{number:3}  {move.to:2}  {move.seconds:9.1f}  {move.total_ms:9}  {move.downtime_ms:11}  {move.last:11}",
              flush=True)  # fmt: skip
    seconds, downtimes = [move.seconds for move in moves], [move.downtime_ms for move in moves]
    print(f"command {min(seconds):.1f} to {max(seconds):.1f} s, median {median(seconds):.1f}; "
          f"downtime {min(downtimes)} to {max(downtimes)} ms, median {median(downtimes)}")  # fmt: skip
    wrong = verify_linux(world) if kind == "linux" else verify_records(world)
    world.delete()
    return wrong + [f"left behind: {line}" for line in world.left()]


def wait_for_line(world: World) -> int:
    """Wait until the guest has written another line; its number."""
    path = world.storkit("volume", "show", "g")["path"]
    read = f"dd if={path} bs=1M status=none {'iflag=direct' if path.startswith('/dev/') else ''}"

    def last() -> int:
        found = world.s.run(["sh", "-c", f"{read} | grep -a -o -E '[0-9]{{10}} [0-9]{{16}} [0-9]{{10}} [0-9]{{10}}' "
                             "| sort | tail -n 1"], check=False).stdout  # fmt: skip
        return int(found[:10] or 0)

    before = last()
    world.s.wait_for(lambda: last() > before, f"a line after number {before}", 120, every=1)
    return last()


def verify_records(world: World) -> list[str]:
    world.storkit("guest", "stop", "g", "--force")
    report = world.report()
    print(f"records {report.first} to {report.last}: {len(report.gaps)} lost, {len(report.backwards)} written twice, "
          f"{len(report.torn)} torn")  # fmt: skip
    return [] if report.clean else [str(report)]


def verify_linux(world: World) -> list[str]:
    world.storkit("guest", "stop", "g", "--timeout", "280")  # its kernel is emulated twice
    report = log.verify(world.disk())
    print(f"lines {report.first} to {report.last}: {len(report.gaps)} lost, {len(report.repeated)} written twice, "
          f"{len(report.torn)} torn; file system {report.filesystem or 'clean'}"
          f"{', journal replayed' if report.recovered else ''}; longest stall {report.longest_stall_ms:.0f} ms "
          f"by the guest's clock; started {report.starts} times")  # fmt: skip
    return [] if report.clean and report.starts == 1 else [str(report)]


def main() -> int:
    parser = argparse.ArgumentParser(prog="python -m tests.lab.soak", description=__doc__.splitlines()[0])
    parser.add_argument("--rounds", type=int, default=20, help="moves to b and back (20)")
    parser.add_argument(
        "--storage", "--transport", choices=[one.name for one in STORAGES if one.known()], default="nbd"
    )
    parser.add_argument("--hypervisor", choices=hypervisors(), default="qemu")
    parser.add_argument("--guest", choices=("records", "linux"), default="records")
    options = parser.parse_args()
    print(f"{options.rounds} x a -> b -> a, {options.storage}, {options.hypervisor}, guest {options.guest}")
    try:
        with Lab(say) as lab, tempfile.TemporaryDirectory(prefix="soak-") as scratch:
            wrong = soak(World(lab, Path(scratch), storage(options.storage), options.hypervisor), options.rounds,
                         options.guest)  # fmt: skip
    except Unsupported as reason:
        print(f"no lab here: {reason}", file=sys.stderr)
        return 3
    except (AssertionError, LabError) as error:
        wrong = [str(error)]
    for line in wrong:
        print(line)
    print("verdict:", "FAILED" if wrong else "nothing lost, nothing written twice, nothing torn, nothing left behind")
    return 1 if wrong else 0


if __name__ == "__main__":
    sys.exit(main())
