"""NBD in the kernel between two hosts of the lab (docs/lab.md), against what one would run instead, in one run.

    python bench/bench_nbd.py

storkit's NBD with a pre-shared key, and over TCP without TLS; qemu-nbd and nbd-client, typed by hand, without TLS; and
storkit's iSCSI. Each has a disk of its own on the storage host; fio with O_DIRECT measures them in turns.

Both hosts are User-Mode Linux on one machine: ratios hold, times do not.
"""

from __future__ import annotations

import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

from bench import _table
from bench._lab import attach, speeds
from storkit.tech.nbd.server import PLAIN_TCP
from tests.lab import Host, Lab, services

SIZE = 64 << 20
ROUNDS = 10
BY_HAND = "qemu-nbd, nbd-client"
PORT = 10700


def main() -> None:
    with Lab(print) as lab:
        s, b = lab.hosts("s", "b")
        for host in (s, b):
            host.run(["modprobe", "-a", "nbd", "dm_mod"])
        services.target(s)
        services.iscsid(b)
        settings = {"attach": "kernel", "cache": "none"}
        devices = {
            BY_HAND: by_hand(s, b),
            "NBD, no TLS": attach(s, b, "nbd", volume(s, 1), plain_tcp=PLAIN_TCP, **settings),
            "NBD, PSK": attach(s, b, "nbd", volume(s, 2), **settings),
            "iSCSI": attach(s, b, "iscsi", volume(s, 3)),
        }
        rows = []
        for workload, found in speeds(b, devices, ROUNDS).items():
            base, _ = found[BY_HAND]
            for title, (speed, latency) in found.items():
                rows.append([workload, title, f"{speed / 1e6:.1f}", f"{latency * 1e3:.2f}", f"{speed / base:.2f} x"])
        _table.table(f"data path, median of {ROUNDS}", ["", "", "MB/s", "latency ms", "of by hand"], rows)


def node(s: Host, number: int) -> str:
    """A disk of its own on the storage host."""
    name = f"data{number}"
    s.run(["dmsetup", "create", name, "--table", f"0 {SIZE // 512} linear {s.add_disk(SIZE)} 0"])
    return f"/dev/mapper/{name}"


def volume(s: Host, number: int) -> str:
    uuid = f"{number:08x}-0000-4000-8000-000000000000"
    return f'Volume("data{number}", "{uuid}", {SIZE}, "p", "s", format="raw", path="{node(s, number)}")'


def by_hand(s: Host, b: Host) -> str:
    server = ["qemu-nbd", "-f", "raw", "-x", "data", "-b", s.address(), "-p", str(PORT), "-t", "--fork"]
    s.run([*server, "--cache=none", "--aio=threads", node(s, 0)])
    b.run(["nbd-client", "-N", "data", s.address(), str(PORT), "/dev/nbd15"])
    return "/dev/nbd15"


if __name__ == "__main__":
    main()
