"""Hooks from nothing: a manager admits a host, the host installs its hooks, and libvirt's script is called by hand."""

from __future__ import annotations

import os
import shlex
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest

from storkit.hooks import install
from storkit.hosts import accept
from tests.e2e.hooked import INVENTORY, UUID, Hooked
from tests.e2e.world import Done, World

pytestmark = pytest.mark.e2e

XML = """\
<domain type='kvm'><name>g</name><uuid>{uuid}</uuid><devices>
<disk type='file' device='disk'><source file='{path}'/><target dev='vda'/></disk>
</devices></domain>
"""


@pytest.fixture
def world(make_world: Callable[..., World]) -> World:
    world = make_world(inventory=INVENTORY)
    world.storkit("volume", "create", "v", "1MiB")
    return world


def test_a_manager_admits_and_dismisses(world: World) -> None:
    file, key = world.directory / "accept.toml", world.directory / "h2.pub"
    key.write_text("ssh-ed25519 AAAAC3NzaC1lZDI1NTE5AAAAIPT h2\n")
    words = ["hooks", "admit", "h2", "--from-inventory", "a", "--file", str(file)]
    for wrong, said in (
        ([], "host h2 may have no volume yet"),
        (["--volumes", "v"], "'v' is no POOL/NAME"),
        (["--volumes", "fast/*"], "this host has no pool fast"),
        (["--volumes", "default/*"], "it is not said where host h2 comes from"),
        (["--volumes", "default/*", "--address", "10.0.0.2 x"], "is no address"),
        (["--volumes", "default/*", "--address", "10.0.0.2", "--key", str(world.inventory)], "is no public key"),
    ):
        done = world.storkit(*words, *wrong, ok=None)
        assert done.status != 0 and said in done.stderr and not file.exists(), done.stderr
    done = world.storkit(*words, "--volumes", "default/v*", "--address", "10.0.0.2", "--key", key)
    assert done.stdout == f'command="storkit agent --for h2",restrict {key.read_text()}'
    accepted = accept.load(file)
    assert accepted and accepted.guest_hosts == {"h2": accept.GuestHost(["default/v*"], "10.0.0.2")}
    assert (accepted.host, accepted.address, accepted.transport_of) == ("a", "127.0.0.1", {"default": "nbd"})
    assert accepted.pools == {"default": {"type": "directory", "format": "raw"}}
    world.storkit(*words, "--address", "10.0.0.3")
    world.storkit(*words, "--remove")
    after = accept.load(file)
    assert after and after.guest_hosts == {} and after.pools == accepted.pools
    assert "admits no host h2" in world.storkit(*words, "--remove", ok=None).stderr


def test_the_script_of_libvirt_from_a_start_to_a_move(world: World, monkeypatch: pytest.MonkeyPatch) -> None:
    """Two hosts and a manager; every call is a process of its own, as libvirt makes them."""
    hooked = Hooked(world, monkeypatch)
    h1, h2 = _Host(hooked, "h1"), _Host(hooked, "h2")
    assert h1("prepare").status == 0 and hooked.rights() == {"h1": True}
    refused = h2("prepare")
    assert refused.status == 1 and hooked.rights() == {"h1": True}
    assert refused.stderr.splitlines() == [
        "storkit: a: volume v is written by h1",
        "  next (says host a): stop guest g there; if it runs nowhere: storkit detach v --on h1",
    ]
    assert h2("migrate").status == 0 and hooked.rights() == {"h1": True, "h2": True}
    assert h2("prepare").status == 0 and h2("start").status == 0 and h2("started").status == 0
    assert h1("release", "crashed").status == 0 and hooked.rights() == {"h2": True}
    crashed = h2("release", "crashed")
    assert crashed.status == 0 and "stay attached" in crashed.stderr
    assert hooked.rights() == {"h2": True} and hooked.attached("h2")
    assert h2("release", "saved").status == 0 and hooked.rights() == {}
    assert "guest g sleeps on volume v" in h1("prepare").stderr
    assert h1("restore").status == 0 and hooked.rights() == {"h1": True}
    assert h1("prepare").status == 0 and h1("started").status == 0
    assert world.storkit("--json", "volume", "show", "v").json["hold"] is None
    assert h1("release", "shutdown").status == 0
    assert hooked.rights() == {} and not hooked.attached("h1") and not hooked.attached("h2")


def test_a_manager_that_does_not_answer_is_named(world: World, monkeypatch: pytest.MonkeyPatch) -> None:
    hooked = Hooked(world, monkeypatch)
    host = _Host(hooked, "h1")
    (hooked.binaries / "ssh").write_text("#!/bin/sh\necho 'Connection refused' >&2\nexit 255\n")
    done = host("prepare")
    assert done.status == 1 and done.stderr.startswith("storkit: host a cannot be reached: Connection refused\n")
    assert "Traceback" not in done.stderr and "try it by hand: ssh " in done.stderr
    world.environment["PATH"] = os.environ["PATH"]
    said = world.storkit("--json", "hooks", "status", "--file", host.file, ok=7).json
    assert said.keys() == {"file", "name", "scripts", "managers", "silent"} and said["silent"].keys() == {"a"}
    told = world.storkit("hooks", "status", "--file", host.file, ok=7)
    assert "cannot be reached: Connection refused" in told.stdout


class _Host:
    """A host with libvirt's directory of hooks, and storkit's among them."""

    def __init__(self, hooked: Hooked, name: str) -> None:
        self.name = name
        self.root = hooked.directory / f"storkit-{name}"
        (self.root / "etc/libvirt").mkdir(parents=True)
        content = hooked.content(name)
        self.file = self.root / "host.toml"
        manager = content.managers["a"]
        wish = install.InstallWish(
            name, {"a": manager.url}, manager.identity, manager.addresses, state=content.state, file=self.file
        )
        found = install.install(wish, self.root)
        assert found.content == content
        self.script = self.root / "etc/libvirt/hooks/qemu.d/storkit"
        # Not the program that runs these tests, which is what has installed it.
        text = self.script.read_text()
        line = next(line for line in text.splitlines() if "hook libvirt" in line)
        program = line.partition("| ")[2].partition(" hook libvirt")[0]
        command = shlex.join([sys.executable, "-m", "storkit"])
        self.script.write_text(text.replace(program, command).replace("*storkit*", "*dev*"))
        self.dev = Path(content.state) / "dev"

    def __call__(self, operation: str, extra: str = "-") -> Done:
        sub = "end" if operation in ("release", "stopped") else "begin"
        xml = XML.format(uuid=UUID, path=self.dev / "v")
        done = subprocess.run(
            [str(self.script), "g", operation, sub, extra],
            input=xml, capture_output=True, text=True, check=False, env=os.environ,
        )  # fmt: skip
        return Done(done.returncode, done.stdout, done.stderr)
