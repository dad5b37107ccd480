"""NBD exports as block devices of real kernels: what a guest that writes sees when servers, relays and rights go."""

from __future__ import annotations

import json
from collections.abc import Iterator
from typing import Any

import pytest

from storkit.core import codec
from storkit.core.errors import Conflict
from storkit.core.model import Attachment, Volume
from tests.contract.transport_nbd import NbdKernelLabRig
from tests.lab import Host
from tests.lab.plugin import the_lab
from tests.lab.remote import Hosts
from tests.lab.writer import Writer

pytestmark = pytest.mark.lab
BLOCK = 4096

TRIES = """
import mmap, os, sys
block, done = mmap.mmap(-1, 4096), 0
block[:] = b"X" * 4096
disk = os.open(sys.argv[1], os.O_RDWR | os.O_DIRECT)
for number in range(1000):
    try:
        os.pwrite(disk, block, 0)
        done += 1
    except OSError:
        pass
print(done)
"""

PYTHON = "/usr/bin/python3"


class Rig(NbdKernelLabRig):
    """The contract's rig: volumes at a, which has them from the server's socket; b has them through a TLS relay."""

    # The kernel makes devices when more than 16 are wanted, and keeps them.
    ignored = (r". disks: nbd\d+ 0", r". files: /dev/(nbd\d|block/43:|disk/by-diskseq/)")

    def host(self, name: str) -> Host:
        return self._machines[name].host

    def kill(self, name: str, *patterns: str) -> None:
        """Kill the storage daemons on a host with one of these in their arguments, and wait until they are gone."""
        script = (
            "for p in $(pgrep -f ^/usr/bin/qemu-storage-daemon); do grep -qaE '{}' /proc/$p/cmdline && kill -9 $p; done"
        )
        self.host(name).run(["sh", "-c", script.format("|".join(patterns))], check=False)
        self.host(name).wait_for(lambda: not self.daemons(name, *patterns), "end of the daemons")

    def suspend(self, name: str) -> None:
        """Let the storage daemons on a host do nothing more, though they live."""
        self.host(name).run(["pkill", "-STOP", "-f", "^/usr/bin/qemu-storage-daemon"])

    def daemons(self, name: str, *patterns: str) -> list[str]:
        found = self.host(name).run(["pgrep", "-af", "^/usr/bin/qemu-storage-daemon"], check=False).stdout.splitlines()
        return [line for line in found if any(pattern in line for pattern in patterns)]

    def both(self, volume: Volume, writers: list[str]) -> tuple[Attachment, Attachment]:
        self.home.export([volume], [self.a, self.b])
        self.home.set_writers([volume], writers)
        here = self.home.attach(self.home.offers([volume], "a"))[0]
        return here, self.far.attach(self.home.offers([volume], "b"))[0]

    def end(self, volume: Volume) -> None:
        for site, name in ((self.home, "a"), (self.far, "b")):
            site.detach([volume])
            self.home.unexport([volume], [name])

    def reboot(self, name: str) -> None:
        machine = self._machines[name]
        machine.hang_up()
        machine.host.power_off()
        machine.host.boot()
        machine.ready = None
        machine.talk(self._inventory)
        self._remains.again(machine.host)

    def block(self, attachment: Attachment, offset: int = 0) -> bytes:
        with self.access(attachment) as disk:
            return disk.read(offset, BLOCK)

    def number(self, attachment: Attachment, offset: int = 0) -> int:
        return int.from_bytes(self.block(attachment, offset)[:8], "big")


@pytest.fixture(scope="module")
def lab_hosts(pytestconfig: pytest.Config) -> Iterator[Hosts]:
    hosts = Hosts(the_lab(pytestconfig))
    yield hosts
    hosts.discard()


@pytest.fixture
def rig(lab_hosts: Hosts) -> Iterator[Rig]:
    made = Rig(lab_hosts)
    yield made
    assert made.leftovers() == []


def test_writers_stall_and_go_on_when_a_server_is_killed_and_started_again(rig: Rig) -> None:
    volume = rig.volume("v")
    here, there = rig.both(volume, ["a", "b"])
    writers = [Writer(rig.host("a"), here), Writer(rig.host("b"), there, BLOCK)]
    rig.kill("a", "nbd")
    for writer in writers:
        writer.assert_stalls()
    rig.home.restore()
    for writer, attachment, offset in zip(writers, (here, there), (0, BLOCK), strict=True):
        writer.assert_goes_on()
        assert writer.stop() <= rig.number(attachment, offset)
    rig.end(volume)


@pytest.mark.parametrize("when", ["under-way", pytest.param("taken", marks=pytest.mark.slow)])
def test_a_writer_outlives_a_power_cut_of_the_storage_host(rig: Rig, when: str) -> None:
    volume = rig.volume("v")
    rig.home.export([volume], [rig.b])
    rig.home.set_writers([volume], ["b"])
    (there,) = rig.far.attach(rig.home.offers([volume], "b"))
    writer = Writer(rig.host("b"), there)
    if when == "taken":
        # What the server's kernel has acknowledged is never sent again; that the connection is gone, a probe finds out.
        rig.suspend("a")
        writer.assert_stalls()
    rig.kill_servers()
    acknowledged = writer.assert_stalls()
    rig.home.restore()
    writer.assert_goes_on(180)
    assert acknowledged < writer.stop() <= rig.number(there)
    rig.end(volume)


def test_a_writer_stalls_while_its_relay_is_dead_and_goes_on_after_restore(rig: Rig) -> None:
    volume = rig.volume("v")
    _, there = rig.both(volume, ["b"])
    writer = Writer(rig.host("b"), there)
    rig.kill("b", "wire")
    writer.assert_stalls()
    for _ in range(2):
        rig.far.restore()
    writer.assert_goes_on()
    assert writer.stop() <= rig.number(there)
    assert len(rig.daemons("b", "wire")) == 1
    rig.end(volume)


def test_attachments_come_back_after_a_reboot_of_their_host(rig: Rig) -> None:
    volume = rig.volume("v")
    _, there = rig.both(volume, ["b"])
    with rig.access(there) as disk:
        disk.write(0, b"b" * BLOCK)
    rig.reboot("b")
    assert not rig.daemons("b", "nbd")
    rig.far.restore()
    assert rig.block(there) == b"b" * BLOCK
    with rig.access(there) as disk:
        disk.write(0, b"c" * BLOCK)
    rig.end(volume)


def test_an_open_disk_becomes_writable_when_its_host_gets_the_right(rig: Rig) -> None:
    volume = rig.volume("v")
    here, there = rig.both(volume, ["a"])
    with rig.access(here) as mine, rig.access(there) as disk:
        mine.write(0, b"a" * BLOCK)
        with pytest.raises(OSError, match="not permitted"):
            disk.write(0, b"b" * BLOCK)
        rig.set_writers([volume], ["a", "b"])
        disk.write(0, b"b" * BLOCK)
        assert mine.read(0, BLOCK) == b"b" * BLOCK
        mine.write(0, b"c" * BLOCK)
        assert disk.read(0, BLOCK) == b"c" * BLOCK
        rig.set_writers([volume], ["b"])
        disk.write(0, b"d" * BLOCK)
    rig.end(volume)


@pytest.mark.slow
def test_a_host_that_is_no_writer_tries_a_thousand_times(rig: Rig) -> None:
    volume = rig.volume("v")
    here, there = rig.both(volume, ["a"])
    writer = Writer(rig.host("a"), here)
    below = rig.host("b").run(["sh", "-c", "ls -d /sys/block/dm-*/slaves/nbd*"]).stdout.split("/")[-1].strip()
    for path in (there.path, f"/dev/{below}"):
        tried = rig.host("b").run([PYTHON, "-c", TRIES, path], timeout=120)
        assert tried.stdout.strip() == "0"
    assert not writer.failed()
    assert writer.stop() <= rig.number(here)
    rig.end(volume)


@pytest.mark.parametrize("loser", ["a", pytest.param("b", marks=pytest.mark.slow)])
def test_writes_held_from_before_a_right_was_lost_never_reach_the_disk(rig: Rig, loser: str) -> None:
    volume = rig.volume("v")
    here, there = rig.both(volume, [loser])
    mine, theirs = (here, there) if loser == "a" else (there, here)
    other = theirs.host
    writer = Writer(rig.host(loser), mine)
    rig.set_writers([volume], [other])
    held = writer.assert_stalls()
    with rig.access(theirs) as disk:
        assert int.from_bytes(disk.read(0, BLOCK)[:8], "big") in (held, held + 1)
        disk.write(0, b"n" * BLOCK)
    # The right comes back, under the writer that still waits.
    rig.set_writers([volume], [loser])
    rig.host(loser).wait_for(writer.failed, "end of the held write", 60)
    assert rig.block(mine) == b"n" * BLOCK
    with rig.access(mine) as disk:
        disk.write(0, b"m" * BLOCK)
    writer.stop()
    rig.end(volume)


def test_a_disk_is_detached_though_its_server_is_dead_and_a_write_hangs(rig: Rig) -> None:
    volume = rig.volume("v")
    here, there = rig.both(volume, ["a", "b"])
    writers = [Writer(rig.host("a"), here), Writer(rig.host("b"), there, BLOCK)]
    with pytest.raises(Conflict, match="in use"):
        rig.far.detach([volume])
    writers[1].assert_goes_on()
    rig.kill("a", "nbd")
    for writer, site in zip(writers, (rig.home, rig.far), strict=True):
        writer.assert_stalls()
        site.detach([volume])
        assert writer.failed() and site.find_attachments() == []
        writer.stop()
    rig.home.unexport([volume], ["a", "b"])


def test_devices_of_others_are_left_alone(rig: Rig) -> None:
    b = rig.host("b")
    b.run(["sh", "-c", "truncate -s 8M /root/foreign; echo foreign | dd of=/root/foreign conv=notrunc"])
    b.run(["qemu-nbd", "--fork", "--persistent", "--shared=2", "-f", "raw", "-k", "/run/foreign.sock", "/root/foreign"])
    b.run(["modprobe", "nbd"])
    for client in (
        ["-unix", "/run/foreign.sock", "/dev/nbd0"],
        ["-nonetlink", "-unix", "/run/foreign.sock", "/dev/nbd1"],
    ):
        b.run(["nbd-client", *client])
    volume = rig.volume("v")
    _, there = rig.both(volume, ["b"])
    writer = Writer(b, there)
    for act in (rig.far.restore, rig.far.find_attachments):
        act()
    rig.set_writers([volume], ["a", "b"])
    rig.kill("b", "wire")
    rig.far.restore()
    writer.assert_goes_on()
    writer.stop()
    rig.end(volume)
    for device in ("/dev/nbd0", "/dev/nbd1"):
        assert b.run(["dd", f"if={device}", "bs=4k", "count=1", "iflag=direct"]).stdout.startswith("foreign")
        b.run(["nbd-client", "-d", device])
    b.run(["sh", "-c", "pkill qemu-nbd; rm /root/foreign"])


ATTACH = """
import json, sys
from pathlib import Path
from storkit.core import codec
from storkit.core.backend import Site
from storkit.core.model import Offer
from storkit.nbd import Nbd
from storkit.tech.nbd.server import NbdSettings
site = Site("a", Path("/var/lib/storkit"), Path("/run/storkit"), Path("/dev/storkit"))
for offer in codec.load(list[Offer], json.loads(sys.argv[1])):
    print(Nbd(site, NbdSettings(attach="kernel")).attach([offer])[0].path)
"""


@pytest.mark.slow
def test_twenty_attaches_at_once_from_several_processes(rig: Rig) -> None:
    volumes = [rig.volume(f"v{number}", 1 << 20) for number in range(20)]
    rig.home.export(volumes, [rig.a])
    rig.home.set_writers(volumes, ["a"])
    offers: Any = codec.dump(rig.home.offers(volumes, "a"), reveal=True)
    env = {"PYTHONPATH": "/storkit:/opt/storkit/site-packages", "PYTHONPYCACHEPREFIX": "/lab/common/pyc"}
    a = rig.host("a")
    commands = [a.spawn([PYTHON, "-c", ATTACH, json.dumps(offers[number::5])], env=env) for number in range(5)]
    for command in commands:
        command.wait(240)
    found = rig.home.find_attachments()
    assert len(found) == 20
    for number, attachment in enumerate(found):
        with rig.access(attachment) as disk:
            disk.write(0, bytes([number + 1]) * BLOCK)
    tables = a.run(["dmsetup", "table"]).stdout.splitlines()
    assert len({line.split()[4] for line in tables}) == 20
    for number, attachment in enumerate(found):
        assert rig.block(attachment) == bytes([number + 1]) * BLOCK
    assert [attachment.volume for attachment in found] == sorted(volume.name for volume in volumes)
    rig.home.detach(volumes)
    rig.home.unexport(volumes, ["a"])
    assert a.run(["sh", "-c", "cat /sys/block/nbd*/backend"], check=False).stdout == ""
