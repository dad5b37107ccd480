"""The home host's half: what storkit.tech.exports asks of a transport, by starting and ending processes."""

from __future__ import annotations

import os
from collections.abc import Iterable, Iterator, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import replace
from pathlib import Path

from storkit.core.errors import Conflict, ServiceUnreachable, StorkitError, Unsafe, Unsupported, collected
from storkit.core.model import Client, Credential, Export, Offer, Secret, Volume
from storkit.system import locks
from storkit.system.addresses import own_address
from storkit.system.files import make_private
from storkit.system.parallel import for_each_at_once
from storkit.system.qemu.storagedaemon import check_socket_path
from storkit.system.timeouts import scaled
from storkit.tech.exports import HomeExports
from storkit.tech.grants import short_digest
from storkit_nbdkit.server import PSK_USER, ClientServer, NbdkitClient, NbdkitGrant, all_of

GUARD_TIMEOUT = scaled(30.0)


class NbdkitExports(HomeExports[NbdkitGrant]):
    """The exports of one host."""

    kind = NbdkitGrant

    def _servers(self, grant: NbdkitGrant) -> list[ClientServer]:
        return [ClientServer(self.site, grant, client) for client in sorted(grant.clients)]

    @contextmanager
    def _lock(self, uuids: Iterable[str]) -> Iterator[None]:
        directory = make_private(self.site.run / "nbdkit")
        with ExitStack() as stack:
            for uuid in sorted(set(uuids)):
                path, who = directory / f"{short_digest(uuid)}.guard", f"process {os.getpid()}"
                lock = locks.acquire(path, f"the exports of volume {uuid}", holder=who, wait=GUARD_TIMEOUT)
                stack.callback(lock.release, remove=True)
            yield

    def _extend(
        self,
        volumes: Sequence[Volume],
        before: dict[str, NbdkitGrant],
        clients: Sequence[Client],
        problems: list[StorkitError],
    ) -> list[NbdkitGrant]:
        if any(not client.same_machine for client in clients):
            with collected(problems):
                own_address(self.site.host, self.site.address)
        grants: list[NbdkitGrant] = []
        for volume in volumes:
            problems += self._refused(volume)
            old = before.get(volume.uuid, NbdkitGrant(volume, instance=os.urandom(8).hex()))
            granted = dict(old.clients)
            for client in clients:
                known = granted.get(client.name) or NbdkitClient(client.same_machine, os.urandom(4).hex())
                granted[client.name] = replace(known, same_machine=client.same_machine)
            grants.append(replace(old, volume=volume, clients=granted))
            for server in self._servers(grants[-1]):
                if server.granted.same_machine:
                    with collected(problems):
                        check_socket_path(server.socket)
        return grants

    def _refused(self, volume: Volume) -> Iterator[StorkitError]:
        if (volume.format or "raw") != "raw":
            message = f"volume {volume.name} has format {volume.format!r}, and nbdkit serves bytes as they are"
            yield Unsupported(message, "give its pool the transport nbd")
        elif not Path(volume.path).exists():
            yield Conflict(f"volume {volume.name}: {volume.path} does not exist", "storkit volume list")

    def _in_use(self, grant: NbdkitGrant) -> bool:
        return any(server.process.running() for server in all_of(self.site, grant))

    def _take(self, grants: Sequence[NbdkitGrant], force: bool = False) -> None:
        gone: list[ClientServer] = []
        beyond: list[ClientServer] = []
        for grant in grants:
            for server in all_of(self.site, grant):
                if not server.client:
                    gone.append(server)
                elif server.client not in grant.writers and server.process.running() and server.writes() is not False:
                    beyond.append(server)
        for_each_at_once(ClientServer.stop, beyond)
        for_each_at_once(ClientServer.remove, gone)

    def _give(self, grants: Sequence[NbdkitGrant]) -> None:
        ports = range(self.settings.port_first, self.settings.port_last + 1)

        def give(grant: NbdkitGrant) -> None:
            moved = [server.start(ports) for server in self._servers(grant)]
            if any(moved):
                self._grants.save([grant])

        for_each_at_once(give, grants)

    def _enlarge(self, grants: Sequence[NbdkitGrant]) -> None:
        # nbdkit tells a client the size when it connects. `_give` starts what does not run with the new one.
        servers = [server for grant in grants for server in self._servers(grant) if not server.is_right()]
        for_each_at_once(ClientServer.stop, servers)

    def _observe(self, grants: Sequence[NbdkitGrant]) -> list[Export]:
        return [self._observed(server) for grant in grants for server in self._servers(grant)]

    def _observed(self, server: ClientServer) -> Export:
        """A process has the right that it was started with, as the kernel has its arguments."""
        volume, granted, writes = server.volume, server.granted, server.writes()
        where = str(server.socket) if granted.same_machine else f"{self.site.address}:{granted.port}"
        may = server.client in server.grant.writers if writes is None else writes
        return Export(
            volume.name, volume.uuid, server.client, may, self.kind.transport, writes is not None, where,
            server.grant.generation,
        )  # fmt: skip

    def _offer(self, grant: NbdkitGrant, client: str) -> Offer:
        server = ClientServer(self.site, grant, client)
        volume, writes = grant.volume, server.writes()
        if writes is None:
            raise ServiceUnreachable(f"{server.process.what} does not run", f"storkit host restore {self.site.host}")
        common = (
            volume.name, volume.uuid, volume.size, client, self.kind.transport, server.name, grant.identity, writes,
        )  # fmt: skip
        if server.granted.same_machine:
            return Offer(*common, socket=str(server.socket))
        credential = Credential("psk", PSK_USER, Secret(server.secret()))
        return Offer(*common, server=self.site.address, port=server.granted.port, credential=credential)

    def _still_there(self, grants: Sequence[NbdkitGrant], client: str) -> Iterable[StorkitError]:
        for grant in grants:
            if ClientServer(self.site, grant, client).process.running():
                yield Unsafe(f"volume {grant.volume.name} is still exported to {client}", f"storkit fence {client}")
