"""A guest is saved on one dom0 and wakes up on the other: its disk is written by nobody meanwhile. It wakes once."""

from __future__ import annotations

from pathlib import Path

import pytest

from tests.lab import services
from tests.lab.world import storage
from tests.lab.xen import XenLab
from tests.lab.xen.world import XenWorld

pytestmark = [pytest.mark.lab, pytest.mark.slow]
SHARED = "/srv/shared"
MEMORY = f"{SHARED}/g1.memory"


def share(world: XenWorld) -> None:
    """A directory of s that both dom0s see."""
    services.nfs_server(world.s)
    world.s.run(["mkdir", "-p", "-m", "700", SHARED])
    world.s.run(["exportfs", "-o", "rw,no_root_squash,no_subtree_check,fsid=0", f"*:{SHARED}"])
    for host in world.dom0s:
        services.nfs_client(host)
        host.run(["mkdir", "-p", SHARED])
        host.run(["mount", "-t", "nfs4", f"{world.s.address('san1')}:/", SHARED])


def test_guest_sleeps_and_wakes_up_on_the_other_host(xen: XenLab, tmp_path: Path) -> None:
    world = XenWorld(xen, tmp_path, storage("nbd-kernel"))
    share(world)
    world.define()
    world.storkit("guest", "start", "g1", "--on", "h1")
    world.wait_for_writes(world.h1, 10)
    world.storkit("guest", "save", "g1", MEMORY)
    assert world.domains(world.h1) == []
    status = world.status()
    assert (status["places"], status["writers"]) == ({}, []), status
    path = world.storkit("volume", "show", "g1")["path"]
    asleep = world.s.run(["sha256sum", path]).stdout
    refused = world.run("attach", "g1", "--on", "h2")
    assert refused.status == 5 and "storkit guest restore g1" in refused.stderr, refused
    assert world.s.run(["sha256sum", path]).stdout == asleep
    world.storkit("guest", "restore", "g1", MEMORY, "--on", "h2")
    assert (world.domains(world.h1), world.domains(world.h2)) == ([], ["g1"])
    status = world.status()
    assert status["places"] == {"h2": "running"} and status["writers"] == ["h2"], status
    world.wait_for_writes(world.h2)
    again = world.run("guest", "restore", "g1", MEMORY, "--on", "h1")
    assert again.status and world.domains(world.h1) == [], again
    world.storkit("guest", "stop", "g1")
    report = world.report()
    assert report.clean and not report.recovered and report.starts == 1, report
