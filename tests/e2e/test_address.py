"""An address at which no other machine reaches a host's servers is refused before anything changes, with what to write.

One is a name that the host itself takes for a loopback, as Debian's 127.0.1.1; another an alias that only the
coordinator's ssh_config knows.
"""

from __future__ import annotations

import tempfile
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.e2e.sshd import two_machines
from tests.e2e.world import World

pytestmark = pytest.mark.e2e

WRONG = {
    "localhost": "where no other machine reaches its servers",
    "no-such-host.invalid": "does not know its own address",
    "192.0.2.7": "is no address of this host",
    "0.0.0.0": "stands for all of them",
}


@pytest.fixture
def machines() -> Iterator[World]:
    with tempfile.TemporaryDirectory(prefix="sk-") as scratch, two_machines(Path(scratch)) as world:
        yield world


def changed(world: World, old: str, new: str) -> str:
    before = world.inventory.read_text()
    assert old in before
    world.inventory.write_text(before.replace(old, new, 1))
    return before


def test_attach_refuses_the_address_of_the_home_host(machines: World) -> None:
    machines.storkit("volume", "create", "v", "1MiB")
    for address, said in WRONG.items():
        right = changed(machines, "[hosts.b]", f'address = "{address}"\n[hosts.b]')
        done = machines.storkit("attach", "v", "--on", "b", ok=3)
        assert said in done.stderr and 'at host a: address = "NUMBER"' in done.stderr, done.stderr
        machines.inventory.write_text(right)
    assert machines.storkit("--json", "status").json["exports"] == {"a": [], "b": []}
    assert not list(machines.directory.glob("a/nbd/*.json"))
    machines.storkit("attach", "v", "--on", "b")
    machines.storkit("detach", "v", "--on", "b")
    assert machines.leftovers() == []


def test_an_alias_of_the_coordinator_s_ssh_config_is_no_address(machines: World) -> None:
    machines.storkit("volume", "create", "v", "1MiB")
    config = machines.directory / "ssh_config"
    config.write_text(f"Host store\n  HostName 127.0.0.1\n{config.read_text()}")
    changed(machines, "127.0.0.1:", "store:")
    assert machines.storkit("volume", "show", "v").stdout  # ssh knows the alias
    done = machines.storkit("attach", "v", "--on", "b", ok=3)
    assert "host a does not know its own address store" in done.stderr and "ip -br address" in done.stderr


def test_a_guest_is_not_moved_to_a_host_whose_address_no_other_machine_reaches(machines: World) -> None:
    from tests.guestkit import bootsector

    image = machines.directory / "disk.img"
    bootsector.make_disk(image)
    machines.storkit("volume", "import", str(image), "web")
    machines.storkit("guest", "define", "web", "--disk", "web", "--memory", "16MiB")
    machines.storkit("guest", "start", "web", "--on", "a")
    right = changed(machines, "[hosts.b]", '[hosts.b]\naddress = "localhost"')
    for part in ("run", "prepare"):
        done = machines.storkit("migrate", part, "web", "--to", "b", ok=5)
        assert "b: address localhost is" in done.stderr and "nothing was changed" in done.stderr, done.stderr
    machines.inventory.write_text(right)
    exports = machines.storkit("--json", "status").json["exports"]
    assert [each["client"] for each in exports["a"]] == ["a"] and exports["b"] == []
    machines.storkit("guest", "stop", "web", "--force")
