"""Transports of the lab's hosts, called from the test process: the contract's tests run unchanged on real kernels.

A `Machine` is a host with two conversations over ssh, kept from test to test, so that a call costs milliseconds: one
with `storkit agent`, by the class that storkit itself uses, and one with `guest/disks.py`, which reads and writes what
is behind attachments there. `LabRig` makes a rig of two of them.
"""

from __future__ import annotations

import itertools
import json
import queue
import subprocess
import threading
import uuid
from abc import abstractmethod
from collections.abc import Callable, Iterator, Mapping
from contextlib import AbstractContextManager, contextmanager, nullcontext
from dataclasses import replace
from pathlib import Path
from typing import Any, TypeVar

from storkit.core import calls, codec, errors, registry
from storkit.core.backend import Site, Transport
from storkit.core.contracts.pools import PoolVerbs
from storkit.core.errors import HostUnreachable, StorkitError, TimedOut
from storkit.core.inventory import HostConfig, Inventory, PoolConfig
from storkit.core.model import Attachment, Client, Volume
from storkit.hosts.remote.ssh import SshConnection
from tests.contract.access import Access
from tests.contract.rig import Rig
from tests.lab.host import Host
from tests.lab.lab import Lab
from tests.lab.remains import Remains

T = TypeVar("T")

IO_DEADLINE = 40.0
"""Seconds after which a read or a write counts as refused: what is cut off may stall rather than fail."""
HUNG_CLOSE_DEADLINE = 2.0
"""The same for a close behind what has hung already."""
_PYTHON = "PYTHONPATH=/storkit:/opt/storkit/site-packages PYTHONPYCACHEPREFIX=/lab/common/pyc python3"


class Machine(calls.Targets):
    """A host of the lab, and the conversations with it."""

    def __init__(self, lab: Lab, name: str) -> None:
        self.host: Host = lab.host(name)
        self.ready: type | None = None
        """The rig that has prepared it since its boot, the last of them."""
        self._lab = lab
        self._agent: SshConnection | None = None
        self._inventory: Inventory | None = None
        self._disks: _Disks | None = None

    def talk(self, inventory: Inventory) -> None:
        """Have an agent that knows this inventory, and a disk helper."""
        if self._inventory is not inventory:
            self.hang_up()
        if self._agent is None:
            config = inventory.host(self.host.name)
            agent = SshConnection(config, inventory, self._argv("storkit agent"))
            agent.greet()
            self._agent = agent
            self._inventory = inventory
        if self._disks is None:
            self._disks = _Disks(self._argv(f"exec env {_PYTHON} /storkit/tests/lab/guest/disks.py"))

    def hang_up(self) -> None:
        """End the conversations: the host is about to lose its power, or has."""
        if self._agent is not None:
            # a host that is off never answers a goodbye
            self._agent._talk.break_off(HostUnreachable(f"host {self.host.name} is about to be off"))
            self._agent.close()
        if self._disks is not None:
            self._disks.close()
        self._agent = self._disks = self._inventory = None

    def _argv(self, command: str) -> list[str]:
        # a connection of its own: a master that outlives its host would be waited for
        ssh = self._lab.ssh_argv(self.host.name)
        return self._lab.cell.argv([*ssh[:-1], "-T", "-oControlPath=none", "-oBatchMode=yes", ssh[-1], command])

    def call(self, target: str, verb: str, args: dict[str, Any]) -> Any:
        """Carry out a verb in the host."""
        if self._agent is None:
            raise HostUnreachable(f"nobody talks to host {self.host.name}")
        return self._agent.call(target, verb, args)

    def stuck(self) -> bool:
        """Whether an access hangs, and holds what it opened."""
        return self._disks is not None and self._disks.stuck

    def open(self, attachment: Attachment) -> AbstractContextManager[Access]:
        assert self._disks is not None
        return self._disks.open(attachment)


class _Disks:
    """A conversation with guest/disks.py."""

    stuck = False
    """Whether something that it opened cannot be closed."""

    def __init__(self, argv: list[str]) -> None:
        self._process = subprocess.Popen(
            argv, stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, text=True
        )
        self._numbers = itertools.count(1)
        self._hung: set[int] = set()
        self._waiting: dict[int, queue.SimpleQueue[dict[str, Any]]] = {}
        assert self._process.stdout is not None
        if self._process.stdout.readline() != "ready\n":
            raise HostUnreachable(f"no disk helper: {argv}")
        threading.Thread(target=self._dispatch, daemon=True).start()

    def _dispatch(self) -> None:
        assert self._process.stdout is not None
        for line in self._process.stdout:
            answer = json.loads(line)
            if answer["id"] in self._waiting:
                self._waiting[answer["id"]].put(answer)

    def request(self, handle: int, do: str, deadline: float = IO_DEADLINE, **fields: Any) -> Any:
        assert self._process.stdin is not None
        number = next(self._numbers)
        self._waiting[number] = queue.SimpleQueue()
        self._process.stdin.write(json.dumps({"id": number, "handle": handle, "do": do, **fields}) + "\n")
        self._process.stdin.flush()
        try:
            answer = self._waiting[number].get(timeout=deadline)
        except queue.Empty:
            self._hung.add(handle)
            raise TimedOut(f"the {do} did not return within {deadline:.0f} s") from None
        finally:
            del self._waiting[number]
        if "error" in answer:
            raise errors.from_json(answer["error"])
        if "oserror" in answer:
            raise OSError(*answer["oserror"])
        return answer["result"]

    @contextmanager
    def open(self, attachment: Attachment) -> Iterator[Access]:
        handle = next(self._numbers)
        self.request(handle, "open", attachment=codec.dump(attachment))
        try:
            yield _Open(self, handle)
        finally:
            # Behind a read or a write that hangs, a close hangs as well.
            try:
                self.request(handle, "close", HUNG_CLOSE_DEADLINE if handle in self._hung else IO_DEADLINE)
            except TimedOut:
                self.stuck = True

    def close(self) -> None:
        self._process.kill()
        self._process.wait()


class _Open(Access):
    def __init__(self, disks: _Disks, handle: int) -> None:
        self._disks, self._handle = disks, handle

    def read(self, offset: int, length: int) -> bytes:
        return bytes.fromhex(self._disks.request(self._handle, "read", offset=offset, length=length))

    def write(self, offset: int, data: bytes) -> None:
        self._disks.request(self._handle, "write", offset=offset, data=data.hex())


def remote(cls: type[Transport], machine: Machine, site: Site) -> Transport:
    """A transport on a host of the lab: a proxy, with the name and the flags of the transport's own class."""
    own = {name: getattr(cls, name) for name in ("name", "needs", "window", "claims")}
    made: Any = type(f"Remote{cls.__name__}", (calls.proxy_class("transport"), Transport), own)
    transport: Transport = made(f"transport:{cls.name}", machine.call)
    transport.site = site
    return transport


class Hosts:
    """The hosts that contract tests share: they stay up from test to test, and are thrown away after one that did not
    leave them as they were."""

    def __init__(self, lab: Lab) -> None:
        self.lab = lab
        self.inventories: dict[str, Inventory] = {}
        self._machines: dict[str, Machine] = {}
        self._in_use = False

    def take(self, *names: str) -> dict[str, Machine]:
        """Hosts that are up."""
        if self._in_use:
            self.discard()
        self._in_use = True
        self.lab.hosts(*names)
        for name in names:
            if name not in self._machines:
                self._machines[name] = Machine(self.lab, name)
        return {name: self._machines[name] for name in names}

    def give_back(self) -> None:
        """They are as they were."""
        self._in_use = False

    def discard(self) -> None:
        """Throw the hosts away: the next test gets fresh ones."""
        for machine in self._machines.values():
            machine.hang_up()
            machine.host.resume()
            machine.host.discard()
        self._machines.clear()


LabSetup = Callable[[Hosts], AbstractContextManager[Rig]]


def lab_rig(cls: type[LabRig]) -> LabSetup:
    """What `lab_setups` gives for a rig that needs no more than its class. Its hosts are thrown away by whoever shares
    them, so nothing is left to end here."""
    return lambda hosts: nullcontext(cls(hosts))


class LabRig(Rig):
    """Hosts a and b of the lab with one pool on a. What a transport's module gives is in the class variables and
    `prepare`; tests/contract/transport_nbd.py is an example."""

    transport: str
    settings: Mapping[str, Any] = {}
    """The transport's, as in the inventory."""
    pool: str = "directory"
    ignored: tuple[str, ...] = ()
    """Regular expressions of changes that stay by right, in the form of remains.py."""

    @abstractmethod
    def prepare(self, host: Host) -> None:
        """Start what systemd would on a host of this transport; called after every boot, and after another rig's."""

    def pool_settings(self, host: Host) -> dict[str, Any]:
        """Make what the pool needs on host a, if it is not there; its settings in the inventory."""
        return {}

    def __init__(self, hosts: Hosts) -> None:
        self._hosts = hosts
        self._machines = hosts.take("a", "b")
        for machine in self._machines.values():
            self._prepare(machine)
        self._inventory = self._told(self.pool_settings(self._machines["a"].host))
        self.a = Client("a", True, self._address("a"))
        self.b = Client("b", False, self._address("b"))
        cls = registry.transport(self.transport)
        sites = {name: Site(name, Path("/var/lib/storkit"), Path("/run/storkit"), Path("/dev/storkit"),
                            self._address(name)) for name in self._machines}  # fmt: skip
        for machine in self._machines.values():
            machine.talk(self._inventory)
        self.home, self.far = (remote(cls, self._machines[name], sites[name]) for name in ("a", "b"))
        self._made: list[Volume] = []
        # The rig's own volumes, which are deleted when it has been looked at.
        ignored = (r". files: /var/lib/storkit/volumes/", *self.ignored)
        self._remains = Remains([machine.host for machine in self._machines.values()], ignored)

    def _prepare(self, machine: Machine) -> None:
        if machine.ready is not type(self):
            self.prepare(machine.host)
            machine.ready = type(self)

    def _told(self, pool: dict[str, Any]) -> Inventory:
        """The inventory, as the agents may have been told it already."""
        hosts = {name: HostConfig(name, f"ssh://root@{name}", self._address(name)) for name in self._machines}
        pools = {"tested": PoolConfig("tested", "a", self.pool, pool)}
        made = Inventory(hosts, pools, {self.transport: dict(self.settings)})
        return self._hosts.inventories.setdefault(repr((hosts, self.pool, pool, made.transports)), made)

    def at_home(self, *argv: str) -> str:
        return self.run("a", *argv)

    def swap(self, path: Path, data: bytes) -> bytes:
        host = self._machines["a"].host
        before = host.get(str(path))
        host.put(data, str(path), 0o600)
        return before

    def _address(self, name: str) -> str:
        return self._machines[name].host.address()

    def volume(self, name: str, size: int = 16 << 20, **fields: Any) -> Volume:
        kind, made = fields.pop("kind", "disk"), fields.pop("made", "")
        assert not fields, f"a volume of the lab cannot be given {fields}"
        wanted = Volume(name, str(uuid.uuid4()), size, "tested", "a")
        (volume,) = self._pool.create([wanted])
        self._made.append(volume)
        if kind != "disk" or made:
            (volume,) = self._pool.relabel([replace(volume, kind=kind, made=made or volume.made)])
        return volume

    def grow(self, volume: Volume, size: int) -> Volume:
        (larger,) = self._pool.resize([replace(volume, size=size)], served=True)
        return larger

    @property
    def _pool(self) -> PoolVerbs:
        return self._machines["a"].pool("pool:tested")

    def kill_servers(self) -> None:
        """Host a loses its power, and comes back with nothing started but what systemd would."""
        self._power_cycle(self._machines["a"])

    def recover(self) -> None:
        for machine in self._machines.values():
            if machine.stuck():
                self._power_cycle(machine)

    def _power_cycle(self, machine: Machine) -> None:
        machine.hang_up()
        machine.host.power_off()
        machine.host.boot()
        machine.ready = None
        self._prepare(machine)
        machine.talk(self._inventory)
        self._remains.again(machine.host)

    def leftovers(self) -> list[str]:
        try:
            self._pool.delete(self._made)
        except StorkitError as error:
            return [f"volumes that cannot be deleted: {error}"]
        found = self._remains.left()
        if not found:
            self._hosts.give_back()
        return found

    def run(self, name: str, *argv: str) -> str:
        """What a command on one of the hosts prints."""
        return self._machines[name].host.run(list(argv)).stdout

    def access(self, attachment: Attachment) -> AbstractContextManager[Access]:
        return self._machines[attachment.host].open(attachment)

    def has_path(self, site: Transport, name: str) -> bool:
        path = site.site.dev / name
        found = self._machines[site.site.host].host.run(["sh", "-c", f"test -e {path} || test -L {path}"], check=False)
        return found.status == 0
