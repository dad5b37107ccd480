"""What breaks under a guest that writes, and how it goes on: power, network and daemons, each within a bounded time."""

from __future__ import annotations

import json
import time
from pathlib import Path
from typing import Any

import pytest

from tests.guestkit import bootsector
from tests.lab import services
from tests.lab.host import Command, Host
from tests.lab.lab import Lab
from tests.lab.world import Storage, World, each, worlds

pytestmark = pytest.mark.lab

WORLDS = [
    (storage, hypervisor)
    for storage, hypervisor in worlds()
    if (hypervisor == "qemu" and storage.name in ("nbd", "nbd-kernel", "iscsi", "nfs")) or storage.name == "iscsi"
]
ISCSI = [one for one in WORLDS if one[0].transport == "iscsi"]
every_world = pytest.mark.parametrize("world", each(WORLDS, ["iscsi-qemu"]), indirect=True)
OUTAGE = 300.0
"""Seconds that a network is cut."""


@pytest.fixture
def world(lab: Lab, tmp_path: Path, request: pytest.FixtureRequest) -> World:
    """A guest that writes on a; commands are given on s, which neither runs guests nor fails in most tests."""
    storage, hypervisor = request.param
    assert isinstance(storage, Storage)
    made = World(lab, tmp_path, storage, hypervisor, commands="s")
    made.define()
    made.storkit("guest", "start", "g", "--on", "a")
    made.wait_for_writes()
    return made


def goes_on(world: World, host: str, anew: bool = False) -> None:
    """The guest writes on `host`, which alone has the right; `anew`: what it wrote before the fault is overwritten."""
    status = world.status()
    assert status["places"] == {host: "running"} and status["writers"] == [host], status
    last = world.wait_for_writes(deadline=240)
    if anew:
        world.wait_for_record(last + bootsector.REGION, deadline=600)


def ends_well(world: World) -> None:
    report = world.clear()
    assert report.clean, report
    left = world.left()
    assert not left, "\n".join(left)


@pytest.mark.slow
@every_world
def test_storage_host_loses_its_power_and_comes_back(world: World) -> None:
    """Its servers start again by `host restore`, with the rights they had; the guest waited, and goes on."""
    world.s.run(["sync"])  # the inventory that this test wrote
    world.s.power_off()
    world.boot(world.s)
    started = time.monotonic()
    world.storkit("host", "restore", timeout=200)
    restored = time.monotonic() - started
    # what a server had only in its memory is lost by right, until it is flushed: the guest does not flush
    goes_on(world, "a", anew=not world.storage.durable)
    assert restored < 180
    ends_well(world)


@pytest.mark.slow
@every_world
def test_network_is_cut_for_five_minutes(world: World) -> None:
    world.a.cut("san1")
    healed = time.monotonic() + OUTAGE
    world.s.wait_for(lambda: time.monotonic() > healed, "end of the outage", OUTAGE + 10, every=1)
    world.a.heal("san1")
    goes_on(world, "a")
    ends_well(world)


@pytest.mark.slow
@every_world
def test_destination_loses_its_power_during_prepare(world: World) -> None:
    migration = world.s.spawn(["storkit", "--json", "migrate", "run", "g", "--to", "b"], timeout=300)
    wait_for_step(world.s, migration, "attach")
    world.b.power_off()
    failed = migration.wait(timeout=330, check=False)
    assert failed.status != 0
    assert "running" in str(world.status()["places"]["a"])
    world.boot(world.b)
    world.storkit("migrate", "cleanup", "g")
    goes_on(world, "a")
    world.migrate("b")
    ends_well(world)


@every_world
def test_source_loses_its_power_during_finish(world: World) -> None:
    migration = world.s.spawn(["storkit", "--json", "migrate", "run", "g", "--to", "b"], timeout=300)
    wait_for_step(world.s, migration, "confirm")
    world.a.power_off()
    migration.wait(timeout=330, check=False)
    world.wait_for_writes(deadline=240)
    world.boot(world.a)
    unfinished = [plan["id"] for plan in world.storkit("plan", "list") if plan["status"] not in ("completed",)]
    if unfinished:
        world.storkit("plan", "resume", unfinished[0])
    else:
        world.storkit("migrate", "cleanup", "g")
    goes_on(world, "b")
    ends_well(world)


@pytest.mark.slow
@pytest.mark.parametrize("world", each(ISCSI, []), indirect=True)
def test_iscsid_is_restarted(world: World) -> None:
    world.a.run(["pkill", "-KILL", "iscsid"])
    goes_on(world, "a")
    services.iscsid(world.a)
    world.migrate("b")
    ends_well(world)


def wait_for_step(host: Host, command: Command, verb: str) -> None:
    """Wait until the newest plan of `host` begins a step of this verb."""

    def begun() -> bool:
        text = host.run(["sh", "-c", "cat $(ls -t /var/lib/storkit/plans/*.jsonl | head -n 1)"], check=False).stdout
        lines: list[dict[str, Any]] = [json.loads(line) for line in text.splitlines() if line.endswith("}")]
        plans = [line["plan"] for line in lines if "plan" in line]
        steps = {step["id"] for plan in plans for stage in plan["stages"] for step in stage if step["verb"] == verb}
        return any(line.get("start") in steps for line in lines) or not command.running()

    host.wait_for(begun, f"step {verb}", 240, every=0.3)
    assert command.running(), command.wait(check=False)
