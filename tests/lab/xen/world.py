"""A whole installation with Xen: h1 and h2 run guests, s has the disks, and the commands are given there."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from tests.guestkit import log
from tests.lab.host import Result
from tests.lab.world import INVENTORY, Storage
from tests.lab.xen import Dom0, XenLab, console, frozen

PATIENT = 600.0
"""Seconds for what emulation makes slow."""
LONGER = {"STORKIT_TIMEOUT_FACTOR": "20"}
"""For commands on s, which is no slower than this machine, and which ask dom0s."""
IMAGE = "/root/g1.img"
CMDLINE = "console=hvc0 quiet mitigations=off rdinit=/init"


class XenWorld:
    """Two dom0s and a storage host, joined by an inventory."""

    def __init__(self, xen: XenLab, scratch: Path, storage: Storage, state: str = frozen.IDLE) -> None:
        self.h1, self.h2, self.s = xen.thaw(state)
        self.xen, self.storage, self.scratch = xen, storage, scratch
        self.dom0s = (self.h1, self.h2)
        storage.make(self.s)
        storage.serve(self.s)
        xen.install(*self.dom0s)
        for host in self.dom0s:
            storage.use(host)
        self.s.put(self._inventory(), INVENTORY)

    def _hosts(self) -> list[str]:
        """The tables of the inventory's hosts."""
        tables = [f'[hosts.s]\nurl = "local"\naddress = "{self.s.address("san1")}"']
        for host in self.dom0s:
            tables.append(f'[hosts.{host.name}]\nurl = "ssh://root@{host.name}"\naddress = "{host.address("san1")}"')
        return tables

    def _pool(self) -> dict[str, str]:
        return {"host": "s", "type": self.storage.pool, "transport": self.storage.transport}

    def _inventory(self) -> str:
        lines = self._hosts()
        for name, values in (
            ("pools.default", self._pool() | self.storage.pool_settings),
            (f"transports.{self.storage.transport}", self.storage.transport_settings),
            ("hypervisors.xl", {"stall_timeout": PATIENT}),
            ("defaults", {"hypervisor": "xl"}),
        ):
            lines.append("\n".join([f"[{name}]", *(f"{key} = {json.dumps(value)}" for key, value in values.items())]))
        return "\n".join(lines) + "\n"

    def run(self, *words: str, timeout: float = 3 * PATIENT) -> Result:
        """A storkit command, whatever its end."""
        since = " ".join(str(host.changes) for host in (self.h1, self.h2, self.s))
        return self.s.storkit(["--json", *words], since, timeout, LONGER)

    def storkit(self, *words: str) -> Any:
        """The result of a storkit command that must succeed."""
        done = self.run(*words)
        assert done.status == 0, f"storkit {' '.join(words)}: {done.status}\n{done.stdout}\n{done.stderr}"
        return json.loads(done.stdout) if done.stdout.strip() else None

    def define(self) -> None:
        """g1, the guest that writes, with its disk."""
        self.s.put(self.xen.guest_disk, IMAGE)
        self.storkit("volume", "import", IMAGE, "g1")
        self.storkit("guest", "define", "g1", "--disk", "g1", "--memory", "96MiB", "--kernel", "/root/vmlinux",
                     "--initrd", "/root/initrd", "--cmdline", CMDLINE)  # fmt: skip

    def status(self) -> Any:
        return self.storkit("migrate", "status", "g1")[0]

    def wait_for_writes(self, host: Dom0, lines: int = 5) -> None:
        """Wait until the guest has told of so many lines more on this host."""
        console.wait_for_lines(host, lines, 2 * PATIENT)

    def domains(self, host: Dom0) -> list[str]:
        """The names that `xl list` tells but dom0's, in its order."""
        return [line.split()[0] for line in host.run(["xl", "list"]).stdout.splitlines()[2:]]

    def migrate(self, to: Dom0) -> Any:
        """Move the guest, and see that it is there alone, with the right to write, and writes."""
        moved = self.storkit("migrate", "run", "g1", "--to", to.name)
        other = self.h1 if to is self.h2 else self.h2
        assert (self.domains(to), self.domains(other)) == (["g1"], [])
        status = self.status()
        assert status["places"] == {to.name: "running"} and status["writers"] == [to.name], status
        self.wait_for_writes(to)
        return moved

    def report(self) -> log.Report:
        """What the disk of the guest, which is stopped, says of it."""
        self.storkit("volume", "export", "g1", "/root/after.img")
        after = self.scratch / "after.img"
        after.write_bytes(self.s.get("/root/after.img"))
        return log.verify(after)
