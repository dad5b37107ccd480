"""NVMe/TCP beside iSCSI, between two hosts of the lab (docs/lab.md), in one run.

    python bench/bench_nvme.py [PART...]      verbs, data: both

verbs         storkit's export, attach, a right given and taken, detach and unexport of a volume, by turns; in process,
              so that starting Python does not count.
data path     fio with O_DIRECT on /dev/storkit/NAME, by turns.

Both hosts are User-Mode Linux on one machine: ratios hold, times do not.
"""

from __future__ import annotations

import json
import sys
from collections import defaultdict
from pathlib import Path
from statistics import median

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

from bench import _table
from bench._lab import attach, python, speeds
from tests.lab import Host, Lab, services

TRANSPORTS = ("iscsi", "nvme")
ROUNDS = 5
DATA_ROUNDS = 15
EXTENT = 64 << 20


def main() -> None:
    parts = sys.argv[1:] or ["verbs", "data"]
    with Lab(print, nvme=True) as lab:
        s, b = lab.hosts("s", "b")
        for host in (s, b):
            services.target(host)
            services.iscsid(host)
            host.run(["modprobe", "-a", "dm-mod", "dm-flakey", "nvmet-tcp", "nvme-tcp"])
        disk, sectors = s.add_disk(len(TRANSPORTS) * EXTENT), EXTENT // 512
        for n, name in enumerate(TRANSPORTS):
            s.run(["dmsetup", "create", name, "--table", f"0 {sectors} linear {disk} {n * sectors}"])
        if "verbs" in parts:
            verbs(s, b)
        if "data" in parts:
            data_path(s, b)


def volume(name: str) -> str:
    uuid = f"{TRANSPORTS.index(name) + 1:08x}-0000-4000-8000-000000000000"
    return f'Volume("{name}", "{uuid}", {EXTENT}, "p", "s", path="/dev/mapper/{name}")'


def verbs(s: Host, b: Host) -> None:
    found: dict[str, dict[str, list[float]]] = defaultdict(lambda: defaultdict(list))
    for number in range(ROUNDS + 1):  # the first compiles storkit, and loads modules
        for name in TRANSPORTS:
            for verb, seconds in once(s, b, name).items():
                if number:
                    found[verb][name].append(seconds)
    rows = []
    for verb, seen in found.items():
        iscsi, nvme = (median(seen[name]) for name in TRANSPORTS)
        rows.append([verb, f"{iscsi * 1000:.0f}", f"{nvme * 1000:.0f}", f"{nvme / iscsi:.2f} x"])
    _table.table(f"one volume, median of {ROUNDS}", ["", "iSCSI ms", "NVMe/TCP ms", ""], rows)


def once(s: Host, b: Host, name: str) -> dict[str, float]:
    """Seconds of each verb, in their order."""
    home = f't, v = transport({name!r}, "s", "{s.address()}"), [{volume(name)}]\n'
    far = f't, v = transport({name!r}, "b", "{b.address()}"), [{volume(name)}]\n'
    exported, offers = python(
        s,
        home
        + """
took = timed(lambda: t.export(v, [Client("b", False, "b")]))[0]
print(json.dumps([took, codec.dump(t.offers(v, "b"), reveal=True)]))
""",
    )
    load = f"offers = codec.load(list[Offer], json.loads({json.dumps(json.dumps(offers))}))\n"
    attached = python(b, far + load + "print(json.dumps(timed(lambda: t.attach(offers))[0]))")
    given = python(s, home + 'print(json.dumps(timed(lambda: t.set_writers(v, ["b"]))[0]))')
    claimed = python(b, far + 'print(json.dumps(timed(lambda: t.claim(v, ["b"]))[0]))')
    taken = python(s, home + "print(json.dumps(timed(lambda: t.set_writers(v, []))[0]))")
    detached = python(b, far + "print(json.dumps(timed(lambda: t.detach(v))[0]))")
    away = python(s, home + 'print(json.dumps(timed(lambda: t.unexport(v, ["b"]))[0]))')
    return {
        "export": exported,
        "attach": attached,
        "a right is given": given,
        "and taken up": claimed,
        "a right is taken": taken,
        "detach": detached,
        "unexport": away,
    }


def data_path(s: Host, b: Host) -> None:
    devices = {name: attach(s, b, name, volume(name)) for name in TRANSPORTS}
    rows = []
    for title, seen in speeds(b, devices, DATA_ROUNDS).items():
        (iscsi, slow), (nvme, quick) = (seen[name] for name in TRANSPORTS)
        rows.append([title, f"{iscsi / 1e6:.1f}", f"{nvme / iscsi:.2f} x", f"{quick / slow:.2f} x"])
    heads = ["", "iSCSI, MB/s", "NVMe/TCP", "latency"]
    _table.table(f"data path, median of {DATA_ROUNDS}", heads, rows)


if __name__ == "__main__":
    main()
