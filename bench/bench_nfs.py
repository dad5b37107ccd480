"""Clones of a volume on an NFS server, against cp, in one run: on hosts of the lab (docs/lab.md).

    python bench/bench_nfs.py [CLONES]               how many: 100 by default

The pool is on XFS, which shares blocks, and on ext4, which copies them. storkit clones where the disk is; cp does it on
the server as well, and on a client that has the pool mounted, which asks the server to copy (NFS 4.2). Each is one
process for all clones; starting it counts.

The hosts are User-Mode Linux on one machine: ratios hold, times do not.
"""

from __future__ import annotations

import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

from bench import _table
from bench._lab import BACKEND
from tests.lab import Host, Lab, services

SIZE = 16 << 20
POOL = """\
import os, uuid
backend = registry.pool("nfs")
pool = backend(site(Setup("s", "", "/var/lib/storkit")), backend.Settings(path="@PATH"), "p")
def new(name):
    return Volume(name, str(uuid.uuid4()), @SIZE)
"""
GOLD = """\
(gold,) = pool.create([new("gold")])
with open(gold.path, "r+b") as file:
    file.write(os.urandom(gold.size))
    os.fsync(file.fileno())
"""
CLONE = """\
(gold,) = pool.find(["gold"])
pool.clone(gold, [new(f"c{n}") for n in range(@COUNT)])
"""
CP = "for n in $(seq @COUNT); do cp --reflink=auto gold.raw @WHO$n; done; sync -f ."


def main() -> None:
    count = int(sys.argv[1]) if sys.argv[1:] else 100
    with Lab(print) as lab:
        s, c = lab.hosts("s", "c")
        services.nfs_server(s)
        services.nfs_client(c)
        rows = []
        for kind in ("xfs", "ext4"):
            path = f"/srv/{kind}"
            disk = s.add_disk((count * 3 + 20) * SIZE)
            s.run([f"mkfs.{kind}", "-q", disk])
            s.run(["mkdir", "-p", path])
            s.run(["mount", disk, path])
            storkit(s, path, GOLD)
            s.run(["exportfs", "-o", "rw,no_root_squash,no_subtree_check", f"{c.address()}:{path}"])
            c.run(["mkdir", "-p", path])
            c.run(["mount", "-t", "nfs", "-o", "vers=4.2", f"{s.address()}:{path}", path])
            found = {
                "storkit": storkit(s, path, CLONE.replace("@COUNT", str(count))),
                "cp on the server": shell(s, path, "server", count),
                "cp on a client": shell(c, path, "client", count),
            }
            for title, seconds in found.items():
                rows.append([f"{count} on {kind}", title, f"{seconds:.2f}", f"{seconds / found['storkit']:.2f} x"])
        _table.table("clones of 16 MiB", ["", "by", "s", "of storkit's"], rows)


def storkit(s: Host, path: str, call: str) -> float:
    code = BACKEND + (POOL + call).replace("@PATH", path).replace("@SIZE", str(SIZE))
    env = {"PYTHONPATH": "/storkit:/opt/storkit/site-packages", "PYTHONPYCACHEPREFIX": "/lab/common/pyc"}
    return s.run(["/usr/bin/python3", "-"], input=code, env=env, timeout=1800).seconds


def shell(host: Host, path: str, who: str, count: int) -> float:
    loop = CP.replace("@COUNT", str(count)).replace("@WHO", who)
    return host.run(["sh", "-ec", f"cd {path}; {loop}"], timeout=1800).seconds


if __name__ == "__main__":
    main()
