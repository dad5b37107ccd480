"""A host that was away while its right to write was given on sends what it held back when it is there again: none of it
may reach the disk. How NBD in the kernel refuses it, test_nbd_kernel asks."""

from __future__ import annotations

from collections.abc import Iterator

import pytest

from storkit.core.model import Attachment, Volume
from tests.contract.transport_iscsi import IscsiThin
from tests.contract.transport_nfs import NfsRig
from tests.contract.transport_nvme import NvmeTrusted
from tests.lab import Lab
from tests.lab.remote import Hosts, LabRig
from tests.lab.writer import Writer

pytestmark = pytest.mark.lab
BLOCK = 4096
WRITERS = 2
NEW = b"n" * BLOCK


@pytest.fixture(
    params=[IscsiThin, *(pytest.param(each, marks=pytest.mark.slow) for each in (NfsRig, NvmeTrusted))],
    ids=["iscsi", "nfs", "nvme"],
)
def rig(lab: Lab, request: pytest.FixtureRequest) -> Iterator[LabRig]:
    hosts = Hosts(lab)
    yield request.param(hosts)
    hosts.discard()


class Away:
    """Host b wrote, and went away in the middle of it: each of its writers waits for the answer to one more write."""

    def __init__(self, rig: LabRig, lab: Lab) -> None:
        self.rig, self.a, self.b = rig, *lab.hosts("a", "b")
        self.volume: Volume = rig.volume("v")
        rig.home.export([self.volume], [rig.a, rig.b])
        rig.home.set_writers([self.volume], ["b"])
        self.here: Attachment = rig.home.attach(rig.home.offers([self.volume], "a"))[0]
        there = rig.far.attach(rig.home.offers([self.volume], "b"))[0]
        self.writers = [Writer(self.b, there, number * BLOCK) for number in range(WRITERS)]
        self.b.cut()
        for writer in self.writers:
            writer.assert_stalls()

    def give_to_a(self) -> None:
        """Host a gets the right, and writes where b wrote."""
        self.rig.home.set_writers([self.volume], ["a"])
        with self.rig.access(self.here) as disk:
            disk.write(0, NEW * WRITERS)

    def wait_for_refusals(self) -> None:
        for writer in self.writers:
            self.b.wait_for(writer.failed, "end of the held write", 120)

    def assert_untouched(self) -> None:
        with self.rig.access(self.here) as disk:
            assert disk.read(0, WRITERS * BLOCK) == NEW * WRITERS


def test_after_a_right_was_taken(rig: LabRig, lab: Lab) -> None:
    away = Away(rig, lab)
    away.give_to_a()
    away.b.heal()
    away.wait_for_refusals()
    away.assert_untouched()


@pytest.mark.slow
def test_after_a_fence_though_the_host_is_let_in_again(rig: LabRig, lab: Lab) -> None:
    away = Away(rig, lab)
    rig.home.fence("b")
    away.give_to_a()
    rig.home.unfence("b")
    rig.home.export([away.volume], [rig.b])
    rig.home.set_writers([away.volume], ["b"])
    away.b.heal()
    if isinstance(rig, IscsiThin):  # its writers wait on: only an attach learns the new secrets, or the new name
        refused = "not allowed" if isinstance(rig, NvmeTrusted) else "Security negotiation failed"
        away.a.wait_for(lambda: refused in away.a.run(["dmesg"]).stdout, "a login that is refused", 60)
    else:
        away.wait_for_refusals()
    away.assert_untouched()
    for writer in away.writers:
        writer.kill()
    rig.far.detach([away.volume])
    away.assert_untouched()
    there = rig.far.attach(rig.home.offers([away.volume], "b"))[0]
    with rig.access(there) as disk:
        assert disk.read(0, WRITERS * BLOCK) == NEW * WRITERS
        disk.write(0, b"b" * BLOCK)
