"""`host check`: ready means that `attach` works; what keeps a host from it is named, with the command that mends it."""

from __future__ import annotations

import os
import socket
import stat
import tempfile
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from storkit.system.sourcefilter import only_from
from storkit.system.timeouts import VARIABLE
from tests.e2e.sshd import two_machines
from tests.e2e.world import World

pytestmark = pytest.mark.e2e


@pytest.fixture
def machines() -> Iterator[World]:
    with tempfile.TemporaryDirectory(prefix="sk-") as scratch, two_machines(Path(scratch)) as world:
        yield world


def problems(world: World, *hosts: str, ok: int = 1) -> dict[str, list[dict[str, str]]]:
    return {each["host"]: each["problems"] for each in world.storkit("--json", "host", "check", *hosts, ok=ok).json}


def change(world: World, old: str, new: str) -> None:
    text = world.inventory.read_text()
    assert old in text
    world.inventory.write_text(text.replace(old, new, 1))


def program(world: World, name: str, script: str) -> None:
    """Put a program before all others on PATH."""
    path = world.directory / "first" / name
    path.parent.mkdir(exist_ok=True)
    path.write_text(f"#!/bin/sh\n{script}\n")
    path.chmod(path.stat().st_mode | stat.S_IXUSR)
    world.environment["PATH"] = f"{path.parent}:{world.environment.get('PATH', os.environ['PATH'])}"


def test_machines_that_reach_each_other_are_ready(machines: World) -> None:
    shown = machines.storkit("host", "check").stdout.splitlines()
    assert [line.split()[:2] for line in shown] == [["HOST", "STATE"], ["a", "ready"], ["b", "ready"]]
    machines.storkit("volume", "create", "v", "1MiB")
    machines.storkit("attach", "v", "--on", "b")
    assert problems(machines, ok=0) == {"a": [], "b": []}
    machines.storkit("detach", "v", "--on", "b")
    assert machines.leftovers() == []


@pytest.mark.parametrize(
    ("address", "said", "mends"),
    [
        ("192.0.2.7", "192.0.2.7 is no address of this host", "ip -br address"),
        ("localhost", "localhost is", "/etc/hosts"),
        ("no-such-host.invalid", "does not know its own address", "ip -br address"),
    ],
)
def test_an_address_that_no_other_machine_reaches_is_refused(
    machines: World, address: str, said: str, mends: str
) -> None:
    """A name that the host itself takes for a loopback, as Debian's 127.0.1.1, is one of them."""
    change(machines, "[hosts.b]", f'address = "{address}"\n[hosts.b]')
    found = problems(machines)
    assert found["b"] == []
    (problem,) = found["a"]
    assert said in problem["message"] and mends in problem["hint"] and problem["said_by"] == "a"
    shown = machines.storkit("host", "check", ok=1).stdout.splitlines()
    assert shown[1].split() == ["a", "incomplete", "1", "problem"]
    assert said in shown[2] and shown[3].startswith("    next (says host a): ") and shown[4].split()[1] == "ready"


@pytest.fixture
def firewalled() -> Iterator[int]:
    """A port of a's that nobody but a itself reaches."""
    with socket.socket() as listener:
        listener.bind(("127.0.0.1", 0))
        only_from(listener, ["192.0.2.1"])
        listener.listen()
        yield int(listener.getsockname()[1])


def test_a_port_behind_a_firewall_is_named_with_the_host_that_does_not_reach_it(
    firewalled: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    usual = os.environ.get(VARIABLE, "1")
    monkeypatch.setenv(VARIABLE, "0.3")  # for the agents, which wait for a port
    with tempfile.TemporaryDirectory(prefix="sk-") as scratch, two_machines(Path(scratch)) as world:
        world.environment[VARIABLE] = usual
        iscsi = f'transport = "iscsi"\n[transports.iscsi]\nportals = ["127.0.0.1:{firewalled}"]\n'
        change(world, "[hypervisors.qemu]", f"{iscsi}[hypervisors.qemu]")
        for hosts, named in (((), "a"), (("b",), "b")):
            found = [each for each in problems(world, *hosts)[named] if "cannot reach" in each["message"]]
            (problem,) = found
            assert f"host b cannot reach host a at 127.0.0.1 port {firewalled} (iscsi)" in problem["message"]
            assert f"nc -vz 127.0.0.1 {firewalled}" in problem["hint"] and "firewall of a" in problem["hint"]


def test_a_pool_that_cannot_be_used_is_a_problem_of_its_host(make_world: Callable[..., World]) -> None:
    world = make_world("raw")
    world.storkit("volume", "create", "v", "1MiB")
    assert problems(world, ok=0) == {"a": [], "b": []}
    (world.directory / "a/volumes/v.json").write_text("{")
    (problem,) = problems(world)["a"]
    assert "v" in problem["message"] and problem["hint"]
    change(world, 'format = "raw"', f'format = "raw"\npath = "{world.directory}/gone"')
    found = problems(world)
    assert "gone" in found["a"][0]["message"] and found["a"][0]["hint"] and found["b"] == []


def test_programs_and_files_of_settings_are_looked_for(make_world: Callable[..., World]) -> None:
    world = make_world("raw")
    change(world, 'accel = "tcg"', f'accel = "tcg"\nbinary = "{world.directory}/no-qemu"')
    found = problems(world)
    assert all("no-qemu is not there" in found[host][0]["message"] for host in ("a", "b"))
    assert found["a"][0]["hint"].startswith("apt install ")
    change(
        world,
        "[hypervisors.qemu]",
        f'[transports.nbd]\ntls = "x509"\ntls_dir = "{world.directory}"\n[hypervisors.qemu]',
    )
    found = problems(world)
    assert any("server-cert.pem" in each["message"] for each in found["a"])
    assert not any("cert.pem" in each["message"] for each in found["b"]), "b shares a machine with a"


def test_a_host_that_has_disks_for_others_need_run_no_guests(machines: World) -> None:
    change(machines, 'accel = "tcg"', 'accel = "tcg"\nbinary = "/no-qemu"')
    a, b = machines.storkit("--json", "host", "check", ok=1).json
    assert a["problems"] == [] and "/no-qemu is not there" in b["problems"][0]["message"]
    assert a["warnings"] == ["guests could not run on a: QEMU's program /no-qemu is not there"]


def test_only_hypervisors_that_the_inventory_uses_are_asked(make_world: Callable[..., World]) -> None:
    """By `host check` and by `detach`; a guest's file uses one, too."""
    world = make_world("raw")
    asked = world.directory / "asked"
    program(world, "virsh", f"echo asked >> {asked}\necho 'error: broken' >&2\nexit 1")
    world.storkit("volume", "create", "v", "1MiB")
    world.storkit("attach", "v", "--on", "b")
    world.storkit("detach", "v", "--on", "b")
    assert problems(world, ok=0) == {"a": [], "b": []}
    assert not asked.exists()
    world.storkit("guest", "define", "g", "--disk", "v", "--hypervisor", "libvirt")
    found = problems(world)
    assert all(any("libvirt does not answer" in each["message"] for each in found[host]) for host in ("a", "b"))
    assert asked.exists()
