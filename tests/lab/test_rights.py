"""On every moment of a migration, a host that may not write tries to, past all that storkit set up on it.

On both hosts a process writes one block of the guest's disk again and again, as root can: SCSI commands straight to
the logical unit, or a device whose read-only flag it clears first. The plan's journal says when which host had the
right; nothing may have been written outside of that.
"""

from __future__ import annotations

import json
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest

from tests.lab.host import Command, Host
from tests.lab.lab import Lab
from tests.lab.world import SIZE, World, each, worlds

pytestmark = pytest.mark.lab

TRIES = 1000
ROUNDS = 6
"""At most, until there were so many tries that were refused, after one move there and one back."""
OFFSET = SIZE - 4096
"""Of the block, behind all that the guest writes."""
MARGIN = 0.1
"""Seconds by which the clocks of two hosts, as they are compared here, may be apart."""
OTHERS = [(storage, name) for storage, name in worlds() if storage.name in ("iscsi", "nbd-kernel", "nfs")]

INTRUDER = """\
import ctypes, fcntl, glob, json, mmap, os, struct, subprocess, sys, time
host, offset, pause = sys.argv[1], int(sys.argv[2]), float(sys.argv[3])
block = mmap.mmap(-1, 4096)
address = ctypes.addressof(ctypes.c_char.from_buffer(block))
def scsi(disk):
    # WRITE(10) by SG_IO (scsi/sg.h): neither device-mapper nor the block layer's read-only flag stands before it
    command = ctypes.create_string_buffer(struct.pack(">BxLxHx", 0x2A, offset // 512, 8), 10)
    sense = ctypes.create_string_buffer(64)
    header = bytearray(struct.pack("@iiBBHIPPPIIiP4BHHiII", ord("S"), -2, 10, 64, 0, 4096, address,
                                   ctypes.addressof(command), ctypes.addressof(sense), 5000, 0, 0, 0,
                                   0, 0, 0, 0, 0, 0, 0, 0, 0)) + bytes(4)
    descriptor = os.open("/dev/" + disk, os.O_RDONLY | os.O_NONBLOCK)
    try:
        fcntl.ioctl(descriptor, 0x2285, header)
    finally:
        os.close(descriptor)
    host_status, driver_status = struct.unpack_from("@HH", header, 68)
    return "accepted" if header[64] == host_status == driver_status & 0xF == 0 else "refused"
def write(path):
    descriptor = os.open(path, os.O_WRONLY | os.O_DIRECT)
    try:
        os.pwritev(descriptor, [block], offset)
    finally:
        os.close(descriptor)
    return "accepted"
def device(path):
    descriptor = os.open(path, os.O_RDONLY)
    try:
        fcntl.ioctl(descriptor, 0x125D, struct.pack("i", 0))  # BLKROSET
    finally:
        os.close(descriptor)
    return write(path)
mounted, point = None, "/root/intruder"
def file(path):
    # by a mount of its own, which it keeps when storkit's is gone
    global mounted
    with open("/proc/mounts") as mounts:
        source = {words[1]: words[0] for words in map(str.split, mounts)}.get(os.path.dirname(path))
    if source and source != mounted:
        leave()
        os.mkdir(point)
        done = subprocess.run(["mount", "-n", "-t", "nfs", "-o", "vers=4.2,nosharecache", source, point])
        mounted = source if done.returncode == 0 else None
    return write(f"{point}/{os.path.basename(path)}")
def leave():
    if mounted:  # umount must not ask the server about the mount point
        subprocess.run(["umount", "-n", "-i", "-c", "-l", point])
    if os.path.lexists(point):
        os.rmdir(point)
last = None
def attempt():
    global last
    disks = [os.path.basename(path) for path in glob.glob("/sys/block/sd*")]
    if disks:
        return scsi(disks[0])
    try:
        last = os.path.realpath("/dev/storkit/g", strict=True)
    except FileNotFoundError:
        if not mounted:
            raise
    return device(last) if last.startswith("/dev/") else file(last)
runs, number = [], 0
while not os.path.exists("/root/stop"):
    number += 1
    block[:16] = host.encode().ljust(8) + struct.pack("<Q", number)
    began = time.time()
    try:
        how = attempt()
    except FileNotFoundError:
        how = "no disk"
        time.sleep(0.005)
    except OSError as error:
        how = "refused"
    if runs and runs[-1]["how"] == how:
        runs[-1].update(end=time.time(), last=number)
    else:
        runs.append({"how": how, "begin": began, "end": time.time(), "first": number, "last": number})
    time.sleep(pause)  # what the guest and storkit need of the machine
leave()
json.dump(runs, sys.stdout)
"""


@dataclass(frozen=True)
class Run:
    """Tries one after the other that went alike."""

    how: str
    begin: float
    """When the first of them began, and when the last ended, by the coordinator's clock."""
    end: float
    first: int
    last: int


def intrude(host: Host, pause: float) -> Command:
    host.put(INTRUDER, "/root/intruder.py")
    host.run(["rm", "-f", "/root/stop"])
    return host.spawn(["/usr/bin/python3", "/root/intruder.py", host.name, str(OFFSET), str(pause)], timeout=600)


def told(intruder: Command, host: Host, ahead: float) -> list[Run]:
    host.run(["touch", "/root/stop"])
    found = intruder.wait(60).stdout
    host.run(["rm", "/root/stop", "/root/intruder.py"])
    return [Run(**{**run, "begin": run["begin"] - ahead, "end": run["end"] - ahead}) for run in json.loads(found)]


def ahead_of(one: Host, other: Host) -> float:
    """Seconds that the clock of `one` is ahead of the other's."""

    def clock(host: Host) -> float:
        """How far it is ahead of ours, from the answer that came fastest."""
        best = (1e9, 0.0)
        for _ in range(5):
            before = time.time()
            said = float(host.run(["date", "+%s.%N"]).stdout)
            after = time.time()
            best = min(best, (after - before, said - (before + after) / 2))
        return best[1]

    return clock(one) - clock(other)


def rights(commands: Host) -> list[tuple[float, float, set[str]]]:
    """When the newest plan began to change who may write, when it had, and who then did."""
    text = commands.run(["sh", "-c", "cat $(ls -t /var/lib/storkit/plans/*.jsonl | head -n 1)"]).stdout
    lines: list[dict[str, Any]] = [json.loads(line) for line in text.splitlines()]
    steps = {step["id"]: step for stage in lines[0]["plan"]["stages"] for step in stage}
    starts = {line["start"]: line["time"] for line in lines if "start" in line}
    ends = {line["done"]: line["time"] for line in lines if "done" in line}
    return [
        (starts[id], ends[id], set(step["args"]["hosts"]))
        for id, step in steps.items()
        if step["verb"] == "set_writers"
    ]


@pytest.mark.parametrize("tries", [1, pytest.param(TRIES, marks=pytest.mark.slow)], ids=["once", "often"])
@pytest.mark.parametrize("combination", each(OTHERS, ["iscsi-qemu"]))
def test_who_may_not_write_does_not(lab: Lab, tmp_path: Path, combination: tuple[Any, str], tries: int) -> None:
    world = World(lab, tmp_path, *combination, commands="s")
    world.define()
    world.storkit("guest", "start", "g", "--on", "a")
    world.wait_for_writes()
    ahead = {host.name: ahead_of(host, world.s) for host in (world.a, world.b)}
    refused = dict.fromkeys("ab", 0)
    for turn in range(ROUNDS):
        source, destination = (world.a, world.b) if turn % 2 == 0 else (world.b, world.a)
        intruders = {host.name: intrude(host, 0.1 if tries == 1 else 0.002) for host in (source, destination)}
        world.migrate(destination.name)
        runs = {host.name: told(intruders[host.name], host, ahead[host.name]) for host in (source, destination)}
        (given, _, both), *_, (_, taken, one) = rights(world.s)
        assert both == {"a", "b"} and one == {destination.name}
        early = [run for run in runs[destination.name] if run.how == "accepted" and run.begin < given - MARGIN]
        late = [run for run in runs[source.name] if run.how == "accepted" and run.end > taken + MARGIN]
        assert not early and not late, (given, taken, early, late)
        for name, found in runs.items():
            refused[name] += sum(run.last - run.first + 1 for run in found if run.how == "refused")
        assert any(run.how == "accepted" for found in runs.values() for run in found)
        if turn % 2 and sum(refused.values()) >= tries:
            break
    print(f"tries refused: {refused}")
    assert sum(refused.values()) >= tries and all(refused.values())
    report = world.clear()
    assert report.clean, report
    left = world.left()
    assert not left, "\n".join(left)
