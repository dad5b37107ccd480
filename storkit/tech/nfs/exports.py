"""The home host's half of the transport `nfs`: grants, what the server exports by them, rights taken and given."""

from __future__ import annotations

import secrets
from collections.abc import Iterable, Sequence
from contextlib import ExitStack
from dataclasses import replace
from ipaddress import ip_address
from pathlib import Path
from uuid import uuid4

from storkit.core.backend import Client, Site
from storkit.core.errors import Conflict, StorkitError, Unsafe, Unsupported, collected, raise_problems
from storkit.core.model import Export, Offer, Volume, check_name, guest_of
from storkit.system import locks
from storkit.system.addresses import is_number, own_address
from storkit.tech.files.sidecar import VolumeDirectory
from storkit.tech.grants import of_client, refused_writers
from storkit.tech.nfs import attach, layout, rules
from storkit.tech.nfs import server as nfs_server
from storkit.tech.nfs.attach import Mount
from storkit.tech.nfs.names import EXPORTS, NfsClientGrant, NfsGrant, NfsGrantStore, NfsSettings, pool_of, resolve
from storkit.tech.nfs.server import Entry

TRANSPORT = "nfs"
LOOPBACK = "127.0.0.1"


class NfsExports:
    """The exports of one home host."""

    def __init__(self, site: Site, settings: NfsSettings) -> None:
        self.site = site
        self.settings = settings
        self._grants = NfsGrantStore(site)
        self._mounts: dict[tuple[Path, int], Mount] = {}

    def export(self, volumes: list[Volume], clients: list[Client]) -> list[Export]:
        names = {client.name for client in clients}
        with self._grants.guard(), ExitStack() as stack:
            for pool in sorted({pool_of(volume) for volume in volumes}):
                if (pool / EXPORTS).is_dir():
                    stack.enter_context(VolumeDirectory(pool).locked("export over NFS"))
            grants = self._extended(volumes, clients)
            for volume in volumes:
                # A copy or a resize holds it; from here on the grant says that the volume is in use.
                use = locks.use_lock(self.site.run, volume.uuid)
                stack.callback(locks.acquire(use, f"volume {volume.name}").release, remove=True)
            self._grants.admit(grants)
            self._grants.save(grants)
            self._serve(grants)
        return [export for export in self.find([volume.uuid for volume in volumes]) if export.client in names]

    def _extended(self, volumes: list[Volume], clients: list[Client]) -> list[NfsGrant]:
        """The grants that the volumes had, with `clients` added, after everything that can be refused was."""
        found, problems = self._grants.find(volume.uuid for volume in volumes)
        before = {grant.volume.uuid: grant for grant in found}
        problems += self._grants.refused(client.name for client in clients)
        addresses: dict[str, list[str]] = {}
        for client in clients:
            with collected(problems):
                addresses[client.name] = _granted(client, found) or self._addresses(client)
        problems += rules.shared(addresses, self._grants.find()[0])
        grants: list[NfsGrant] = []
        for volume in volumes:
            check_name("volume", volume.name)
            problems += layout.check(volume, self._mount(pool_of(volume)).type)
            old = before.get(volume.uuid, NfsGrant(volume))
            if old.clients and _image(volume) != _image(old.volume):
                message = f"volume {volume.name} is exported as it was before it changed"
                problems.append(Conflict(message, f"storkit detach {volume.name}"))
            granted = dict(old.clients)
            problems += rules.clients(volume, addresses, granted)
            if volume.kind == "tree":
                problems += rules.tree(volume, self.settings, self._managed(old))
            for client in clients:
                where = addresses.get(client.name, [])
                known = granted.get(client.name)
                if known is None or known.addresses != where:
                    granted[client.name] = NfsClientGrant(where, uuid4().hex, client.same_machine)
            grants.append(NfsGrant(volume, old.instance or secrets.token_hex(4), granted, old.writers, old.epoch))
        problems += self._exposed(grants)
        raise_problems(problems)
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

    def _serve(self, grants: list[NfsGrant]) -> None:
        """Bring the server to what was granted. Rights are taken, and have ended, before others are given."""
        managed = [grant for grant in grants if self._managed(grant)]
        for grant in grants:
            for client in grant.clients:
                layout.make(grant, client, self.settings, grant in managed)
        if managed:
            nfs_server.start()
            self._apply(managed)

    def _apply(self, grants: list[NfsGrant]) -> None:
        wanted = [entry for grant in grants for entry in self._entries(grant)]
        paths = {str(path) for grant in grants for path in layout.places(grant)}
        there = [entry for entry in nfs_server.table() if entry.path in paths]
        kept = {_key(entry) for entry in wanted}
        gone = [entry for entry in there if _key(entry) not in kept]
        writable = {_key(entry) for entry in there if entry.writable}
        first = [replace(entry, writable=entry.writable and _key(entry) in writable) for entry in wanted]
        nfs_server.keep(self.site.state, self._boot(grants, first), self.settings)
        nfs_server.apply(gone, nfs_server.changed(there, first, self.settings), self.settings)
        nfs_server.settle(paths - {entry.path for entry in first if entry.writable})
        nfs_server.keep(self.site.state, self._boot(grants, wanted), self.settings)
        nfs_server.apply([], [new for new, old in zip(wanted, first, strict=True) if new != old], self.settings)

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
        others = [grant for grant in self._grants.find()[0] if grant.volume.uuid not in now and self._managed(grant)]
        self._grants.drop_fenced(others)
        return [*entries, *(entry for grant in others for entry in self._entries(grant))]

    def unexport(self, volumes: list[Volume], clients: list[str]) -> None:
        uuids = [volume.uuid for volume in volumes]
        with self._grants.guard():
            grants, problems = self._grants.find(uuids)
            raise_problems(problems)
            self._grants.admit(grants)
            self._withdraw(grants, clients)
            self._grants.forget(set(uuids) - {grant.volume.uuid for grant in grants})

    def _withdraw(self, grants: list[NfsGrant], clients: Sequence[str]) -> None:
        """Take these clients' exports away. The grant is forgotten last: killed before, it names what is left; but it
        gives nobody a right back."""
        left = []
        for grant in grants:
            kept = {name: granted for name, granted in grant.clients.items() if name not in clients}
            writers = [writer for writer in grant.writers if writer in kept]
            left.append(NfsGrant(grant.volume, grant.instance, kept, writers, grant.epoch))
        self._grants.save(replace(old, writers=new.writers) for old, new in zip(grants, left, strict=True))
        self._apply([grant for grant in left if self._managed(grant)])
        # A guest leaves its root as a machine that loses its power does: nothing else says that its files are free.
        guests = {name for name in clients if guest_of(name)}
        nfs_server.expire(
            {at for grant in grants for name in guests & grant.clients.keys() for at in grant.clients[name].addresses}
        )
        for grant in left:
            kept_paths = {grant.path(client) for client in grant.clients}
            layout.remove(set(layout.left(grant.pool, grant.volume.uuid)) - kept_paths)
            if not grant.clients:
                layout.take_back(grant.volume)
        self._grants.save(grant for grant in left if grant.clients)
        self._grants.forget(grant.volume.uuid for grant in left if not grant.clients)

    def find(self, volumes: list[str] | None = None) -> list[Export]:
        grants, problems = self._grants.find(volumes)
        raise_problems(problems)
        table = {_key(entry): entry.writable for entry in nfs_server.table()}
        runs = nfs_server.runs()
        return [export for grant in grants for export in self._observe(grant, table, runs)]

    def _observe(self, grant: NfsGrant, table: dict[tuple[str, str], bool], runs: bool) -> Iterable[Export]:
        """A volume's exports as the server's table has them."""
        managed = self._managed(grant)
        for client, granted in sorted(grant.clients.items()):
            path = str(grant.path(client))
            has = [table.get((path, nfs_server.network(address))) for address in granted.addresses]
            live = runs and None not in has if managed else grant.path(client).is_dir()
            writable = any(has) if managed and live else client in grant.writers
            volume = grant.volume
            where = attach.source(*self._place(grant, client))
            yield Export(volume.name, volume.uuid, client, writable, TRANSPORT, live, where)

    def _place(self, grant: NfsGrant, client: str) -> tuple[str, str]:
        """Server and path that a client mounts."""
        path = grant.path(client)
        mount = self._mount(grant.pool)
        if not mount.type.startswith("nfs"):
            return self.site.address or LOOPBACK, str(path)
        server, _, top = mount.source.rpartition(":/")
        return server.strip("[]"), str(Path(f"/{top}") / path.relative_to(mount.point))

    def offers(self, volumes: list[Volume], client: str) -> list[Offer]:
        grants, problems = self._grants.find(volume.uuid for volume in volumes)
        raise_problems(problems)
        return [self._offer(grant, client) for grant in of_client(grants, volumes, client)]

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

    def set_writers(self, volumes: list[Volume], hosts: list[str]) -> None:
        with self._grants.guard():
            grants, problems = self._grants.find(volume.uuid for volume in volumes)
            raise_problems(problems)
            self._grants.admit(grants)
            found = {grant.volume.uuid: grant for grant in grants}
            for volume in volumes:
                grant = found.get(volume.uuid, NfsGrant(volume))
                problems.extend(refused_writers(volume, grant, hosts, ("disk", "tree")))
                if hosts:
                    problems.extend(self._unenforced(grant))
                grant.writers = sorted(set(hosts))
            if hosts:
                problems.extend(self._exposed(grants))
            raise_problems(problems)
            self._grants.save(grants)
            self._serve(grants)

    def _unenforced(self, grant: NfsGrant) -> Iterable[StorkitError]:
        """Why nobody would keep other hosts from writing this volume."""
        name = grant.volume.name
        if grant.volume.path and not self._managed(grant) and self.settings.enforce != "locks":
            hint = 'if QEMU\'s image locks are enough for you: enforce = "locks" in [transports.nfs]'
            yield Unsafe(f"volume {name} is on a server that storkit does not manage: any host could write it", hint)
        if self.settings.version == "3" and not self.settings.v3_writers:
            hint = "use version 4.2; or v3_writers = true in [transports.nfs], once you have read docs/nfs.md"
            yield Unsafe(f"volume {name} would be written over NFS 3, which has no opens and no sure locks", hint)

    def fence(self, client: str) -> list[Export]:
        # The mark comes first: from then on no other command lets the host in.
        self._grants.fence(client)
        with self._grants.guard():
            found, problems = self._grants.find()
            grants = [grant for grant in found if client in grant.clients]
            had = [export for export in self.find([g.volume.uuid for g in grants]) if export.client == client]
            paths = {str(grant.path(client)) for grant in grants}
            addresses = {address for grant in grants for address in grant.clients[client].addresses}
            inodes = {Path(grant.volume.path).stat().st_ino for grant in grants if Path(grant.volume.path).exists()}
            shared = {
                address for grant in found for name, granted in grant.clients.items() if name != client
                for address in granted.addresses
            }  # fmt: skip
            foreign = [grant for grant in grants if not self._managed(grant)]
            self._withdraw(grants, [client])
            nfs_server.expire(addresses - shared, inodes)
            problems.extend(self._still_there(client, paths, addresses - shared, inodes))
            for grant in foreign:
                message = f"the server of volume {grant.volume.name} is not storkit's: {client} may still write there"
                problems.append(Unsafe(message, f"cut {client} off at the server itself, or switch it off"))
        raise_problems(problems)
        return had

    def _still_there(self, client: str, paths: set[str], addresses: set[str], inodes: set[int]) -> list[StorkitError]:
        """What disproves that a client is cut off: the server's tables, and the state that it holds."""
        hint = f"storkit fence {client}"
        exported = {entry.path for entry in [*nfs_server.table(), *nfs_server.in_kernel()]} & paths
        problems: list[StorkitError] = [Unsafe(f"{path} is still exported to {client}", hint) for path in exported]
        for holder in nfs_server.clients():
            if holder.address in addresses and holder.files & inodes:
                problems.append(Unsafe(f"host {client} still holds files of volumes open on the NFS server", hint))
        return problems

    def unfence(self, client: str) -> None:
        self._grants.unfence(client)

    def restore(self) -> None:
        """Export again, with the same rights, what is granted: after a crash or a reboot."""
        with self._grants.guard():
            grants, problems = self._grants.find()
            self._grants.drop_fenced(grants)
            try:
                self._serve(grants)
            except StorkitError:  # one by one, so that what is wrong with one keeps no other from it
                for grant in grants:
                    with collected(problems):
                        self._serve([grant])
        raise_problems(problems)


def _granted(client: Client, grants: Iterable[NfsGrant]) -> list[str]:
    """Where a guest comes from that has an export: who puts back what ended it does not always know."""
    if client.address or not guest_of(client.name):
        return []
    return next((grant.clients[client.name].addresses for grant in grants if client.name in grant.clients), [])


def _image(volume: Volume) -> tuple[str, str, int, str]:
    """What an export depends on."""
    return volume.path, volume.format, volume.size, volume.kind


def _key(entry: Entry) -> tuple[str, str]:
    return entry.path, entry.client
