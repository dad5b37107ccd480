"""A manager, and hosts whose hooks ask it over a real pipe: what sshd does with a key that is bound, a script does."""

from __future__ import annotations

import os
import sys
from typing import Any

import pytest

from storkit.hooks.engine import GuestDisk, GuestId, Hooks
from storkit.hooks.hostfile import HostFile, Manager
from storkit.hosts import accept
from storkit.hosts.accept import Accepted, GuestHost
from tests.e2e.pipe import Pipe
from tests.e2e.world import ROOT, World

INVENTORY = """\
[hosts.a]
url = "local:a"
address = "127.0.0.1"
[hosts.h1]
url = "local:h1"
[hosts.h2]
url = "local:h2"
[hosts.h3]
url = "local:h3"
[pools.default]
host = "a"
format = "raw"
"""
UUID = "11111111-2222-3333-4444-555555555555"
GUEST = GuestId("g", UUID)
DISK = [GuestDisk("v")]

SSH = """\
#!/bin/sh
# As sshd does with `command=`: whatever is asked for, the key says what is run.
while [ "$1" != -i ]; do shift; done
exec {python} -m "${{HOOKED_AGENT:-storkit}}" agent --for "$(basename "$2")" --file {file}
"""


class Hooked:
    """Host `a` has the pool; h1, h2 and h3 have hooks, and keys that are bound to them."""

    def __init__(self, world: World, monkeypatch: pytest.MonkeyPatch) -> None:
        self.world, self.directory = world, world.directory
        self.file = self.directory / "accept.toml"
        self.admit({name: GuestHost(["default/v*"], "127.0.0.1") for name in ("h1", "h2", "h3")})
        self.binaries = self.directory / "bin"
        self.binaries.mkdir()
        ssh = self.binaries / "ssh"
        ssh.write_text(SSH.format(python=sys.executable, file=self.file))
        ssh.chmod(0o755)
        monkeypatch.setenv("PATH", f"{self.binaries}:{os.environ['PATH']}")
        monkeypatch.setenv("PYTHONPATH", str(ROOT))

    def admit(self, hosts: dict[str, GuestHost], **more: Any) -> None:
        state = str(self.directory / "a")
        pools = {"default": {"type": "directory", "format": "raw"}}
        accepted = Accepted(state=state, pools=pools, host="a", address="127.0.0.1", guest_hosts=hosts, **more)
        accept.save(self.file, accepted)

    def content(self, name: str) -> HostFile:
        key = str(self.directory / "keys" / name)
        manager = Manager("ssh://root@a", key, ["127.0.0.1"])
        return HostFile(name, {"a": manager}, str(self.directory / name))

    def hooks(self, name: str) -> Hooks:
        return Hooks(self.content(name))

    def enter(self, host: str, why: Any = "start", disks: list[GuestDisk] = DISK, guest: GuestId = GUEST) -> None:
        with self.hooks(host) as hooks:
            hooks.enter(disks, guest, why)
            if why == "wake":
                hooks.woken(disks, guest)

    def leave(self, host: str, why: Any = "ended", disks: list[GuestDisk] = DISK) -> None:
        with self.hooks(host) as hooks:
            hooks.leave(disks, GUEST, why)

    def agent(self, name: str = "h2", **setup: Any) -> Pipe:
        return Pipe({"host": "a", **setup}, "--for", name, "--file", str(self.file))

    def rights(self, volume: str = "v") -> dict[str, bool]:
        """Who has an export of a volume, and may write it."""
        found = self.world.storkit("--json", "volume", "show", volume).json
        return {each["client"]: each["writable"] for each in found["exports"]}

    def attached(self, host: str, volume: str = "v") -> bool:
        return (self.directory / host / "dev" / volume).is_symlink()

    def hold(self, volume: str = "v") -> bool:
        """Whether a guest sleeps on a volume."""
        return self.world.storkit("--json", "volume", "show", volume).json["hold"] is not None

    def kept(self) -> dict[str, bytes]:
        """What the manager keeps: grants, marks, metadata of volumes."""
        base = self.directory / "a"
        files = [path for path in sorted(base.rglob("*")) if path.is_file() and path.suffix in (".json", ".raw")]
        files.remove(base / "setup.json")  # what coordinators have told it
        return {str(path.relative_to(base)): path.read_bytes() for path in files}

    def grants(self) -> dict[str, bytes]:
        base = self.directory / "a"
        return {str(path): path.read_bytes() for path in sorted(base.glob("nbd/*.json"))}
