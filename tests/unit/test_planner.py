"""Plans: which transport serves which volume, and what a right takes."""

from __future__ import annotations

import uuid
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import pytest

from storkit.core import codec, inventory
from storkit.core.calls import Targets
from storkit.core.errors import Conflict, StorkitError, Unsafe
from storkit.core.guest import Guest
from storkit.core.host import Door
from storkit.core.model import Client, Export, Secret, Volume
from storkit.guests.fleets.keys import FleetKeys
from storkit.plans import migration, planner, verbs
from storkit.plans.guests import running
from storkit.plans.intent.fences import may_run
from storkit.plans.plan import Stages
from storkit.plans.verb import step
from storkit.plans.verbs.exports import SetWriters, client

TEXT = """\
[hosts.a]
url = "ssh://a"
[hosts.b]
url = "ssh://b"
[hosts.s]
url = "ssh://s"
address = "10.0.0.9"
[pools.files]
host = "s"
[pools.others]
host = "s"
transport = "nbd"
[pools.mine]
host = "a"
"""


def site(text: str = TEXT) -> inventory.Inventory:
    return inventory.parse(text, Path("inventory.toml"))


def volume(name: str, pool: str, host: str) -> Volume:
    return Volume(name, str(uuid.uuid5(uuid.NAMESPACE_OID, name)), 1 << 20, pool, host)


def test_a_pool_is_served_by_its_own_transport_and_else_by_the_default() -> None:
    there = site(TEXT + '[defaults]\ntransport = "nbd"\n')
    assert [there.transport(pool) for pool in ("files", "others", "gone")] == ["transport:nbd"] * 3
    assert there.served_by == ["transport:nbd"]


def test_a_transport_that_does_not_exist_is_refused() -> None:
    with pytest.raises(StorkitError, match=r"pools\.others\.transport.*no transport 'carrier-pigeon'"):
        site(TEXT.replace('"nbd"', '"carrier-pigeon"'))


def test_volumes_of_several_homes_are_given_home_by_home() -> None:
    stages = Stages()
    volumes = [volume("one", "files", "s"), volume("two", "mine", "a"), volume("three", "others", "s")]
    planner.add_attach(stages, volumes, "b", {"b"}, site())
    shown = [[(each.verb, each.host, [v["name"] for v in each.args["volumes"]]) for each in s] for s in stages.stages]
    assert shown == [
        [("export", "s", ["one", "three"]), ("export", "a", ["two"])],
        [("set_writers", "s", ["one", "three"]), ("set_writers", "a", ["two"])],
        [("attach", "b", ["one", "three"]), ("attach", "b", ["two"])],
    ]
    assert [each.peer for each in stages.stages[2]] == ["s", "a"]


def test_a_host_is_fenced_at_every_other_home() -> None:
    assert [(each.host, each.target) for each in planner.fence("b", site()).steps] == [
        ("a", "transport:nbd"),
        ("s", "transport:nbd"),
    ]
    assert [each.host for each in planner.fence("a", site()).steps] == ["s"]
    only = site("[hosts.a]\nurl = 'ssh://a'\n[pools.p]\nhost = 'a'\n")
    with pytest.raises(Conflict, match="every pool is on a itself"):
        planner.fence("a", only)


def test_a_person_s_word_goes_where_someone_answers() -> None:
    """Silent storage hosts are passed over; what the person said is kept first, and named when it is to be repeated."""
    plan = planner.fence("b", site(), planner.Confirmed("ann@desk", ["a"]))
    assert [(each.verb, each.host) for each in plan.steps] == [("declare_off", "a"), ("fence", "a")]
    assert verbs.of(plan.steps[0]).again(plan.steps[0]) == "storkit fence b --confirmed-off"
    back = planner.unfence("b", ["a", "s"], site())
    assert [(each.verb, each.host) for each in back.steps] == [
        ("unfence", "a"), ("unfence", "s"), ("withdraw_off", "a"), ("withdraw_off", "s"),
    ]  # fmt: skip


@pytest.mark.parametrize(
    ("places", "expected"),
    [
        ({}, (False, [])),
        ({"a": "running"}, (False, [])),
        ({"b": "running"}, (True, [])),
        ({"b": "incoming", "a": "running"}, (True, [])),
        ({"b": "unknown"}, (True, [])),
        ({"b": "unknown", "a": "unknown"}, (True, ["a"])),
    ],
)
def test_a_fenced_host_may_run_a_guest(places: dict[str, str], expected: tuple[bool, list[str]]) -> None:
    assert may_run(places, "b") == expected


def test_a_guest_that_runs_elsewhere_is_not_on_a_fenced_host_that_is_silent() -> None:
    assert not may_run({"b": "unknown", "a": "running"}, "b")[0]
    assert not may_run({"b": "unknown", "a": "paused", "c": "unknown"}, "b")[0]


UUID_OF_ONE = volume("one", "files", "s").uuid


class Asked(Targets):
    def __init__(self, host: str, made: list[tuple[str, str, Any]]) -> None:
        self.host, self.made = host, made

    def call(self, target: str, verb: str, args: dict[str, Any]) -> None:
        self.made.append((self.host, verb, args.get("hosts") or args.get("writers")))


class Calls:
    """The engine as a verb sees it, noting what it is asked for."""

    def __init__(self) -> None:
        self.made: list[tuple[str, str, Any]] = []

    def on(self, host: str) -> Targets:
        return Asked(host, self.made)

    def result(self, step: str) -> Any:
        raise KeyError(step)

    def before(self, step: str) -> Any:
        return codec.dump([Export("one", UUID_OF_ONE, "a", False, "nbd", True)])

    def same_machine(self, one: str, other: str) -> bool:
        return one == other

    def address(self, host: str) -> str:
        return {"s": "10.0.0.9"}.get(host, host)

    def doors(self, host: str, target: str) -> list[Door]:
        return []

    def secrets(self, guest: Guest) -> dict[str, Secret]:
        return {}

    def fleet_keys(self, fleet: str, guests: Iterable[str]) -> FleetKeys:
        raise NotImplementedError

    def source(self, host: str, towards: str) -> str:
        return {("s", "a"): "10.0.1.9"}.get((host, towards), "")


def test_a_client_record_says_where_the_client_comes_from() -> None:
    assert client(Calls(), "a", "s", {}) == Client("s", False, "10.0.0.9", "10.0.1.9")


def test_who_had_no_export_takes_its_right_up_when_it_is_attached(monkeypatch: pytest.MonkeyPatch) -> None:
    """The export step before has seen that b had none: it has nothing there that would have to be made writable."""
    from storkit.nbd import Nbd

    monkeypatch.setattr(Nbd, "claims", True)
    calls = Calls()
    change = SetWriters([volume("one", "files", "s")], ["a", "b"], exported="1.1")
    at = step(change, "s", "transport:nbd", "")
    assert change.find(calls, at) == {UUID_OF_ONE: []}
    change.act(calls, at)
    assert calls.made == [("s", "set_writers", ["a", "b"]), ("a", "claim", ["a", "b"])]


def test_a_right_is_given_by_the_server_before_a_client_takes_it_up(monkeypatch: pytest.MonkeyPatch) -> None:
    from storkit.nbd import Nbd

    change = SetWriters([volume("one", "files", "s")], ["a", "b"])
    for claims in (False, True):
        monkeypatch.setattr(Nbd, "claims", claims)
        calls = Calls()
        change.act(calls, step(change, "s", "transport:nbd", ""))
        taken_up = [("a", "claim", ["a", "b"]), ("b", "claim", ["a", "b"])] if claims else []
        assert calls.made == [("s", "set_writers", ["a", "b"]), *taken_up]


def test_a_guest_that_is_being_started_is_a_conflict_not_a_silent_host() -> None:
    guest = Guest("g", str(uuid.uuid4()), 16 << 20)
    for places in ({"b": "starting"}, {"a": "running", "b": "starting"}):
        subject = migration.GuestView(guest, [], [], places, site())
        for build in (
            lambda subject: running.start([(subject, "a")], subject.inventory),
            lambda subject: running.stop([subject], False, 1.0, "", subject.inventory),
            lambda subject: migration.migrate(subject, "b", {"prepare"}, subject.inventory),
            lambda subject: migration.cleanup(subject, subject.inventory),
            lambda subject: running.wake(subject, subject.inventory),
        ):
            with pytest.raises(Conflict, match="just being started on b by another command") as caught:
                build(subject)
            assert "migrate status g" in caught.value.hint
    unknown = migration.GuestView(guest, [], [], {"b": "starting", "c": "unknown"}, site())
    with pytest.raises(Unsafe, match="on c, which cannot be asked"):
        unknown.known()
    steps = running.stop([subject], True, 1.0, "", subject.inventory).steps
    assert [step.host for step in steps if step.verb == "stop"] == ["a", "b"], "by force it is ended as well"
