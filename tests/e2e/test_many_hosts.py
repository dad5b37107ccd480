"""200 hosts: a command connects to those that it needs, once each, and waits for no other."""

from __future__ import annotations

import os
from collections import Counter
from pathlib import Path

import pytest

from tests.cannedhosts import CannedHosts
from tests.e2e.world import World

pytestmark = pytest.mark.e2e

COUNT, FEW = 200, 10
HANGING = [f"s{number}" for number in range(100, 120)]


class Fleet(World):
    """Canned hosts, and the command line."""

    def __init__(self, directory: Path, count: int) -> None:
        self.hosts = CannedHosts(directory, count)
        super().__init__(directory, inventory=self.hosts.inventory.read_text())
        self.environment["PATH"] = f"{self.hosts.path}:{os.environ['PATH']}"
        # Those that hang are waited for: not for long, and much longer than a shell script takes on a busy machine.
        self.environment["STORKIT_TIMEOUT_FACTOR"] = "0.5"

    @property
    def hints(self) -> Path:
        return self.directory / "coordinator" / "hints.json"


@pytest.fixture
def fleet(tmp_path: Path) -> Fleet:
    return Fleet(tmp_path, COUNT)


@pytest.fixture
def few(tmp_path: Path) -> Fleet:
    """Enough where it does not matter how many they are."""
    return Fleet(tmp_path, FEW)


def test_a_volume_whose_place_is_known_costs_two_connections(fleet: Fleet) -> None:
    fleet.hosts.ready_to_attach(7, "s9")
    fleet.storkit("attach", "v7", "--on", "s9")
    every = Counter(dict.fromkeys(fleet.hosts.names, 1))
    assert fleet.hosts.connections() == every, "without a hint each is asked, once for both looks"
    assert [key for key, times in fleet.hosts.requests().items() if key[1] == "pool.find" and times > 1] == [
        ("s7", "pool.find")
    ]
    fleet.hosts.how("hang", HANGING)
    fleet.storkit("attach", "v7", "--on", "s9")
    assert fleet.hosts.connections() == {"s7": 1, "s9": 1}
    fleet.storkit("volume", "show", "v7")
    assert fleet.hosts.connections() == {"s7": 1}
    fleet.storkit("detach", "v7", "--on", "s9")
    assert fleet.hosts.connections() == {"s7": 1, "s9": 1}


def test_hints_change_nothing_but_whom_is_asked_first(few: Fleet) -> None:
    shown = few.storkit("--json", "volume", "show", "v7").stdout
    uuid = few.hosts.volume(7)["uuid"]
    assert few.hosts.connections().total() == FEW
    wrong = (
        "", "[", "[]", '{"v7": 5}', '{"v7": ["p7"]}', '{"v7": [1, 2]}', "[" * 100_000, "\xff",
        f'{{"v7": ["p8", "{uuid}"]}}', '{"v7": ["p7", "another"]}', f'{{"v7": ["gone", "{uuid}"]}}',
    )  # fmt: skip
    for text in wrong:
        few.hints.write_text(text, encoding="latin-1")
        assert few.storkit("--json", "volume", "show", "v7").stdout == shown, text[:50]
        assert few.hosts.connections().total() == FEW, text[:50]
    assert few.storkit("--json", "volume", "show", "v7").stdout == shown
    assert few.hosts.connections() == {"s7": 1}
    few.hints.unlink()
    few.hints.mkdir()
    assert few.storkit("--json", "volume", "show", "v7").stdout == shown


def test_a_volume_that_is_elsewhere_now_is_found(few: Fleet) -> None:
    """It was taken there by hand."""
    few.storkit("volume", "show", "v7")
    few.hosts.has(7)
    few.hosts.has(8, few.hosts.volume(8, name="v7", uuid=few.hosts.volume(7)["uuid"]))
    assert "pool p7 has no volume v7" in few.storkit("volume", "show", "p7/v7", ok=4).stderr
    assert few.storkit("--json", "volume", "show", "v7").json["pool"] == "p8"
    few.hosts.connections()
    assert few.storkit("--json", "volume", "show", "v7").json["pool"] == "p8"
    assert few.hosts.connections() == {"s8": 1}


def test_a_name_that_stands_for_two(few: Fleet) -> None:
    """Made while one of their hosts did not answer, say."""
    few.storkit("volume", "show", "v7")
    few.hosts.has(8, few.hosts.volume(8, name="v7"))
    assert few.storkit("--json", "volume", "show", "v7").json["pool"] == "p7", "where it was is not asked elsewhere"
    assert few.storkit("--json", "volume", "show", "p8/v7").json["pool"] == "p8", "now both are known"
    refused = few.storkit("volume", "show", "v7", ok=5).stderr
    assert "volume v7 is in pool p7 and in pool p8" in refused and "write p7/v7 or p8/v7" in refused
    assert "volume v7 is in pool p7 and in pool p8" in few.storkit("volume", "list").stderr
    few.storkit("guest", "define", "g", "--disk", "p8/v7")
    assert "p8/v7" not in (few.directory / "guests/g.toml").read_text()
    shown = few.storkit("--json", "guest", "show", "g").json
    assert shown["disks"][0]["uuid"] == few.hosts.volume(8)["uuid"], "a guest's record has the UUID"
    both = few.storkit("guest", "define", "h", "--disk", "p7/v7:ro", "--disk", "p8/v7:ro", ok=5).stderr
    assert "two disks would be named v7" in both


def test_the_last_place_does_not_answer(few: Fleet) -> None:
    """What has its name elsewhere could only be mistaken for it, so nobody else is asked."""
    few.storkit("volume", "show", "v7")
    few.hosts.connections()
    few.hosts.how("refuse", ["s7"])
    refused = few.storkit("volume", "show", "v7", ok=7).stderr
    assert "volume v7, last in pool p7, cannot be looked for: host s7 cannot be reached" in refused
    assert few.hosts.connections() == {"s7": 1}
    few.hints.unlink()
    assert "no volume v7 was found, and host s7 cannot be reached" in few.storkit("volume", "show", "v7", ok=7).stderr


def test_pool_and_name_ask_that_pool_alone(fleet: Fleet) -> None:
    fleet.hosts.how("hang", HANGING)
    fleet.hosts.ready_to_attach(7, "s9")
    fleet.hosts.answer("s7", "pool.clone", [fleet.hosts.volume(7)])
    assert fleet.storkit("--json", "attach", "p7/v7", "--on", "s9").json["volume"] == "v7"
    assert fleet.hosts.connections() == {"s7": 1, "s9": 1}
    detached = fleet.storkit("--json", "detach", "p7/v7", "--on", "s9").json
    assert detached == {"volume": "v7", "detached": "s9"}
    assert fleet.hosts.connections() == {"s7": 1, "s9": 1}
    for words in (
        ("volume", "show", "p7/v7"),
        ("volume", "export", "p7/v7", "/tmp/x"),
        ("volume", "resize", "p7/v7", "2MiB"),
        ("volume", "list", "--pool", "p7"),
        ("volume", "delete", "p7/v7"),
        ("verify", "p7/v7", "--on", "s7"),
    ):
        done = fleet.storkit("-n", *words, ok=None)
        assert done.status == 0, (words, done.stderr)
        assert fleet.hosts.connections() == {"s7": 1}, words
    fleet.storkit("guest", "define", "g", "--disk", "p7/v7:ro")
    assert 'volume = "v7"' in (fleet.directory / "guests/g.toml").read_text()
    assert fleet.hosts.connections() == {"s7": 1}
    assert "pool p7 has no volume v8" in fleet.storkit("volume", "show", "p7/v8", ok=4).stderr
    assert "there is no pool 'nope'" in fleet.storkit("volume", "show", "nope/v7", ok=4).stderr
    for name in ("p7/", "/v7", "p7/v/7", "p7/../v7", "../v7"):
        fleet.storkit("volume", "show", name, ok=2)


def test_a_new_name_is_asked_for_everywhere(fleet: Fleet) -> None:
    """All that answer; the others are named, and keep nobody from making a volume."""
    fleet.hosts.how("refuse", HANGING)
    made = fleet.storkit("--json", "volume", "create", "new", "1MiB", "--pool", "p3")
    assert fleet.hosts.connections() == dict.fromkeys(fleet.hosts.names, 1)
    assert all(f"host {name} cannot be reached" in made.stderr for name in HANGING)
    assert "exists already in pool p4" in fleet.storkit("volume", "create", "v4", "1MiB", "--pool", "p3", ok=5).stderr
    fleet.hosts.connections()
    fleet.hosts.has(3, *made.json)
    fleet.storkit("volume", "show", "new")
    assert fleet.hosts.connections() == {"s3": 1}


def test_what_is_asked_of_every_host_is_asked_once(fleet: Fleet) -> None:
    fleet.hosts.how("refuse", HANGING)
    for words in (("status",), ("volume", "list"), ("pool", "list")):
        done = fleet.storkit("--json", *words)
        assert fleet.hosts.connections() == dict.fromkeys(fleet.hosts.names, 1), words
        assert done.stderr.count("cannot be reached") == len(HANGING)


def test_completion_waits_for_no_machine(few: Fleet) -> None:
    few.storkit("volume", "show", "v7")
    few.hosts.connections()
    for kind, names in (("hosts", few.hosts.names), ("pools", [f"p{n}" for n in range(FEW)]), ("volumes", ["v7"])):
        assert few.storkit("names", kind).stdout.split() == names
    few.inventory.write_text(
        few.inventory.read_text() + '[hosts.here]\nurl = "local:here"\n[pools.here]\nhost = "here"\n'
    )
    assert few.storkit("names", "volumes").stdout == "v7\n"
    few.storkit("guest", "define", "g")
    assert few.storkit("names", "guests").stdout == "g\n"
    assert few.hosts.connections() == {}
    assert "storkit names" in few.storkit("completion", "bash").stdout


def test_a_guest_is_started_by_its_host_and_its_disk_s(fleet: Fleet) -> None:
    fleet.storkit("guest", "define", "g", "--disk", "v7")
    fleet.hosts.how("hang", HANGING)
    fleet.hosts.answer("s9", "hypervisor.check", [])
    fleet.hosts.connections()
    fleet.storkit("-n", "guest", "start", "g", "--on", "s9")
    assert fleet.hosts.connections() == {"s7": 1, "s9": 1}
    fleet.hosts.answer("s7", "transport.find_exports", [fleet.hosts.exported(7, "s9")])
    for words in (("guest", "show", "g"), ("guest", "render", "g")):
        fleet.storkit(*words)
        assert fleet.hosts.connections() == {"s7": 1, "s9": 1}, words


def test_hosts_that_hang_are_waited_for_together_and_once(few: Fleet) -> None:
    """Only by a command that has to ask them: this one has no hint."""
    few.environment["STORKIT_TIMEOUT_FACTOR"] = "0.2"
    few.hosts.how("hang", ["s1", "s2"])
    few.hosts.how("hang-at-find", ["s3"])
    shown = few.storkit("volume", "show", "v7")
    assert [name for name in few.hosts.names if f"host {name} " in shown.stderr] == ["s1", "s2", "s3"]
    assert few.hosts.connections() == dict.fromkeys(few.hosts.names, 1)
    refused = few.storkit("volume", "show", "v1", ok=7).stderr
    assert "no volume v1 was found, and host s1 " in refused
    few.hosts.connections()
    assert few.storkit("volume", "show", "v7").stderr == ""
    assert few.hosts.connections() == {"s7": 1}
