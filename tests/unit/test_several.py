"""Pools with several managers: what the inventory takes, what managers see together, and what is planned from it."""

from __future__ import annotations

import uuid
from dataclasses import replace
from pathlib import Path

import pytest

from storkit.core import inventory
from storkit.core.errors import HostUnreachable, Problems, StorkitError
from storkit.core.inventory import PoolConfig
from storkit.core.model import Damaged, PoolContent, Volume
from storkit.hosts.connections import Connections
from storkit.hosts.setup import setup
from storkit.plans import lookup, planner, several
from storkit.plans.remembered import Hints
from storkit.plans.survey import Survey
from storkit.plans.verbs.fences import TakeOver
from storkit.tech.nbd.kernel import _servers

TEXT = """\
[hosts.b]
url = "ssh://b"
[hosts.c]
url = "ssh://c"
[hosts.d]
url = "ssh://d"
[pools.nas]
hosts = ["b", "c"]
path = "/mnt/nas"
"""
PLACE = "f9f06660-f253-4b19-b147-991031f0d209"


def site(text: str = TEXT) -> inventory.Inventory:
    return inventory.parse(text, Path("inventory.toml"))


def volume(name: str, host: str, manager: str = "", term: int = 1) -> Volume:
    uid = str(uuid.uuid5(uuid.NAMESPACE_OID, name))
    return Volume(name, uid, 1 << 20, "nas", host, manager=manager, term=term)


def nas() -> PoolConfig:
    return site().pool("nas")


def test_the_inventory_tells_each_manager_who_they_are() -> None:
    there = site()
    pool = there.pool("nas")
    assert (pool.host, pool.hosts, pool.managers) == ("b", ["b", "c"], ["b", "c"])
    assert there.homes == {"b", "c"} and there.managed_by("c") == [pool] and there.managed_by("d") == []
    assert [name for name in there.hosts if "nas" in setup(there, there.hosts[name]).pools] == ["b", "c"]
    assert setup(there, there.hosts["c"]).pools["nas"].settings == {"path": "/mnt/nas", "managers": ["b", "c"]}


@pytest.mark.parametrize(
    ("old", "new", "said"),
    [
        ('hosts = ["b", "c"]', 'host = "b"\nhosts = ["b"]', "'host' and 'hosts' are both there"),
        ('"b", "c"]', '"b", "x"]', "pools.nas.hosts: there is no host 'x'"),
        ('"b", "c"]', '"b", "b"]', "host 'b' is there twice"),
        ('["b", "c"]', "[]", "a list of hosts' names is wanted"),
        ('["b", "c"]', '"b"', "a list of hosts' names is wanted"),
        ('hosts = ["b", "c"]', 'host = "b"\nmanagers = ["b"]', "unknown key 'managers'"),
        ('path = "/mnt/nas"', "", "a pool with several managers needs the path of its directory"),
        ('path = "/mnt/nas"', 'path = "/mnt/nas"\nothers_write = true', "others_write is not for a pool with several"),
        ('path = "/mnt/nas"', 'type = "lvm"\nvg = "v"', "a pool of type lvm has one host, and no list of them"),
        ('path = "/mnt/nas"', 'path = "/x"\ntransport = "nfs"', "volumes of several managers do not go by nfs"),
    ],
)
def test_what_the_inventory_does_not_take(old: str, new: str, said: str) -> None:
    with pytest.raises(StorkitError) as refused:
        site(TEXT.replace(old, new))
    found = refused.value.each if isinstance(refused.value, Problems) else [refused.value]
    assert any(said in each.message for each in found), [each.message for each in found]


def seen(*volumes: Volume, place: str = PLACE, barred: tuple[str, ...] = ()) -> PoolContent:
    return PoolContent(list(volumes), [], place, list(barred))


def test_one_uuid_is_one_volume_at_the_manager_that_has_it() -> None:
    contents = {
        "c": seen(volume("v", "c", "c", 3), volume("w", "c")),
        "b": seen(volume("v", "b", "c", 3), volume("w", "b")),
    }
    found = several.merged(nas(), contents)
    assert found.acting == "b" and found.problem is None
    assert [(each.name, each.host) for each in found.volumes] == [("v", "c"), ("w", "b")]


def test_of_a_volume_that_has_just_changed_hands_the_later_term_counts() -> None:
    contents = {"b": seen(volume("v", "b", "b", 3)), "c": seen(volume("v", "c", "c", 4))}
    assert [each.host for each in several.merged(nas(), contents).volumes] == ["c"]


def test_a_volume_of_a_silent_manager_stays_its_own() -> None:
    found = several.merged(nas(), {"c": seen(volume("v", "c", "b"), volume("w", "c"))})
    assert found.acting == "c"
    assert [(each.name, each.host) for each in found.volumes] == [("v", "b"), ("w", "c")]


def test_who_is_barred_does_not_act() -> None:
    contents = {name: seen(volume("v", name), barred=("b",)) for name in ("b", "c")}
    assert several.merged(nas(), contents).acting == "c"
    alone = several.merged(nas(), {"b": contents["b"]})
    assert alone.acting == "" and alone.problem is not None
    assert alone.problem.hint == "once it is known to be harmless: storkit unfence b"


@pytest.mark.parametrize("other", ["0e5f2a39-7a2a-4a0e-9a0a-a6b2f7b9d0c1", ""])
def test_two_directories_are_no_pool(other: str) -> None:
    found = several.merged(nas(), {"b": seen(volume("v", "b")), "c": seen(place=other)})
    assert found.problem is not None and "b and c do not see one directory" in found.problem.message
    assert found.volumes == []


def test_an_empty_directory_is_begun_only_when_all_managers_see_it_so() -> None:
    """It may be a mount point without its file system."""
    alone = several.merged(nas(), {"c": seen(place="")})
    assert alone.acting == "" and alone.problem is not None
    assert alone.problem.message == "c sees nothing made in pool nas so far, and b cannot say"
    assert several.merged(nas(), {name: seen(place="") for name in "bc"}).acting == "b"


def test_who_is_no_manager_by_the_inventory_has_nothing() -> None:
    found = several.merged(nas(), {"b": seen(volume("v", "b", "x"))})
    assert found.volumes == []
    assert isinstance(found.damaged[0], Damaged) and "v is x's to serve" in found.damaged[0].message


def test_what_a_silent_manager_served_needs_its_fence() -> None:
    survey = Survey(Connections(site()), Hints())
    survey.silent["b"] = HostUnreachable("host b does not answer")
    error = lookup._out_of_reach(survey, volume("v", "b", "b"))
    assert error is not None and error.message == "volume v was last served by b, and host b does not answer"
    assert error.hint.endswith("storkit fence b --confirmed-off")
    assert lookup._out_of_reach(survey, volume("w", "c")) is None
    assert survey.silence(nas()) is None, "c may answer"
    survey.silent["c"] = HostUnreachable("host c does not answer")
    assert survey.silence(nas()) is not None


def test_a_fence_with_a_persons_word_bars_the_manager() -> None:
    confirmed = planner.Confirmed("ann@desk", ["c", "d"], {"nas": "c"})
    plan = planner.fence("b", site(), confirmed)
    assert [(each.verb, each.host, each.target) for each in plan.steps] == [
        ("declare_off", "c", "host"),
        ("declare_off", "d", "host"),
        ("fence", "c", "transport:nbd"),
        ("bar", "c", "pool:nas"),
    ]
    assert "bar" not in [each.verb for each in planner.fence("b", site()).steps], "nobody has seen that it is off"
    undone = planner.unfence("b", [], site(), {"nas": "c"})
    assert ("unbar", "c") in [(each.verb, each.host) for each in undone.steps]


def test_what_was_served_is_taken_over_and_its_clients_are_led_there() -> None:
    volumes = [replace(volume(name, "c", "b"), host="c") for name in ("v", "w")]
    plan = planner.take_over("b", volumes, {"d": volumes[:1]}, site())
    take, lead = plan.steps
    assert (take.verb, take.host, take.target) == ("take_over", "c", "transport:nbd")
    assert (lead.verb, lead.host, lead.peer, lead.args["taken"]) == ("reattach", "d", "c", take.id)
    assert [each["name"] for each in lead.args["volumes"]] == ["v"]
    assert [hold.host for hold in plan.holds] == ["c"]
    assert not TakeOver.undoable
    assert TakeOver(volumes, "b").again(take) == "storkit fence b --confirmed-off"


def test_volumes_of_one_pool_are_grouped_by_their_managers() -> None:
    volumes = [volume("v", "b"), volume("w", "c"), volume("x", "b")]
    groups = planner.by_pool(volumes)
    assert [(pool, [each.name for each in group]) for pool, group in groups] == [("nas", ["v", "x"]), ("nas", ["w"])]


def test_a_relay_of_another_server_is_known_by_its_arguments() -> None:
    words = ["--object", '{"qom-type": "tls-creds-psk", "id": "tls0"}', "--blockdev"]
    block = '{"driver": "nbd", "server": {"type": "inet", "host": "10.0.0.2", "port": "10809"}}'
    assert _servers([*words, block, "--nbd-server", '{"addr": {"type": "fd"}}']) == [("10.0.0.2", "10809")]
    assert _servers([]) == []
