"""iSCSI exports on the host that holds the volumes: granted, made in the kernel's target, taken back.

Whatever changes is saved as grants first. From them follow the save file and the kernel's target
(storkit.tech.iscsi.target), and the home host's own node (storkit.tech.homenode):
always in the order that takes rights before it gives any.
"""

from __future__ import annotations

import stat
from collections.abc import Callable, Iterable, Sequence
from pathlib import Path

from storkit.core.backend import Client, Site
from storkit.core.errors import (
    Conflict,
    NotFound,
    ServiceUnreachable,
    StorkitError,
    Unsafe,
    Unsupported,
    collected,
    raise_problems,
)
from storkit.core.model import (
    Attachment,
    Credential,
    Evidence,
    Export,
    Offer,
    Secret,
    Volume,
    check_name,
)
from storkit.system.block import devmapper
from storkit.tech.grants import of_client, refused_writers
from storkit.tech.homenode import LocalNodes, device_size, export_node, wanted_export
from storkit.tech.iscsi import configfs, savefile, target
from storkit.tech.iscsi.names import (
    Chapped,
    IscsiClientGrant,
    IscsiGrant,
    IscsiGrantStore,
    IscsiSettings,
    identity,
    initiator_iqn,
    portal,
    target_iqn,
    unit_serial,
)
from storkit.tech.iscsi.portals import listening, own_portals

TRANSPORT = "iscsi"


class IscsiExports:
    """The iSCSI exports of one host."""

    def __init__(self, site: Site, settings: IscsiSettings) -> None:
        self.site = site
        self.settings = settings
        self._grants = IscsiGrantStore(site)
        self._local = LocalNodes(site)

    def export(self, volumes: list[Volume], clients: list[Client]) -> list[Export]:
        names = {client.name for client in clients}
        with configfs.lock():
            grants = self._extended(volumes, clients)
            self._grants.admit(grants)
            self._grants.save(grants)
            self._apply(grants)
        return [export for export in self.find([volume.uuid for volume in volumes]) if export.client in names]

    def _extended(self, volumes: list[Volume], clients: list[Client]) -> list[IscsiGrant]:
        """The grants that the volumes had, with `clients` added, after everything that can be refused was."""
        found, problems = self._grants.find(volume.uuid for volume in volumes)
        before = {grant.volume.uuid: grant for grant in found}
        remote = [client for client in clients if not client.same_machine]
        portals: list[str] = []
        for client in clients:
            problems += self._refused_client(client)
        try:
            if remote:
                portals = own_portals(self.site, self.settings)
                configfs.prepare(savefile.directory())
                savefile.check()
        except StorkitError as error:
            problems.append(error)
        _activate(volumes)
        grants: list[IscsiGrant] = []
        for volume in volumes:
            check_name("volume", volume.name)
            old = before.get(volume.uuid)
            problems += self._refused_volume(volume, old)
            grants.append(self._grant(volume, old, clients, portals))
        if remote and not problems:
            problems += target.foreign(map(_unit, grants))
        raise_problems(problems)
        return grants

    def _refused_client(self, client: Client) -> Iterable[StorkitError]:
        yield from self._grants.refused([client.name])
        if client.same_machine and client.name != self.site.host:
            message = f"iSCSI cannot tell host {client.name} from {self.site.host}: they are one machine"
            yield Unsupported(message, 'use the transport "nbd" between hosts of one machine')

    def _refused_volume(self, volume: Volume, old: IscsiGrant | None) -> Iterable[StorkitError]:
        if volume.format not in ("", "raw"):
            message = f"volume {volume.name} is {volume.format}: iSCSI exports raw block devices"
            yield Unsupported(message, 'use the transport "nbd" for its pool, or import it into an LVM pool')
            return
        try:
            if not stat.S_ISBLK(Path(volume.path).stat().st_mode):
                message = f"volume {volume.name} is a file, {volume.path}: iSCSI exports block devices"
                yield Unsupported(message, 'use the transport "nbd" for its pool, or import it into an LVM pool')
            elif device_size(volume.path) < volume.size:
                yield _too_small(volume)
        except OSError:
            hint = f"storkit host restore {self.site.host}"
            yield NotFound(f"volume {volume.name} has no device {volume.path}", hint)
        if old is not None and _bytes(old.volume) != _bytes(volume) and self._in_use(old):
            message = f"volume {volume.name} is exported as it was before it changed"
            yield Conflict(message, f"storkit detach {volume.name}")

    def _in_use(self, grant: IscsiGrant) -> bool:
        return target.observe(grant.iqn) is not None or bool(self._local.find([grant.volume.uuid]))

    def _grant(self, volume: Volume, old: IscsiGrant | None, clients: list[Client], portals: list[str]) -> IscsiGrant:
        """A volume's grant with `clients` added. What its target is called, and where, stays while anyone uses it."""
        grant = IscsiGrant(volume)
        if old is not None:
            grant.clients, grant.writers, grant.epoch = dict(old.clients), old.writers, old.epoch
        if old is not None and old.remote():
            grant.iqn, grant.prefix, grant.chap = old.iqn, old.prefix, old.chap
            grant.portals, grant.listens = old.portals, old.listens
        elif portals:
            grant.iqn, grant.prefix = target_iqn(self.settings.prefix, volume.uuid), self.settings.prefix
            grant.chap = self.settings.chap
        if portals and not _runs(grant):
            grant.portals, grant.listens = portals, listening(portals)
        for client in clients:
            known = grant.clients.get(client.name)
            if known is None or known.same_machine != client.same_machine:
                grant.clients[client.name] = IscsiClientGrant(client.same_machine, chap=_secrets(grant, client))
        return grant

    def unexport(self, volumes: list[Volume], clients: list[str]) -> None:
        uuids = [volume.uuid for volume in volumes]
        with configfs.lock():
            grants, problems = self._grants.find(uuids)
            raise_problems(problems)
            self._grants.admit(grants)
            self._withdraw(grants, clients)
            self._grants.forget(set(uuids) - {grant.volume.uuid for grant in grants})

    def _withdraw(self, grants: list[IscsiGrant], clients: list[str]) -> None:
        """Take these clients' exports away. A grant is forgotten last: killed before, it names what is left."""
        for grant in grants:
            grant.clients = {name: granted for name, granted in grant.clients.items() if name not in clients}
            grant.writers = [writer for writer in grant.writers if writer in grant.clients]
        self._grants.save(grants)
        self._apply(grants)
        self._grants.forget(grant.volume.uuid for grant in grants if not grant.clients)

    def _apply(self, grants: Sequence[IscsiGrant]) -> None:
        """Make kernel and save file what these grants say. Rights are taken first; if any cannot be, none is given."""
        remote = [grant for grant in grants if grant.iqn]
        units = [_unit(grant) for grant in remote]
        running = configfs.FABRIC.is_dir()
        _all(
            lambda: savefile.save(units) if units else None,
            lambda: target.take(units) if running else None,
            lambda: self._local.allow(grants, giving=False),
        )
        if offered := [grant for grant in remote if grant.remote()]:
            configfs.prepare(savefile.directory())
            if missing := [grant for grant in offered if not target.stands(_unit(grant))]:
                devmapper.create([wanted_export(grant.volume) for grant in missing])
        if running or offered:
            target.bring(units)
        if gone := [grant for grant in remote if not grant.remote()]:
            devmapper.remove([export_node(grant.volume) for grant in gone])
        self._local.allow(grants)

    def find(self, volumes: list[str] | None = None) -> list[Export]:
        grants, problems = self._grants.find(volumes)
        raise_problems(problems)
        mine = {attachment.uuid: attachment.writable for attachment in self._local.find(volumes)}
        exports = []
        for grant in grants:
            volume = grant.volume
            seen = target.observe(grant.iqn) if grant.iqn else None
            for client, granted in grant.clients.items():
                writable: bool | None = client in grant.writers
                if granted.same_machine:
                    live, where = Path(volume.path).exists(), volume.path
                    writable = mine.get(volume.uuid, writable)
                else:
                    right = seen.access.get(initiator_iqn(grant.prefix, client)) if seen else None
                    live = seen is not None and seen.enabled and right is not None
                    writable, where = right if live else writable, ", ".join(grant.portals)
                exports.append(Export(volume.name, volume.uuid, client, bool(writable), TRANSPORT, live, where))
        return exports

    def offers(self, volumes: list[Volume], client: str) -> list[Offer]:
        grants, problems = self._grants.find(volume.uuid for volume in volumes)
        raise_problems(problems)
        offers: list[Offer] = []
        for grant in of_client(grants, volumes, client):
            with collected(problems):
                offers.append(self._offer(grant, client))
        raise_problems(problems)
        return offers

    def _offer(self, grant: IscsiGrant, client: str) -> Offer:
        volume, granted = grant.volume, grant.clients[client]
        said = identity(volume.uuid)
        if granted.same_machine:
            writable = client in grant.writers
            common = (volume.name, volume.uuid, volume.size, client, TRANSPORT, volume.path, said, writable)
            return Offer(*common, path=volume.path)
        seen = target.observe(grant.iqn)
        right = seen.access.get(initiator_iqn(grant.prefix, client)) if seen else None
        if seen is None or right is None or not seen.enabled:
            message = f"the target of volume {volume.name} does not run on host {self.site.host}"
            raise ServiceUnreachable(message, f"storkit host restore {self.site.host}")
        size = device_size(seen.device)
        credential: Credential | None = None
        if granted.chap is not None:
            chap = granted.chap
            mutual = {"mutual-user": Secret(chap.mutual_user), "mutual-secret": chap.mutual_secret}
            credential = Credential("chap", chap.user, chap.secret, mutual if chap.mutual_user else {})
        address, port = portal(grant.portals[0])
        common = (volume.name, volume.uuid, size, client, TRANSPORT, grant.iqn, said, right)
        return Offer(*common, server=address, port=port, portals=grant.portals, credential=credential)

    def set_writers(self, volumes: list[Volume], hosts: list[str]) -> None:
        with configfs.lock():
            grants, problems = self._grants.find(volume.uuid for volume in volumes)
            self._grants.admit(grants)
            found = {grant.volume.uuid: grant for grant in grants}
            for volume in volumes:
                grant = found.get(volume.uuid, IscsiGrant(volume))
                problems += refused_writers(volume, grant, hosts)
                grant.writers = sorted(set(hosts))
            raise_problems(problems)
            self._grants.save(grants)
            self._apply(grants)

    def fence(self, client: str) -> list[Export]:
        # The mark comes first: from then on no other command lets the host in.
        self._grants.fence(client)
        with configfs.lock():
            grants, problems = self._grants.find()
            # One that was saved before its target could be made to follow names the client no more.
            grants = [grant for grant in grants if client in grant.clients or _lets_in(grant, client)]
            had = [export for export in self.find([grant.volume.uuid for grant in grants]) if export.client == client]
            names = {grant.iqn: initiator_iqn(grant.prefix, client) for grant in grants if grant.iqn}
            self._withdraw(grants, [client])
            for grant in grants:
                problems += self._not_off(grant, names.get(grant.iqn, ""), client)
        raise_problems(problems)
        return had

    def _not_off(self, grant: IscsiGrant, initiator: str, client: str) -> Iterable[StorkitError]:
        """What disproves that `client` is off: an access list (and so a session), a registration, a writable node."""
        seen = target.observe(grant.iqn) if initiator else None
        if seen is not None:
            left = initiator in seen.access
            left = left or (seen.backstore is not None and initiator in target.registrations(seen.backstore))
            if left:
                hint = f"storkit fence {client}"
                yield Unsafe(f"the target of volume {grant.volume.name} still knows host {client}", hint)
        if client == self.site.host:
            for attachment in self._local.find([grant.volume.uuid]):
                if attachment.writable:
                    yield Unsafe(f"{attachment.path} can still be written on {client}", f"storkit fence {client}")

    def unfence(self, client: str) -> None:
        self._grants.unfence(client)

    def restore(self) -> None:
        """Make targets and this host's own nodes again, with the rights granted: after a reboot, or whatever has
        changed them.

        It belongs before the distribution's own service, which removes and restores all targets: the save file is put
        right here first.
        """
        with configfs.lock():
            grants, problems = self._grants.find()
            self._grants.drop_fenced(grants)
            self._grants.save(grants)
            with collected(problems):
                _activate([grant.volume for grant in grants])
            ready: list[IscsiGrant] = []
            for grant in grants:
                with collected(problems):
                    if device_size(grant.volume.path) < grant.volume.size:
                        raise _too_small(grant.volume)
                    ready.append(grant)
            try:
                self._remake(ready)
            except StorkitError:  # one by one, so that what is wrong with one keeps no other from it
                for grant in ready:
                    with collected(problems):
                        self._remake([grant])
        raise_problems(problems)

    def _remake(self, grants: Sequence[IscsiGrant]) -> None:
        self._apply(grants)
        self._grants.forget(grant.volume.uuid for grant in grants if not grant.clients)
        self._local.restore(grants)

    # The home host's own attachments.

    def attach_here(self, offers: list[Offer]) -> list[Attachment]:
        with configfs.lock():
            grants, problems = self._grants.find(offer.uuid for offer in offers)
            raise_problems(problems)
            attached = self._local.attach(offers, grants)
            self._note(grants, True)
        return attached

    def detach_here(self, volumes: list[Volume]) -> None:
        with configfs.lock():
            self._local.detach(volumes)
            self._note(self._grants.find(volume.uuid for volume in volumes)[0], False)

    def find_here(self, volumes: list[str] | None) -> list[Attachment]:
        return self._local.find(volumes)

    def evidence_here(self, volumes: Iterable[Volume], offsets: list[int] | None) -> list[Evidence]:
        grants, problems = self._grants.find(volume.uuid for volume in volumes)
        raise_problems(problems)
        return [self._local.evidence(grant, offsets) for grant in grants]

    def _note(self, grants: list[IscsiGrant], attached: bool) -> None:
        """Remember whether this host, the home host, has these volumes attached."""
        changed = []
        for grant in grants:
            mine = grant.clients.get(self.site.host)
            if mine is not None and mine.attached != attached:
                mine.attached = attached
                changed.append(grant)
        self._grants.save(changed)


def _too_small(volume: Volume) -> StorkitError:
    return Unsafe(f"{volume.path} is smaller than volume {volume.name}", f"storkit volume show {volume.name}")


def _lets_in(grant: IscsiGrant, client: str) -> bool:
    """Whether the kernel's target of a volume knows a client."""
    seen = target.observe(grant.iqn) if grant.iqn else None
    return seen is not None and initiator_iqn(grant.prefix, client) in seen.access


def _runs(grant: IscsiGrant) -> bool:
    seen = target.observe(grant.iqn)
    return seen is not None and seen.enabled


def _activate(volumes: Iterable[Volume]) -> None:
    """Volumes of LVM have no device since the last boot, until they are asked for."""
    if missing := [volume for volume in volumes if not Path(volume.path).exists()]:
        from storkit.tech.lvm import tools

        tools.activate(missing)


def _unit(grant: IscsiGrant) -> target.Unit:
    """A grant as the kernel's target should have it."""
    volume = grant.volume
    access = {
        initiator_iqn(grant.prefix, client): target.Access(client in grant.writers, granted.chap)
        for client, granted in grant.clients.items()
        if not granted.same_machine
    }
    return target.Unit(
        name=f"storkit-{volume.name}",
        serial=unit_serial(volume.uuid),
        device=devmapper.node_path(export_node(volume)),
        readonly=volume.kind != "disk",
        discard=target.discards(volume.path),
        iqn=grant.iqn,
        portals=grant.listens,
        authentication=grant.chap != "none",
        access=access,
    )


def _secrets(grant: IscsiGrant, client: Client) -> Chapped | None:
    if client.same_machine or grant.chap == "none":
        return None
    return Chapped(initiator_iqn(grant.prefix, client.name), mutual_user=grant.iqn if grant.chap == "mutual" else "")


def _bytes(volume: Volume) -> tuple[str, int, str]:
    """What a target depends on."""
    return volume.path, volume.size, volume.kind


def _all(*acts: Callable[[], None]) -> None:
    """Do all of these, and raise what failed at the end."""
    problems: list[StorkitError] = []
    for act in acts:
        with collected(problems):
            act()
    raise_problems(problems)
