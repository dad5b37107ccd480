"""A NAS that storkit does not manage, b and c which share a directory of it, and d which has the disks: power cuts."""

from __future__ import annotations

import json
from typing import Any

import pytest

from storkit.core import codec
from storkit.core.model import Attachment
from tests.lab import Host, Lab, services
from tests.lab.host import Result
from tests.lab.writer import Writer

pytestmark = [pytest.mark.lab, pytest.mark.slow]
LEASE = 10
"""Seconds after which the NAS takes a silent client for gone; 90 by default."""
INVENTORY = """\
[hosts.b]
url = "ssh://root@b"
address = "{b}"
[hosts.c]
url = "ssh://root@c"
address = "{c}"
[hosts.d]
url = "local"
address = "{d}"
[pools.nas]
hosts = ["b", "c"]
path = "/mnt/nas"
[transports.nbd]
attach = "kernel"
"""


class Shared:
    """Commands are given on d."""

    def __init__(self, lab: Lab) -> None:
        self.nas, self.b, self.c, self.d = lab.hosts("s", "b", "c", "d")
        self.nas.run(["modprobe", "nfsd"])
        self.nas.run(["mount", "-t", "nfsd", "nfsd", "/proc/fs/nfsd"])
        self.nas.run(["sh", "-c", f"echo {LEASE} >/proc/fs/nfsd/nfsv4leasetime"])
        self.nas.run(["mkdir", "-p", "-m", "700", "/export/pool"])
        self.nas.put("/export/pool 10.77.0.0/24(rw,sync,no_root_squash,no_subtree_check)\n", "/etc/exports")
        services.nfs_server(self.nas)
        self.nas.run(["exportfs", "-r"])
        self.d.run(["modprobe", "-a", "dm-mod", "nbd"])
        for host in (self.b, self.c):
            self.mount(host)
        addresses = {host.name: host.address("san1") for host in (self.b, self.c, self.d)}
        self.d.put(INVENTORY.format(**addresses), "/etc/storkit/inventory.toml")

    def mount(self, host: Host) -> None:
        services.nfs_client(host)
        host.run(["mkdir", "-p", "/mnt/nas"])
        host.run(["mount", "-t", "nfs4", "-o", "vers=4.2", f"{self.nas.address()}:/export/pool", "/mnt/nas"])

    def boot(self, host: Host) -> None:
        host.boot()
        self.mount(host)

    def run(self, *words: str) -> Result:
        since = " ".join(str(host.changes) for host in (self.b, self.c, self.d))
        return self.d.storkit(["--json", *words], since, 900)

    def storkit(self, *words: str) -> Any:
        done = self.run(*words)
        assert done.status == 0, f"storkit {' '.join(words)}: {done.status}\n{done.stdout}\n{done.stderr}"
        return json.loads(done.stdout) if done.stdout.strip() else None

    def sidecar(self, volume: str) -> dict[str, Any]:
        found: dict[str, Any] = json.loads(self.nas.run(["cat", f"/export/pool/{volume}.json"]).stdout)
        return found

    def number(self, volume: str) -> int:
        """What the writer wrote last, as the NAS itself has it: no cache of a manager's is asked."""
        block = self.nas.run(["od", "-An", "-tu8", "--endian=big", "-N8", f"/export/pool/{volume}.raw"]).stdout
        return int(block)

    def daemons(self, host: Host) -> list[str]:
        return host.run(["pgrep", "-f", "^/usr/bin/qemu-storage-daemon"], check=False).stdout.split()


def attachment(said: Any) -> Attachment:
    return codec.load(list[Attachment], [said], strict=False)[0]


def test_a_guest_survives_the_loss_of_its_server_by_a_pause(lab: Lab) -> None:
    shared = Shared(lab)
    for name in ("v", "w"):
        shared.storkit("volume", "create", name, "16MiB")
    there = attachment(shared.storkit("attach", "v", "--on", "d"))
    assert shared.sidecar("v")["manager"] == "b" and shared.sidecar("w")["manager"] == ""
    writer = Writer(shared.d, there)

    shared.b.power_off()
    last = writer.assert_stalls()
    assert shared.number("v") >= last, "what was acknowledged is on the NAS, whatever becomes of its server"
    refused = shared.run("detach", "v", "--on", "d")
    assert refused.status == 7 and "volume v was last served by b" in refused.stderr + refused.stdout, refused
    assert "storkit fence b --confirmed-off" in refused.stderr + refused.stdout

    # What nobody serves is c's to make, and to serve.
    shared.storkit("volume", "create", "x", "16MiB")
    for name in ("w", "x"):
        shared.storkit("attach", name, "--on", "d")
        assert shared.sidecar(name)["manager"] == "c"

    term = shared.sidecar("v")["term"]
    shared.storkit("fence", "b", "--confirmed-off")
    assert (shared.sidecar("v")["manager"], shared.sidecar("v")["term"]) == ("c", term + 1)
    writer.assert_goes_on()
    print(f"the longest write took {writer.longest()} s")

    # b is back, and its time is over.
    shared.boot(shared.b)
    shared.b.storkit(["host", "restore"])
    assert shared.daemons(shared.b) == []
    assert shared.run("volume", "show", "v").status == 0
    assert json.loads(shared.run("volume", "show", "v").stdout)["host"] == "c"
    shared.storkit("unfence", "b")

    # The other one dies: it goes back to b.
    shared.c.power_off()
    writer.assert_stalls()
    shared.storkit("fence", "c", "--confirmed-off")
    writer.assert_goes_on()
    assert shared.sidecar("v")["manager"] == "b"
    written = writer.stop()
    assert shared.number("v") >= written
    for name in ("v", "w", "x"):
        shared.storkit("detach", name, "--on", "d")
        assert shared.sidecar(name)["manager"] == ""
    shared.storkit("volume", "delete", "v", "w", "x")
    assert shared.storkit("volume", "list") == []


def test_a_manager_that_only_seems_to_be_off_is_not_robbed(lab: Lab) -> None:
    """Its coordinators do not reach it, and the NAS does: it renews its lease, and keeps its lock."""
    shared = Shared(lab)
    shared.storkit("volume", "create", "v", "16MiB")
    shared.storkit("attach", "v", "--on", "d")
    shared.b.run(["pkill", "-x", "sshd"])  # the sessions as well
    shared.b.changes += 1
    done = shared.run("fence", "b", "--confirmed-off")
    assert done.status != 0 and "volume v is locked by its server on b" in done.stderr + done.stdout, done
    assert shared.sidecar("v")["manager"] == "b" and shared.daemons(shared.b)
