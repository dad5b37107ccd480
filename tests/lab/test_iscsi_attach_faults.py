"""iSCSI attachments when things break: the network, iscsid, the target, storkit itself."""

from __future__ import annotations

import random
import time

import pytest

from storkit.core.errors import Conflict, ServiceUnreachable, StorkitError
from tests.lab import Lab
from tests.lab.luns import Client, Targets, initiator, iqn, uuid, volume

pytestmark = pytest.mark.lab


@pytest.fixture
def targets(lab: Lab) -> Targets:
    return Targets(lab.host("s"))


@pytest.fixture
def client(lab: Lab, targets: Targets) -> Client:
    return Client(lab.host("b"))


def test_a_writer_waits_for_its_target_and_for_iscsid(targets: Targets, client: Client) -> None:
    b = client.host
    targets.make(1, b, writable=True)
    client.attach(targets.offer(1, b, writable=True))
    writer = client.writer(1)
    b.wait_for(lambda: client.written() > 3, "writes")

    client.restart_iscsid()
    before = client.written()
    b.wait_for(lambda: client.written() > before + 3, "writes after iscsid was restarted", 90)
    assert writer.running()

    b.cut("san1")
    client.wait_for_state("FAILED")
    stalled = client.written()
    time.sleep(20)  # what is tested is that nothing happens meanwhile
    assert client.written() == stalled and writer.running()
    with pytest.raises(ServiceUnreachable, match="does not answer"):
        client.evidence(1)
    again = targets.offer(1, b, writable=True)
    with pytest.raises(ServiceUnreachable, match=r"in use .* is away"):
        client.attach(again)
    b.heal()
    # an answer that ARP gave up before this may still be on its way to whoever connects now
    neighbour = ["ip", "neigh", "show", targets.host.address("san1")]
    b.wait_for(lambda: "lladdr" in b.run(neighbour).stdout, "way to the target", 60)
    client.attach(again)  # waits until iscsid has taken the session up
    b.wait_for(lambda: client.written() > stalled + 3, "writes after the network is back", 120)
    assert writer.running(), "no error reached the writer"

    client.sh("kill -9 $(pidof iscsid)")
    b.cut("san1")
    time.sleep(12)  # longer than the pings that find the connection dead
    stalled = client.written()
    b.heal()
    client.restart_iscsid()
    b.wait_for(lambda: client.written() > stalled + 3, "writes after both are back", 120)
    assert writer.running()


@pytest.mark.parametrize(
    "restarted",
    [pytest.param(False, id="iscsid-runs"), pytest.param(True, id="iscsid-restarted")],
)
@pytest.mark.slow
def test_detach_from_a_target_that_is_gone(targets: Targets, client: Client, restarted: bool) -> None:
    """Also when a killed process still waits for it; never under one that lives."""
    b = client.host
    targets.do(*targets.making(1, b, writable=True), *targets.making(2, b))
    client.attach(targets.offer(1, b, writable=True), targets.offer(2, b))
    writer = b.spawn(["dd", "if=/dev/zero", "of=/dev/storkit/v1", "bs=4096", "oflag=direct", "conv=nocreat"])
    b.wait_for(
        lambda: int(client.sh("cat /sys/block/$(basename $(readlink -f /dev/storkit/v1))/stat").split()[4]) > 5,
        "writes",
    )
    targets.host.power_off()
    client.wait_for_state("FAILED")
    if restarted:
        client.restart_iscsid()
    with pytest.raises(Conflict, match="in use"):
        client.detach(1, 2)
    assert [one.volume for one in client.find()] == ["v1", "v2"]
    writer.kill(9)
    started = time.monotonic()
    client.detach(1, 2)
    assert time.monotonic() - started < 60
    assert client.left() == [] and client.find() == []


@pytest.mark.slow
def test_a_host_that_is_shut_out_detaches(targets: Targets, client: Client) -> None:
    b = client.host
    targets.make(1, b, writable=True)
    client.attach(targets.offer(1, b, writable=True))
    targets.do(["deny", iqn(1), initiator(b)])
    client.wait_for_state("FAILED")
    client.detach(1)
    assert client.left() == []


@pytest.mark.parametrize("rounds", [4, pytest.param(16, marks=pytest.mark.slow)])
def test_killed_at_any_moment(targets: Targets, client: Client, rounds: int) -> None:
    """The same verb again finishes the work; the other one removes whatever is there."""
    b = client.host
    targets.make(1, b, writable=True)
    offer = targets.offer(1, b, writable=True)
    started = time.monotonic()
    client.attach(offer)
    whole = time.monotonic() - started
    client.detach(1)
    chance = random.Random(4)
    for round in range(rounds):
        half = client.spawn("attach", offers=[offer])
        time.sleep(whole * chance.uniform(0.2, 1))  # the moment is what is random
        half.kill(9)
        half.wait(check=False)
        if round % 2:
            client.attach(offer)
            assert client.write(1) and client.evidence(1).key
        client.detach(1)
        assert client.left() == [], f"round {round}"


SLOW = """
import socket, time
listener = socket.create_server(("", 3261))
asked = listener.accept()
print("login", flush=True)
time.sleep(4)
"""


@pytest.mark.parametrize("then", ["attach", pytest.param("detach", marks=pytest.mark.slow)])
def test_a_login_that_a_killed_attach_has_begun_is_ended(targets: Targets, client: Client, then: str) -> None:
    """iscsid goes on with it, at a target that is slow to answer; sysfs has no name of it before it has ended."""
    b, s = client.host, targets.host
    targets.make(1, b)
    slow = targets.offer(1, b, portals=[f"{s.address('san1')}:3261"])
    listener = s.spawn(["sh", "-c", 'exec /usr/bin/python3 -u -c "$0" >/run/logins', SLOW])
    half = client.spawn("attach", offers=[slow])
    s.wait_for(lambda: "login" in s.run(["cat", "/run/logins"], check=False).stdout, "a login")
    half.kill(9)
    half.wait(check=False)
    if then == "attach":
        client.attach(targets.offer(1, b))
        assert client.evidence(1).size
    client.detach(1)
    assert client.left() == []
    listener.wait(check=False)
    s.run(["rm", "/run/logins"])
    assert client.left() == [], "nothing comes later"


@pytest.mark.parametrize("then", ["attach", pytest.param("detach", marks=pytest.mark.slow)])
def test_a_node_that_udevd_has_not_come_to(targets: Targets, client: Client, then: str) -> None:
    """Its link is not there yet when the attach is killed: an attach waits for it; after a detach it does not come."""
    b = client.host
    targets.make(1, b, writable=True)
    offer = targets.offer(1, b, writable=True)
    rule = """KERNEL=="dm-*", ACTION!="remove", PROGRAM="/usr/bin/flock -s /run/gate true"\n"""
    b.put(rule, "/run/udev/rules.d/00-gate.rules")
    b.run(["udevadm", "control", "--reload"])
    try:
        gate = b.spawn(["flock", "/run/gate", "sleep", "300"])
        b.wait_for(lambda: b.run(["flock", "-n", "/run/gate", "true"], check=False).status == 1, "gate")
        half = client.spawn("attach", offers=[offer])
        b.wait_for(lambda: "Live" in client.sh("dmsetup info -c -o tables_loaded storkit:v1:attached"), "node")
        half.kill(9)
        half.wait(check=False)
        assert not client.sh("ls /dev/mapper/storkit:*")
        again = (
            client.spawn("detach", volumes=[volume(1)]) if then == "detach" else client.spawn("attach", offers=[offer])
        )
        # It waits, as dmsetup does, for udevd; or it has overlooked the node.
        b.wait_for(lambda: not again.running() or bool(client.sh("pidof dmsetup udevadm")), then)
        gate.kill(9)
        client.result(again)
        if then == "attach":
            assert client.write(1), "the path leads to the disk at once"
            client.detach(1)
        b.run(["udevadm", "settle"])
        assert client.left() == []
    finally:
        b.run(["rm", "-f", "/run/udev/rules.d/00-gate.rules", "/run/gate"])
        b.run(["udevadm", "control", "--reload"])


@pytest.mark.slow
def test_detach_killed_at_any_moment(targets: Targets, client: Client) -> None:
    b = client.host
    targets.make(1, b)
    started = time.monotonic()
    client.attach(targets.offer(1, b))
    whole = time.monotonic() - started
    chance = random.Random(5)
    for round in range(4):
        half = client.spawn("detach", volumes=[volume(1)])
        time.sleep(whole * chance.uniform(0.1, 0.7))
        half.kill(9)
        half.wait(check=False)
        if round % 2:
            client.detach(1)
            assert client.left() == [], f"round {round}"
        client.attach(targets.offer(1, b))
        assert client.evidence(1).size


@pytest.mark.slow
def test_twenty_at_once_from_several_processes(targets: Targets, client: Client) -> None:
    b = client.host
    numbers = list(range(1, 21))
    targets.do(*(step for number in numbers for step in targets.making(number, b)))
    offers = [targets.offer(number, b) for number in numbers]
    groups = [offers[start : start + 5] for start in range(0, 20, 5)]
    for command in [client.spawn("attach", offers=group) for group in groups]:
        client.result(command)
    assert sorted(one.uuid for one in client.find()) == sorted(map(uuid, numbers))
    for number in (1, 20):
        assert client.evidence(number).size
    client.detach(*numbers[:10])
    client.attach(*offers[:10])
    client.detach(*numbers)
    assert client.left() == []


def test_the_same_volume_from_two_processes(targets: Targets, client: Client) -> None:
    b = client.host
    targets.make(1, b)
    commands = [client.spawn("attach", offers=[targets.offer(1, b)]) for _ in range(3)]
    assert {client.result(command)[0]["path"] for command in commands} == {"/dev/storkit/v1"}
    assert len(client.states()) == 1
    errors = 0
    for command in [client.spawn("detach", volumes=[volume(1)]), client.spawn("attach", offers=[targets.offer(1, b)])]:
        try:
            client.result(command)
        except StorkitError:
            errors += 1
    assert errors == 0
    client.detach(1)
    assert client.left() == []
