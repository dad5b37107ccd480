"""The home host's half of the transport `nbd`: what is its own in storkit.tech.exports."""

from __future__ import annotations

import fcntl
import hashlib
import os
import time
from collections.abc import Callable, Collection, Coroutine, Iterable, Iterator, Sequence
from contextlib import ExitStack, contextmanager, suppress
from dataclasses import replace
from pathlib import Path

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
from storkit.core.model import Client, Credential, Export, Offer, Secret, Volume
from storkit.system.addresses import own_address
from storkit.system.files import make_private
from storkit.system.parallel import for_each_at_once
from storkit.system.sourcefilter import sources
from storkit.system.timeouts import scaled
from storkit.tech.exports import HomeExports
from storkit.tech.files import managed
from storkit.tech.grants import grant_without, grants_of_client, short_digest
from storkit.tech.nbd import wire
from storkit.tech.nbd.names import NbdClientGrant, NbdGrant
from storkit.tech.nbd.server import PSK_USER, NbdSettings, VolumeServer
from storkit.tech.nbd.shared import NbdGrants

TRANSPORT = "nbd"
_READ = 1 << 20
"""Bytes of one request."""
GUARD_TIMEOUT = scaled(30.0)


class NbdExports(HomeExports[NbdGrant]):
    """The NBD exports of one host."""

    kind = NbdGrant
    settings: NbdSettings
    _grants: NbdGrants

    def _store(self) -> NbdGrants:
        return NbdGrants(self.site)

    def _server(self, grant: NbdGrant) -> VolumeServer:
        return VolumeServer(self.site, self.settings, grant, self._grants.save)

    @contextmanager
    def _lock(self, uuids: Iterable[str]) -> Iterator[None]:
        # Each volume has servers of its own. Raises Conflict after 30 s.
        directory = make_private(self.site.run / "nbd")
        deadline = time.monotonic() + GUARD_TIMEOUT
        with ExitStack() as stack:
            for uuid in sorted(set(uuids)):
                stack.enter_context(_guard(directory / f"{short_digest(uuid)}.guard", uuid, deadline))
            yield

    @contextmanager
    def _hold(self, volumes: list[Volume]) -> Iterator[list[Volume]]:
        """Volumes of several managers become this host's; those that nothing comes to be granted of do not stay so."""
        self._drop_stale(volume.uuid for volume in volumes if volume.term)
        claimed = managed.claim(self.site, volumes, "export")
        try:
            yield claimed
        except BaseException:
            with suppress(StorkitError):
                granted = {grant.volume.uuid for grant in self._grants.find(volume.uuid for volume in volumes)[0]}
                managed.give_up(self.site, [volume for volume in claimed if volume.uuid not in granted])
            raise

    def _drop_stale(self, uuids: Iterable[str]) -> None:
        """End the servers of volumes that another manager has by now; what they still hold is never written."""
        for grant in self._grants.stale(uuids):
            server = self._server(grant_without(grant, list(grant.clients)))
            server.stop(kill=True)
            server.drop_others()
            self._grants.drop([grant.volume.uuid])

    def take_over(self, volumes: list[Volume]) -> list[Export]:
        """As TransportVerbs.take_over. What is saved is what the one before had granted, but for who is fenced: these
        exports are told of, once, as lost (not `live`, without an endpoint)."""
        uuids = [volume.uuid for volume in volumes]
        with self._lock(uuids):
            self._drop_stale(uuids)
            # Of those that are not let go yet the others have to know nothing.
            self._grants.dropped.clear()
            problems = managed.inherit(self.site, volumes, self._grants.inherit)
            wanted, damaged = self._grants.find(uuids)
            self._grants.save(wanted)
            self._take(wanted)
            self._give(wanted)
        raise_problems(problems + damaged)
        lost = [
            Export(grant.volume.name, grant.volume.uuid, client, client in grant.writers, TRANSPORT, live=False)
            for grant, client in self._grants.dropped
        ]
        return [*self.find_exports(uuids), *lost]

    def unfence(self, client: str) -> None:
        super().unfence(client)
        if client == self.site.host:
            self._end_stale()

    def _end_stale(self) -> None:
        """End the servers of all that another manager has by now."""
        with self._lock(stale := [grant.volume.uuid for grant in self._grants.stale()]):
            self._drop_stale(stale)

    def _in_turn(self) -> Iterator[tuple[list[NbdGrant], list[StorkitError]]]:
        yield self._grants.alone()  # a shared storage that hangs keeps nothing else from being done
        self._end_stale()
        yield self._grants.several()

    def _settle(self, volumes: Sequence[Volume]) -> None:
        shared = [volume for volume in volumes if volume.term]
        self._drop_stale(volume.uuid for volume in shared)
        granted = {grant.volume.uuid for grant in self._grants.stored(volume.uuid for volume in shared)}
        # A command that was killed has left them this host's, and nobody's.
        idle = [volume for volume in shared if volume.uuid not in granted and volume.manager == self.site.host]
        managed.give_up(self.site, [volume for volume in idle if not managed.used_here(self.site, volume)])

    def _extend(
        self,
        volumes: Sequence[Volume],
        before: dict[str, NbdGrant],
        clients: Sequence[Client],
        problems: list[StorkitError],
    ) -> list[NbdGrant]:
        if any(not client.same_machine for client in clients):
            with collected(problems):
                own_address(self.site.host, self.site.address)
        grants: list[NbdGrant] = []
        for volume in volumes:
            old = before.get(volume.uuid) or NbdGrant(volume)
            granted = dict(old.clients)
            for client in clients:
                known = granted.get(client.name)
                if known is None or known.same_machine != client.same_machine:
                    nonce = known.nonce if known else os.urandom(4).hex()
                    granted[client.name] = NbdClientGrant(client.same_machine, nonce=nonce)
                if from_ := [] if client.same_machine else sources(client.address, client.told):
                    granted[client.name] = replace(granted[client.name], sources=from_)
            grants.append(NbdGrant(volume, granted, old.writers, old.epoch, old.generation))
            with collected(problems):
                self._server(grants[-1]).check()
        return grants

    def _in_use(self, grant: NbdGrant) -> bool:
        return self._server(grant).daemon.running()

    def _refuse_held(self, grants: Sequence[NbdGrant], writers: Collection[str]) -> Iterable[StorkitError]:
        problems: list[StorkitError] = []
        for grant in grants:
            with collected(problems):
                self._server(grant).refuse_held()
        return problems or super()._refuse_held(grants, writers)

    def _lose(self, grant: NbdGrant, losers: Sequence[str]) -> None:
        # A device that still holds writes connects again by itself: it must never find, under the name that it knows,
        # what a later grant lets write.
        if self.settings.attach == "kernel":
            for client in losers:
                grant.clients[client].nonce = os.urandom(4).hex()

    def _take(self, grants: Sequence[NbdGrant], force: bool = False) -> None:
        servers = [self._server(grant) for grant in grants]
        for_each_at_once(VolumeServer.drop_others, servers)
        serving = [server for server in servers if server.grant.clients and server.serves()]
        failed = _at_once(VolumeServer.take, serving)
        if not force:
            raise_problems([error for _, error in failed])
        for_each_at_once(lambda server: server.stop(kill=True), [server for server, _ in failed])
        for_each_at_once(
            lambda server: server.stop(kill=force), [server for server in servers if not server.grant.clients]
        )

    def _withdraw(self, grants: Sequence[NbdGrant], clients: Sequence[str], *, force: bool = False) -> None:
        super()._withdraw(grants, clients, force=force)
        if force:  # A server that hung was killed: its other clients get it back.
            left = [grant_without(grant, clients) for grant in grants]
            self._give([grant for grant in left if grant.clients and not self._server(grant).daemon.running()])

    def _give(self, grants: Sequence[NbdGrant]) -> None:
        servers = [self._server(grant) for grant in grants]
        for_each_at_once(VolumeServer.start, servers)
        raise_problems([error for _, error in _at_once(VolumeServer.give, servers)])
        for_each_at_once(VolumeServer.start_fronts, servers)

    def _enlarge(self, grants: Sequence[NbdGrant]) -> None:
        # An export keeps the size that it began with: it is ended, and `_give` makes it anew under its name. QEMU and
        # the kernel's devices connect again, and repeat what had no answer yet.
        servers = [self._server(grant) for grant in grants]
        for_each_at_once(VolumeServer.start, servers)
        raise_problems([error for _, error in _at_once(VolumeServer.enlarge, servers)])

    def _observe(self, grants: Sequence[NbdGrant]) -> list[Export]:
        return [export for grant in grants for export in self._observed(grant)]

    def _observed(self, grant: NbdGrant) -> list[Export]:
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
            exports.append(Export(volume.name, volume.uuid, client, writable, TRANSPORT, live, where, grant.generation))
        return exports

    def _offer(self, grant: NbdGrant, client: str) -> Offer:
        server, granted, volume = self._server(grant), grant.clients[client], grant.volume
        name = grant.export_name(client)
        try:
            info = wire.ask(str(server.socket), name)
        except (ServiceUnreachable, NotFound) as error:
            raise ServiceUnreachable(error.message, f"storkit host restore {self.site.host}") from error
        common = (volume.name, volume.uuid, info.size, client, TRANSPORT, name, info.description, info.writable)
        if granted.same_machine:
            return Offer(*common, socket=str(server.socket))
        credential: Credential | None = None
        if not self.settings.plain_tcp:
            x509 = self.settings.tls == "x509"
            credential = Credential("x509") if x509 else Credential("psk", PSK_USER, Secret(server.key(client)))
        return Offer(*common, server=self.site.address, port=granted.port, credential=credential)

    def digests(self, volume: Volume, client: str, offset: int, length: int, block: int) -> list[str]:
        """As TransportVerbs.digests: read by the client's own export, past its front."""
        grants, problems = self._grants.find([volume.uuid])
        raise_problems(problems)
        (grant,) = grants_of_client(grants, [volume], client)
        found: list[str] = []
        with wire.NbdConnection(str(self._server(grant).socket)) as connection:
            end = min(offset + length, connection.go(grant.export_name(client)).size)
            together = max(1, _READ // block) * block
            for start in range(offset, end, together):
                size = min(together, end - start)
                pieces = (
                    connection.read(at, min(_READ, start + size - at)) for at in range(start, start + size, _READ)
                )
                data = b"".join(pieces)
                found += [hashlib.sha256(data[at : at + block]).hexdigest() for at in range(0, size, block)]
                self.site.progress(min(1.0, (start + size - offset) / length), f"reading {volume.name}")
        return found

    def _still_there(self, grants: Sequence[NbdGrant], client: str) -> Iterable[StorkitError]:
        for grant in grants:
            yield from self._still_exported(grant, client)

    def _still_exported(self, grant: NbdGrant, client: str) -> Iterable[StorkitError]:
        """Yield an error for each export that `client` still has. A server that runs must answer."""
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


def _at_once(
    act: Callable[[VolumeServer], Coroutine[None, None, None]], servers: Sequence[VolumeServer]
) -> list[tuple[VolumeServer, StorkitError]]:
    """Let all these servers be told at the same time. Those that failed, and why."""
    import asyncio

    async def together() -> list[BaseException | None]:
        return await asyncio.gather(*map(act, servers), return_exceptions=True)

    failed: list[tuple[VolumeServer, StorkitError]] = []
    for server, result in zip(servers, asyncio.run(together()) if servers else [], strict=True):
        if isinstance(result, StorkitError):
            failed.append((server, result))
        elif result is not None:
            raise result
    return failed


@contextmanager
def _guard(path: Path, uuid: str, deadline: float) -> Iterator[None]:
    while True:
        descriptor = os.open(path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
        try:
            _lock(descriptor, uuid, deadline)
            try:
                current = path.stat().st_ino == os.fstat(descriptor).st_ino
            except FileNotFoundError:
                current = False
            if current:
                try:
                    yield
                finally:
                    path.unlink(missing_ok=True)
                return
            # The one who held it removed the file: lock the one that took its place.
        finally:
            os.close(descriptor)


def _lock(descriptor: int, uuid: str, deadline: float) -> None:
    while True:
        try:
            return fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            if time.monotonic() > deadline:
                raise Conflict(
                    f"another command is changing the exports of volume {uuid}",
                    "wait until it has ended, then try again",
                ) from None
            time.sleep(0.01)
