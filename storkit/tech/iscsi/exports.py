"""The home host's half of the transport `iscsi`: what is its own in storkit.tech.exports.

From the grants follow the save file and the kernel's target (storkit.tech.iscsi.target), and the home host's own node
(storkit.tech.iscsi.homenode). The save file is written before rights are taken, with those that are to be given: it
counts after a reboot alone, when no write of before it is on its way.
"""

from __future__ import annotations

import stat
from collections.abc import Callable, Iterable, Sequence
from contextlib import AbstractContextManager
from pathlib import Path

from storkit.core.backend import Site
from storkit.core.errors import (
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
    Client,
    Credential,
    Evidence,
    Export,
    Offer,
    Secret,
    Volume,
)
from storkit.system.block import devmapper
from storkit.system.block.blockdevice import device_size
from storkit.tech.athand import at_hand
from storkit.tech.exports import HomeExports
from storkit.tech.iscsi import lio, savefile, target
from storkit.tech.iscsi.homenode import LocalNodes, export_node, wanted_export
from storkit.tech.iscsi.names import (
    Chapped,
    IscsiClientGrant,
    IscsiGrant,
    IscsiSettings,
    identity,
    initiator_iqn,
    portal,
    target_iqn,
    unit_serial,
)
from storkit.tech.iscsi.portals import listening, own_portals

TRANSPORT = "iscsi"


class IscsiExports(HomeExports[IscsiGrant]):
    """The iSCSI exports of one host."""

    kind = IscsiGrant
    settings: IscsiSettings

    def __init__(self, site: Site, settings: IscsiSettings) -> None:
        super().__init__(site, settings)
        self._local = LocalNodes(site)

    def _lock(self, uuids: Iterable[str]) -> AbstractContextManager[None]:
        return lio.lock()

    def _extend(
        self,
        volumes: Sequence[Volume],
        before: dict[str, IscsiGrant],
        clients: Sequence[Client],
        problems: list[StorkitError],
    ) -> list[IscsiGrant]:
        remote = [client for client in clients if not client.same_machine]
        portals: list[str] = []
        for client in clients:
            problems += self._refused_client(client)
        if remote:
            with collected(problems):
                portals = own_portals(self.site, self.settings)
                lio.prepare(savefile.directory())
                savefile.check()
        at_hand(volumes)
        grants: list[IscsiGrant] = []
        for volume in volumes:
            problems += self._refused_volume(volume)
            grants.append(self._grant(volume, before.get(volume.uuid), clients, portals))
        if remote and not problems:
            problems += target.foreign(map(_unit, grants))
        return grants

    def _refused_client(self, client: Client) -> Iterable[StorkitError]:
        if client.same_machine and client.name != self.site.host:
            message = f"iSCSI cannot tell host {client.name} from {self.site.host}: they are one machine"
            yield Unsupported(message, 'use the transport "nbd" between hosts of one machine')

    def _refused_volume(self, volume: Volume) -> Iterable[StorkitError]:
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

    def _in_use(self, grant: IscsiGrant) -> bool:
        return target.observe(grant.iqn) is not None or bool(self._local.find([grant.volume.uuid]))

    def _grant(
        self, volume: Volume, old: IscsiGrant | None, clients: Sequence[Client], portals: list[str]
    ) -> IscsiGrant:
        """A volume's grant with `clients` added. What its target is called, and where, stays while anyone uses it."""
        grant = IscsiGrant(volume)
        if old is not None:
            grant.clients, grant.writers = dict(old.clients), old.writers
            grant.epoch, grant.generation = old.epoch, old.generation
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

    def _take(self, grants: Sequence[IscsiGrant], force: bool = False) -> None:
        remote = [grant for grant in grants if grant.iqn]
        units = [_unit(grant) for grant in remote]
        running = lio.FABRIC.is_dir()
        _all(
            lambda: savefile.save(units) if units else None,
            lambda: target.take(units) if running else None,
            lambda: self._local.allow(grants, giving=False),
        )
        if gone := [grant for grant in remote if not grant.remote()]:
            if running:
                target.bring([_unit(grant) for grant in gone])
            devmapper.remove([export_node(grant.volume) for grant in gone])

    def _give(self, grants: Sequence[IscsiGrant]) -> None:
        if offered := [grant for grant in grants if grant.remote()]:
            lio.prepare(savefile.directory())
            if missing := [grant for grant in offered if not target.stands(_unit(grant))]:
                devmapper.create([wanted_export(grant.volume) for grant in missing])
            target.bring([_unit(grant) for grant in offered])
        self._local.allow(grants)

    def _enlarge(self, grants: Sequence[IscsiGrant]) -> None:
        # The target asks its device how large it is, whenever somebody asks the target.
        devmapper.swap([wanted_export(grant.volume) for grant in grants if grant.remote()])

    def _observe(self, grants: Sequence[IscsiGrant]) -> list[Export]:
        here = self._local.find([grant.volume.uuid for grant in grants]) if grants else []
        mine = {attachment.uuid: attachment.writable for attachment in here}
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
                exports.append(
                    Export(
                        volume.name, volume.uuid, client, bool(writable), TRANSPORT, live, where, grant.generation
                    )
                )  # fmt: skip
        return exports

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

    def _reaches(self, grant: IscsiGrant, client: str) -> bool:
        # Earlier versions took a client out of the grant before its target followed.
        return client in grant.clients or _lets_in(grant, client)

    def _still_there(self, grants: Sequence[IscsiGrant], client: str) -> Iterable[StorkitError]:
        for grant in grants:
            yield from self._not_off(grant, client)

    def _not_off(self, grant: IscsiGrant, client: str) -> Iterable[StorkitError]:
        """Yield an error for each way in that `client` still has: an access list (and so a session), a reservation
        key, a writable device-mapper node."""
        initiator = initiator_iqn(grant.prefix, client) if grant.iqn else ""
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

    def _remake(self, grants: Sequence[IscsiGrant]) -> None:
        # This belongs before the distribution's own service, which removes and restores all targets: the save file is
        # put right here first.
        at_hand([grant.volume for grant in grants])
        raise_problems(
            [_too_small(grant.volume) for grant in grants if device_size(grant.volume.path) < grant.volume.size]
        )
        super()._remake(grants)

    def _restored(self, grants: Sequence[IscsiGrant]) -> None:
        self._local.restore(grants)

    # The home host's own attachments.

    def attach_here(self, offers: list[Offer]) -> list[Attachment]:
        with lio.lock():
            grants, problems = self._grants.find(offer.uuid for offer in offers)
            raise_problems(problems)
            attached = self._local.attach(offers, grants)
            self._note(grants, True)
        return attached

    def detach_here(self, volumes: list[Volume]) -> None:
        with lio.lock():
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


def _all(*acts: Callable[[], None]) -> None:
    """Do all of these, and raise what failed at the end."""
    problems: list[StorkitError] = []
    for act in acts:
        with collected(problems):
            act()
    raise_problems(problems)
