"""iSCSI attachments on real kernels: the path leads to the one disk that was offered, and nothing is left behind."""

from __future__ import annotations

import json
import time
from typing import Any

import pytest

from storkit.core.errors import Conflict, NotFound, ServiceUnreachable, StorkitError, Unsafe
from storkit.system.block import reservations
from storkit.tech.iscsi import names
from tests.lab import Lab, iscsi
from tests.lab.luns import MUTUAL_SECRET, MUTUAL_USER, SECRET, SIZE, USER, Client, Targets, initiator, iqn, uuid

pytestmark = pytest.mark.lab


@pytest.fixture
def targets(lab: Lab) -> Targets:
    return Targets(lab.host("s"))


@pytest.fixture
def client(lab: Lab, targets: Targets) -> Client:
    return Client(lab.host("b"))


def key(host: str, number: int = 1) -> str:
    return reservations.key_text(reservations.key_for(uuid(number), host))


def test_attach_prove_detach(lab: Lab, targets: Targets, client: Client) -> None:
    """A session of the host's own stays as it is all along."""
    b = client.host
    own = iscsi.export(targets.host, "own", targets.host.add_disk(SIZE), [b], ("san2",))
    b.put(f"InitiatorName={iscsi.initiator(b)}\n", "/etc/iscsi/initiatorname.iscsi")
    client.restart_iscsid()
    iscsi.login(b, targets.host, own, "san2")
    before = client.left()

    targets.make(1, b)
    found = client.attach(targets.offer(1, b))
    assert [(one.path, one.size, one.writable) for one in found] == [("/dev/storkit/v1", SIZE, False)]
    assert client.find() == found
    assert not client.write(1)
    proof = client.evidence(1)
    assert proof.identity == names.identity(uuid(1)) and proof.size == SIZE and len(proof.blocks) == 16
    assert (proof.key, proof.keys) == ("", [])
    assert client.attach(targets.offer(1, b)) == found, "attached already is fine"

    records = client.sh("cd /etc/iscsi/nodes; find . -name storkit -printf '%m %s\\n'").split()
    assert records[0] == "600"
    secrets = client.sh(f"grep -rlE '{SECRET}|{MUTUAL_SECRET}' /var/lib/storkit /run/storkit /dev/storkit /run/udev")
    assert secrets == "", "secrets are in open-iscsi's own record only"

    client.detach(1)
    assert client.find() == [] and client.left() == before
    client.detach(1)
    assert "LOGGED_IN" in client.states()


def test_the_right_to_write_is_taken_up_under_whoever_has_the_path_open(targets: Targets, client: Client) -> None:
    b = client.host
    targets.make(1, b)
    client.attach(targets.offer(1, b))
    with pytest.raises(Conflict, match="read only"):
        client.claim(1, "b")
    reader = b.spawn(["sh", "-c", "exec 3</dev/storkit/v1; echo open >/run/open; sleep 600"])
    b.wait_for(lambda: client.sh("cat /run/open") == "open", "reader")

    targets.do(["protect", iqn(1), initiator(b), False])
    client.claim(1, "b", "a")
    assert client.write(1)
    assert client.find()[0].writable
    assert client.evidence(1).key == key("b") and client.evidence(1).keys == [key("b")]
    held = client.sh("sg_persist --in -r /dev/sda")
    assert "Write Exclusive, registrants only" in held and key("b").lstrip("0") in held, held

    with pytest.raises(Conflict, match="in use"):
        client.detach(1)
    reader.kill()
    reader.wait(check=False)
    client.detach(1)
    client.attach(targets.offer(1, b, writable=True))
    assert client.write(1) and client.evidence(1).keys == [key("b")], "the first session's registration was taken back"


def test_this_host_does_not_look_into_a_guests_disk(targets: Targets, client: Client) -> None:
    b = client.host
    targets.make(1, b, writable=True)
    client.attach(targets.offer(1, b, writable=True))
    b.run(["mke2fs", "-q", "-L", "guest", "/dev/storkit/v1"])
    client.detach(1)
    client.attach(targets.offer(1, b))
    b.run(["udevadm", "settle"])
    properties = client.sh("udevadm info --query=property /dev/sda")
    assert "DEVNAME=/dev/sda" in properties and "ID_FS_" not in properties
    assert "guest" not in client.sh("ls -l /dev/disk/by-label 2>/dev/null"), "no name for it anywhere"


def test_hosts_that_are_no_writers_are_preempted(lab: Lab, targets: Targets, client: Client) -> None:
    b, other = client.host, Client(lab.host("a"))
    targets.make(1, b, other.host, writable=True)
    other.attach(targets.offer(1, other.host, writable=True))
    assert other.write(1)
    client.attach(targets.offer(1, b, writable=True))
    assert client.write(1) and other.write(1), "the window"
    assert client.evidence(1).keys == other.evidence(1).keys == sorted([key("a"), key("b")])

    client.claim(1, "b")
    assert client.write(1) and not other.write(1)
    assert other.evidence(1).key == "" and other.evidence(1).keys == [key("b")]


@pytest.mark.slow
def test_a_right_that_is_taken_away_fails_writes_and_ends_nothing_else(targets: Targets, client: Client) -> None:
    b = client.host
    targets.make(1, b, writable=True)
    client.attach(targets.offer(1, b, writable=True))
    writer = client.writer(1)
    b.wait_for(lambda: client.written() > 3, "writes")
    targets.do(["deny", iqn(1), initiator(b)], ["allow", iqn(1), initiator(b), False])
    assert writer.wait(60, check=False).status == 3, "an outstanding write gets an error"
    client.wait_for_state("LOGGED_IN")
    assert client.evidence(1).keys == [], "its registration went with its access"
    assert not client.write(1)
    client.restore()
    assert not client.find()[0].writable, "what it had is no reason to ask for more"
    targets.do(["protect", iqn(1), initiator(b), True])
    client.attach(targets.offer(1, b))
    assert not client.find()[0].writable
    targets.do(["protect", iqn(1), initiator(b), False])
    client.claim(1, "b")
    assert client.write(1), "and back again"


def refused(client: Client, kind: type[StorkitError], targets: Targets, **fields: Any) -> StorkitError:
    with pytest.raises(kind) as caught:
        client.attach(targets.offer(1, client.host, **fields))
    assert client.left() == []
    return caught.value


@pytest.mark.slow
def test_wrong_disks_are_refused(targets: Targets, client: Client) -> None:
    b = client.host
    targets.make(1, b, lun=1)
    assert "no LUN 0" in refused(client, NotFound, targets).message
    targets.do(["remove", iqn(1)], *targets.making(1, b, serial=uuid(7), name="storkit-v7"))
    assert uuid(7) in refused(client, Unsafe, targets).message
    targets.do(["remove", iqn(1)], *targets.making(1, b, size=SIZE // 2, name="small"))
    assert str(SIZE // 2) in refused(client, Unsafe, targets).message
    targets.do(["remove", iqn(1)], *targets.making(1, b))
    client.attach(targets.offer(1, b))
    client.detach(1)
    # two targets that have each other's disk, in one call: neither path appears
    targets.do(
        ["remove", iqn(1)],
        *targets.making(1, b, serial=uuid(2), name="x"),
        *targets.making(2, b, serial=uuid(1), name="y"),
    )
    with pytest.raises(StorkitError) as both:
        client.attach(targets.offer(1, b), targets.offer(2, b))
    assert len(both.value.to_json()["problems"]) == 2 and client.left() == []


def test_a_target_that_changes_its_disk_under_a_session(targets: Targets, client: Client) -> None:
    b = client.host
    targets.make(1, b)
    client.attach(targets.offer(1, b))
    targets.do(["remove", iqn(1)], *targets.making(1, b, serial=uuid(7), name="storkit-v7"))
    client.wait_for_state("LOGGED_IN")
    with pytest.raises(Unsafe, match=uuid(7)):
        client.evidence(1)
    with pytest.raises(Unsafe, match=uuid(7)):
        client.attach(targets.offer(1, b))
    targets.do(["remove", iqn(1)], *targets.making(1, b, name="again"))
    client.wait_for_state("LOGGED_IN")
    client.attach(targets.offer(1, b))
    assert client.evidence(1).identity == names.identity(uuid(1)), "the stale device was purged"
    client.detach(1)
    assert client.left() == []


def test_a_serial_number_that_two_disks_have(targets: Targets, client: Client) -> None:
    b = client.host
    targets.do(*targets.making(1, b), *targets.making(2, b, serial=uuid(1)))
    log_in_by_hand(client, targets, 2)
    with pytest.raises(Unsafe, match=r"also that of sd") as caught:
        client.attach(targets.offer(1, b))
    assert "lsblk" in caught.value.hint
    assert client.find() == []


def log_in_by_hand(client: Client, targets: Targets, number: int) -> None:
    """What somebody else does with iscsiadm alone."""
    portal = f"{targets.host.address('san1')}:3260"
    iface = ["iscsiadm", "-m", "iface", "-I", "hand"]
    node = ["iscsiadm", "-m", "node", "-T", iqn(number), "-p", portal, "-I", "hand"]
    client.host.run([*iface, "-o", "new"])
    client.host.run([*iface, "-o", "update", "-n", "iface.initiatorname", "-v", initiator(client.host)])
    client.host.run([*node, "-o", "new"])
    given = {"authmethod": "CHAP", "username": USER, "password": SECRET}
    for key, value in {**given, "username_in": MUTUAL_USER, "password_in": MUTUAL_SECRET}.items():
        client.host.run([*node, "-o", "update", "-n", f"node.session.auth.{key}", "-v", value])
    client.host.run([*node, "--login"])
    disk = f"/dev/disk/by-path/ip-{portal}-iscsi-{iqn(number)}-lun-0"
    client.host.wait_for(lambda: client.host.run(["test", "-b", disk], check=False).status == 0, disk)


def test_logins_that_cannot_be(targets: Targets, client: Client) -> None:
    b, address = client.host, targets.host.address("san1")
    targets.make(1, b)
    started = time.monotonic()
    error = refused(client, ServiceUnreachable, targets, portals=["10.77.1.99:3260", f"{address}:3299"])
    assert "10.77.1.99:3260" in error.message and f"{address}:3299" in error.message
    assert time.monotonic() - started < 60, "seconds even on a busy machine, not iscsid's minutes"
    for wrong in ({"secret": "wrong-secret-000"}, {"mutual": "wrong-secret-000"}):
        error = refused(client, Unsafe, targets, **wrong)
        assert iqn(1) in error.message and "wrong-secret" not in json.dumps(error.to_json())
    client.sh("kill -9 $(pidof iscsid)")
    assert "iscsid" in refused(client, StorkitError, targets).hint
    client.restart_iscsid()
    found = client.attach(targets.offer(1, b, portals=[f"{address}:3299", f"{address}:3260"]))
    assert [one.volume for one in found] == ["v1"], "the portal that answers, also by the first path's name"
    assert [path.state == "working" for path in found[0].paths] == [False, True]


def test_attachments_come_back_after_a_reboot(targets: Targets, client: Client) -> None:
    b = client.host
    targets.do(*targets.making(1, b, writable=True), *targets.making(2, b), *targets.making(3, b, writable=True))
    client.attach(targets.offer(1, b, writable=True), targets.offer(2, b), targets.offer(3, b, writable=True))
    b.run(["sync"])
    b.power_off()
    # meanwhile: 2 gets another disk, 3 loses its right
    targets.do(["remove", iqn(2)], *targets.making(2, b, serial=uuid(7), name="x"))
    targets.do(["protect", iqn(3), initiator(b), True])
    b.boot()
    again = Client(b)
    with pytest.raises(Unsafe, match=uuid(7)):
        again.restore()
    found = {one.volume: one for one in again.find()}
    assert [name for name, one in found.items() if one.broken] == ["v2"] and len(found) == 3
    assert (found["v1"].writable, found["v3"].writable) == (True, False)
    assert again.write(1) and not again.write(3)
    assert again.evidence(1).keys == [key("b")]
    again.detach(1, 2, 3)
    assert again.left() == []
    assert again.find() == []
