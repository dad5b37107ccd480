"""Guests of libvirt adopted in one command, with their disks in place, against the same changes to their definitions by
hand.

    python bench/bench_adopt.py [COUNT]

In the lab (docs/lab.md): domains with a logical volume each, on one host, which are shut off. By hand: `virsh dumpxml`,
the new path put in by sed, and `virsh define`, one after the other: no volume is named, nothing is exported, nothing is
kept and nothing could be undone. Seconds are those of a host of the lab: ratios.
"""

from __future__ import annotations

import sys
import tempfile
import time
from pathlib import Path
from uuid import uuid4

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

from tests.lab.handmade import domain
from tests.lab.lab import Lab
from tests.lab.world import World, storage

BY_HAND = """\
for guest in $(virsh list --all --name); do
    virsh dumpxml --inactive $guest | sed "s,/dev/vg/disk-$guest,/dev/vg/./disk-$guest," >/root/$guest.xml
    virsh define /root/$guest.xml
done
"""


def main() -> None:
    count = int(sys.argv[1]) if len(sys.argv) > 1 else 30
    with tempfile.TemporaryDirectory() as scratch, Lab(print) as lab:
        world = World(lab, Path(scratch), storage("iscsi-own"), "libvirt")
        a = world.a
        for number in range(count):
            name = f"guest{number}"
            a.run(["lvcreate", "-q", "-y", "-L", "4M", "-n", f"disk-{name}", "vg"])
            a.put(domain(name, str(uuid4()), f"/dev/vg/disk-{name}"), f"/root/{name}.xml")
            a.run(["virsh", "define", f"/root/{name}.xml"])
        start = time.perf_counter()
        a.run(["sh", "-ec", BY_HAND], timeout=1800)
        by_hand = time.perf_counter() - start
        start = time.perf_counter()
        adopted = world.storkit("guest", "adopt", "--all", timeout=1800)
        taken = time.perf_counter() - start
        assert len(adopted) == count, adopted
    print(f"| {count} guests of libvirt | seconds | ratio |\n| --- | --- | --- |")
    print(f"| `virsh dumpxml`, `sed`, `virsh define`, each | {by_hand:.1f} | 1.0 |")
    print(f"| `storkit guest adopt --all` | {taken:.1f} | {taken / by_hand:.1f} |")


if __name__ == "__main__":
    main()
