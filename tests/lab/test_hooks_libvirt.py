"""A guest under a real libvirtd, started, moved, saved and ended by virsh alone: storkit's hooks see to its disk."""

from __future__ import annotations

import os
import re
from pathlib import Path

import pytest

from storkit.system.timeouts import VARIABLE
from tests.guestkit import bootsector
from tests.lab import Host, Lab, services
from tests.lab.handmade import domain
from tests.lab.host import Result
from tests.lab.world import Storage, World, storage

pytestmark = [pytest.mark.lab, pytest.mark.slow]

UUID = "0f1d0c2e-5a44-4f7c-9d53-3c1a4b6f2f10"
DOMAIN = domain("g", UUID, "/dev/storkit/g")
QEMU = 'security_driver = "none"\nuser = "root"\ngroup = "root"\nnamespaces = []\ncgroup_controllers = []\n'


def hook(world: World, host: Host, kind: Storage) -> None:
    """Install the hooks of a host, and let them ask host s."""
    s = world.s
    host.run(["sh", "-c", "mkdir -p /etc/storkit && ssh-keygen -q -t ed25519 -N '' -f /etc/storkit/hook_key"])
    s.put(host.run(["cat", "/etc/storkit/hook_key.pub"]).stdout, f"/root/{host.name}.pub")
    admit = ["storkit", "hooks", "admit", host.name, "--from-inventory", "s"]
    admit += ["--volumes", "default/*", "--address", host.address("san1"), "--key", f"/root/{host.name}.pub"]
    line = s.run(admit).stdout
    assert line.startswith(f'command="storkit agent --for {host.name}",restrict ssh-ed25519 ')
    s.run(["sh", "-c", 'printf "%s" "$1" >> /root/.ssh/authorized_keys', "sh", line])
    install = ["storkit", "hooks", "install", "--name", host.name, "--manager", "s=ssh://root@s"]
    install += ["--identity", "/etc/storkit/hook_key", "--address", s.address("san1")]
    for key, value in kind.transport_settings.items():
        install += ["--set", f"{kind.transport}.{key}={value}"]
    host.run(install)
    # libvirt gives a hook an environment of its own, which does not say how slow the lab is.
    factor = os.environ.get(VARIABLE, "1")
    host.run(["sed", "-i", f"2i export {VARIABLE}={factor}", "/etc/libvirt/hooks/qemu.d/storkit"])


class Hands:
    """Two hosts with libvirtd and hooks, and their manager s."""

    def __init__(self, lab: Lab, scratch: Path, kind: Storage) -> None:
        self.world = world = World(lab, scratch, kind, commands="s")
        image = scratch / "boot.img"
        bootsector.make_disk(image, rest=4)
        world.import_(image, "g")
        for host in (world.a, world.b):
            hook(world, host, kind)
            host.put(QEMU, "/etc/libvirt/qemu.conf")
            services.libvirtd(host)
            host.put(DOMAIN, "/root/g.xml")

    def virsh(self, host: Host, *words: str) -> Result:
        return host.run(["virsh", *words], check=False, timeout=600)

    def done(self, host: Host, *words: str) -> None:
        said = self.virsh(host, *words)
        assert said.status == 0, said.stdout + said.stderr

    def rights(self) -> dict[str, bool]:
        return {each["client"]: each["writable"] for each in self.world.storkit("volume", "show", "g")["exports"]}

    def attached(self) -> list[str]:
        hosts = (self.world.a, self.world.b)
        return [host.name for host in hosts if host.run(["test", "-e", "/dev/storkit/g"], check=False).status == 0]


@pytest.mark.parametrize("kind", ["nbd-kernel", "iscsi"])
def test_virsh_alone_starts_moves_saves_restores_and_ends_a_guest(lab: Lab, tmp_path: Path, kind: str) -> None:
    hands = Hands(lab, tmp_path, storage(kind))
    world, a, b = hands.world, hands.world.a, hands.world.b

    hands.done(a, "create", "/root/g.xml")
    world.wait_for_writes()
    assert (hands.rights(), hands.attached()) == ({"a": True}, ["a"])

    second = hands.virsh(b, "create", "/root/g.xml")
    assert second.status != 0 and "volume g is written by a" in second.stderr
    assert (hands.rights(), hands.attached()) == ({"a": True}, ["a"])

    a.put(domain("twin", UUID.replace("0f", "1f"), "/dev/storkit/g"), "/root/twin.xml")
    twin = hands.virsh(a, "create", "/root/twin.xml")
    assert twin.status != 0 and "volume g is open for writing on this host: by qemu-system" in twin.stderr
    assert (hands.rights(), hands.attached()) == ({"a": True}, ["a"])

    for source, destination in ((a, b), (b, a)):
        hands.done(source, "migrate", "--live", "g", f"qemu+ssh://{destination.name}/system")
        world.wait_for_writes()
        assert (hands.rights(), hands.attached()) == ({destination.name: True}, [destination.name])

    hands.done(a, "save", "g", "/root/g.save")
    assert (hands.rights(), hands.attached()) == ({}, [])
    assert world.storkit("volume", "show", "g")["hold"]["guest"] == UUID
    started = hands.virsh(b, "create", "/root/g.xml")
    assert started.status != 0 and "guest g sleeps on volume g" in started.stderr
    a.run(["sh", "-c", "scp -q /root/g.save b:/root/"])
    hands.done(b, "restore", "/root/g.save")
    world.wait_for_writes()
    assert (hands.rights(), hands.attached()) == ({"b": True}, ["b"])
    assert world.storkit("volume", "show", "g")["hold"] is None

    b.run(["sh", "-c", "kill -9 $(pidof qemu-system-x86_64)"])
    b.wait_for(lambda: not re.search(r"\bg\b", b.run(["virsh", "-q", "list"]).stdout), "the end of g", 60)
    assert (hands.rights(), hands.attached()) == ({"b": True}, ["b"])
    again = hands.virsh(b, "restore", "/root/g.save")
    assert again.status != 0 and "no guest sleeps on volume g" in again.stderr
    hands.done(b, "create", "/root/g.xml")
    world.wait_for_writes()
    hands.done(b, "destroy", "g")
    b.wait_for(lambda: not hands.rights() and not hands.attached(), "the end of b's right", 60)


def test_what_a_coordinator_does_passes_the_hooks_of_its_hosts(lab: Lab, tmp_path: Path) -> None:
    """Its plan has the disk, and calls the hypervisor that calls the hook: neither waits for the other."""
    kind = storage("nbd-kernel")
    world = World(lab, tmp_path, kind, "libvirt", commands="s")
    for host in (world.a, world.b):
        hook(world, host, kind)
        host.run(["sh", "-c", "kill -HUP $(pidof libvirtd)"])
    world.define()
    world.storkit("guest", "start", "g", "--on", "a")
    world.wait_for_writes()
    for destination in ("b", "a"):
        world.migrate(destination)
    world.storkit("guest", "save", "g")
    world.storkit("guest", "restore", "g")
    world.wait_for_writes()
    report = world.clear()
    assert report.clean, report
