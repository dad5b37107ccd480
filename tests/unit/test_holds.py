"""What a sleeping guest's hold refuses before anything changes, command by command."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import pytest

from storkit.core import inventory
from storkit.core.errors import Conflict
from storkit.core.guest import Disk, Guest
from storkit.core.model import Export, Volume, VolumeHold
from storkit.plans import migration, planner
from storkit.plans.guests import running
from storkit.plans.migration import GuestView

INVENTORY = inventory.parse(
    '[hosts.a]\nurl = "ssh://a"\n[hosts.b]\nurl = "ssh://b"\n[pools.p]\nhost = "a"\n', Path("i")
)
GUEST = Guest("g", "8f1e9b52-95b2-4c8e-8ffb-a5cf4f2a4bd6", 1 << 24, disks=[Disk("v"), Disk("r", readonly=True)])
HOLD = VolumeHold(GUEST.uuid, "g", "0d4a6a5e-2f7b-4d5c-9a3e-8c6f1b2a3d4e", 4, "2026-01-02T03:04:05Z", "a", "")
AWAKE = Volume("v", "cc18ff28-316c-43a9-9f2c-38e3cc63bc95", 1 << 20, "p", "a")
ASLEEP = replace(AWAKE, hold=HOLD, generation=4)
READ = Volume("r", "68ef4ad6-1cb9-49f8-8773-a1a59a20d669", 1 << 20, "p", "a", kind="image")


def subject(volume: Volume, places: dict[str, str]) -> GuestView:
    exports = [Export("v", volume.uuid, host, True, "nbd", True) for host in places]
    return GuestView(GUEST, [volume, READ], exports, places, INVENTORY)


COMMANDS: dict[str, Callable[[Volume, dict[str, str]], object]] = {
    "attach": lambda volume, _: planner.attach([volume, READ], "b", [], True, INVENTORY),
    "resize": lambda volume, _: planner.resize(volume, 1 << 21, False, [], INVENTORY),
    "delete": lambda volume, _: planner.delete([volume], [], INVENTORY),
    "start": lambda volume, _: running.start([(subject(volume, {}), "b")], INVENTORY),
    "cleanup": lambda volume, places: migration.cleanup(subject(volume, places), INVENTORY),
    "migrate": lambda volume, _: migration.migrate(subject(volume, {"a": "running"}), "b", {"run"}, INVENTORY),
    "finish": lambda volume, _: migration.finish(subject(volume, {"a": "running"}), INVENTORY),
    "resume": lambda volume, _: running.wake(subject(volume, {"a": "paused"}), INVENTORY),
}


@pytest.mark.parametrize("command", COMMANDS)
def test_a_held_disk_refuses_whoever_would_write_it(command: str) -> None:
    COMMANDS[command](AWAKE, {})
    for places in ({}, {"a": "paused"}):
        with pytest.raises(Conflict, match="guest g sleeps on volume v since 2026-01-02") as caught:
            COMMANDS[command](ASLEEP, places)
        assert "storkit guest restore g" in caught.value.hint and "storkit guest discard g" in caught.value.hint


def test_a_held_disk_may_be_read_and_taken_away() -> None:
    verbs = [step.verb for step in planner.attach([ASLEEP], "b", [], False, INVENTORY).steps]
    assert verbs == ["export", "attach"]
    assert planner.detach([ASLEEP], "b", INVENTORY).steps


def test_a_sleeping_guest_is_said_to_sleep() -> None:
    assert (subject(ASLEEP, {}).shown, subject(AWAKE, {}).shown) == ("asleep", "stopped")
    assert subject(ASLEEP, {"a": "paused"}).shown == "paused on a"
