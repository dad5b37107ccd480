"""The transport nfs where real servers and clients can fail it: rights, restarts, foreign exports, wrong files."""

from __future__ import annotations

import json
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from typing import Any

import pytest

from storkit.core.errors import Conflict, StorkitError, Unsafe, Unsupported
from storkit.core.model import Attachment, Volume
from storkit.tech.nfs.server import parse_etab
from tests.contract.transport_nfs import NfsRig
from tests.lab import Host, Lab
from tests.lab.remote import Hosts

pytestmark = pytest.mark.lab

# Writes blocks from four threads until /root/stop exists; after every 50 tries it says how they went.
HAMMER = """\
import collections, json, mmap, os, sys, threading, time
told = collections.Counter()
def hammer(number):
    block = mmap.mmap(-1, 4096)
    descriptor = os.open(sys.argv[1], os.O_RDWR | os.O_DIRECT)
    for turn in range(10**9):
        block[:8] = turn.to_bytes(8, "little")
        try:
            os.pwritev(descriptor, [block], 4096 * number)
            how = "accepted"
        except OSError as error:
            how = error.strerror
        time.sleep(0.005)  # the server needs its host's one processor too
        with lock:
            told[how] += 1
            if sum(told.values()) % 50 == 0:
                with open("/root/told.new", "w") as file:
                    json.dump(told, file)
                os.rename("/root/told.new", "/root/told")
                if os.path.exists("/root/stop"):
                    os._exit(0)
lock = threading.Lock()
for number in range(4):
    threading.Thread(target=hammer, args=[number]).start()
"""
REFUSED = "Read-only file system"


class Writer:
    """A process of a host that writes its attachment all the time."""

    def __init__(self, host: Host, attachment: Attachment) -> None:
        self._host = host
        host.run(["rm", "-f", "/root/stop", "/root/told"])
        host.put(HAMMER, "/root/hammer.py")
        self.process = host.spawn(["/usr/bin/python3", "/root/hammer.py", attachment.path])
        self.wait_for("accepted", 50)

    def told(self) -> dict[str, int]:
        done = self._host.run(["cat", "/root/told"], check=False)
        return dict(json.loads(done.stdout)) if done.status == 0 else {}

    def wait_for(self, how: str, more: int) -> None:
        """Until so many more tries went that way."""
        start = self.told().get(how, 0)
        self._host.wait_for(lambda: self.told().get(how, 0) >= start + more, f"{more} tries {how!r}", 90)

    def stop(self) -> dict[str, int]:
        self._host.run(["touch", "/root/stop"])
        self.process.wait(60)
        return self.told()


@pytest.fixture
def rig(lab: Lab, request: pytest.FixtureRequest) -> Iterator[NfsRig]:
    hosts = Hosts(lab)
    yield getattr(request, "param", NfsRig)(hosts)
    hosts.discard()


class OnOwnDisk(NfsRig):
    """The pool is on a disk of its own, in a directory with a difficult name."""

    path = '/srv/the pool\'s #1 "disk" é'

    def pool_settings(self, host: Host) -> dict[str, Any]:
        if host.run(["mountpoint", "-q", self.path], check=False).status:
            disk = host.add_disk(320 << 20)
            host.run(["mkfs.ext4", "-q", disk])
            host.run(["mkdir", "-p", self.path])
            host.run(["mount", disk, self.path])
        return {"path": self.path}


def _prints(host: Host, argv: list[str], word: str) -> bool:
    return word in host.run(argv, check=False).stdout


def attach(rig: NfsRig, volume: Volume, *writers: str) -> Attachment:
    """The volume attached on b."""
    rig.home.export([volume], [rig.b])
    rig.home.set_writers([volume], list(writers))
    return rig.far.attach(rig.home.offers([volume], "b"))[0]


def digest(host: Host, volume: Volume) -> str:
    return host.run(["sha256sum", volume.path]).stdout


def exported(host: Host) -> set[tuple[str, str, frozenset[str]]]:
    """What a server exports to whom, and how; exportfs(8) does not always write the options of one entry alike."""
    entries = parse_etab(host.run(["cat", "/var/lib/nfs/etab"]).stdout)
    return {(entry.path, entry.client, frozenset(entry.options)) for entry in entries}


def test_no_write_of_a_host_without_the_right_reaches_the_file(rig: NfsRig, lab: Lab) -> None:
    a, b = lab.hosts("a", "b")
    volume = rig.volume("v")
    writer = Writer(b, attach(rig, volume, "b"))
    for _ in range(10):
        rig.home.set_writers([volume], [])
        taken = digest(a, volume)
        writer.wait_for(REFUSED, 100)
        assert digest(a, volume) == taken
        rig.home.set_writers([volume], ["b"])
        writer.wait_for("accepted", 50)  # with the descriptors that it had all the time
        assert digest(a, volume) != taken
    told = writer.stop()
    assert told[REFUSED] >= 1000 and set(told) == {REFUSED, "accepted"}


@pytest.mark.parametrize("rig", [OnOwnDisk], indirect=True)
def test_a_right_is_gone_only_when_the_writes_under_way_have_ended(rig: NfsRig, lab: Lab) -> None:
    a, b = lab.hosts("a", "b")
    volume = rig.volume("v")
    writer = Writer(b, attach(rig, volume, "b"))
    # Writes that have passed the check of the right now wait on their way to the file.
    a.run(["fsfreeze", "-f", OnOwnDisk.path])
    a.wait_for(lambda: " D " in a.run(["sh", "-c", "ps -eo comm,stat,pid | grep nfsd"]).stdout, "thread that waits")
    with ThreadPoolExecutor() as pool:
        taking = pool.submit(rig.home.set_writers, [volume], [])
        a.wait_for(lambda: "(ro," in a.run(["grep", volume.uuid, "/var/lib/nfs/etab"]).stdout, "right to be taken")
        with pytest.raises(TimeoutError):
            taking.result(3)
        a.run(["fsfreeze", "-u", OnOwnDisk.path])
        taking.result(60)
    taken = digest(a, volume)
    writer.wait_for(REFUSED, 100)
    assert digest(a, volume) == taken
    writer.stop()


def test_a_writer_waits_for_a_server_that_restarts(rig: NfsRig, lab: Lab) -> None:
    a, b = lab.hosts("a", "b")
    volume = rig.volume("v")
    writer = Writer(b, attach(rig, volume, "b"))
    a.run(["rpc.nfsd", "0"])
    a.run(["pkill", "-9", "-x", "rpc.mountd"])
    assert [export.live for export in rig.home.find_exports()] == [False]
    rig.home.restore()
    writer.wait_for("accepted", 200)
    assert set(writer.stop()) == {"accepted"}


@pytest.mark.slow
def test_a_fenced_host_holds_nothing_on_the_server(rig: NfsRig, lab: Lab) -> None:
    a, b = lab.hosts("a", "b")
    volume = rig.volume("v")
    there = attach(rig, volume, "b")
    writer = Writer(b, there)
    (had,) = rig.home.fence("b")
    assert had.writable
    taken = digest(a, volume)
    said = a.run(["cat", "/var/lib/nfs/etab", "/proc/net/rpc/nfsd.export/content"]).stdout.splitlines()
    # The kernel shows what it has forgotten after a "#", until it cleans up.
    assert not [line for line in said if volume.uuid in line and not line.startswith("#")]
    states = a.run(["sh", "-c", "cat /proc/fs/nfsd/clients/*/states"], check=False).stdout
    assert f':{a.run(["stat", "-c", "%i", volume.path]).stdout.strip()}"' not in states
    b.wait_for(lambda: len(set(writer.told()) - {"accepted"}) > 0, "refusal")
    assert digest(a, volume) == taken
    writer.stop()
    # What still has old data to send is not let in by a new grant either.
    rig.home.unfence("b")
    rig.home.export([volume], [rig.b])
    rig.home.set_writers([volume], ["b"])
    with pytest.raises(OSError), rig.access(there) as disk:
        disk.write(0, b"x" * 4096)
    assert digest(a, volume) == taken
    there = rig.far.attach(rig.home.offers([volume], "b"))[0]
    with rig.access(there) as disk:
        disk.write(0, b"y" * 4096)
    assert digest(a, volume) != taken


@pytest.mark.parametrize(
    "kept_open", [pytest.param(False, id="closed", marks=pytest.mark.slow), pytest.param(True, id="kept-open")]
)
def test_one_volume_of_a_server_that_is_gone_is_given_up_and_the_others_wait(
    rig: NfsRig, lab: Lab, kept_open: bool
) -> None:
    a, b = lab.hosts("a", "b")
    lost, kept = rig.volume("lost"), rig.volume("kept")
    attach(rig, lost, "b")
    writer = Writer(b, attach(rig, kept, "b"))
    stuck = b.spawn(["dd", "if=/dev/zero", "of=/dev/storkit/lost", "bs=4k", "oflag=direct", "conv=notrunc"])
    users = {"dd": stuck}
    if kept_open:
        users["sleep"] = b.spawn(["sh", "-c", "exec sleep 600 1>>/dev/storkit/lost"])
    for name in users:
        opened = ["sh", "-c", f"ls -l /proc/$(pgrep -x {name})/fd/1"]
        b.wait_for(partial(_prints, b, opened, "lost"), f"file open in {name}")
    a.cut()
    try:
        if kept_open:
            with pytest.raises(Conflict, match="in use"):
                rig.far.detach([lost])
            # Its end closes the file, and waits for the server, until that is aborted as well.
            users["sleep"].kill(9)
        rig.far.detach([lost])
        for user in users.values():
            assert user.wait(30, check=False).status != 0
        assert not rig.has_path(rig.far, "lost")
        assert [found.volume for found in rig.far.find_attachments()] == ["kept"]
    finally:
        a.heal()
    writer.wait_for("accepted", 100)
    assert set(writer.stop()) == {"accepted"}


def test_exports_of_others_stay_as_they_are(rig: NfsRig, lab: Lab) -> None:
    a = lab.host("a")
    a.run(["mkdir", "-p", "/srv/theirs", "/srv/byhand", "/etc/exports.d"])
    a.put("/srv/theirs 10.77.0.0/24(rw,no_subtree_check)\n", "/etc/exports.d/theirs.exports")
    a.run(["exportfs", "-r"])
    a.run(["exportfs", "-o", "ro,no_subtree_check", "10.9.9.9:/srv/byhand"])
    before = exported(a)
    volume = rig.volume("v")
    attach(rig, volume, "b")
    assert before < exported(a)
    a.run(["exportfs", "-r"])  # what an administrator may type at any time
    assert [(export.live, export.writable) for export in rig.home.find_exports()] == [(True, True)]
    a.run(["exportfs", "-o", "ro,no_subtree_check", "10.9.9.9:/srv/byhand"])
    rig.far.detach([volume])
    rig.home.unexport([volume], ["b"])
    assert exported(a) == before
    assert a.run(["ls", "/etc/exports.d"]).stdout.split() == ["theirs.exports"]


def test_a_pool_that_others_export_for_writing_is_refused(rig: NfsRig, lab: Lab) -> None:
    a = lab.host("a")
    volume = rig.volume("v")
    for path in ("/var/lib/storkit", volume.path.rpartition("/")[0]):
        a.run(["exportfs", "-o", "rw,no_subtree_check,no_root_squash", f"10.77.0.0/24:{path}"])
        with pytest.raises(Unsafe, match=r"exported to 10\.77\.0\.0/24 for writing"):
            rig.home.export([volume], [rig.b])
        a.run(["exportfs", "-u", f"10.77.0.0/24:{path}"])
    attach(rig, volume)
    a.run(["exportfs", "-o", "rw,no_subtree_check", f"10.77.0.0/24:{volume.path.rpartition('/')[0]}"])
    with pytest.raises(Unsafe, match="exported to"):
        rig.home.set_writers([volume], ["b"])


@pytest.mark.slow
def test_another_file_than_the_one_meant_is_refused(rig: NfsRig, lab: Lab) -> None:
    a = lab.host("a")
    one, two = rig.volume("one"), rig.volume("two")
    rig.home.export([one, two], [rig.b])
    offers = rig.home.offers([one, two], "b")
    paths = [offer.name for offer in offers]
    # Two exports swapped; the right name and identity with another file; a file of another size.
    a.run(["sh", "-c", f"mv {paths[0]} /srv/x; mv {paths[1]} {paths[0]}; mv /srv/x {paths[1]}; exportfs -f"])
    with pytest.raises(StorkitError) as refused:
        rig.far.attach(offers)
    assert all(isinstance(error, Unsafe) for error in getattr(refused.value, "problems", [refused.value]))
    a.run(["sh", "-c", f"mv {paths[0]} /srv/x; mv {paths[1]} {paths[0]}; mv /srv/x {paths[1]}; exportfs -f"])
    a.run(["sh", "-c", f"cd {paths[0]}; mv one.raw /srv/y; cp /srv/y one.raw; chown nobody one.raw"])
    with pytest.raises(Unsafe, match="what the NFS server shows is"):
        rig.far.attach(offers[:1])
    a.run(["sh", "-c", f"mv -f /srv/y {paths[0]}/one.raw; truncate -s +4096 {two.path}"])
    with pytest.raises(Unsafe, match="bytes, and the NFS server shows"):
        rig.far.attach(offers[1:])
    a.run(["truncate", "-s", str(two.size), two.path])
    assert [found.volume for found in rig.far.attach(rig.home.offers([one, two], "b"))] == ["one", "two"]
    assert rig.far.find_attachments() == rig.far.attach(offers)


def test_a_client_can_change_nothing_but_its_volumes_file(rig: NfsRig, lab: Lab) -> None:
    b = lab.host("b")
    there = attach(rig, rig.volume("v"), "b")
    place = b.run(["dirname", b.run(["readlink", there.path]).stdout.strip()]).stdout.strip()
    for command in ("touch new", "rm -f v.raw", "mv v.raw w.raw", "ln v.raw w.raw", "echo > .storkit", "mkdir d"):
        done = b.run(["sh", "-c", f"cd {place} && {command}"], check=False)
        assert "Permission denied" in done.stderr, command
    # Below the server's root a client is shown its own exports, and no other names.
    b.run(["mkdir", "-p", "/mnt/root"])
    b.run(["mount", "-t", "nfs", "-o", "vers=4.2", f"{rig.home.site.address}:/", "/mnt/root"])
    other = rig.volume("other")
    rig.home.export([other], [rig.a])
    seen = b.run(["find", "/mnt/root"], check=False).stdout
    assert there.uuid in seen and other.uuid not in seen
    b.run(["umount", "/mnt/root"])


# A hostile client: NFS 4.0 (RFC 7530) by hand, with a file handle of its own making. It prints the status of a write of
# one block through its own handle, and of a write through that handle with another file's inode number in it.
FORGER = """\
import os, socket, struct, sys
server, path, inode = sys.argv[1], sys.argv[2], int(sys.argv[3])
opaque = lambda data: struct.pack(">I", len(data)) + data + bytes(-len(data) % 4)
link = socket.socket()
link.bind(("", 900 + os.getpid() % 100))
link.connect((server, 2049))

def compound(*operations):
    name = opaque(b"forger")
    credential = struct.pack(">I", 0) + name + struct.pack(">III", 0, 0, 0)
    call = struct.pack(">IIIIII", 7, 0, 2, 100003, 4, 1) + struct.pack(">I", 1) + opaque(credential)
    call += struct.pack(">II", 0, 0) + opaque(b"") + struct.pack(">II", 0, len(operations)) + b"".join(operations)
    link.sendall(struct.pack(">I", 1 << 31 | len(call)) + call)
    size = struct.unpack(">I", link.recv(4, socket.MSG_WAITALL))[0] & 0x7FFFFFFF
    reply = link.recv(size, socket.MSG_WAITALL)
    assert reply[8:12] == bytes(4), "the call was not accepted"
    return struct.unpack(">I", reply[24:28])[0], reply

def write(handle):
    stateid = bytes(16)
    while True:
        status, _ = compound(
            struct.pack(">I", 22) + opaque(handle),
            struct.pack(">I", 38) + stateid + struct.pack(">QI", 0, 2) + opaque(b"forged!!" * 512),
        )
        if status != 10013:  # the server's grace period
            return status

lookups = [struct.pack(">I", 15) + opaque(part.encode()) for part in path.strip("/").split("/")]
status, reply = compound(struct.pack(">I", 24), *lookups, struct.pack(">I", 10))
assert status == 0, status
start = 36 + 8 * (len(lookups) + 2)  # past the operations that return nothing but their status
handle = reply[start + 4 :][: struct.unpack(">I", reply[start : start + 4])[0]]
# version, authentication, type of what follows: the export (a UUID and its directory's inode number), type of: the file
own = struct.unpack("<I", handle[28:32])[0]
assert handle[2] == 7 and own == int(sys.argv[4]), handle.hex()
plain = handle[:3] + bytes([1]) + handle[4:28] + struct.pack("<II", inode, 0)
with_parent = handle[:28] + struct.pack("<II", inode, 0) + handle[36:]
print(write(handle), write(plain), write(with_parent))
"""


def test_a_client_cannot_make_up_a_handle_for_another_volume(rig: NfsRig, lab: Lab) -> None:
    a, b = lab.hosts("a", "b")
    mine, theirs = rig.volume("mine"), rig.volume("theirs")
    attach(rig, mine, "b")
    inodes = a.run(["stat", "-c", "%i", theirs.path, mine.path]).stdout.split()
    a.run(["chown", "nobody", theirs.path])
    untouched = digest(a, theirs)
    path = rig.home.offers([mine], "b")[0].name

    def forge() -> list[str]:
        # each has a port of its own, by its process
        return b.python(FORGER, a.address(), f"{path}/mine.raw", *inodes, fresh=True).split()

    own, *forged = forge()
    assert own == "0" and "0" not in forged and digest(a, theirs) == untouched
    # The same handles are good where exports do not check: the attack is a real one.
    options = "rw,sync,no_subtree_check,all_squash,anonuid=65534,anongid=65534"
    a.run(["exportfs", "-i", "-o", options, f"{b.address()}/32:{path}"])
    assert "0" in forge()[1:] and digest(a, theirs) != untouched


def test_what_cannot_be_exported_says_why(rig: NfsRig, lab: Lab) -> None:
    from dataclasses import replace

    volume = rig.volume("v")
    with pytest.raises(Unsupported, match="host b has none"):
        rig.home.export([volume], [replace(rig.b, address="")])
    with pytest.raises(StorkitError, match="not known here"):
        rig.home.export([volume], [replace(rig.b, address="no-such-host.invalid")])
    rig.home.export([volume], [rig.b])
    with pytest.raises(Unsupported, match="both come from"):
        rig.home.export([volume], [replace(rig.b, name="c")])
    with pytest.raises(Conflict, match="exported and cannot be deleted"):
        rig._pool.delete([volume])
