"""A whole installation in the lab, for runs from end to end: a and b run guests, and s, or a itself, has the disks.

`worlds()` has every combination of storage and hypervisor that this storkit knows; a new one is a `Storage` below.
"""

from __future__ import annotations

import json
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, fields
from pathlib import Path
from typing import Any

import pytest

from storkit.core import registry
from storkit.core.backend import Hypervisor, Pool, Transport
from tests import kept
from tests.guestkit import bootsector
from tests.lab import services
from tests.lab.host import Host, Result
from tests.lab.lab import MEMORY, Lab
from tests.lab.remains import Remains

INVENTORY = "/etc/storkit/inventory.toml"
VOLUMES = "/srv/volumes"
IMAGE = "/root/boot.img"
SIZE = 4 << 20
"""Of the guest's disk: one extent of LVM."""
REST = 4
"""Ticks, 18 a second, that the guest rests before each record."""
KEPT = (
    ". files: " + kept.below("/var/lib/storkit", kept.STATE, kept.COORDINATOR),
    ". files: " + kept.below("/run/storkit", kept.RUN),
    # The pool's own locks; the tests' image and the guest's console; the client of NFS, which asks for its server.
    r". files: /srv/volumes/(\.storkit|\.guests/)\.lock",
    r". files: (/root/(\.cache/|boot\.img)|/srv/guest/)",
    r". sockets: udp",
)
"""What is no trace of the work when everything is deleted."""


@dataclass(frozen=True)
class Storage:
    """A pool, and the transport of its volumes."""

    name: str
    pool: str
    transport: str
    pool_settings: dict[str, str] = field(default_factory=dict)
    transport_settings: dict[str, Any] = field(default_factory=dict)
    make: Callable[[Host], None] = lambda s: None
    """Make what the pool needs, once."""
    serve: Callable[[Host], None] = lambda s: None
    """Start what systemd would on the storage host, after each boot."""
    use: Callable[[Host], None] = lambda client: None
    """The same on a and b."""
    host: str = "s"
    """Where the pool is."""
    hypervisors: tuple[str, ...] = ("qemu", "libvirt")
    """What can open these disks."""
    portals: tuple[str, ...] = ()
    """The networks on which its targets listen, where they are several."""
    durable: bool = True
    """Whether what a guest has written, and not flushed, outlives a power cut of s."""

    def known(self) -> bool:
        """Whether this storkit has it."""
        if self.pool not in registry.names(Pool) or self.transport not in registry.names(Transport):  # type: ignore[type-abstract]
            return False
        settings = {field.name for field in fields(registry.transport(self.transport).Settings)}
        return set(self.transport_settings) <= settings


def _directory(s: Host) -> None:
    s.run(["mkdir", "-p", "-m", "700", VOLUMES])


def _volume_group(s: Host) -> None:
    disk = s.add_disk(1 << 30)
    s.run(["modprobe", "dm-mod"])
    s.run(["vgcreate", "-q", "vg", disk])


def _modules(host: Host) -> None:
    host.run(["modprobe", "-a", "dm-mod", "nbd"])


def _nvme(host: Host) -> None:
    host.run(["modprobe", "-a", "dm-mod", "dm-flakey", "nvmet-tcp", "nvme-tcp"])


# libvirt has no NBD over TLS with a pre-shared key.
STORAGES = (
    Storage("nbd", "directory", "nbd", {"path": VOLUMES}, make=_directory, hypervisors=("qemu",), durable=False),
    Storage(
        "nbd-qcow2", "directory", "nbd", {"path": VOLUMES, "format": "qcow2"},
        make=_directory, hypervisors=("qemu",), durable=False,
    ),
    Storage(
        "nbd-kernel", "directory", "nbd", {"path": VOLUMES}, {"attach": "kernel"},
        make=_directory, use=_modules, durable=False,
    ),
    Storage("iscsi", "lvm", "iscsi", {"vg": "vg"}, make=_volume_group, serve=services.target, use=services.iscsid),
    Storage(
        "iscsi-paths", "lvm", "iscsi", {"vg": "vg"}, portals=("san1", "san2"),
        make=_volume_group, serve=services.target, use=services.iscsid,
    ),
    # in place: the disk of a running guest is exported on the host that it runs on
    Storage(
        "iscsi-own", "lvm", "iscsi", {"vg": "vg"},
        make=_volume_group, serve=services.target, use=services.iscsid, host="a",
    ),
    Storage("nvme", "lvm", "nvme", {"vg": "vg"}, make=_volume_group, serve=_nvme, use=_nvme),
    Storage(
        "nfs", "nfs", "nfs", {"path": VOLUMES},
        make=_directory, serve=services.nfs_server, use=services.nfs_client,
    ),
    Storage(
        "nfs-qcow2", "nfs", "nfs", {"path": VOLUMES, "format": "qcow2"},
        make=_directory, serve=services.nfs_server, use=services.nfs_client,
    ),
)  # fmt: skip


def storage(name: str) -> Storage:
    return next(storage for storage in STORAGES if storage.name == name)


def hypervisors() -> list[str]:
    """Those that the lab's hosts can run."""
    return [name for name in ("qemu", "libvirt") if name in registry.names(Hypervisor)]  # type: ignore[type-abstract]


def worlds() -> list[tuple[Storage, str]]:
    """Every storage and hypervisor there is."""
    return [
        (storage, hypervisor)
        for storage in STORAGES
        if storage.known()
        for hypervisor in hypervisors()
        if hypervisor in storage.hypervisors
    ]


def each(combinations: Sequence[tuple[Storage, str]], usual: Sequence[str]) -> list[Any]:
    """Combinations as parameters of a test; those whose name is not among `usual` are slow ones."""
    return [
        pytest.param(one, id=name, marks=[] if name in usual else [pytest.mark.slow])
        for one, name in zip(combinations, names(combinations), strict=True)
    ]


class World:
    """Hosts joined by an inventory; commands are given on one of them. `s` has the disks."""

    def __init__(
        self,
        lab: Lab,
        scratch: Path,
        storage: Storage,
        hypervisor: str = "qemu",
        commands: str = "a",
        users: Sequence[str] = ("a", "b"),
        memory: str = MEMORY,
    ) -> None:
        """`users`: the hosts that may attach disks and run guests. Each one costs a boot, and is asked by commands.
        `memory`: of each host."""
        self.hosts = lab.hosts(*dict.fromkeys((*users, storage.host)), memory=memory)
        self.users, self.s = self.hosts[: len(users)], lab.host(storage.host, memory)
        self.storage, self.hypervisor, self.scratch = storage, hypervisor, scratch
        storage.make(self.s)
        for host in self.hosts:
            host.put("", "/root/.hushlogin")
            self.ready(host)
        self.commands = lab.host(commands, memory)
        self.commands.put(self.inventory(), INVENTORY)
        self._places: dict[str, tuple[str, str]] = {}
        self.remains = Remains(self.hosts, KEPT)

    @property
    def a(self) -> Host:
        return self.users[0]

    @property
    def b(self) -> Host:
        return self.users[1]

    def inventory(self) -> str:
        lines = []
        for host in self.hosts:
            url = "local" if host is self.commands else f"ssh://root@{host.name}"
            lines.append(f'[hosts.{host.name}]\nurl = "{url}"\naddress = "{host.address("san1")}"\n')
        pool = {"host": self.s.name, "type": self.storage.pool, "transport": self.storage.transport}
        lines.append(_table("pools.default", pool | self.storage.pool_settings))
        portals = [self.s.address(network) for network in self.storage.portals]
        settings = self.storage.transport_settings | ({"portals": portals} if portals else {})
        lines.append(_table(f"transports.{self.storage.transport}", settings))
        lines.append(_table("defaults", {"hypervisor": self.hypervisor}))
        return "\n".join(lines)

    def ready(self, host: Host) -> None:
        """Start what systemd would."""
        if host is self.s:
            self.storage.serve(host)
        if host not in self.users:
            return
        self.storage.use(host)
        if self.hypervisor == "libvirt":
            services.libvirtd(host)

    def boot(self, host: Host) -> None:
        """Give a host that lost its power its power back."""
        host.boot()
        self.ready(host)
        self.remains.again(host)

    def run(self, *words: str, timeout: float = 900) -> Result:
        """A storkit command, whatever its end."""
        since = " ".join(str(host.changes) for host in self.hosts)
        return self.commands.storkit(["--json", *words], since, timeout)

    def storkit(self, *words: str, timeout: float = 900) -> Any:
        """The result of a storkit command that must succeed."""
        done = self.run(*words, timeout=timeout)
        assert done.status == 0, f"storkit {' '.join(words)}: {done.status}\n{done.stdout}\n{done.stderr}"
        return json.loads(done.stdout) if done.stdout.strip() else None

    # --- the guest

    def define(self, name: str = "g", *options: str) -> None:
        """A guest that is a boot sector, with its disk."""
        image = self.scratch / "boot.img"
        # where a power cut takes records with it, the guest is to have written over all of them soon
        bootsector.make_disk(image, SIZE, rest=REST if self.storage.durable else 0)
        self.import_(image, name)
        self.storkit("guest", "define", name, "--disk", name, *(options or ("--memory", "16MiB")))

    def import_(self, image: Path, name: str) -> None:
        self.s.put(image.read_bytes(), IMAGE)
        self.storkit("volume", "import", IMAGE, name)

    def status(self, name: str = "g") -> Any:
        return self.storkit("migrate", "status", name)[0]

    def disk(self, name: str = "g") -> Path:
        """A copy of the volume's bytes as the storage host has them now."""
        return self._copy(*self._where(name))

    def _where(self, name: str) -> tuple[str, str]:
        """A volume's path on the storage host, and its format, asked once: neither changes."""
        if name not in self._places:
            volume = self.storkit("volume", "show", name)
            self._places[name] = volume["path"], volume["format"]
        return self._places[name]

    def _copy(self, path: str, format: str) -> Path:
        if format == "qcow2":
            read = ["qemu-img", "convert", "-U", "-f", format, "-O", "raw", path, "/lab/own/copy"]
        elif path.startswith("/dev/"):
            read = ["dd", f"if={path}", "of=/lab/own/copy", "bs=1M", "iflag=direct", "status=none"]
        else:
            read = ["cp", path, "/lab/own/copy"]
        self.s.run(read)
        copy = self.scratch / "copy.img"
        copy.write_bytes((self.s.own / "copy").read_bytes())
        (self.s.own / "copy").unlink()
        return copy

    def wait_for_writes(self, name: str = "g", deadline: float = 120) -> int:
        """Wait until the guest has written on; its last record then."""
        before = bootsector.last_record(self.disk(name))
        return self.wait_for_record(before + 1, name, deadline)

    def wait_for_record(self, number: int, name: str = "g", deadline: float = 120) -> int:
        """Wait until the guest has come to a record; its last one then."""
        last = 0

        def reached() -> bool:
            nonlocal last
            last = bootsector.last_record(self.disk(name))
            return last >= number

        self.s.wait_for(reached, f"record {number} of guest {name}", deadline, every=0.5)
        return last

    def migrate(self, destination: str, name: str = "g", written: bool = True) -> Move:
        """Move the guest, and see that it is there alone, with the right to write, and that it writes records."""
        started = time.monotonic()
        moved = self.storkit("migrate", "run", name, "--to", destination)
        seconds = time.monotonic() - started
        assert sorted(moved["proof"][0]["hosts"]) == ["a", "b"], moved
        status = self.status(name)
        assert status["places"] == {destination: "running"} and status["writers"] == [destination], status
        last = self.wait_for_writes(name) if written else 0
        result = moved.get("migration") or {}
        return Move(destination, seconds, result.get("total_ms", 0), result.get("downtime_ms", 0), last)

    def report(self, name: str = "g") -> bootsector.Report:
        """What the disk says of its guest, which is stopped."""
        return bootsector.verify(self.disk(name))

    def clear(self, name: str = "g") -> bootsector.Report:
        """Stop the guest and delete it with its disk; what the disk said of it."""
        self.storkit("guest", "stop", name, "--force")
        report = self.report(name)
        self.delete(name)
        return report

    def delete(self, name: str = "g") -> None:
        self.storkit("guest", "delete", name)
        self.storkit("volume", "delete", name)
        self._places.pop(name, None)

    def left(self) -> list[str]:
        """What is on any host that was not there before."""
        return self.remains.left()


@dataclass(frozen=True)
class Move:
    """One migration."""

    to: str
    seconds: float
    """Of the whole command."""
    total_ms: int
    """The hypervisor's part."""
    downtime_ms: int
    last: int
    """The guest's last record some time after."""


def _table(name: str, values: dict[str, Any]) -> str:
    # words and lists of words are in TOML what they are in JSON
    return "\n".join([f"[{name}]", *(f"{key} = {json.dumps(value)}" for key, value in values.items())]) + "\n"


def names(combinations: Sequence[tuple[Storage, str]]) -> list[str]:
    return [f"{storage.name}-{hypervisor}" for storage, hypervisor in combinations]
