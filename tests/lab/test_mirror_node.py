"""A node that writes two disks, and what is kept of it, on a real kernel: the writer's host alone."""

from __future__ import annotations

import pytest

from tests.lab.host import Host
from tests.lab.lab import Lab

pytestmark = pytest.mark.lab

PRELUDE = """
import mmap, os, signal, subprocess, sys, threading, time
from pathlib import Path
from storkit.core.backend import Site
from storkit.core.errors import *
from storkit.core.model import DiskSource
from storkit.hypervisors._nodes import mirroring, watch
from storkit.hypervisors._nodes.mirroring import NodeMirrors
from storkit.system import locks
from storkit.system.block import devmapper as dm, mirrornode

MIB, UUID = 1 << 20, "00000000-0000-4000-8000-000000000001"
one, two = sys.argv[1:3]
SIZE = 16 * MIB
site = Site("a", Path("/var/lib/storkit"), Path("/run/storkit"), Path("/dev/storkit"))
for each in (site.state, site.run, site.dev):
    each.mkdir(parents=True, exist_ok=True, mode=0o700)
mirrors = NodeMirrors(site, "qemu")

def sh(*argv):
    return subprocess.run(argv, check=True, capture_output=True, text=True).stdout

def wanted(role, device):
    return dm.Wanted(dm.node_name("g", role), dm.node_uuid(UUID, role), dm.linear(device, SIZE))

def until(what):
    end = time.monotonic() + 600
    while not what():
        assert time.monotonic() < end
        time.sleep(0.02)

class Writer:
    \"\"\"Counts up in blocks all over the disk; each is durable before the next.\"\"\"

    def __init__(self, path):
        self.disk = os.open(path, os.O_RDWR | os.O_DIRECT)
        self.number, self.failed, self.ends = 0, "", False
        self.thread = threading.Thread(target=self.write, daemon=True)
        self.thread.start()

    def write(self):
        with mmap.mmap(-1, 4096) as buffer:
            while not self.ends:
                buffer[:8] = (self.number + 1).to_bytes(8, "big")
                try:
                    os.pwritev(self.disk, [buffer], self.place(self.number + 1))
                    os.fsync(self.disk)
                except OSError as error:
                    self.failed = str(error)
                    return
                self.number += 1
                time.sleep(0.005)

    def place(self, number):
        return number * 7919 % (SIZE // 4096) * 4096

    def more(self):
        now = self.number
        until(lambda: self.number > now + 3 or self.failed)
        assert not self.failed, self.failed

    def stands_still(self):
        before = self.number
        time.sleep(0.5)  # a write takes some milliseconds
        return self.number == before and not self.failed

    def stop(self, device):
        self.ends = True
        self.thread.join()
        os.close(self.disk)
        assert not self.failed, self.failed
        found = {}
        for number in range(1, self.number + 1):
            found[self.place(number)] = number
        disk = os.open(device, os.O_RDONLY | os.O_DIRECT)
        with mmap.mmap(-1, 4096) as buffer:
            for place, number in found.items():
                os.preadv(disk, [buffer], place)
                assert int.from_bytes(buffer[:8], "big") == number, (place, number)
        os.close(disk)

def fails(device):
    \"\"\"Whatever is sent to a disk fails from now on.\"\"\"
    name = "under-" + Path(device).name
    sh("dmsetup", "load", name, "--table", f"0 {SIZE // 512} error")
    sh("dmsetup", "resume", "--noflush", "--nolockfs", name)

def works(device):
    name = "under-" + Path(device).name
    sh("dmsetup", "load", name, "--table", f"0 {SIZE // 512} linear {device} 0")
    sh("dmsetup", "resume", "--noflush", "--nolockfs", name)

sh("modprobe", "dm-mod")
for each in (one, two):
    sh("dmsetup", "create", "under-" + Path(each).name, "--table", f"0 {SIZE // 512} linear {each} 0")
OLD, NEW = (f"/dev/mapper/under-{Path(each).name}" for each in (one, two))
sh("dd", "if=/dev/urandom", f"of={one}", "bs=1M", "count=16", "oflag=direct", "status=none")
COPY = DiskSource("block", dm.node_path(dm.node_name("g", "fill.attached")))

def made():
    dm.create([wanted("local", OLD)])
    dm.create([wanted("fill.attached", NEW)])
    (site.dev / "g").unlink(missing_ok=True)
    (site.dev / "g").symlink_to(dm.node_path(dm.node_name("g", "local")))
    return Writer(site.dev / "g")

def watched():
    return locks.held(watch._lock(site, UUID))

def names():
    return sorted(node.name for node in dm.find())
"""


def inside(host: Host, code: str, *words: str, timeout: float = 1500) -> None:
    disks = [host.add_disk(16 << 20), host.add_disk(16 << 20)]
    print(host.python(PRELUDE + code, *disks, *words, timeout=timeout))


def test_a_writer_goes_over_to_the_copy(lab: Lab) -> None:
    (s,) = lab.hosts("s")
    inside(
        s,
        """
writer = made()
assert mirrors.mirrored(UUID) == "none"
mirrors.mirror("g", UUID, COPY, "it", 0)
assert mirrors.mirrored(UUID) == "copying" and watched()
# who wants the disk below it, as after a restore, has what is wanted
dm.ensure([wanted("local", OLD)])
assert mirrors.mirrored(UUID) == "copying"
assert [mirrornode.legs(node.table) for node in dm.find() if node.name.endswith(":local")] != [None]
writer.more()
try:
    mirrors.unmirror(UUID, over=True)
    raise AssertionError("it was forgotten")
except Unsafe:
    pass
mirrors.mirror("g", UUID, COPY, "it", 0)
stall = mirrors.switch("g", UUID, "it")
print("held for", stall, "ms")
assert mirrors.switch("g", UUID, "it") == stall and mirrors.mirrored(UUID) == "switched"
assert names() == ["storkit:g:attached"] and os.readlink(site.dev / "g") == "/dev/mapper/storkit:g:attached"
(node,) = dm.find()
assert node.uuid == dm.node_uuid(UUID, "attached") and node.table == dm.linear(NEW, SIZE)
assert not watched()
try:
    mirrors.unmirror(UUID, over=False)
    raise AssertionError("it was put back")
except Unsafe:
    pass
mirrors.unmirror(UUID, over=True)
writer.more()
writer.stop(two)
dm.remove(names())
""",
    )


def test_a_disk_that_fails_meanwhile_holds_nobody_up(lab: Lab) -> None:
    """The copy's: the writer goes on with the disk. The disk's own: the writer sees that, as it would without a copy,
    and nothing that it was told is written is lost."""
    (s,) = lab.hosts("s")
    inside(
        s,
        """
writer = made()
mirrors.mirror("g", UUID, COPY, "it", 0)
fails(two)
writer.more()
until(lambda: mirrors.mirrored(UUID) == "none")
until(lambda: not watched())
try:
    mirrors.switch("g", UUID, "it")
    raise AssertionError("it switched to what has failed")
except Conflict:
    pass
writer.more()
works(two)
mirrors.mirror("g", UUID, COPY, "it", 0)
writer.more()
assert mirrors.mirrored(UUID) == "copying"
# the program that watches is killed: the next command of the move lets the writer go on
until(lambda: watch._found(site, UUID))
os.kill(int(watch._pid(site, UUID).read_text()), signal.SIGKILL)
fails(two)
until(writer.stands_still)
mirrors.unmirror(UUID)
writer.more()
works(two)
mirrors.mirror("g", UUID, COPY, "it", 0)
fails(one)
until(lambda: writer.failed)
assert "Input/output" in writer.failed and mirrors.mirrored(UUID) == "none"
works(one)
writer.failed = ""
writer.thread.join()
writer.stop(one)
mirrors.unmirror(UUID)
dm.remove(names())
""".replace("unmirror(UUID)", "unmirror(UUID, over=False)"),
    )
