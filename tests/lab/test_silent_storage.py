"""Storage that is silent: no command waits for it for ever, each says which server it is, and what it began is gone."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path

import pytest

from storkit.core.errors import ServiceUnreachable
from tests.lab import Host, Lab, services
from tests.lab.host import Command, Result
from tests.lab.luns import Client, Targets
from tests.lab.world import World, storage

pytestmark = pytest.mark.lab

PORTS = {"iscsi": ":3260", "nfs": ", port 2049"}
"""How an error names the port of each."""
LEFT = """
ls -d /sys/class/iscsi_session/* /etc/iscsi/nodes/* /dev/storkit/* /dev/mapper/storkit:* /run/storkit/nfs/* \
    /var/lib/storkit/iscsi-attached/* /var/lib/storkit/nfs/attached/* 2>/dev/null; grep nfs4 /proc/mounts
"""

MUTE = """\
import socket, sys, time
with socket.create_server((sys.argv[1], int(sys.argv[2]))):
    open("/run/mute", "w").close()
    time.sleep(600)
"""

MOUNT = """\
import os, sys
os.environ["STORKIT_TIMEOUT_FACTOR"] = "0.1"  # a server may take 150 s for its grace period
from pathlib import Path
from storkit.core.errors import ServiceUnreachable
from storkit.tech.nfs import attach
from storkit.tech.nfs.names import NfsSettings
try:
    attach.mount(sys.argv[1], "/srv", Path("/run/point"), attach.mount_options(NfsSettings()))
except ServiceUnreachable as error:
    print(error.message, error.hint)
"""


@pytest.fixture(params=[pytest.param("iscsi", marks=pytest.mark.slow), "nfs"])
def world(lab: Lab, tmp_path: Path, request: pytest.FixtureRequest) -> World:
    """One volume of s; commands are given on a, and b uses the volume over a network that will be cut."""
    made = World(lab, tmp_path, storage(request.param), commands="a")
    made.storkit("volume", "create", "v", "4MiB")
    return made


def left(host: Host) -> str:
    """What there is of attachments on a host."""
    return host.run(["sh", "-c", LEFT], check=False).stdout


def assert_names_the_server(world: World, done: Result) -> None:
    error = json.loads(done.stdout)["error"]
    assert (done.status, error["kind"]) == (11, "service-unreachable"), done
    assert world.s.address("san1") + PORTS[world.storage.name] in error["message"] and error["hint"], error


def assert_nothing_is_left(world: World) -> None:
    world.storkit("volume", "delete", "v")
    found = world.left()
    assert not found, "\n".join(found)


def test_attach_of_a_volume_whose_server_is_silent(world: World) -> None:
    world.s.cut("san1")
    assert_names_the_server(world, world.run("attach", "v", "--on", "b"))
    assert left(world.b) == ""
    assert not any(world.storkit("status")["exports"].values()), "what was given before is taken back"
    world.s.heal("san1")
    assert_nothing_is_left(world)


@pytest.mark.slow
def test_a_server_that_falls_silent_under_an_attachment(world: World) -> None:
    world.storkit("attach", "v", "--on", "b")
    world.s.cut("san1")
    proof = world.run("verify", "v")  # at once: iSCSI does not know yet that its target is gone
    assert proof.status == 11, proof
    status = world.storkit("status")
    assert [each["volume"] for each in status["attachments"]["b"]] == ["v"] and status["silent"] == []
    world.storkit("detach", "v", "--on", "b")
    assert left(world.b) == ""
    world.s.heal("san1")

    world.storkit("attach", "v", "--on", "b")
    world.s.cut()  # its agent as well
    status = world.storkit("status")
    assert status["silent"] == ["s"] and [each["volume"] for each in status["attachments"]["b"]] == ["v"]
    refused = world.run("detach", "v", "--on", "b")
    assert refused.status == 7 and "host s" in refused.stdout, refused
    world.s.heal()
    world.storkit("detach", "v", "--on", "b")
    assert left(world.b) == ""
    assert_nothing_is_left(world)


@pytest.fixture
def mute(lab: Lab) -> Iterator[tuple[Host, int]]:
    """A server on s that takes connections and says nothing: its machine is on, and what should serve hangs."""
    s, port = lab.host("s"), 2049
    listener: Command = s.spawn(["/usr/bin/python3", "-c", MUTE, s.address("san1"), str(port)])
    s.wait_for(lambda: s.run(["test", "-e", "/run/mute"], check=False).status == 0, "the port")
    yield s, port
    listener.kill()


def test_a_portal_that_takes_no_login(mute: tuple[Host, int], lab: Lab) -> None:
    s, port = mute
    targets, client = Targets(s), Client(lab.host("b"))
    portal = f"{s.address('san1')}:{port}"
    with pytest.raises(ServiceUnreachable, match=f"at {portal} takes no login, though its port is open"):
        client.attach(targets.offer(1, client.host, portals=[portal]))
    assert client.left() == [] and client.find() == []
    # and nothing goes on trying
    assert portal not in client.sh("ss -tnH state established")


def test_a_server_that_lets_nothing_be_mounted(mute: tuple[Host, int], lab: Lab) -> None:
    s, _ = mute
    b = lab.host("b")
    services.nfs_client(b)
    said = b.python(MOUNT, s.address("san1"), timeout=120, fresh=True)
    assert f"the NFS server {s.address('san1')} did not let /srv be mounted in time" in said and "rpcinfo" in said
    assert left(b) == "" and b.run(["test", "-e", "/run/point"], check=False).status != 0
