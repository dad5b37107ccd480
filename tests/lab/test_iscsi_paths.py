"""iSCSI by two networks on real kernels: a writer does not notice that either is lost, and both come back."""

from __future__ import annotations

from collections.abc import Iterator

import pytest

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


@pytest.fixture(scope="module")
def lab_hosts(pytestconfig: pytest.Config) -> Iterator[Hosts]:
    hosts = Hosts(the_lab(pytestconfig))
    yield hosts
    hosts.discard()


def test_a_writer_goes_on_when_a_network_is_lost(lab_hosts: Hosts) -> None:
    rig = PathsRig(lab_hosts)
    volume, there = rig.writing()
    assert [path.state for path in there.paths] == ["working", "working"], there
    writer = Writer(rig.host("b"), there)
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
