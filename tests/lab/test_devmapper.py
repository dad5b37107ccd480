"""storkit's device-mapper nodes on a real kernel."""

from __future__ import annotations

import pytest

from tests.lab import Host, Lab

pytestmark = pytest.mark.lab

PRELUDE = """
import mmap, os, subprocess, sys, threading, time
from dataclasses import replace
from storkit.core.errors import *
from storkit.system.block import devmapper as dm

MIB = 1 << 20
one, two = sys.argv[1:]

def node(name, table, role="guest", readonly=False):
    return dm.Wanted(dm.node_name(name, role), dm.node_uuid(f"uuid-of-{name}", role), table, readonly)

def sh(*argv, **more):
    return subprocess.run(argv, check=True, capture_output=True, text=True, **more).stdout

def opened(path):
    return os.open(path, os.O_RDWR | os.O_DIRECT)

def write(descriptor, byte, offset=0):
    with mmap.mmap(-1, 4096) as buffer:
        buffer[:] = byte * 4096
        os.pwritev(descriptor, [buffer], offset)

def read(path, offset=0):
    descriptor = os.open(path, os.O_RDONLY | os.O_DIRECT)
    try:
        with mmap.mmap(-1, 4096) as buffer:
            os.preadv(descriptor, [buffer], offset)
            return buffer[:1]
    finally:
        os.close(descriptor)

def fails(call, *args, kind=OSError, **more):
    try:
        call(*args, **more)
    except kind as error:
        return str(error)
    raise AssertionError(f"{call} did not fail")
"""


def inside(host: Host, code: str, timeout: float = 300) -> None:
    disks = [host.add_disk(64 << 20), host.add_disk(64 << 20)]
    host.python(PRELUDE + code, *disks, timeout=timeout)


def test_nodes_are_made_found_and_removed_and_others_left_alone(lab: Lab) -> None:
    (s,) = lab.hosts("s")
    inside(
        s,
        """
assert dm.find() == []
sh("modprobe", "dm-mod")
sh("dmsetup", "create", "foreign", "-u", "LVM-foreign", "--table", f"0 2048 linear {one} 0")
before = sh("dmsetup", "table", "foreign") + sh("dmsetup", "info", "-c", "foreign")
names = ["a", "a.b", "a-b", "a--b", "a_b", "x" * 63, "-".join("abcdefgh")]
wanted = [node(name, dm.linear(one, MIB, number * MIB)) for number, name in enumerate(names)]
made = dm.create(wanted)
assert [(n.name, n.uuid, n.table, n.size, n.opens) for n in made] == [
    (w.name, w.uuid, w.table, MIB, 0) for w in wanted]
assert dm.create(wanted) == made and sorted(dm.find(), key=lambda n: n.name) == sorted(made, key=lambda n: n.name)
for number, n in enumerate(made):
    descriptor = opened(n.path)
    write(descriptor, bytes([65 + number]))
    os.close(descriptor)
    assert read(one, number * MIB) == bytes([65 + number])
    assert os.stat(n.path).st_rdev == os.stat(n.device).st_rdev
    os.unlink(n.path)  # as if udevd had not come to it, or had lost its event
    dm.create(wanted)
    assert os.stat(n.path).st_rdev == os.stat(n.device).st_rdev
fails(dm.create, [node("new", dm.linear(one, MIB)), node("a", dm.error(MIB))], kind=Conflict)
fails(dm.create, [replace(wanted[0], uuid=dm.node_uuid("other", "guest"))], kind=Conflict)
fails(dm.create, [node("new", dm.linear(one, MIB)), node("bad", "0 8 linear 250:250 0")], kind=CommandFailed)
assert "nonsense" in fails(dm.create, [node("new", "0 8 nonsense")], kind=Unsupported)
fails(dm.create, [dm.Wanted("foreign", "STORKIT-x", dm.error(MIB))], kind=Conflict)
fails(dm.swap, [dm.Wanted("foreign", "STORKIT-x", dm.error(MIB))], kind=Conflict)
fails(dm.linear, "/dev/none", MIB, kind=NotFound)
assert len(dm.find()) == len(names)
sh("dmsetup", "create", "--notable", dm.node_name("half", "guest"), "-u", dm.node_uuid("uuid-of-half", "guest"))
(half,) = dm.create([node("half", dm.linear(two, MIB))])
assert half.table == dm.linear(two, MIB) and half.size == MIB
descriptor = opened(made[1].path)
assert "in use" in fails(dm.remove, [w.name for w in wanted], kind=Conflict)
assert [n.name for n in dm.find()] == sorted([made[1].name, half.name])
os.close(descriptor)
dm.remove([w.name for w in wanted] + ["foreign", half.name])
dm.remove([w.name for w in wanted])
assert dm.find() == []
assert sh("dmsetup", "table", "foreign") + sh("dmsetup", "info", "-c", "foreign") == before
""",
    )


def test_tables_are_swapped_under_a_writer_that_notices_nothing(lab: Lab) -> None:
    (s,) = lab.hosts("s")
    inside(
        s,
        """
(n,) = dm.create([node("v", dm.linear(one, MIB))])
descriptor, stop, written = opened(n.path), threading.Event(), []
def work():
    while not stop.is_set():
        write(descriptor, b"w")
        written.append(time.monotonic())
thread = threading.Thread(target=work)
thread.start()
for number in range(5):
    dm.swap([node("v", dm.linear(two if number % 2 == 0 else one, MIB))])
    at = len(written)
    while len(written) < at + 20:
        assert thread.is_alive()
        time.sleep(0.001)
stop.set()
thread.join()
assert read(one) == read(two) == b"w"
# a command that was killed before its swap, as it is now and as other programs do it, is made up for
for left in ("load", "suspend"):
    wanted = node("v", dm.linear(two, MIB))
    if left == "load":
        sh("dmsetup", "load", wanted.name, input=dm.error(MIB))
        assert dm.find()[0].pending
    else:
        sh("dmsetup", "suspend", wanted.name)
        assert dm.find()[0].suspended
    (settled,) = dm.ensure([wanted])
    assert (settled.table, settled.pending, settled.suspended) == (wanted.table, False, False)
    write(descriptor, b"w")
# what the page cache holds goes through the old table, unless told otherwise
with open(n.path, "r+b", buffering=0) as file:
    file.write(b"c" * 4096)
    dm.swap([node("v", dm.linear(one, MIB))])
    assert read(two) == b"c" and read(one) == b"w"
""",
    )


def test_a_right_is_taken_from_a_writer_who_waits_while_the_table_is_swapped(lab: Lab) -> None:
    """The reason for `refuse_writes`: a read-only table lets such a write through."""
    (s,) = lab.hosts("s")
    inside(
        s,
        """
def attempt(table):
    "A write is sent while the node is suspended, then the node gets `table`, read-only."
    (n,) = dm.create([node("v", dm.linear(one, MIB))])
    descriptor = opened(n.path)
    write(descriptor, b"a")
    sh("dmsetup", "suspend", n.name)
    result = []
    def late():
        try:
            write(descriptor, b"L")
        except OSError as error:
            result.append(error)
    thread = threading.Thread(target=late)
    thread.start()
    state = lambda: open(f"/proc/self/task/{thread.native_id}/stat").read().rsplit(")", 1)[1].split()[0]
    while state() != "D":
        time.sleep(0.01)
    dm.swap([node("v", table, readonly=True)])
    thread.join()
    later = fails(write, descriptor, b"Z")
    assert read(n.path) == read(one)
    os.close(descriptor)
    dm.remove([n.name])
    return read(one), result, later

data, result, later = attempt(dm.linear(one, MIB))
assert data == b"L" and not result, "a read-only linear table has become enough"
sh("modprobe", "dm-flakey")
data, result, later = attempt(dm.refuse_writes(one, MIB))
assert data == b"a" and result, (data, result, later)
""",
    )


def test_a_device_that_hangs_or_dies_below_hangs_nothing_above(lab: Lab) -> None:
    (s,) = lab.hosts("s")
    inside(
        s,
        """
sh("modprobe", "dm-mod")
sh("dmsetup", "create", "lower", "--table", f"0 4096 linear {one} 0")
(n,) = dm.create([node("v", dm.linear("/dev/mapper/lower", MIB))])
sh("dmsetup", "suspend", "lower")
# nothing under way: cut off at once
dm.swap([node("v", dm.error(MIB))], flush=False)
assert "Input/output error" in fails(read, n.path)
sh("dmsetup", "resume", "lower")
dm.swap([node("v", dm.linear("/dev/mapper/lower", MIB))])
# something under way: a deadline, and the old table
sh("dmsetup", "suspend", "lower")
descriptor = opened(n.path)
thread = threading.Thread(target=write, args=[descriptor, b"h"])
thread.start()
state = lambda: open(f"/proc/self/task/{thread.native_id}/stat").read().rsplit(")", 1)[1].split()[0]
while state() != "D":
    time.sleep(0.01)
start = time.monotonic()
fails(dm.swap, [node("v", dm.error(MIB))], flush=False, timeout=2, kind=TimedOut)
assert time.monotonic() - start < 30
(now,) = dm.find()
assert now.table == n.table and not now.suspended
sh("dmsetup", "resume", "lower")
thread.join()
assert read(one) == b"h"
# a device that has died: everything goes, though somebody has the node open
sh("dmsetup", "wipe_table", "lower")
fails(dm.remove, [n.name], force=True, kind=Conflict)
assert dm.find()[0].table == dm.error(MIB)
os.close(descriptor)
dm.remove([n.name], force=True)
assert dm.find() == []
sh("dmsetup", "remove", "lower")
""",
    )


def test_nobody_looks_into_a_guests_disk(lab: Lab) -> None:
    (s,) = lab.hosts("s")
    inside(
        s,
        """
# not at the disk's start, where LVM would find the same bytes twice
(n,) = dm.create([node("v", dm.linear(one, 32 * MIB, MIB))])
sh("pvcreate", "-y", n.path)
sh("vgcreate", "-y", "guests", n.path)
sh("lvcreate", "-y", "-an", "-L", "4M", "-n", "root", "guests")
sh("vgchange", "-an", "guests")
sh("udevadm", "trigger", "--action=change", "--settle", n.path)
seen = sh("udevadm", "info", n.path)
assert "ID_FS_TYPE" not in seen and "DM_UDEV_DISABLE_OTHER_RULES_FLAG=1" in seen, seen
assert not os.path.exists("/dev/guests/root")
# LVM's own commands scan without asking udev: what the module's text advises keeps them away
assert "guests" in sh("vgs")
line = '"r|^/dev/mapper/storkit:|"'
assert line in dm.__doc__
with open("/etc/lvm/lvm.conf", "a") as file:
    file.write('\\ndevices { global_filter = [ ' + line + ' ] }\\n')
assert "guests" not in sh("vgs")
assert "guests" not in sh("pvs", "-a")
""",
    )


def test_nodes_work_without_udevd(lab: Lab) -> None:
    (s,) = lab.hosts("s")
    # `udevadm control --exit` gets lost: udevd 252 ignores a message that arrives before it has asked for credentials
    s.run(["pkill", "-x", "systemd-udevd"])
    s.wait_for(lambda: s.run(["pgrep", "-xa", "systemd-udevd"], check=False).status == 1, "end of udevd")
    inside(
        s,
        """
(n,) = dm.create([node("v", dm.linear(one, MIB))])
descriptor = opened(n.path)
write(descriptor, b"n")
os.close(descriptor)
assert read(one) == b"n"
dm.swap([node("v", dm.linear(two, MIB))])
assert read(n.path) == read(two) == b"\\0"
dm.remove([n.name])
assert dm.find() == [] and not os.path.exists(n.path)
""",
    )
