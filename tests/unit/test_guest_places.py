"""Where a guest is, of what the hosts' hypervisors say, and what is planned by that: a stranger of its name is none."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, cast

import pytest

from storkit.core import inventory
from storkit.core.errors import HostUnreachable, ServiceUnreachable, StorkitError, Unsafe
from storkit.core.guest import Disk, Guest
from storkit.core.model import Export, GuestState, GuestStatus, Volume
from storkit.hosts.connections import Connections
from storkit.plans import migration
from storkit.plans.migration import GuestView
from storkit.plans.plan import Plan
from storkit.plans.survey import Survey

INVENTORY = inventory.parse(
    """
[hosts.s]
url = "ssh://s"
[hosts.h1]
url = "ssh://h1"
[hosts.h3]
url = "ssh://h3"
[pools.p]
host = "s"
""",
    Path("inventory.toml"),
)
MINE, OTHER = "8f1e9b52-95b2-4c8e-8ffb-a5cf4f2a4bd6", "5b0c4f0e-6f0c-4f6e-9d0a-0d4a0d0f4b11"
VOLUME = Volume("v", "cc18ff28-316c-43a9-9f2c-38e3cc63bc95", 1 << 20, "p", "s")
EXPORT = Export("v", VOLUME.uuid, "h1", True, "nbd", True)
GUEST = Guest("web", MINE, 1 << 24, hypervisor="xl", disks=[Disk("v", uuid=VOLUME.uuid)])
DISKLESS = Guest("web", MINE, 1 << 24, hypervisor="xl")


@dataclass
class Hosts:
    """The hosts of the inventory, each with what its hypervisor answers."""

    said: dict[str, list[GuestState] | StorkitError]
    inventory: Any = INVENTORY
    off: Any = field(default_factory=lambda: Nobody())

    def find(self, name: str) -> Any:
        return INVENTORY.known(name)

    def to(self, name: str) -> Any:
        return Host(self.said.get(name, []))


@dataclass
class Host:
    said: list[GuestState] | StorkitError

    @property
    def off(self) -> Nobody:
        return Nobody()

    def hypervisor(self, target: str) -> Host:
        assert target == "hypervisor:xl"
        return self

    def find(self, names: list[str]) -> list[GuestState]:
        assert names == ["web"]
        if isinstance(self.said, StorkitError):
            raise self.said
        return self.said


class Nobody:
    """Nobody is declared off."""

    def find_off(self) -> list[Any]:
        return []


def state(host: str, uuid: str, status: GuestStatus = "running", *volumes: str) -> GuestState:
    return GuestState("web", uuid, host, "xl", status, volumes=dict.fromkeys(volumes, "v"))


def where(
    guest: Guest, said: dict[str, list[GuestState] | StorkitError], able: set[str] | None = None
) -> tuple[dict[str, str], dict[str, GuestState]]:
    survey = Survey(cast(Connections, Hosts(said)))
    return survey.where(guest, {disk.uuid for disk in guest.disks}, ["s", "h1", "h3"], able)


ACTS: list[Callable[[GuestView], Plan]] = [
    lambda view: migration.stop(view, True, 60.0, "", INVENTORY),
    lambda view: migration.stop(view, False, 60.0, "", INVENTORY),
    lambda view: migration.finish(view, INVENTORY),
    lambda view: migration.cleanup(view, INVENTORY),
]


@pytest.mark.parametrize("act", ACTS)
@pytest.mark.parametrize("guest", [GUEST, DISKLESS])
@pytest.mark.parametrize("status", ["running", "paused", "arrived", "incoming", "stopped"])
def test_nothing_is_done_to_another_guest_of_the_name(
    act: Callable[[GuestView], Plan], guest: Guest, status: GuestStatus
) -> None:
    volumes = [VOLUME.uuid] if guest.disks else []
    said: dict[str, list[GuestState] | StorkitError] = {
        "h1": [state("h1", MINE, "running", *volumes)],
        "h3": [state("h3", OTHER, status, OTHER)],
    }
    places, states = where(guest, said)
    assert places == {"h1": "running"} and list(states) == ["h1"]
    exports = [EXPORT] if guest.disks else []
    has = {"h1": dict.fromkeys(volumes, "v")}
    view = GuestView(guest, [VOLUME] if guest.disks else [], exports, places, INVENTORY, has=has)
    assert "h3" not in {step.host for step in act(view).steps}


def test_a_guest_of_another_uuid_that_has_the_disk_is_the_guest() -> None:
    places, _ = where(GUEST, {"h1": [state("h1", OTHER, "running", VOLUME.uuid)]})
    assert places == {"h1": "running"}


@pytest.mark.parametrize("error", [HostUnreachable("no answer"), ServiceUnreachable("xl does not answer here")])
def test_only_hosts_that_can_run_a_guest_must_answer(error: StorkitError) -> None:
    said: dict[str, list[GuestState] | StorkitError] = {"h3": error}
    assert where(GUEST, said, {"h1"})[0] == {}
    assert where(GUEST, said, {"h1", "h3"})[0] == {"h3": "unknown"}
    assert where(DISKLESS, said)[0] == {"h3": "unknown"}
    with pytest.raises(Unsafe, match="may be running on h3"):
        GuestView(GUEST, [VOLUME], [EXPORT], where(GUEST, said)[0], INVENTORY).known()
