"""The transport `nbd`: volumes over the Network Block Device protocol, served in user space.

It needs no kernel module and no root: QEMU opens the export itself, and an attachment is a `network` disk source. Where
the inventory says `attach = "kernel"`, hosts have block devices instead (tech/nbd/kernel.py). At the volume's home
host one qemu-storage-daemon per volume is the only process that has the image open; every client host has an export of
its own there, and the server refuses writes on an export that may not. Hosts on one machine use its Unix socket, others
TLS with a key (or certificate) that opens their own export and nothing else.

Identity on the wire is the export's description, `storkit:UUID:INSTANCE`: INSTANCE is drawn when a server starts, so
the servers of two copies of one disk can never be taken for one.
"""

from __future__ import annotations

import secrets
from collections.abc import Iterable
from dataclasses import replace
from pathlib import Path
from typing import ClassVar

from storkit.core.backend import Client, Needs, Transport
from storkit.core.errors import (
    Conflict,
    NotFound,
    ServiceUnreachable,
    StorkitError,
    TimedOut,
    Unsafe,
    collected,
    raise_problems,
)
from storkit.core.model import (
    Attachment,
    Credential,
    Door,
    Evidence,
    Export,
    Finding,
    Offer,
    Secret,
    Volume,
    check_name,
)
from storkit.system import modules
from storkit.system.addresses import own_address
from storkit.system.parallel import every
from storkit.system.qemu.storagedaemon import PACKAGE, PROGRAM
from storkit.system.sourcefilter import sources
from storkit.tech.grants import of_client, refused_writers
from storkit.tech.nbd import wire
from storkit.tech.nbd.attach import X509_CLIENT_FILES, NbdAttachments
from storkit.tech.nbd.names import NbdClientGrant, NbdGrant, NbdGrantStore
from storkit.tech.nbd.server import (
    PSK_USER,
    X509_SERVER_FILES,
    NbdSettings,
    VolumeServer,
    check_x509,
)


class Nbd(Transport):
    """NBD, served by QEMU's storage daemon."""

    name = "nbd"
    claims = True
    needs = Needs(tools={PROGRAM: PACKAGE, "qemu-nbd": "qemu-utils", "qemu-io": "qemu-utils"})
    Settings: ClassVar[type] = NbdSettings

    def ready(self, serves: bool = False, attaches: bool = False) -> list[Finding]:
        problems: list[StorkitError] = []
        if self.settings.tls == "x509" and not self.settings.plain_tcp:
            for used, files in ((serves, X509_SERVER_FILES), (attaches, X509_CLIENT_FILES)):
                if used:
                    with collected(problems):
                        check_x509(Path(self.settings.tls_dir), files)
        found = [Finding(each.message, each.hint) for each in problems]
        if self.settings.attach == "kernel" and not modules.there("nbd"):
            hint = 'apt install linux-image-amd64; or set attach = "qemu" for nbd'
            found.append(Finding("this kernel has no module nbd", hint))
        return found

    def doors(self) -> list[Door]:
        return [Door(self.site.address, self.settings.port_first, self.settings.port_last)]

    @property
    def _grants(self) -> NbdGrantStore:
        return NbdGrantStore(self.site)

    def _server(self, grant: NbdGrant) -> VolumeServer:
        return VolumeServer(self.site, self.settings, self._grants, grant)

    # At the volume's home host.

    def export(self, volumes: list[Volume], clients: list[Client]) -> list[Export]:
        names = {client.name for client in clients}
        with self._grants.guard(volume.uuid for volume in volumes):
            grants = self._extended(volumes, clients)
            self._grants.admit(grants)
            self._grants.save(grants)
            # A `fence` that began meanwhile has either read these grants, and waits, or its mark is seen here.
            if refused := self._grants.refused(names):
                self._withdraw(grants, [name for name in names if self._grants.fenced(name)])
                raise_problems(refused)
            self._serve(grants)
        return [export for export in self.find_exports([volume.uuid for volume in volumes]) if export.client in names]

    def _extended(self, volumes: list[Volume], clients: list[Client]) -> list[NbdGrant]:
        """The grants that the volumes had, with `clients` added, after everything that can be refused was."""
        found, problems = self._grants.find(volume.uuid for volume in volumes)
        before = {grant.volume.uuid: grant for grant in found}
        problems += self._grants.refused(client.name for client in clients)
        if any(not client.same_machine for client in clients):
            with collected(problems):
                own_address(self.site.host, self.site.address)
        grants: list[NbdGrant] = []
        for volume in volumes:
            check_name("volume", volume.name)
            old = before.get(volume.uuid, NbdGrant(volume))
            granted = dict(old.clients)
            for client in clients:
                known = granted.get(client.name)
                if known is None or known.same_machine != client.same_machine:
                    nonce = known.nonce if known else secrets.token_hex(4)
                    granted[client.name] = NbdClientGrant(client.same_machine, nonce=nonce)
                if from_ := [] if client.same_machine else sources(client.address, client.told):
                    granted[client.name] = replace(granted[client.name], sources=from_)
            if _image(volume) != _image(old.volume) and self._server(old).daemon.running():
                problems.append(
                    Conflict(
                        f"volume {volume.name} is served as it was before it changed", f"storkit detach {volume.name}"
                    )
                )
            grants.append(NbdGrant(volume, granted, old.writers, old.epoch))
            try:
                self._server(grants[-1]).check()
            except StorkitError as error:
                problems.append(error)
        raise_problems(problems)
        return grants

    def _serve(self, grants: list[NbdGrant]) -> None:
        """Bring the servers of these volumes to what was granted, starting those that do not run."""
        servers = [self._server(grant) for grant in grants]
        every(VolumeServer.start, servers)
        _reconcile(servers)
        every(VolumeServer.start_fronts, servers)

    def unexport(self, volumes: list[Volume], clients: list[str]) -> None:
        uuids = [volume.uuid for volume in volumes]
        with self._grants.guard(uuids):
            grants, problems = self._grants.find(uuids)
            raise_problems(problems)
            self._grants.admit(grants)
            self._withdraw(grants, clients)
            for uuid in set(uuids) - {grant.volume.uuid for grant in grants}:
                self._grants.forget([uuid])

    def _withdraw(self, grants: list[NbdGrant], clients: list[str], *, force: bool = False) -> None:
        """Take these clients' exports away. The grant is forgotten last: killed before, it names what is left.

        With `force` a server that hangs is killed, and started again for its other clients.
        """
        servers: list[VolumeServer] = []
        for grant in grants:
            kept = {name: granted for name, granted in grant.clients.items() if name not in clients}
            writers = [writer for writer in grant.writers if writer in kept]
            servers.append(self._server(NbdGrant(grant.volume, kept, writers, grant.epoch)))
        staying = [server for server in servers if server.grant.clients]
        every(lambda server: server.drop(clients), servers)
        running = [server for server in staying if server.daemon.running()]
        try:
            _reconcile(running)
        except StorkitError:
            if not force:
                raise
            every(lambda server: server.stop(kill=True), running)
        every(lambda server: server.stop(kill=force), [server for server in servers if not server.grant.clients])
        for server in servers:
            if server.grant.clients:
                self._grants.save([server.grant])
            else:
                self._grants.forget([server.volume.uuid])
        if force:
            self._serve([server.grant for server in staying if not server.daemon.running()])

    def find_exports(self, volumes: list[str] | None = None) -> list[Export]:
        grants, problems = self._grants.find(volumes)
        raise_problems(problems)
        return [export for grant in grants for export in self._observe(grant)]

    def _observe(self, grant: NbdGrant) -> list[Export]:
        """A volume's exports as its server states them on the wire."""
        server = self._server(grant)
        stated = _stated(server)
        exports = []
        for client, granted in sorted(grant.clients.items()):
            info = stated.get(client)
            live = info is not None and (granted.same_machine or server.front_runs(client))
            writable = info.writable if info is not None else client in grant.writers
            where = str(server.socket) if granted.same_machine else f"{self.site.address}:{granted.port}"
            volume = grant.volume
            exports.append(Export(volume.name, volume.uuid, client, writable, self.name, live, where))
        return exports

    def offers(self, volumes: list[Volume], client: str) -> list[Offer]:
        grants, problems = self._grants.find(volume.uuid for volume in volumes)
        raise_problems(problems)
        return [self._offer(grant, client) for grant in of_client(grants, volumes, client)]

    def _offer(self, grant: NbdGrant, client: str) -> Offer:
        server, granted, volume = self._server(grant), grant.clients[client], grant.volume
        name = grant.export_name(client)
        try:
            info = wire.ask(str(server.socket), name)
        except (ServiceUnreachable, NotFound) as error:
            raise ServiceUnreachable(error.message, f"storkit host restore {self.site.host}") from error
        common = (volume.name, volume.uuid, info.size, client, self.name, name, info.description, info.writable)
        if granted.same_machine:
            return Offer(*common, socket=str(server.socket))
        credential: Credential | None = None
        if not self.settings.plain_tcp:
            x509 = self.settings.tls == "x509"
            credential = Credential("x509") if x509 else Credential("psk", PSK_USER, Secret(server.key(client)))
        return Offer(*common, server=self.site.address, port=granted.port, credential=credential)

    def set_writers(self, volumes: list[Volume], hosts: list[str]) -> None:
        with self._grants.guard(volume.uuid for volume in volumes):
            grants, problems = self._grants.find(volume.uuid for volume in volumes)
            raise_problems(problems)
            self._grants.admit(grants)
            found = {grant.volume.uuid: grant for grant in grants}
            for volume in volumes:
                grant = found.get(volume.uuid, NbdGrant(volume))
                problems.extend(refused_writers(volume, grant, hosts))
                if self.settings.attach == "kernel":
                    _rename(grant, set(grant.writers) - set(hosts))
                grant.writers = sorted(set(hosts))
            raise_problems(problems)
            self._grants.save(grants)
            self._serve(grants)

    def fence(self, client: str) -> list[Export]:
        # The mark comes first: from then on no other command lets the host in.
        self._grants.fence(client)
        grants, problems = self._grants.find()
        uuids = [grant.volume.uuid for grant in grants if client in grant.clients]
        with self._grants.guard(uuids):
            grants = [grant for grant in self._grants.find(uuids)[0] if client in grant.clients]
            had = [export for grant in grants for export in self._observe(grant) if export.client == client]
            every(lambda grant: self._withdraw([grant], [client], force=True), grants)
            for grant in grants:
                problems.extend(self._still_exported(grant, client))
        raise_problems(problems)
        return had

    def _still_exported(self, grant: NbdGrant, client: str) -> Iterable[StorkitError]:
        """What disproves that `client` is cut off: the server is asked, and must answer if it runs."""
        server = self._server(grant)
        exported = server.front_runs(client)
        if server.daemon.running():
            try:
                with wire.NbdConnection(str(server.socket)) as connection:
                    exported = exported or grant.export_name(client) in connection.names()
            except StorkitError as error:
                yield error
        if exported:
            yield Unsafe(f"volume {grant.volume.name} is still exported to {client}", f"storkit fence {client}")

    def unfence(self, client: str) -> None:
        self._grants.unfence(client)

    def restore(self) -> list[Export]:
        """Start again, with the same rights, all servers of this host that have died, and make the stable paths of its
        attachments again: after a crash or a reboot."""
        uuids = [grant.volume.uuid for grant in self._grants.find()[0]]
        with self._grants.guard(uuids):
            grants, problems = self._grants.find(uuids)
            self._grants.drop_fenced(grants)
            with collected(problems):
                every(lambda grant: self._serve([grant]), [grant for grant in grants if grant.clients])
        # Attachments on the server's own machine need it.
        with collected(problems):
            NbdAttachments(self.site, self.settings).restore()
        raise_problems(problems)
        return self.find_exports()

    # At the client.

    def attach(self, offers: list[Offer]) -> list[Attachment]:
        return NbdAttachments(self.site, self.settings).attach(offers)

    def claim(self, volumes: list[Volume], writers: list[str]) -> None:
        NbdAttachments(self.site, self.settings).claim(volumes)

    def detach(self, volumes: list[Volume]) -> None:
        NbdAttachments(self.site, self.settings).detach(volumes)

    def find_attachments(self, volumes: list[str] | None = None) -> list[Attachment]:
        return NbdAttachments(self.site, self.settings).find(volumes)

    def evidence(self, volumes: list[Volume], offsets: list[int] | None = None) -> list[Evidence]:
        return NbdAttachments(self.site, self.settings).evidence(volumes, offsets)


def _image(volume: Volume) -> tuple[str, str, int, str]:
    """What a server depends on."""
    return volume.path, volume.format, volume.size, volume.kind


def _rename(grant: NbdGrant, losers: Iterable[str]) -> None:
    """Give hosts that lose the right to write exports of another name. A device that still holds writes connects again
    by itself: it must never find what a later grant lets write."""
    for client in losers:
        grant.clients[client].nonce = secrets.token_hex(4)


def _stated(server: VolumeServer) -> dict[str, wire.ExportInfo]:
    """What a volume's server says of each granted client's export; nothing if it does not run."""
    stated: dict[str, wire.ExportInfo] = {}
    try:
        with wire.NbdConnection(str(server.socket)) as connection:
            for client in server.grant.clients:
                try:
                    stated[client] = connection.info(server.grant.export_name(client))
                except NotFound:
                    continue
    except (ServiceUnreachable, TimedOut):
        return {}
    return stated


def _reconcile(servers: list[VolumeServer]) -> None:
    """Bring all these servers to their grants at the same time; all that failed is raised at the end."""
    import asyncio

    async def together() -> list[BaseException | None]:
        return await asyncio.gather(*(server.reconcile() for server in servers), return_exceptions=True)

    failed = [result for result in asyncio.run(together()) if result is not None] if servers else []
    for failure in failed:
        if not isinstance(failure, StorkitError):
            raise failure
    raise_problems([failure for failure in failed if isinstance(failure, StorkitError)])
