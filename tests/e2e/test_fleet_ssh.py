"""A fleet on hosts behind a real sshd: its image is looked into and its members are told who they are by agents."""

from __future__ import annotations

import tempfile
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.e2e import fleets
from tests.e2e.sshd import two_machines
from tests.e2e.world import World

pytestmark = pytest.mark.e2e


@pytest.fixture
def machines() -> Iterator[World]:
    with tempfile.TemporaryDirectory(prefix="sk-") as scratch, two_machines(Path(scratch)) as world:
        yield world


def test_versions_of_an_image_of_a_host_over_ssh(machines: World) -> None:
    fleets.golden(machines)
    first = machines.storkit("--json", "image", "seal", "debian").json
    machines.storkit("volume", "clone", "debian@1", "work")
    machines.storkit("volume", "flatten", "work")
    second = machines.storkit("--json", "image", "seal", "work", "debian").json
    assert (second["name"], second["source"]) == ("debian@2", "work")
    assert second["volume"]["checksum"] == first["volume"]["checksum"] != ""
    assert machines.storkit("--json", "image", "verify", "debian").json["compared"]
    assert machines.storkit("--json", "image", "prune", "debian").json["deleted"] == ["debian@1"]


def test_members_of_hosts_over_ssh(machines: World) -> None:
    fleets.golden(machines)
    made = fleets.create(machines, 2, "--on", "a", "b", "--start").json
    assert [(each["host"], each["status"]) for each in made["members"]] == [("a", "running"), ("b", "running")]
    config = machines.storkit("fleet", "inventory", "web", "--ssh").stdout
    jumps = [line.split()[1] for line in config.splitlines() if "ProxyJump" in line]
    assert [jump.partition("@")[2].partition(":")[0] for jump in jumps] == ["127.0.0.1", "127.0.0.2"]
    machines.storkit("fleet", "reset", "web", "web-02")
    assert set(fleets.states(machines).values()) == {"running"}
    machines.storkit("fleet", "stop", "web", "--force")
    assert [fleets.told(machines, name, "/etc/hostname") for name in ("web-01", "web-02")] == ["web-01", "web-02"]
    journals = "".join(path.read_text() for path in machines.directory.rglob("*.jsonl"))
    assert "PRIVATE KEY" not in journals and "web-02" in journals
    machines.storkit("fleet", "destroy", "web")
    assert fleets.names(machines) == ["debian"] and fleets.names(machines, "guest") == []
