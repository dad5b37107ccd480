"""The connection of a migration breaks at each point of xl's handshake: the guest runs once, and loses nothing."""

from __future__ import annotations

from pathlib import Path

import pytest

from tests.lab.world import storage
from tests.lab.xen import XenLab
from tests.lab.xen.cutting import cut, uncut
from tests.lab.xen.world import XenWorld

pytestmark = [pytest.mark.lab, pytest.mark.slow]


def test_a_connection_that_breaks_in_the_handshake(xen: XenLab, tmp_path: Path) -> None:
    world = XenWorld(xen, tmp_path, storage("nbd-kernel"))
    world.define()
    world.storkit("guest", "start", "g1", "--on", "h1")
    world.wait_for_writes(world.h1, 10)
    # All of it has arrived, and the source does not know: it goes on there.
    cut(world.h1, "ready")
    failed = world.run("migrate", "run", "g1", "--to", "h2")
    assert failed.status, failed
    assert (world.domains(world.h1), world.domains(world.h2)) == (["g1"], [])
    status = world.status()
    assert status["places"] == {"h1": "running"} and status["writers"] == ["h1"], status
    world.wait_for_writes(world.h1)
    # The source has given it up, whatever the destination has heard: it goes on there.
    here, there = world.h1, world.h2
    for when in ("before-go", "after-go", "report"):
        cut(here, when)
        world.migrate(there)
        uncut(here)
        here, there = there, here
    world.storkit("guest", "stop", "g1")
    report = world.report()
    assert report.clean and not report.recovered and report.starts == 1, report


def test_a_guest_stops_where_its_migration_failed(xen: XenLab, tmp_path: Path) -> None:
    """The xl that watched over it has seen it suspended, and has ended: nobody takes it apart but storkit."""
    world = XenWorld(xen, tmp_path, storage("nbd-kernel"))
    world.define()
    world.storkit("guest", "start", "g1", "--on", "h1")
    world.wait_for_writes(world.h1, 10)
    cut(world.h1, "ready")
    failed = world.run("migrate", "run", "g1", "--to", "h2")
    assert failed.status and world.domains(world.h1) == ["g1"], failed
    uncut(world.h1)
    world.wait_for_writes(world.h1)
    world.storkit("guest", "stop", "g1")
    assert world.domains(world.h1) == world.domains(world.h2) == []
    report = world.report()
    assert report.clean and not report.recovered and report.starts == 1, report
