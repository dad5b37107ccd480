"""A host that does not answer stops what it could spoil, and nothing else."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator

import pytest

from storkit.system.timeouts import VARIABLE
from tests import sickagents
from tests.e2e.world import INVENTORY, World

pytestmark = pytest.mark.e2e

SILENT = INVENTORY.format(format="raw") + '[hosts.c]\nurl = "ssh://127.0.0.9:1"\n'
"""Nobody listens there: ssh fails at once."""


@pytest.fixture
def world(make_world: Callable[..., World]) -> World:
    return make_world(inventory=SILENT)


def test_a_silent_host_without_the_disk_stops_nothing(world: World) -> None:
    world.guest()
    world.storkit("guest", "start", "g", "--on", "a")
    world.storkit("migrate", "prepare", "g", "--to", "b")
    for verb in ("abort", "cleanup", "finish"):
        assert "runs on a, which alone may write" in world.storkit("migrate", verb, "g").stdout
    world.storkit("migrate", "run", "g", "--to", "b")
    assert world.status()["places"] == {"b": "running"}
    listed = world.storkit("guest", "list")
    assert "running on b" in listed.stdout and "what is there is unknown" in listed.stderr
    world.storkit("guest", "stop", "g", "--force")
    world.storkit("guest", "delete", "g")


def test_it_can_be_given_no_guest(world: World) -> None:
    world.guest()
    assert "host c cannot be reached" in world.storkit("guest", "start", "g", "--on", "c", ok=7).stderr
    world.storkit("guest", "start", "g", "--on", "a")
    assert "host c cannot be reached" in world.storkit("migrate", "run", "g", "--to", "c", ok=7).stderr
    assert world.status()["writers"] == ["a"]


def test_a_silent_host_with_the_disk_may_run_the_guest_until_it_is_fenced(world: World) -> None:
    world.guest()
    world.storkit("guest", "start", "g", "--on", "b")
    text = world.inventory.read_text()
    world.inventory.write_text(text.replace('[hosts.b]\nurl = "local:b"', '[hosts.b]\nurl = "ssh://127.0.0.8:1"'))
    assert "unknown on b" in world.storkit("guest", "list").stdout
    for words in (("guest", "start", "g", "--on", "a"), ("migrate", "cleanup", "g"), ("guest", "stop", "g")):
        assert "storkit fence b" in world.storkit(*words, ok=9).stderr
    world.storkit("guest", "delete", "g", ok=5)
    world.storkit("fence", "b")
    world.storkit("guest", "start", "g", "--on", "a")
    assert world.status()["places"] == {"a": "running"} and world.status()["writers"] == ["a"]


def test_a_question_that_fails_leaves_no_plan(make_world: Callable[..., World]) -> None:
    """verify changes nothing: there is nothing to resume or to roll back, and nothing is kept from anyone."""
    world = make_world()
    world.storkit("volume", "create", "v", "1MiB")
    world.storkit("attach", "v", "--on", "b")
    plans = world.storkit("--json", "plan", "list").json
    world.storkit("verify", "v")
    world.clear()
    assert "that is broken: nobody listens at" in world.storkit("verify", "v", ok=11).stderr
    assert world.storkit("--json", "plan", "list").json == plans
    world.storkit("host", "restore")
    world.storkit("detach", "v", "--on", "b")


def test_a_guest_of_a_hypervisor_that_is_not_there_hides_no_other(make_world: Callable[..., World]) -> None:
    world = make_world()
    world.guest()
    world.storkit("guest", "define", "other", "--hypervisor", "vmm")
    listed = world.storkit("guest", "list")
    assert [line.split()[:2] for line in listed.stdout.splitlines()[1:]] == [["g", "stopped"], ["other", "unsupported"]]
    assert "guest other: there is no hypervisor 'vmm'" in listed.stderr
    assert [line.split()[0] for line in world.storkit("migrate", "status").stdout.splitlines()[1:]] == ["g"]
    assert "no hypervisor 'vmm'" in world.storkit("migrate", "status", "other", ok=3).stderr


def test_a_guest_of_xen_where_there_is_none(make_world: Callable[..., World]) -> None:
    """Its record is shown, rendered and forgotten like any other; it is not started, and that is said beforehand."""
    world = make_world()
    world.storkit("volume", "create", "disk", "1MiB")
    world.storkit("guest", "define", "g", "--hypervisor", "xl", "--disk", "disk")
    assert [line.split()[:2] for line in world.storkit("guest", "list").stdout.splitlines()[1:]] == [["g", "stopped"]]
    assert "stopped" in world.storkit("guest", "show", "g").stdout
    assert "target=/dev/storkit/disk" in world.storkit("guest", "render", "g").stdout
    refused = world.storkit("guest", "start", "g", ok=5).stderr
    assert "this machine does not run under Xen" in refused and "nothing was changed" in refused
    world.storkit("guest", "delete", "g")
    assert world.storkit("--json", "guest", "list").json == []


class Dawdling:
    """Hosts a and b, and c behind an agent that takes its time, as it is told."""

    def __init__(self, world: World) -> None:
        self.world = world
        self.directory = world.directory / "sick"
        self.url = sickagents.hosts(self.directory, "c")["c"]
        c = f'[hosts.c]\nurl = "{self.url}"\nstate = "{world.directory}/c"\n'
        world.storkit("volume", "create", "g", "1MiB")
        world.storkit("guest", "define", "g", "--disk", "g")
        here = INVENTORY.format(format="raw").replace('"local:a"', '"local:a"\naddress = "127.0.0.1"')
        world.inventory.write_text(here + c)
        world.environment["PATH"] = f"{self.directory}/bin:{os.environ['PATH']}"
        # What is waited for 3 seconds here; and what answers has the time of a busy machine.
        world.environment[VARIABLE] = "1"

    def be(self, how: str, what: str = "", seconds: float = 0) -> None:
        sickagents.be(self.directory, self.url, how, what, seconds)


@pytest.fixture
def dawdling(make_world: Callable[..., World]) -> Iterator[Dawdling]:
    made = Dawdling(make_world())
    yield made
    left = sickagents.connected(made.directory)
    sickagents.end(made.directory)
    assert left == [], "ssh processes were left behind"


LEFT_OUT = "host c was not waited for: nothing that was asked for depends on it; what is there is unknown"


def test_a_host_that_nothing_depends_on_is_not_waited_for(dawdling: Dawdling) -> None:
    """It connects and answers no question; all that could run the guest have answered."""
    world = dawdling.world
    world.storkit("attach", "g", "--on", "b")
    dawdling.be("hang", "*")
    for words in ("--json status", "migrate status g", "guest list", "guest stop g"):
        done = world.storkit(*words.split())
        assert LEFT_OUT in done.stderr and "does not answer" not in done.stderr, done.stderr
        assert words != "--json status" or done.json["silent"] == ["c"]
    assert world.storkit("--json", "volume", "show", "g").json["exports"] == []


def test_a_slow_host_is_waited_for_by_what_depends_on_it(dawdling: Dawdling) -> None:
    """It has the disk, or it is the one that a person names."""
    world = dawdling.world
    world.storkit("attach", "g", "--on", "c")
    dawdling.be("late", "find", 5)
    for words in ("migrate status g", "guest list"):
        assert world.storkit(*words.split()).stderr == ""
    dawdling.be("well")
    world.storkit("detach", "g", "--on", "c")
    dawdling.be("late", "find", 5)
    assert LEFT_OUT in world.storkit("guest", "list").stderr, "without its disk c does not count"
    for words in ("guest stop g --on c", "guest delete g"):
        assert world.storkit(*words.split()).stderr == "", "who forgets a guest hears everyone"
