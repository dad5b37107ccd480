"""The home host's half of the transport `nfs`: what is its own in storkit.tech.exports."""

from __future__ import annotations

import os
from collections.abc import Iterable, Iterator, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import replace
from ipaddress import ip_address
from pathlib import Path
from uuid import uuid4

from storkit.core.backend import Site
from storkit.core.errors import StorkitError, Unsafe, Unsupported, collected
from storkit.core.model import Client, Export, Offer, Volume, guest_of
from storkit.system import locks
from storkit.system.addresses import is_number, own_address
from storkit.system.files import make_private
from storkit.system.timeouts import scaled
from storkit.tech.exports import HomeExports
from storkit.tech.files.sidecar import VolumeDirectory
from storkit.tech.nfs import attach, layout, rules
from storkit.tech.nfs import server as nfs_server
from storkit.tech.nfs.attach import Mount
from storkit.tech.nfs.names import EXPORTS, NfsClientGrant, NfsGrant, NfsSettings, pool_of, resolve
from storkit.tech.nfs.server import Entry

TRANSPORT = "nfs"
LOOPBACK = "127.0.0.1"
_LOCK_TIMEOUT = scaled(60.0)


class NfsExports(HomeExports[NfsGrant]):
    """The exports of one home host."""

    kind = NfsGrant
    writable_kinds = ("disk", "tree")
    settings: NfsSettings

    def __init__(self, site: Site, settings: NfsSettings) -> None:
        super().__init__(site, settings)
        self._mounts: dict[tuple[Path, int], Mount] = {}

    @contextmanager
    def _lock(self, uuids: Iterable[str]) -> Iterator[None]:
        # All volumes' exports are one table.
        path = make_private(self.site.run / "nfs") / "exports.lock"
        lock = locks.acquire(path, "the NFS export table", holder=f"storkit (pid {os.getpid()})", wait=_LOCK_TIMEOUT)
        try:
            yield
        finally:
            lock.release(remove=True)

    @contextmanager
    def _hold(self, volumes: list[Volume]) -> Iterator[list[Volume]]:
        with ExitStack() as stack:
            for pool in sorted({pool_of(volume) for volume in volumes}):
                if (pool / EXPORTS).is_dir():
                    stack.enter_context(VolumeDirectory(pool).locked("export over NFS"))
            for volume in volumes:
                # A copy or a resize holds it.
                use = locks.use_lock(self.site.run, volume.uuid)
                stack.callback(locks.acquire(use, f"volume {volume.name}").release, remove=True)
            yield volumes

    def _extend(
        self,
        volumes: Sequence[Volume],
        before: dict[str, NfsGrant],
        clients: Sequence[Client],
        problems: list[StorkitError],
    ) -> list[NfsGrant]:
        addresses: dict[str, list[str]] = {}
        for client in clients:
            with collected(problems):
                addresses[client.name] = _granted(client, before.values()) or self._addresses(client)
        problems += rules.shared(addresses, self._grants.find()[0])
        grants: list[NfsGrant] = []
        for volume in volumes:
            problems += layout.check(volume, self._mount(pool_of(volume)).type)
            old = before.get(volume.uuid, NfsGrant(volume))
            granted = dict(old.clients)
            problems += rules.clients(volume, addresses, granted)
            if volume.kind == "tree":
                problems += rules.tree(volume, self.settings, self._managed(old))
            for client in clients:
                where = addresses.get(client.name, [])
                known = granted.get(client.name)
                if known is None or known.addresses != where:
                    granted[client.name] = NfsClientGrant(where, uuid4().hex, client.same_machine)
            instance = old.instance or os.urandom(4).hex()
            grants.append(NfsGrant(volume, instance, granted, old.writers, old.epoch, old.generation))
        problems += self._exposed(grants)
        return grants

    def _addresses(self, client: Client) -> list[str]:
        """Where a client comes from. The home host's own guests come through a mount of its own server."""
        if client.same_machine:
            own = resolve(client.name, self.site.address) if self.site.address else []
            return list(dict.fromkeys([*own, LOOPBACK, "::1"]))
        if not client.address:
            message = f"NFS tells hosts apart by their addresses, and host {client.name} has none"
            raise Unsupported(message, f"give host {client.name} the address it comes from in the inventory")
        own_address(self.site.host, self.site.address)
        found = resolve(client.name, client.address)
        if not is_number(client.address) and all(ip_address(each).is_loopback for each in found):
            message = f"{client.address}, the address of host {client.name}, is {found[0]} on host {self.site.host}"
            hint = f'in the inventory, at host {client.name}: address = "NUMBER", one of those it has: ip -br address'
            raise Unsupported(message, hint)
        return found

    def _exposed(self, grants: Iterable[NfsGrant]) -> Iterable[StorkitError]:
        """The pools that hosts can write by exports which are not storkit's: no right would mean anything there."""
        for pool in sorted({grant.pool for grant in grants if self._managed(grant)}):
            for entry in nfs_server.foreign(pool):
                message = f"{entry.path} is exported to {entry.client} for writing, and pool directory {pool} with it"
                hint = f"take that out first: grep -rn {entry.path} /etc/exports /etc/exports.d; exportfs -u"
                yield Unsafe(message, hint)

    def _mount(self, pool: Path) -> Mount:
        """The file system that a pool's directory is on; asked once, because many volumes are in one pool."""
        key = pool, pool.stat().st_dev if pool.exists() else 0
        if key not in self._mounts:
            self._mounts[key] = attach.mount_of(pool, attach.mounts())
        return self._mounts[key]

    def _managed(self, grant: NfsGrant) -> bool:
        """Whether this host is the server of the pool, or a client of it as others are."""
        return not self._mount(grant.pool).type.startswith("nfs")

    def _take(self, grants: Sequence[NfsGrant], force: bool = False) -> None:
        managed = [grant for grant in grants if self._managed(grant)]
        if not managed:
            return
        paths, there = self._table(managed)
        wanted = {_key(entry): entry for grant in managed for entry in self._entries(grant)}
        gone = [entry for entry in there if _key(entry) not in wanted]
        kept = [
            replace(wanted[_key(entry)], writable=entry.writable and wanted[_key(entry)].writable)
            for entry in there
            if _key(entry) in wanted
        ]
        nfs_server.keep(self.site.state, self._boot(managed, kept), self.settings)
        nfs_server.apply(gone, nfs_server.changed(there, kept, self.settings), self.settings)
        nfs_server.settle(paths - {entry.path for entry in kept if entry.writable})

    def _give(self, grants: Sequence[NfsGrant]) -> None:
        managed = [grant for grant in grants if self._managed(grant)]
        for grant in grants:
            for client in grant.clients:
                layout.make(grant, client, self.settings, grant in managed)
        if managed:
            nfs_server.start()
            _, there = self._table(managed)
            wanted = [entry for grant in managed for entry in self._entries(grant)]
            nfs_server.keep(self.site.state, self._boot(managed, wanted), self.settings)
            nfs_server.apply([], nfs_server.changed(there, wanted, self.settings), self.settings)

    def _table(self, grants: Iterable[NfsGrant]) -> tuple[set[str], list[Entry]]:
        """Everything that may be exported of these volumes, and what the server's table has of it."""
        paths = {str(path) for grant in grants for path in layout.places(grant)}
        return paths, [entry for entry in nfs_server.table() if entry.path in paths]

    def _clear(self, grants: Sequence[NfsGrant], left: Sequence[NfsGrant], force: bool) -> None:
        gone = {
            at: name for old, new in zip(grants, left, strict=True) for name, granted in old.clients.items()
            if name not in new.clients for at in granted.addresses
        }  # fmt: skip
        if force:
            nfs_server.expire(self._alone(gone), _inodes(grants))
        # A guest leaves its root as a machine that loses its power does: nothing else says that its files are free.
        nfs_server.expire({at for at, name in gone.items() if guest_of(name)})
        for grant in left:
            kept = {grant.path(client) for client in grant.clients}
            layout.remove(set(layout.left(grant.pool, grant.volume.uuid)) - kept)
            if not grant.clients:
                layout.take_back(grant.volume)

    def _alone(self, addresses: dict[str, str]) -> set[str]:
        """Those of these addresses, of the clients they are mapped to, at which no other client of this host is."""
        clients = set(addresses.values())
        theirs = {
            at for grant in self._grants.find()[0] for name, granted in grant.clients.items() if name not in clients
            for at in granted.addresses
        }  # fmt: skip
        return addresses.keys() - theirs

    def _entries(self, grant: NfsGrant) -> list[Entry]:
        return [
            Entry(
                str(grant.path(client)), nfs_server.network(address), client in grant.writers, granted.nonce,
                tree=grant.volume.kind == "tree",
            )
            for client, granted in grant.clients.items()
            for address in granted.addresses
        ]  # fmt: skip

    def _boot(self, grants: list[NfsGrant], entries: list[Entry]) -> list[Entry]:
        """What is to be exported at boot: `entries` of these volumes, and those of all others."""
        now = {grant.volume.uuid for grant in grants}
        found = [self._grants.without_fenced(grant) for grant in self._grants.find()[0]]
        others = [grant for grant in found if grant.volume.uuid not in now and self._managed(grant)]
        return [*entries, *(entry for grant in others for entry in self._entries(grant))]

    def _observe(self, grants: Sequence[NfsGrant]) -> list[Export]:
        table = {_key(entry): entry.writable for entry in nfs_server.table()}
        runs = nfs_server.runs()
        return [export for grant in grants for export in self._observed(grant, table, runs)]

    def _observed(self, grant: NfsGrant, table: dict[tuple[str, str], bool], runs: bool) -> Iterable[Export]:
        """A volume's exports as the server's table has them."""
        managed = self._managed(grant)
        for client, granted in sorted(grant.clients.items()):
            path = str(grant.path(client))
            has = [table.get((path, nfs_server.network(address))) for address in granted.addresses]
            live = runs and None not in has if managed else grant.path(client).is_dir()
            writable = any(has) if managed and live else client in grant.writers
            volume = grant.volume
            where = attach.source(*self._place(grant, client))
            yield Export(volume.name, volume.uuid, client, writable, TRANSPORT, live, where, grant.generation)

    def _place(self, grant: NfsGrant, client: str) -> tuple[str, str]:
        """Server and path that a client mounts."""
        path = grant.path(client)
        mount = self._mount(grant.pool)
        if not mount.type.startswith("nfs"):
            return self.site.address or LOOPBACK, str(path)
        server, _, top = mount.source.rpartition(":/")
        return server.strip("[]"), str(Path(f"/{top}") / path.relative_to(mount.point))

    def _offer(self, grant: NfsGrant, client: str) -> Offer:
        volume = grant.volume
        server, path = self._place(grant, client)
        options = {"file": Path(volume.path).name, "format": volume.format}
        if len(list(grant.path(client).glob("*"))) > 1:
            options["backing"] = "yes"
        return Offer(
            volume.name, volume.uuid, volume.size, client, TRANSPORT, path, layout.identity(grant),
            client in grant.writers, server=server, port=attach.PORT, options=options,
        )  # fmt: skip

    def _refuse_writers(self, grants: Sequence[NfsGrant]) -> Iterable[StorkitError]:
        for grant in grants:
            yield from self._unenforced(grant)
        yield from self._exposed(grants)

    def _unenforced(self, grant: NfsGrant) -> Iterable[StorkitError]:
        """Why nobody would keep other hosts from writing this volume."""
        name = grant.volume.name
        if grant.volume.path and not self._managed(grant) and self.settings.enforce != "locks":
            hint = 'if QEMU\'s image locks are enough for you: enforce = "locks" in [transports.nfs]'
            yield Unsafe(f"volume {name} is on a server that storkit does not manage: any host could write it", hint)
        if self.settings.version == "3" and not self.settings.v3_writers:
            hint = "use version 4.2; or v3_writers = true in [transports.nfs], once you have read docs/nfs.md"
            yield Unsafe(f"volume {name} would be written over NFS 3, which has no opens and no sure locks", hint)

    def _still_there(self, grants: Sequence[NfsGrant], client: str) -> Iterable[StorkitError]:
        """What the server's tables still have of a client, and the state that it holds."""
        hint = f"storkit fence {client}"
        paths = {str(grant.path(client)) for grant in grants}
        for path in {entry.path for entry in [*nfs_server.table(), *nfs_server.in_kernel()]} & paths:
            yield Unsafe(f"{path} is still exported to {client}", hint)
        addresses = self._alone({at: client for grant in grants for at in grant.clients[client].addresses})
        inodes = _inodes(grants)
        for holder in nfs_server.clients():
            if holder.address in addresses and holder.files & inodes:
                yield Unsafe(f"host {client} still holds files of volumes open on the NFS server", hint)
        for grant in grants:
            if not self._managed(grant):
                message = f"the server of volume {grant.volume.name} is not storkit's: {client} may still write there"
                yield Unsafe(message, f"cut {client} off at the server itself, or switch it off")


def _inodes(grants: Iterable[NfsGrant]) -> set[int]:
    """The inode numbers of the volumes' files."""
    paths = [Path(grant.volume.path) for grant in grants]
    return {path.stat().st_ino for path in paths if path.exists()}


def _granted(client: Client, grants: Iterable[NfsGrant]) -> list[str]:
    """Where a guest comes from that has an export: who puts back what ended it does not always know."""
    if client.address or not guest_of(client.name):
        return []
    return next((grant.clients[client.name].addresses for grant in grants if client.name in grant.clients), [])


def _key(entry: Entry) -> tuple[str, str]:
    return entry.path, entry.client
