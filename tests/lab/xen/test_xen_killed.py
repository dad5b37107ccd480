"""Who takes part in a migration is killed at each point of xl's handshake: the guest runs once, and loses nothing."""

from __future__ import annotations

from pathlib import Path

import pytest

from tests.lab.host import Command, Host
from tests.lab.world import storage
from tests.lab.xen import Dom0, XenLab
from tests.lab.xen.cutter import HELD, POINTS
from tests.lab.xen.cutting import cut, let_go, uncut
from tests.lab.xen.world import LONGER, PATIENT, XenWorld

pytestmark = [pytest.mark.lab, pytest.mark.slow]
COORDINATOR, AGENT = "json migrate run g1", "SystemExit.main... agent"


@pytest.mark.parametrize("who", ["coordinator", "source's agent", "destination's agent", "source's xl",
                                 "destination's xl"])  # fmt: skip
def test_killed_in_the_handshake(xen: XenLab, tmp_path: Path, who: str) -> None:
    world = XenWorld(xen, tmp_path, storage("nbd-kernel"))
    world.define()
    world.storkit("guest", "start", "g1", "--on", "h1")
    world.wait_for_writes(world.h1, 10)
    for when in POINTS:
        source = world.h1 if world.domains(world.h1) else world.h2
        destination = world.h2 if source is world.h1 else world.h1
        cut(source, when, "hold")
        moving = begin(world, destination)
        source.wait_for(lambda source=source: exists(source), "held migration", PATIENT, every=0.5)  # type: ignore[misc]
        host, words = {
            "coordinator": (world.s, COORDINATOR),
            "source's agent": (source, AGENT),
            "destination's agent": (destination, AGENT),
            "source's xl": (source, "xl migrate"),
            "destination's xl": (destination, "xl migrate-receive"),
        }[who]
        kill(host, words)
        let_go(source)
        ended = moving.wait(timeout=3 * PATIENT, check=False)
        uncut(source)
        print(f"{who}, {when}: {ended.status}\n{ended.stdout}\n{ended.stderr}")
        mend(world)
    ends_well(world)


def begin(world: XenWorld, to: Dom0) -> Command:
    """A move of the guest, with agents of its own."""
    world.s.rest()
    words = ["env", *(f"{key}={value}" for key, value in LONGER.items())]
    return world.s.spawn([*words, "storkit", "--json", "migrate", "run", "g1", "--to", to.name], timeout=3 * PATIENT)


def exists(host: Dom0) -> bool:
    return host.run(["test", "-e", str(HELD)], check=False).status == 0


def kill(host: Host, words: str) -> None:
    """Kill the processes with these words; there must be one."""
    host.run(["pkill", "-KILL", "-f", words])


def mend(world: XenWorld) -> None:
    """One command mends it: the plan is carried on, or where none was left, the truth is looked at. The guest runs once
    then, with the right to write, and writes."""
    if left := [plan["id"] for plan in world.storkit("plan", "list") if plan["status"] == "interrupted"]:
        resumed = world.run("plan", "resume", *left)
        print(f"resumed: {resumed.status}\n{resumed.stdout}\n{resumed.stderr}")
        assert resumed.status == 0
    else:
        world.storkit("migrate", "cleanup", "g1")
    running = [host for host in world.dom0s if "g1" in world.domains(host)]
    assert [world.domains(host) for host in running] == [["g1"]], [world.domains(host) for host in world.dom0s]
    status = world.status()
    assert status["places"] == {running[0].name: "running"} and status["writers"] == [running[0].name], status
    world.wait_for_writes(running[0])


def ends_well(world: XenWorld) -> None:
    world.storkit("guest", "stop", "g1")
    report = world.report()
    assert report.clean and not report.recovered and report.starts == 1, report
