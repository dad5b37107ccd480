"""NBD exports as block devices: the kernel's NBD driver below a device-mapper node.

    guest -> storkit:NAME:nbd... (device-mapper) -> /dev/nbdN -> the server's socket, on the same machine
                                                             -> relay -> TLS -> the server, on another

The kernel's driver knows neither TLS nor how to connect again. So over the network a relay stands between: a
qemu-storage-daemon that is the server's client and the kernel's server. When the server goes away it holds what was
asked and sends it again once the server is back, for however long that takes. On the same machine the kernel has the
server's own socket, which is several times faster; `restore` starts the server and gives the kernel a new connection.

A device has one export name and one right for as long as it lives; both are in the identifier that it was connected
with. An export gets another name whenever its host has lost the right to write. So a device that holds writes from
before is never connected to what a later grant opened: it is disconnected, which fails them, and another takes its
place below the node.
"""

from __future__ import annotations

import json
import re
import time
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from storkit.core.backend import Site
from storkit.core.errors import Conflict, StorkitError, Unsupported
from storkit.core.model import DiskSource
from storkit.system import locks
from storkit.system.block import devmapper, mirrornode
from storkit.system.block.blockdevice import device_size
from storkit.system.files import make_private
from storkit.system.parallel import for_each_at_once
from storkit.system.qemu.storagedaemon import Daemon, check_socket_path, listen_unix
from storkit.system.timeouts import scaled
from storkit.tech.grants import short_digest
from storkit.tech.nbd import wire as nbd_wire
from storkit.tech.nbd.arguments import FOREVER
from storkit.tech.nbd.netlink import Device, Netlink, devices

CLOSE_TIMEOUT = scaled(10.0)
"""Seconds that a user whose I/O has failed gets to close the device."""
_GUARD_TIMEOUT = scaled(60.0)
_SECTOR = 512


@dataclass(frozen=True, slots=True)
class KernelDevice:
    """What a block device is made of."""

    volume: str
    uuid: str
    size: int
    writable: bool
    wire: DiskSource
    """How the server is reached: a `network` source."""
    credential: dict[str, Any] | None = None
    """The tls-creds object that the relay shows (qemu(1)), named tls0."""


class KernelDevices:
    """The block devices of one host."""

    def __init__(self, site: Site, copies: bool = False) -> None:
        """`copies`: those below the nodes beside the stable paths, by which copies are filled."""
        self.site = site
        self._run = site.run / "nbd"
        # Several hosts can be one machine: each has a state directory of its own.
        self._key = short_digest(str(site.state))[:6]
        role = f"nbd-{self._key}"
        self._role = devmapper.beside(role) if copies else role

    def check(self, link: KernelDevice) -> None:
        """Raise what stands in the way of a device."""
        check_socket_path(self._relay(link).socket)
        if link.size % _SECTOR:
            raise Unsupported(
                f"volume {link.volume} has {link.size} bytes: a block device has whole sectors of {_SECTOR}",
                "storkit volume resize it",
            )

    def connect(self, links: Sequence[KernelDevice]) -> dict[str, str]:
        """Bring devices to what they should be, with new connections where theirs are dead: UUID to device path.

        Whoever has the stable path's node open keeps it open. An old device of another export is disconnected before
        the node leads to the new one: requests that still wait in it fail. One of the same export is disconnected
        after that, since its requests are answered first.
        """
        if not links:
            return {}
        found: dict[str, Device] = {}
        with self._guard(link.uuid for link in links):
            for_each_at_once(lambda link: found.update({link.uuid: self._connected(link)}), list(links))
            old = [
                (link, device) for link in links for device in self._devices(link.uuid) if device != found[link.uuid]
            ]
            self._disconnect(device for link, device in old if _name(device) != link.wire.export)
            paths = self._nodes(links, found)
            self._disconnect(device for _, device in old)
            for link in links:
                self._stop_relays(link.uuid, but=self._relay(link) if not link.wire.socket else None)
        return paths

    def disconnect(self, link: KernelDevice, served: Callable[[], bool]) -> None:
        """Remove a device and all that belongs to it. `served` tells whether its server still serves it.

        Raises Conflict: the device is in use, and its server answers. If that is gone or serves this host no more, its
        users' I/O fails instead, and they get a moment to close it.
        """
        with self._guard([link.uuid]):
            self._remove(link, served)

    def _remove(self, link: KernelDevice, served: Callable[[], bool]) -> None:
        there = [node.name for node in devmapper.find(devmapper.node_uuid(link.uuid, self._role))]
        try:
            devmapper.remove(there)
        except Conflict:
            if served():
                raise
        self._disconnect(self._devices(link.uuid))
        self._stop_relays(link.uuid)
        deadline = time.monotonic() + CLOSE_TIMEOUT
        while True:
            try:
                return devmapper.remove(there)
            except Conflict:
                if time.monotonic() > deadline:
                    raise
                time.sleep(0.05)

    def discard(self, uuid: str) -> None:
        """Remove a node by which a copy was filled, if there is one, and what is below. Raises Conflict: it is being
        filled."""
        with self._guard([uuid]):
            if there := [node.name for node in devmapper.find(devmapper.node_uuid(uuid, self._role))]:
                devmapper.remove(there)
                self._disconnect(self._devices(uuid))
                self._stop_relays(uuid)

    def path(self, link: KernelDevice) -> str:
        """The block device of a link that is connected; empty if it is not."""
        wanted = [device for device in devices() if device.backend == self._identifier(link)]
        if not wanted:
            return ""
        with Netlink() as kernel:
            return next((device.path for device in wanted if kernel.connected(device)), "")

    def of(self, uuid: str) -> list[str]:
        """The block devices that are connected for a volume."""
        return [device.path for device in self._devices(uuid)]

    def broken(self, links: Sequence[KernelDevice]) -> dict[str, str]:
        """By UUID, why devices do not work, as the kernel says: nothing is read from them."""
        if not links:
            return {}
        nodes = {node.uuid: node for node in devmapper.find()}
        found = {}
        for link in links:
            node = nodes.get(devmapper.node_uuid(link.uuid, self._role))
            if why := self._fault(link, self.path(link), node):
                found[link.uuid] = why
        return found

    def _fault(self, link: KernelDevice, device: str, node: devmapper.MappedNode | None) -> str:
        path = self.site.dev / link.volume
        leads = str(path.readlink()) if path.is_symlink() else ""
        if not device:
            return "its block device is not connected any more"
        if not link.wire.socket and not self._relay(link).runs():
            return "its relay does not run any more"
        if node is None:
            if leads == self.node(link.volume):
                return f"{leads} is gone"
            return f"{path} leads to {leads}, and its block device is {device}" if leads not in ("", device) else ""
        wanted = devmapper.linear(device, link.size)
        if node.table != wanted and not mirrornode.stands_on(node.table, wanted):
            return f"{node.path} does not lead to its block device {device}"
        return f"{node.path} is suspended" if node.suspended else ""

    def node(self, volume: str) -> str:
        """The device-mapper node that a stable path leads to."""
        return devmapper.node_path(devmapper.node_name(volume, self._role))

    def makes(self, target: str, volume: str) -> bool:
        """Whether a volume's stable path of this host may lead there; without device-mapper, to the device itself."""
        return target == self.node(volume) or re.fullmatch(r"/dev/nbd\d+", target) is not None

    # One device

    def _prefix(self, uuid: str) -> str:
        return f"storkit:{uuid}:{self._key}:"

    def _identifier(self, link: KernelDevice) -> str:
        return f"{self._prefix(link.uuid)}{'rw' if link.writable else 'ro'}:{link.wire.export}"

    def _devices(self, uuid: str) -> list[Device]:
        return [device for device in devices() if device.backend.startswith(self._prefix(uuid))]

    def _connected(self, link: KernelDevice) -> Device:
        """The link's device, made or given a new connection."""
        if not link.wire.socket:
            relay = self._relay(link)
            if relay.leads_elsewhere(relay_arguments(link)):
                relay.stop()  # the kernel keeps what had no answer, and asks the next one for it
            elif self._relayed(link) not in (0, link.size):
                relay.stop()  # it shows the size that its server had when it began
        elif any(device.backend == self._identifier(link) for device in self._devices(link.uuid)):
            # Its server is this machine by now. The kernel takes a new connection only for one that has ended, and asks
            # it for what had no answer.
            self._stop_relays(link.uuid)
        where = link.wire.socket or self._start_relay(link)
        with nbd_wire.NbdConnection(where) as connection, Netlink() as kernel:
            info = connection.go(link.wire.export)
            flags = info.flags if link.writable else info.flags | nbd_wire.FLAG_READ_ONLY
            # A relay does not say who its server is; that was asked of the server itself.
            if info.size != link.size or (link.writable and not info.writable):
                raise Conflict(
                    f"the NBD server of volume {link.volume} offers {info.size} bytes, "
                    f"{'writable' if info.writable else 'read-only'}: it has changed meanwhile",
                    f"storkit attach {link.volume} --on {self.site.host}",
                )
            wanted = self._identifier(link)
            handed = connection.hand_over()
            try:
                for device in devices():
                    if device.backend == wanted and kernel.connected(device):
                        kernel.reconnect(device, [handed])
                        if device_size(device.path) != link.size:
                            kernel.resize(device, link.size)
                        return device
                block = max(_SECTOR, info.minimum_block)
                return kernel.connect([handed], link.size, block, flags, FOREVER, wanted)
            finally:
                handed.close()

    def _disconnect(self, found: Iterable[Device]) -> None:
        for device in found:
            with Netlink() as kernel:
                kernel.disconnect(device)

    def _nodes(self, links: Sequence[KernelDevice], found: dict[str, Device]) -> dict[str, str]:
        """Have the nodes lead to these devices; without device-mapper the devices themselves are the paths."""
        wanted = {
            link.uuid: devmapper.Wanted(
                devmapper.node_name(link.volume, self._role),
                devmapper.node_uuid(link.uuid, self._role),
                devmapper.linear(found[link.uuid].path, link.size),
                readonly=not link.writable,
            )
            for link in links
        }
        try:
            devmapper.ensure(list(wanted.values()))
        except Unsupported:
            return {uuid: device.path for uuid, device in found.items()}
        return {uuid: devmapper.node_path(node.name) for uuid, node in wanted.items()}

    # Relays

    def _relay(self, link: KernelDevice) -> _Relay:
        return _Relay(self._run, link.volume, f"{short_digest(link.uuid)}.k{short_digest(self._identifier(link))[:8]}")

    def _start_relay(self, link: KernelDevice) -> str:
        """The socket of the link's relay, started if it does not run."""
        relay = self._relay(link)
        relay.start(relay_arguments(link))
        return str(relay.socket)

    def _relayed(self, link: KernelDevice) -> int:
        """The size in bytes that the link's relay shows; 0: it does not run, or does not say."""
        relay = self._relay(link)
        try:
            return nbd_wire.ask(str(relay.socket), link.wire.export).size if relay.runs() else 0
        except StorkitError:
            return 0

    def _stop_relays(self, uuid: str, but: _Relay | None = None) -> None:
        """End the relays of a volume. They are killed: what they still held has failed, and must not be sent."""
        for lock in self._run.glob(f"{short_digest(uuid)}.k*.lock"):
            if but is None or lock.stem != but.stem:
                _Relay(self._run, uuid, lock.stem).stop()

    @contextmanager
    def _guard(self, uuids: Iterable[str]) -> Iterator[None]:
        """Keep other commands from changing these devices meanwhile."""
        make_private(self._run)
        with ExitStack() as stack:
            for uuid in sorted(set(uuids)):
                path = self._run / f"{short_digest(uuid)}.device"
                lock = locks.acquire(path, f"the device of volume {uuid}", wait=_GUARD_TIMEOUT)
                stack.callback(lock.release, remove=True)
            yield


class _Relay:
    """One relay, running or not."""

    def __init__(self, run: Path, volume: str, stem: str) -> None:
        self.stem = stem
        self.socket = run / f"{stem}.sock"
        self._daemon = Daemon(f"the NBD relay of volume {volume}", run / f"{stem}.pid", run / f"{stem}.lock")

    def runs(self) -> bool:
        return self._daemon.running()

    def leads_elsewhere(self, arguments: list[str]) -> bool:
        """Whether it runs, and is the client of another server than these arguments name."""
        now = _servers(self._daemon.arguments())
        return bool(now) and now != _servers(arguments)

    def start(self, arguments: list[str]) -> None:
        if self._daemon.running() and self._daemon.arguments():
            return
        self.stop()
        lock = locks.acquire(self._daemon.lock, self._daemon.what)
        try:
            with listen_unix(self.socket) as listener:
                server = {"addr": {"type": "fd", "str": str(listener.fileno())}}
                # The daemon takes its arguments in their order.
                words = [*arguments[:-2], "--nbd-server", json.dumps(server), *arguments[-2:]]
                self._daemon.start(words, lock, [listener.fileno()])
        finally:
            lock.release()

    def stop(self) -> None:
        self._daemon.stop(kill=True)
        for path in (self.socket, self._daemon.pidfile, self._daemon.lock):
            path.unlink(missing_ok=True)


def relay_arguments(link: KernelDevice) -> list[str]:
    """The arguments of a relay (qemu-storage-daemon(1)); --nbd-server goes before the last two."""
    source = link.wire
    node: dict[str, Any] = {
        "driver": "nbd",
        "node-name": "wire",
        "server": {"type": "inet", "host": source.server, "port": str(source.port), "keep-alive": True},
        "export": source.export,
        "reconnect-delay": FOREVER,
        "read-only": not link.writable,
        "discard": "unmap",
    }
    arguments: list[str] = []
    if link.credential is not None:
        node["tls-creds"] = link.credential["id"]
        arguments += ["--object", json.dumps(link.credential)]
    export = {"type": "nbd", "id": "device", "node-name": "wire", "name": source.export, "writable": link.writable}
    return [*arguments, "--blockdev", json.dumps(node), "--export", json.dumps(export)]


def _servers(arguments: Sequence[str]) -> list[tuple[str, str]]:
    """Where the servers are that a relay's arguments name: address and port."""
    found: list[tuple[str, str]] = []
    for word in arguments:
        if word.startswith("{"):
            server = json.loads(word).get("server")
            if isinstance(server, dict):
                found.append((str(server.get("host")), str(server.get("port"))))
    return found


def _name(device: Device) -> str:
    """The export name in a device's identifier."""
    return device.backend.split(":", 4)[4]
