"""iSCSI by two networks on real kernels: a portal that lies, and commands that are killed."""

from __future__ import annotations

import random
import time

import pytest

from storkit.core.errors import Unsafe
from tests.lab import Lab
from tests.lab.luns import Client, Targets, uuid, volume

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
