"""iSCSI by two networks on real kernels: a writer does not notice that either is lost, and both come back."""

from __future__ import annotations

from collections.abc import Iterator

import pytest

from storkit.core.errors import Conflict, ServiceUnreachable
from storkit.core.model import Attachment, Volume
from tests.contract.transport_iscsi import IscsiPaths
from tests.lab import Host
from tests.lab.plugin import the_lab
from tests.lab.remote import Hosts
from tests.lab.writer import Writer

pytestmark = pytest.mark.lab

PAUSE = 15
"""Seconds that a writer may wait when a path is lost."""


class PathsRig(IscsiPaths):
    def host(self, name: str) -> Host:
        return self._machines[name].host

    def writing(self) -> tuple[Volume, Attachment]:
        """A volume that b has, and writes."""
        volume = self.volume("v")
        self.home.export([volume], [self.a, self.b])
        self.home.set_writers([volume], ["b"])
        return volume, self.far.attach(self.home.offers([volume], "b"))[0]

    def end(self, volume: Volume) -> None:
        for site, name in ((self.home, "a"), (self.far, "b")):
            site.detach([volume])
            self.home.unexport([volume], [name])

    def paths(self) -> list[str]:
        """The state of each path of the one attachment."""
        (found,) = self.far.find_attachments()
        assert not found.broken, found
        return [path.state for path in found.paths]

    def wait_for_paths(self, *working: bool) -> None:
        wanted = list(working)
        self.host("b").wait_for(
            lambda: [state == "working" for state in self.paths()] == wanted, f"paths that work: {wanted}", 90, every=1
        )

    def disks(self) -> list[str]:
        """The disk of each session."""
        return self.run("b", "sh", "-c", "ls -d /sys/block/sd* | sed s,/sys/block,/dev,").split()

    def writes(self, disk: str) -> bool:
        """Whether the target takes a write of this host's by one path, past the node: the last block, zeros."""
        code = "import os, sys; print(os.lseek(os.open(sys.argv[1], os.O_RDONLY), 0, os.SEEK_END) // 512 - 8)"
        found = self.host("b").run(["python3", "-c", code, disk], check=False)
        if found.status:  # it does not even open: its session is given up
            return False
        at = found.stdout.strip()
        argv = ["sg_dd", "blk_sgio=1", "if=/dev/zero", f"of={disk}", "bs=512", "count=8", f"seek={at}"]
        return self.host("b").run(argv, check=False, timeout=60).status == 0

    def sessions(self) -> list[str]:
        return self.run("b", "sh", "-c", "cat /sys/class/iscsi_session/*/state").split()

    def registrations(self) -> int:
        """How many the target knows; it is gone with its last client."""
        files = "/sys/kernel/config/target/core/iblock_*/storkit-v/pr/res_pr_registered_i_pts"
        return self.at_home("sh", "-c", f"cat {files} 2>/dev/null || true").count(" Node: ")

    def watcher(self) -> str:
        """The pid of the program that has lost paths used again, once it says it."""
        pids: list[str] = []

        def said() -> bool:
            pids[:] = self.host("b").run(["cat", "/run/storkit/iscsi-paths.pid"], check=False).stdout.split()
            return bool(pids)

        self.host("b").wait_for(said, "watch over paths", 60)
        return pids[0]

    def reboot(self, name: str) -> None:
        self._power_cycle(self._machines[name])


@pytest.fixture(scope="module")
def lab_hosts(pytestconfig: pytest.Config) -> Iterator[Hosts]:
    hosts = Hosts(the_lab(pytestconfig))
    yield hosts
    hosts.discard()


def test_a_writer_goes_on_when_a_network_is_lost(lab_hosts: Hosts) -> None:
    rig = PathsRig(lab_hosts)
    volume, there = rig.writing()
    assert [path.state for path in there.paths] == ["working", "working"], there
    writer = Writer(rig.host("b"), there, rest=0.2)
    rig.host("b").cut("san2")
    rig.wait_for_paths(True, False)
    writer.assert_goes_on()
    rig.host("b").heal("san2")
    rig.wait_for_paths(True, True)
    assert 3 < writer.longest() < PAUSE
    written = writer.stop()
    with rig.access(there) as disk:
        assert int.from_bytes(disk.read(0, 4096)[:8], "big") >= written > 0
    rig.end(volume)
    assert rig.leftovers() == []


@pytest.mark.slow
def test_both_networks_come_and_go(lab_hosts: Hosts) -> None:
    """Each alone, then both: what is written waits then, for as long as it takes."""
    rig = PathsRig(lab_hosts)
    b = rig.host("b")
    volume, there = rig.writing()
    writer = Writer(b, there)
    for lost in ("san1", "san2", "san1"):
        b.cut(lost)
        rig.wait_for_paths(lost != "san1", lost != "san2")
        writer.assert_goes_on()
        b.heal(lost)
        rig.wait_for_paths(True, True)
    assert 3 < writer.longest() < PAUSE
    b.cut("san1")
    b.cut("san2")
    last = writer.assert_stalls()
    with pytest.raises(ServiceUnreachable, match=r"does not answer|broken"):
        rig.far.evidence([volume])
    b.heal("san1")
    b.heal("san2")
    writer.assert_goes_on()
    rig.wait_for_paths(True, True)
    assert writer.stop() > last
    rig.end(volume)
    assert rig.leftovers() == []


@pytest.mark.slow
def test_an_attach_takes_up_what_nobody_watches(lab_hosts: Hosts) -> None:
    """The program that has lost paths used again is killed: the disk goes on by the other path, and attach, or what
    restores, does the rest and starts it anew."""
    rig = PathsRig(lab_hosts)
    b = rig.host("b")
    volume, there = rig.writing()
    writer = Writer(b, there)
    watcher = rig.watcher()
    b.run(["kill", "-9", watcher])
    (warning,) = [each for each in rig.far.ready(attaches=True) if "nobody has lost paths" in each.message]
    assert warning.warning and "host restore b" in warning.hint
    b.cut("san2")
    rig.wait_for_paths(True, False)
    (lost,) = [each for each in rig.far.ready(attaches=True) if "lost its path" in each.message]
    assert lost.warning
    writer.assert_goes_on()  # the kernel has given the path up
    b.heal("san2")
    b.wait_for(lambda: "not taken up again" in rig.paths()[1], "session that goes on", 90, every=1)
    writer.assert_goes_on()
    assert all(path.state == "working" for path in rig.far.attach(rig.home.offers([volume], "b"))[0].paths)
    b.wait_for(lambda: rig.watcher() != watcher, "new watch", 60)
    assert not [each for each in rig.far.ready(attaches=True) if "path" in each.message]
    b.cut("san1")
    rig.wait_for_paths(False, True)
    writer.assert_goes_on()
    b.heal("san1")
    rig.wait_for_paths(True, True)
    writer.stop()
    rig.end(volume)
    assert rig.leftovers() == []


@pytest.mark.slow
def test_a_right_is_given_and_taken_by_both_paths(lab_hosts: Hosts) -> None:
    rig = PathsRig(lab_hosts)
    b = rig.host("b")
    volume = rig.volume("v")
    rig.home.export([volume], [rig.a, rig.b])
    (there,) = rig.far.attach(rig.home.offers([volume], "b"))
    assert len(there.paths) == 2 and not there.writable
    assert not any(rig.writes(disk) for disk in rig.disks()), "a reader writes by no path"
    # while a path is lost, the right is taken up by the other, and by this one only once it is registered
    b.cut("san2")
    b.wait_for(lambda: "FREE" in rig.sessions(), "a lost session", 60, every=1)
    rig.home.set_writers([volume], ["b"])
    rig.far.claim([volume], ["b"])
    assert rig.registrations() == 1
    writer = Writer(b, there)
    b.heal("san2")
    rig.wait_for_paths(True, True)
    assert rig.registrations() == 2
    assert all(rig.writes(disk) for disk in rig.disks())
    (seen,) = rig.far.evidence([volume])
    assert seen.key and seen.keys == [seen.key] and len(seen.blocks) > 8
    assert not writer.failed()
    # taken under the writer, by both paths at once
    rig.home.set_writers([volume], [])
    b.wait_for(writer.failed, "an error", 60)
    assert rig.registrations() == 0
    b.wait_for(lambda: rig.sessions() == ["LOGGED_IN", "LOGGED_IN"], "both sessions", 90, every=1)
    assert not any(rig.writes(disk) for disk in rig.disks())
    writer.stop()
    rig.end(volume)
    assert rig.leftovers() == []


@pytest.mark.slow
def test_a_fenced_host_is_off_by_both_paths(lab_hosts: Hosts) -> None:
    rig = PathsRig(lab_hosts)
    b = rig.host("b")
    volume, there = rig.writing()
    writer = Writer(b, there)
    disks = rig.disks()
    (had,) = rig.home.fence("b")
    assert had.writable and rig.registrations() == 0
    assert not rig.at_home(
        "sh", "-c", "ls /sys/kernel/config/target/iscsi/iqn*/tpgt_1/acls 2>/dev/null || true"
    ).strip()
    written = writer.assert_stalls()
    assert not any(rig.writes(disk) for disk in disks)
    with pytest.raises(Conflict, match="in use"):
        rig.far.detach([volume])
    writer.kill()
    rig.far.detach([volume])
    writer.stop()
    (own,) = rig.home.attach(rig.home.offers([volume], "a"))
    with rig.access(own) as disk:
        assert int.from_bytes(disk.read(0, 4096)[:8], "big") <= written + 1
    rig.home.unfence("b")
    rig.home.export([volume], [rig.b])
    (there,) = rig.far.attach(rig.home.offers([volume], "b"))
    assert not there.lost and not there.writable
    rig.end(volume)
    assert rig.leftovers() == []


@pytest.mark.slow
@pytest.mark.parametrize("down", ["san1", "san2"])
def test_a_portal_that_is_down_is_left_for_later(lab_hosts: Hosts, down: str) -> None:
    rig = PathsRig(lab_hosts)
    b = rig.host("b")
    b.cut(down)
    volume, there = rig.writing()
    assert [path.state for path in there.lost] == ["it has no session"] and there.lost[0] is there.paths[down == "san2"]
    writer = Writer(b, there)
    b.heal(down)
    (there,) = rig.far.attach(rig.home.offers([volume], "b"))
    assert not there.lost and rig.registrations() == 2
    b.cut("san2" if down == "san1" else "san1")
    rig.wait_for_paths(down == "san1", down == "san2")
    writer.assert_goes_on()
    assert writer.longest() < PAUSE
    b.heal()
    writer.stop()
    rig.end(volume)
    assert rig.leftovers() == []


@pytest.mark.slow
def test_it_becomes_larger_under_its_writer(lab_hosts: Hosts) -> None:
    """Also where a path is lost meanwhile: it comes back with the new size."""
    rig = PathsRig(lab_hosts)
    b = rig.host("b")
    volume, there = rig.writing()
    writer = Writer(b, there)
    for lost in ("", "san2"):
        if lost:
            b.cut(lost)
            rig.wait_for_paths(True, False)
        volume = rig.grow(volume, volume.size * 2)
        rig.home.grow([volume])
        (there,) = rig.far.attach(rig.home.offers([volume], "b"))
        assert int(rig.run("b", "blockdev", "--getsize64", there.path)) == there.size == volume.size
    b.heal("san2")
    rig.wait_for_paths(True, True)
    assert {rig.run("b", "blockdev", "--getsize64", disk).strip() for disk in rig.disks()} == {str(volume.size)}
    writer.assert_goes_on()
    writer.stop()
    rig.end(volume)
    assert rig.leftovers() == []


@pytest.mark.slow
def test_attachments_come_back_after_a_power_cut_of_either_host(lab_hosts: Hosts) -> None:
    rig = PathsRig(lab_hosts)
    volume, there = rig.writing()
    rig.reboot("b")
    rig.far.restore()
    (there,) = rig.far.find_attachments()
    assert there.writable and not there.broken and not there.lost, there
    writer = Writer(rig.host("b"), there)
    rig.reboot("a")
    writer.assert_stalls()
    rig.home.restore()
    writer.assert_goes_on()
    rig.wait_for_paths(True, True)
    # Those of before the client's power cut may be there as well: by which path the writer would meet a conflict, if
    # they were taken away, is not known. They go with its attachment.
    assert rig.registrations() in (2, 4)
    writer.stop()
    rig.end(volume)
    assert rig.leftovers() == []
