"""What the benchmarks in the lab (docs/lab.md) share: storkit's backends called on a host, and fio."""

from __future__ import annotations

import json
import sys
from collections.abc import Mapping
from pathlib import Path
from statistics import median
from typing import Any

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

from tests.lab.host import Host

BACKEND = """\
import json, sys, time
from pathlib import Path
from storkit.core import codec, registry
from storkit.core.model import Client, Offer, Volume
from storkit.hosts.setup import Setup
from storkit.hosts.site import site
def transport(name, host, address, **settings):
    backend = registry.transport(name)
    return backend(site(Setup(host, address, "/var/lib/storkit")), backend.Settings(**settings))
def timed(action):
    start = time.perf_counter()
    result = action()
    return time.perf_counter() - start, result
"""

FIO = {
    "4 KiB random reads, depth 1": ["--rw=randread", "--bs=4k", "--iodepth=1"],
    "4 KiB random reads, depth 16": ["--rw=randread", "--bs=4k", "--iodepth=16"],
    "4 KiB random writes, depth 16": ["--rw=randwrite", "--bs=4k", "--iodepth=16"],
    "1 MiB reads, depth 4": ["--rw=read", "--bs=1M", "--iodepth=4"],
    "1 MiB writes, depth 4": ["--rw=write", "--bs=1M", "--iodepth=4"],
}


def python(host: Host, code: str, timeout: float = 1800) -> Any:
    """The last line that storkit code on a host prints, from JSON."""
    return json.loads(host.python(BACKEND + code, timeout=timeout).splitlines()[-1])


def attach(s: Host, b: Host, name: str, volume: str, **settings: Any) -> str:
    """The path of a volume (a Python expression) that host s exports, and b has attached and may write."""
    words = "".join(f", {key}={value!r}" for key, value in settings.items())
    offers = python(
        s,
        f"""
t, v = transport({name!r}, "s", "{s.address()}"{words}), [{volume}]
t.export(v, [Client("b", False, "b")])
t.set_writers(v, ["b"])
print(json.dumps(codec.dump(t.offers(v, "b"), reveal=True)))
""",
    )
    said = python(
        b,
        f"""
offers = codec.load(list[Offer], json.loads({json.dumps(offers)!r}))
print(json.dumps(transport({name!r}, "b", "{b.address()}"{words}).attach(offers)[0].path))
""",
    )
    return str(said)


def speeds(host: Host, devices: Mapping[str, str], rounds: int) -> dict[str, dict[str, tuple[float, float]]]:
    """By workload and title of device: bytes a second and the mean latency in seconds, medians of so many seconds.

    The devices take turns second by second in one process of fio, and each round begins with another one: so what else
    the machine does meets all of them alike.
    """
    found: dict[str, dict[str, tuple[float, float]]] = {}
    for workload, words in FIO.items():
        order, jobs = list(devices.items()), list[str]()
        for _ in range(rounds):
            for title, device in order:
                jobs += [f"--name={title}", f"--filename={device}", "--stonewall", *words]
            order = order[1:] + order[:1]
        common = ["--name=global", "--thread", "--direct=1", "--ioengine=libaio", "--time_based", "--runtime=1"]
        done = host.run(["fio", "--output-format=json", *common, *jobs], timeout=60 + 3 * rounds * len(devices))
        seen: dict[str, list[tuple[float, float]]] = {title: [] for title in devices}
        for job in json.loads(done.stdout)["jobs"]:
            way = job["read"] if job["read"]["total_ios"] else job["write"]
            seen[job["jobname"]].append((float(way["bw_bytes"]), way["clat_ns"]["mean"] / 1e9))
        found[workload] = {
            title: (median(speed for speed, _ in runs), median(latency for _, latency in runs))
            for title, runs in seen.items()
        }
    return found
