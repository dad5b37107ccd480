"""The home host's half of the transport `iscsi`: what is its own in storkit.tech.exports.

From the grants follow the save file and the kernel's target (storkit.tech.iscsi.target), and the home host's own node
(storkit.tech.iscsi.homenode). The save file is written before rights are taken, with those that are to be given: it
counts after a reboot alone, when no write of before it is on its way. A restore belongs before the distribution's own
service, which removes and restores all targets: it puts the save file right first.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from contextlib import AbstractContextManager
from pathlib import Path

from storkit.core.errors import (
    ServiceUnreachable,
    StorkitError,
    Unsafe,
    collected,
    raise_problems,
)
from storkit.core.model import (
    Client,
    Credential,
    Export,
    Offer,
    Secret,
    Volume,
)
from storkit.system.block import devmapper
from storkit.system.block.blockdevice import device_size
from storkit.system.block.devmapper import MappedNode
from storkit.tech import portals as written
from storkit.tech.athand import at_hand
from storkit.tech.blockexports import BlockExports
from storkit.tech.homenode import Stated, place
from storkit.tech.iscsi import lio, savefile, target
from storkit.tech.iscsi.names import (
    PORT,
    Chapped,
    IscsiClientGrant,
    IscsiGrant,
    IscsiSettings,
    identity,
    initiator_iqn,
    is_path_of,
    naa,
    portal,
    stated,
    target_iqn,
    unit_serial,
)
from storkit.tech.iscsi.portals import listening

TRANSPORT = "iscsi"
EXPORT_ROLE = "export"
"""The node that the target has open; so both can be open at once, each for itself."""


class IscsiExports(BlockExports[IscsiGrant]):
    """The iSCSI exports of one host."""

    kind = IscsiGrant
    settings: IscsiSettings

    def _machine_lock(self) -> AbstractContextManager[None]:
        return lio.lock()

    def _identity(self, uuid: str) -> str:
        return identity(uuid)

    def _served(self, grant: IscsiGrant, node: MappedNode, nodes: Mapping[str, MappedNode]) -> Stated:
        """Where the volume has a target, its node has to stand on the same bytes of the same device as this one."""
        volume = grant.volume
        exported = nodes.get(devmapper.node_uuid(volume.uuid, EXPORT_ROLE))
        seen = target.observe(grant.iqn) if grant.iqn and lio.FABRIC.is_dir() else None
        serial, keys = volume.uuid, None
        if seen is not None and seen.backstore is not None:
            serial = seen.serial
            if exported is None or exported.path != seen.device or place(exported) != place(node):
                message = f"the target of volume {volume.name} does not stand on the device of {node.path}"
                raise Unsafe(message, f"dmsetup table {node.name} {_export_node(volume)}")
            keys = sorted(set(target.registrations(seen.backstore).values()))
        return stated(naa(serial), serial), keys

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
                portals = written.own(self.site, self.settings.portals, PORT, TRANSPORT)
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
            devmapper.remove([_export_node(grant.volume) for grant in gone])

    def _give(self, grants: Sequence[IscsiGrant]) -> None:
        if offered := [grant for grant in grants if grant.remote()]:
            lio.prepare(savefile.directory())
            if missing := [grant for grant in offered if not target.stands(_unit(grant))]:
                devmapper.create([_wanted_export(grant.volume) for grant in missing])
            target.bring([_unit(grant) for grant in offered])
        self._local.allow(grants)

    def _enlarge(self, grants: Sequence[IscsiGrant]) -> None:
        # The target asks its device how large it is, whenever somebody asks the target.
        devmapper.swap([_wanted_export(grant.volume) for grant in grants if grant.remote()])

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
                    right = _right(grant, client, seen)
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
        right = _right(grant, client, seen)
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
        seen = target.observe(grant.iqn) if grant.iqn else None
        if seen is not None:
            known = {*seen.access, *(target.registrations(seen.backstore) if seen.backstore is not None else ())}
            if any(is_path_of(name, initiator_iqn(grant.prefix, client)) for name in known):
                hint = f"storkit fence {client}"
                yield Unsafe(f"the target of volume {grant.volume.name} still knows host {client}", hint)
        if client == self.site.host:
            for attachment in self._local.find([grant.volume.uuid]):
                if attachment.writable:
                    yield Unsafe(f"{attachment.path} can still be written on {client}", f"storkit fence {client}")


def _export_node(volume: Volume) -> str:
    return devmapper.node_name(volume.name, EXPORT_ROLE)


def _wanted_export(volume: Volume) -> devmapper.Wanted:
    """The target's node over a volume's device. Raises NotFound: the device is not there."""
    name, uuid = _export_node(volume), devmapper.node_uuid(volume.uuid, EXPORT_ROLE)
    return devmapper.Wanted(name, uuid, devmapper.linear(volume.path, volume.size), volume.kind != "disk")


def _lets_in(grant: IscsiGrant, client: str) -> bool:
    """Whether the kernel's target of a volume knows a client."""
    seen = target.observe(grant.iqn) if grant.iqn else None
    return seen is not None and any(is_path_of(name, initiator_iqn(grant.prefix, client)) for name in seen.access)


def _right(grant: IscsiGrant, client: str, seen: target.Seen | None) -> bool | None:
    """Whether a client may write by any of its paths; None: it is not let in."""
    rights = [right for name in grant.initiators(client) if seen and (right := seen.access.get(name)) is not None]
    return any(rights) if rights else None


def _runs(grant: IscsiGrant) -> bool:
    seen = target.observe(grant.iqn)
    return seen is not None and seen.enabled


def _unit(grant: IscsiGrant) -> target.Unit:
    """A grant as the kernel's target should have it."""
    volume = grant.volume
    access = {
        name: target.Access(client in grant.writers, granted.chap)
        for client, granted in grant.clients.items()
        if not granted.same_machine
        for name in grant.initiators(client)
    }
    return target.Unit(
        name=f"storkit-{volume.name}",
        serial=unit_serial(volume.uuid),
        device=devmapper.node_path(_export_node(volume)),
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
