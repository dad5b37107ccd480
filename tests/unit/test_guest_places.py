"""Where a guest is, of what the hosts' hypervisors say, and what is planned by that: a stranger of its name is none."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field, replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any, cast

import pytest

from storkit.core import inventory
from storkit.core.errors import Conflict, HostUnreachable, ServiceUnreachable, StorkitError, TimedOut, Unsafe
from storkit.core.guest import Disk, Guest
from storkit.core.model import Export, GuestState, GuestStatus, Volume
from storkit.hosts.connections import Connections
from storkit.plans import migration
from storkit.plans.guests import running
from storkit.plans.migration import GuestView
from storkit.plans.plan import Plan, Step
from storkit.plans.survey import Survey
from storkit.plans.verbs.moves import SendGuest

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
    def word(self) -> Nobody:
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
    lambda view: running.stop([view], True, 60.0, "", INVENTORY),
    lambda view: running.stop([view], False, 60.0, "", INVENTORY),
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


def test_a_guest_that_is_being_moved_by_hand_is_not_two_writers() -> None:
    away = replace(state("h1", MINE, "running", VOLUME.uuid), reason="xl migrate, process 4")
    places, states = where(GUEST, {"h1": [away], "h3": [state("h3", MINE, "running", VOLUME.uuid)]})
    reasons = {host: one.reason for host, one in states.items() if one.reason}
    view = GuestView(GUEST, [VOLUME], [EXPORT], places, INVENTORY, reasons=reasons)
    with pytest.raises(Conflict, match="moved away from h1: xl migrate, process 4") as caught:
        migration.finish(view, INVENTORY)
    assert "--force" not in caught.value.hint
    with pytest.raises(Unsafe, match="two writers"):
        migration.finish(replace(view, reasons={}), INVENTORY)


@pytest.mark.parametrize(("places", "lost"), [({"h1": "migrated"}, True), ({"h1": "migrated", "h3": "running"}, False)])
def test_cleanup_says_that_a_memory_is_lost(places: dict[str, str], lost: bool) -> None:
    exports = [EXPORT, replace(EXPORT, client="h3")]
    steps = migration.cleanup(GuestView(GUEST, [VOLUME], exports, places, INVENTORY), INVENTORY).steps
    assert [step.host for step in steps if "its memory is lost" in step.title] == (["h1"] if lost else [])


# --- a move that is taken back


class Moving:
    """A hypervisor of a host that a guest leaves or comes to: what it is asked is written down."""

    def __init__(self, host: str, status: str, done: list[tuple[str, str]], stuck: int = 0) -> None:
        self.host, self.status, self.done, self.stuck = host, status, done, stuck

    def hypervisor(self, target: str) -> Moving:
        return self

    def find(self, names: list[str]) -> list[Any]:
        return [SimpleNamespace(status=self.status)]

    def cancel(self, name: str) -> None:
        self.done.append((self.host, "cancel"))
        if self.stuck:
            self.stuck -= 1
            raise TimedOut("the migration of guest web does not end")

    def retire(self, name: str) -> None:
        self.done.append((self.host, "retire"))
        self.status = "stopped"

    def credential(self, name: str) -> None:
        return None

    def send(self, name: str, uri: str, credential: None) -> None:
        return None

    def resume(self, name: str, run: bool) -> None:
        raise Unsafe(f"guest {name} cannot go on here: it is {self.status}")


def moving(here: str, there: str, stuck: int = 0) -> tuple[Any, list[tuple[str, str]]]:
    done: list[tuple[str, str]] = []
    hosts = {"h1": Moving("h1", here, done, stuck), "h3": Moving("h3", there, done)}
    return SimpleNamespace(on=hosts.__getitem__, result=lambda step: "xl:h3:1"), done


MOVE = SendGuest("web", "receive", paused=False)
STEP = Step("send", "send", "h1", "hypervisor:xl", "move web", {}, "h3")


@pytest.mark.parametrize("there", ["arrived", "incoming", "unknown"])
def test_a_source_that_hangs_does_not_cost_the_guest_that_has_arrived(there: str) -> None:
    run, done = moving("running", there, stuck=1)
    if there == "arrived":
        with pytest.raises(TimedOut):
            MOVE.undo(run, STEP, None)
        assert done == [("h1", "cancel")]
    else:
        MOVE.undo(run, STEP, None)
        assert done == [("h1", "cancel"), ("h3", "retire"), ("h1", "cancel")]


@pytest.mark.parametrize("act", [lambda run: MOVE.undo(run, STEP, None), lambda run: MOVE.act(run, STEP)])
def test_a_destination_that_has_lost_the_guest_is_named(act: Callable[[Any], object]) -> None:
    with pytest.raises(Unsafe, match="its memory is lost") as caught:
        act(moving("migrated", "stopped")[0])
    assert caught.value.hint.startswith("storkit migrate cleanup web")


def test_another_reason_why_a_guest_does_not_go_on_is_its_own() -> None:
    with pytest.raises(Unsafe, match="cannot go on here: it is starting"):
        MOVE.act(moving("migrated", "starting")[0], STEP)
