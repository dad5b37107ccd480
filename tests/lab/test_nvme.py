"""NVMe/TCP on real kernels: who proves what, and what a writer sees of lost paths and targets."""

from __future__ import annotations

from collections.abc import Iterator

import pytest

from storkit.core.model import Attachment, Offer, Volume
from tests.contract.transport_nvme import NvmeThin
from tests.lab import Host
from tests.lab.plugin import the_lab
from tests.lab.remote import Hosts
from tests.lab.writer import Writer

pytestmark = [pytest.mark.lab, pytest.mark.slow]

MODES = "stat -c %a /sys/kernel/config/nvmet/hosts/*/dhchap*key /sys/class/nvme/nvme*/dhchap*secret 2>/dev/null || true"
STATES = 'grep -sx -e live -e connecting -e resetting /sys/class/nvme/nvme*/state | sed "s/.*://"'
INTRUDER = """
import sys
from storkit.core.errors import StorkitError
from storkit.tech.nvme import controllers
from storkit.tech.nvme.names import Keys
nqn, host, portal = sys.argv[1:]
address, _, port = portal.rpartition(":")
for keys in (None, Keys()):
    for name in (host, host[:-1] + "x"):
        try:
            controllers.connect(nqn, name, address, int(port), keys)
        except StorkitError as error:
            print(type(error).__name__)
print(len(controllers.find(nqn)))
"""


class NvmeRig(NvmeThin):
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

    def reboot(self) -> None:
        """Host a loses its power, and gets it back."""
        self._power_cycle(self._machines["a"])


class TwoPaths(NvmeRig):
    """Host a listens on both storage networks."""

    def __init__(self, hosts: Hosts) -> None:
        a = hosts.lab.host("a")
        self.settings = {"portals": [a.address("san1"), a.address("san2")]}
        super().__init__(hosts)

    def states(self) -> list[str]:
        return self.run("b", "sh", "-c", STATES).split()


@pytest.fixture(scope="module")
def lab_hosts(pytestconfig: pytest.Config) -> Iterator[Hosts]:
    hosts = Hosts(the_lab(pytestconfig))
    yield hosts
    hosts.discard()


def test_only_who_has_the_key_is_let_in_and_only_root_reads_it(lab_hosts: Hosts) -> None:
    rig = NvmeRig(lab_hosts)
    volume = rig.volume("v")
    rig.home.export([volume], [rig.b])
    offer: Offer
    (offer,) = rig.home.offers([volume], "b")
    words = (offer.name, offer.options["host"], offer.portals[0])
    assert rig.host("b").python(INTRUDER, *words, timeout=300).split() == ["Unsafe"] * 4 + ["0"]
    rig.far.attach([offer])
    for name in ("a", "b"):
        assert rig.run(name, "sh", "-c", MODES).split() == ["600", "600"]
    said = rig.run("b", "sh", "-c", "dmesg; cat /proc/[0-9]*/cmdline") + rig.run("a", "dmesg")
    assert offer.credential and offer.credential.secret and offer.credential.secret.reveal() not in said
    rig.end(volume)
    assert rig.leftovers() == []


def test_an_image_is_read_over_it_and_written_by_nobody(lab_hosts: Hosts) -> None:
    """The target opens every device for writing, and LVM keeps an image read-only."""
    rig = NvmeRig(lab_hosts)
    image = rig.volume("i", kind="image")
    rig.home.export([image], [rig.b])
    (there,) = rig.far.attach(rig.home.offers([image], "b"))
    with rig.access(there) as disk:
        assert disk.read(0, 4096) == bytes(4096)
    raw = "for d in /dev/nvme*n1; do ! dd if=/dev/urandom of=$d bs=4k count=1 oflag=direct 2>/dev/null || exit 1; done"
    rig.run("b", "sh", "-c", raw)
    rig.end(image)
    assert rig.leftovers() == []


def test_a_writer_goes_on_when_either_network_is_lost(lab_hosts: Hosts) -> None:
    rig = TwoPaths(lab_hosts)
    volume, there = rig.writing()
    assert rig.states() == ["live", "live"]
    writer = Writer(rig.host("b"), there)
    for lost in ("san1", "san2"):
        rig.host("b").cut(lost)
        rig.host("b").wait_for(lambda: sorted(rig.states()) == ["connecting", "live"], "a lost path", 60)
        writer.assert_goes_on()
        (seen,) = rig.far.find_attachments([volume.uuid])
        assert not seen.broken
        rig.host("b").heal(lost)
        rig.host("b").wait_for(lambda: rig.states() == ["live", "live"], "both paths", 60)
    assert writer.stop() > 0
    rig.end(volume)
    assert rig.leftovers() == []


def test_a_writer_waits_for_a_target_that_lost_its_power(lab_hosts: Hosts) -> None:
    rig = NvmeRig(lab_hosts)
    volume, there = rig.writing()
    writer = Writer(rig.host("b"), there)
    rig.reboot()
    writer.assert_stalls()
    back = rig.home.restore()
    assert [(each.client, each.writable, each.live) for each in back] == [("a", False, True), ("b", True, True)]
    writer.assert_goes_on()
    written = writer.stop()
    with rig.access(there) as disk:
        assert int.from_bytes(disk.read(0, 4096)[:8], "big") >= written
    rig.end(volume)
    assert rig.leftovers() == []
