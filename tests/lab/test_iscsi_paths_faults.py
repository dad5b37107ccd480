"""iSCSI by two networks on real kernels: portals that lie, commands that are killed, paths that come later, guests."""

from __future__ import annotations

import json
import random
import time
from dataclasses import replace
from pathlib import Path

import pytest

from storkit.core.errors import Unsafe
from tests.lab import Lab
from tests.lab.luns import Client, Targets, uuid, volume
from tests.lab.world import World, storage

pytestmark = [pytest.mark.lab, pytest.mark.slow]


def test_a_portal_that_shows_another_disk_is_refused(lab: Lab) -> None:
    """Also under a writer, who goes on by what he had."""
    targets, wrong, client = Targets(lab.host("s")), Targets(lab.host("a")), Client(lab.host("b"))
    b, good, other = client.host, targets.host.address("san1"), wrong.host.address("san2")
    targets.do(*targets.making(1, b, writable=True, portals=[good]))
    wrong.do(*wrong.making(1, b, writable=True, portals=[wrong.host.address("san1"), other], serial=uuid(7)))
    offer = targets.offer(1, b, writable=True, portals=[f"{good}:3260", f"{other}:3260"])
    with pytest.raises(Unsafe, match=uuid(7)):
        client.attach(offer)
    assert client.left() == []
    client.attach(targets.offer(1, b, writable=True))
    writer = client.writer(1)
    b.wait_for(lambda: client.written() > 3, "writes")
    with pytest.raises(Unsafe, match=uuid(7)):
        client.attach(offer)
    assert len(client.states()) == 1
    before = client.written()
    b.wait_for(lambda: client.written() > before + 3, "writes after it")
    assert writer.running()
    writer.kill(9)
    writer.wait(check=False)
    client.detach(1)
    assert client.left() == []


def test_a_second_path_is_added_under_a_writer_and_taken_away(lab: Lab) -> None:
    """As where the inventory gives a target another portal, or storkit is upgraded: nobody detaches for that."""
    targets, client = Targets(lab.host("s")), Client(lab.host("b"))
    b, places = client.host, [targets.host.address(network) for network in ("san1", "san2")]
    targets.make(1, b, writable=True, portals=places)
    portals = [f"{place}:3260" for place in places]
    one = targets.offer(1, b, writable=True, portals=portals[:1])
    both = targets.offer(1, b, writable=True, portals=portals)
    (found,) = client.attach(one)
    assert found.paths == [] and "linear" in client.sh("dmsetup table storkit:v1:attached")
    writer = client.writer(1)
    b.wait_for(lambda: client.written() > 3, "writes")
    (found,) = client.attach(both)
    assert [path.state for path in found.paths] == ["working", "working"]
    b.cut("san1")
    b.wait_for(lambda: client.find()[0].lost, "a lost path", 90, every=1)
    before = client.written()
    b.wait_for(lambda: client.written() > before + 3, "writes by the other path", 60)
    b.heal("san1")
    b.wait_for(lambda: not client.find()[0].lost, "both paths", 90, every=1)
    (found,) = client.attach(one)
    assert found.paths == [] and not found.broken
    assert set(client.sh("cat /sys/class/iscsi_session/*/recovery_tmo").split()) & {"-1", "off"}
    before = client.written()
    b.wait_for(lambda: client.written() > before + 3, "writes by one path again")
    assert writer.running()
    writer.kill(9)
    writer.wait(check=False)
    client.detach(1)
    assert client.left() == []


def test_killed_at_any_moment(lab: Lab) -> None:
    """The same verb again finishes the work; the other one removes whatever is there."""
    targets, client = Targets(lab.host("s")), Client(lab.host("b"))
    b, places = client.host, [targets.host.address(network) for network in ("san1", "san2")]
    targets.make(1, b, writable=True, portals=places)
    offer = targets.offer(1, b, writable=True, portals=[f"{place}:3260" for place in places])
    started = time.monotonic()
    client.attach(offer)
    whole = time.monotonic() - started
    client.detach(1)
    assert client.left() == []
    chance = random.Random(6)
    for round in range(12):
        verb = ("attach", "attach", "detach")[round % 3]
        if verb == "detach":
            client.attach(offer)
        half = (
            client.spawn("attach", offers=[offer]) if verb == "attach" else client.spawn("detach", volumes=[volume(1)])
        )
        time.sleep(whole * chance.uniform(0.1, 1))  # the moment is what is random
        half.kill(9)
        half.wait(check=False)
        if round % 2:
            (found,) = client.attach(offer)
            assert not found.lost and client.write(1) and client.evidence(1).key, f"round {round}"
        client.detach(1)
        assert client.left() == [], f"round {round}"


def test_a_guest_moves_though_a_network_is_lost_and_commands_tell(lab: Lab, tmp_path: Path) -> None:
    s = lab.host("s")
    portals = [f"{s.address(network)}:3260" for network in ("san1", "san2")]
    world = World(lab, tmp_path, replace(storage("iscsi"), transport_settings={"portals": portals}))
    world.define()
    world.storkit("guest", "start", "g", "--on", "a")
    world.wait_for_writes()
    world.b.cut("san2")
    world.migrate("b")
    text = world.commands.storkit(["status"], "lost", 900).stdout
    assert f"{portals[0]}  working" in text and f"{portals[1]}  it has no session" in text, text
    shown = {each["host"]: each["paths"] for each in world.storkit("volume", "show", "g")["attachments"]}
    assert shown["b"] == [
        {"portal": portals[0], "state": "working"},
        {"portal": portals[1], "state": "it has no session"},
    ]
    checked = world.run("status", "--check")
    assert checked.status == 1 and any("lost its path" in each for each in json.loads(checked.stdout)["warning"])
    checked = world.run("host", "check", "b")  # b cannot reach one door of s
    (found,) = [each for each in json.loads(checked.stdout) if each["host"] == "b"]
    assert checked.status == 1 and any("has lost its path" in each for each in found["warnings"]), found
    again = world.run("attach", "g", "--on", "b")
    assert again.status == 0 and f"without its path {portals[1]}" in again.stderr, again
    world.b.heal("san2")
    assert [path["state"] for path in world.storkit("attach", "g", "--on", "b")["paths"]] == ["working", "working"]
    world.b.cut("san1")
    world.wait_for_writes()
    world.b.heal("san1")
    world.storkit("verify", "g")
    world.migrate("a")
    report = world.clear()
    assert report.clean, report
    left = world.left()
    assert not left, "\n".join(left)
