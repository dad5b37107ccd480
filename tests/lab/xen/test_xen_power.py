"""A host loses its power: the guest runs once, or is said to be gone, and one command mends what is left."""

from __future__ import annotations

from pathlib import Path

import pytest

from tests.lab.host import Command, Host
from tests.lab.test_faults import wait_for_step
from tests.lab.world import storage
from tests.lab.xen import Dom0, XenLab
from tests.lab.xen.world import LONGER, PATIENT, XenWorld

pytestmark = [pytest.mark.lab, pytest.mark.slow]


class PowerWorld(XenWorld):
    """g1 writes on h1."""

    def __init__(self, xen: XenLab, scratch: Path) -> None:
        super().__init__(xen, scratch, storage("nbd-kernel"))
        self.define()
        self.storkit("guest", "start", "g1", "--on", "h1")
        self.wait_for_writes(self.h1, 10)

    def moving(self, to: Dom0, step: str) -> Command:
        """A move of the guest, as it begins a step."""
        words = ["env", *(f"{key}={value}" for key, value in LONGER.items())]
        command = self.s.spawn(
            [*words, "storkit", "--json", "migrate", "run", "g1", "--to", to.name], timeout=3 * PATIENT
        )
        wait_for_step(self.s, command, step)
        return command

    def boot(self, host: Host) -> None:
        """Give a host its power back, and start what a system would."""
        host.boot()
        if isinstance(host, Dom0):
            self.xen.install(host)
            self.storage.use(host)
        else:
            self.storage.serve(host)

    def goes_on(self, host: Dom0) -> None:
        other = self.h1 if host is self.h2 else self.h2
        assert (self.domains(host), self.domains(other)) == (["g1"], [])
        status = self.status()
        assert status["places"] == {host.name: "running"} and status["writers"] == [host.name], status
        self.wait_for_writes(host)

    def ends_well(self, starts: int = 1) -> None:
        self.storkit("guest", "stop", "g1")
        report = self.report()
        assert report.clean and report.starts == starts, report
        assert bool(report.recovered) <= (starts > 1), report


def test_the_destination_and_the_storage_lose_their_power(xen: XenLab, tmp_path: Path) -> None:
    world = PowerWorld(xen, tmp_path)
    moving = world.moving(world.h2, "send")
    world.h2.power_off()
    ended = moving.wait(timeout=3 * PATIENT, check=False)
    assert ended.status, ended
    status = world.status()
    assert status["places"]["h1"] == "running" and "h1" in status["writers"], status
    world.wait_for_writes(world.h1)
    world.boot(world.h2)
    world.storkit("migrate", "cleanup", "g1")
    world.goes_on(world.h1)
    # The guest waits for its disk's server, which has the same rights again.
    world.s.run(["sync"])
    world.s.power_off()
    world.boot(world.s)
    world.storkit("host", "restore")
    world.goes_on(world.h1)
    world.migrate(world.h2)
    world.ends_well()


def test_the_source_loses_its_power_while_the_guest_moves(xen: XenLab, tmp_path: Path) -> None:
    world = PowerWorld(xen, tmp_path)
    moving = world.moving(world.h2, "send")
    world.h1.power_off()
    ended = moving.wait(timeout=3 * PATIENT, check=False)
    assert ended.status, ended
    assert world.domains(world.h2) == []
    # Nobody knows whether it still runs, until the storage lets the host in no more.
    refused = world.run("guest", "start", "g1", "--on", "h2")
    assert refused.status == 9 and not world.domains(world.h2), refused
    evacuated = world.storkit("host", "evacuate", "h1", "--to", "h2")
    assert evacuated["started"] == [{"guest": "g1", "host": "h2"}], evacuated
    world.wait_for_writes(world.h2)
    assert world.domains(world.h2) == ["g1"]
    # It comes back to a house without the guest.
    world.boot(world.h1)
    world.storkit("unfence", "h1")
    world.storkit("migrate", "cleanup", "g1")
    world.goes_on(world.h2)
    world.migrate(world.h1)
    world.ends_well(starts=2)
