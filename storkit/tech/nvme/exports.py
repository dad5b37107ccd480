"""The home host's half of the transport `nvme`: what is its own in storkit.tech.exports.

The kernel's target has no rights to write of its own. So each client's namespace stands on a device-mapper node of that
client's, beside the home host's own, and a right is that node's table (storkit.tech.homenode).
"""

from __future__ import annotations

import os
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager
from pathlib import Path

from storkit.core.backend import Site
from storkit.core.errors import ServiceUnreachable, StorkitError, Unsafe, Unsupported, collected, raise_problems
from storkit.core.model import Client, Credential, Export, Offer, Volume
from storkit.system.block import devmapper
from storkit.system.block.blockdevice import device_size
from storkit.system.block.devmapper import MappedNode
from storkit.tech import portals as written
from storkit.tech.athand import at_hand
from storkit.tech.blockexports import BlockExports
from storkit.tech.grants import host_slug
from storkit.tech.homenode import RightNodes, Stated, place, writable
from storkit.tech.nvme import target
from storkit.tech.nvme.names import (
    HOST,
    PORT,
    TRANSPORT,
    TRUSTED,
    Keys,
    NvmeClientGrant,
    NvmeGrant,
    NvmeSettings,
    identity,
    portal,
    subsystem_nqn,
)
from storkit.tech.nvme.target import SeenSubsystem, Subsystem

_ROLE = "to."
"""What the roles of clients' nodes begin with."""


class ClientNodes(RightNodes[NvmeGrant]):
    """The nodes that the target has open, one for each client of a volume."""

    readonly = False
    """The target opens every device for writing; that of an image is one that refuses writes."""

    def _nodes(self, grant: NvmeGrant, there: Mapping[str, MappedNode]) -> Iterator[tuple[str, str]]:
        known = {_role(client): client for client in grant.remote()}
        yield from ((client, role) for role, client in known.items())
        begin = devmapper.node_uuid(grant.volume.uuid, _ROLE)
        for uuid in there:
            if uuid.startswith(begin) and (role := _ROLE + uuid.removeprefix(begin)) not in known:
                yield "", role

    def remove(self, grants: Iterable[NvmeGrant]) -> None:
        """Remove the nodes of clients that these grants do not name; nobody has them open."""
        there = {node.uuid: node for node in devmapper.find()}
        doomed = [
            there[devmapper.node_uuid(grant.volume.uuid, role)].name
            for grant in grants
            for client, role in self._nodes(grant, there)
            if not client
        ]
        if doomed:
            devmapper.remove(doomed)


class NvmeExports(BlockExports[NvmeGrant]):
    """The NVMe/TCP exports of one host."""

    kind = NvmeGrant
    settings: NvmeSettings

    def __init__(self, site: Site, settings: NvmeSettings) -> None:
        super().__init__(site, settings)
        self._clients = ClientNodes()

    def _machine_lock(self) -> AbstractContextManager[None]:
        return target.lock()

    def _identity(self, uuid: str) -> str:
        return identity(uuid)

    def _served(self, grant: NvmeGrant, node: MappedNode, nodes: Mapping[str, MappedNode]) -> Stated:
        """Each client's namespace has to be the volume's, and to stand on the same bytes of the same device as this
        host's own node."""
        said = identity(grant.volume.uuid)
        for client in grant.remote():
            shown = nodes.get(devmapper.node_uuid(grant.volume.uuid, _role(client)))
            seen = target.observe(subsystem_nqn(grant.volume.uuid, client))
            if seen is None or not seen.identity:
                continue
            if seen.identity != said or shown is None or seen.device != shown.path or place(shown) != place(node):
                name = devmapper.node_name(grant.volume.name, _role(client))
                message = f"what host {client} is shown for volume {grant.volume.name} does not stand on {node.path}"
                raise Unsafe(message, f"dmsetup table {node.name}; dmsetup table {name}")
        return said, None

    def _extend(
        self,
        volumes: Sequence[Volume],
        before: dict[str, NvmeGrant],
        clients: Sequence[Client],
        problems: list[StorkitError],
    ) -> list[NvmeGrant]:
        portals: list[str] = []
        for client in clients:
            problems += self._refused_client(client)
        if any(not client.same_machine for client in clients):
            with collected(problems):
                portals = written.own(self.site, self.settings.portals, PORT, TRANSPORT)
                target.prepare()
                if not self.settings.trusted_network and not target.authenticates():
                    problems.append(unauthenticated(self.site.host))
        at_hand(volumes)
        grants: list[NvmeGrant] = []
        for volume in volumes:
            problems += self._refused_volume(volume)
            grants.append(self._grant(volume, before.get(volume.uuid), clients, portals))
        if portals and not problems:
            problems += target.foreign([each for grant in grants for each in _subsystems(grant)])
        return grants

    def _in_use(self, grant: NvmeGrant) -> bool:
        return bool(target.of_volume(grant.volume.uuid) or self._local.find([grant.volume.uuid]))

    def _grant(self, volume: Volume, old: NvmeGrant | None, clients: Sequence[Client], portals: list[str]) -> NvmeGrant:
        """A volume's grant with `clients` added. Where it is reached stays while anyone uses it."""
        grant = NvmeGrant(volume)
        if old is not None:
            grant.clients, grant.writers, grant.portals = dict(old.clients), old.writers, old.portals
            grant.epoch, grant.generation = old.epoch, old.generation
        if portals and not target.of_volume(volume.uuid):
            grant.portals = portals
        for client in clients:
            known = grant.clients.get(client.name)
            if known is None or known.same_machine != client.same_machine:
                granted = NvmeClientGrant(client.same_machine)
                if not client.same_machine:
                    granted.instance = os.urandom(4).hex()
                    granted.keys = None if self.settings.trusted_network else Keys()
                grant.clients[client.name] = granted
        return grant

    def _take(self, grants: Sequence[NvmeGrant], force: bool = False) -> None:
        # Who goes is shown nothing any more before its writes fail: a guest there waits, should its host come back.
        gone = [nqn for grant in grants for nqn in target.of_volume(grant.volume.uuid) if nqn not in _names(grant)]
        target.hide(gone)
        problems: list[StorkitError] = []
        for nodes in (self._clients, self._local):
            with collected(problems):
                nodes.allow(grants, giving=False)
        raise_problems(problems)  # what its device has not given back, the target would wait for
        target.remove(gone)
        self._clients.remove(grants)

    def _give(self, grants: Sequence[NvmeGrant]) -> None:
        if offered := [grant for grant in grants if grant.remote()]:
            target.prepare()
            self._clients.make((grant, client, _role(client)) for grant in offered for client in grant.remote())
            self._clients.allow(offered)
            target.make([each for grant in offered for each in _subsystems(grant)])
        self._local.allow(grants)

    def _enlarge(self, grants: Sequence[NvmeGrant]) -> None:
        self._clients.allow(grants)
        for grant in grants:
            for subsystem in _subsystems(grant):
                if (seen := target.observe(subsystem.nqn)) is not None and seen.identity:
                    target.resized(subsystem)

    def _observe(self, grants: Sequence[NvmeGrant]) -> list[Export]:
        here = self._local.find([grant.volume.uuid for grant in grants]) if grants else []
        mine = {attachment.uuid: attachment.writable for attachment in here}
        nodes = {node.uuid: node for node in devmapper.find()} if grants else {}
        exports = []
        for grant in grants:
            volume = grant.volume
            for client, granted in grant.clients.items():
                right = client in grant.writers
                if granted.same_machine:
                    live, where = Path(volume.path).exists(), volume.path
                    right = mine.get(volume.uuid, right)
                else:
                    node = nodes.get(devmapper.node_uuid(volume.uuid, _role(client)))
                    live = node is not None and _runs(grant, client)
                    where = ", ".join(grant.portals)
                    right = writable(node) if node is not None and live else right
                exports.append(
                    Export(volume.name, volume.uuid, client, right, TRANSPORT, live, where, grant.generation)
                )
        return exports

    def _offer(self, grant: NvmeGrant, client: str) -> Offer:
        volume, granted, said = grant.volume, grant.clients[client], identity(grant.volume.uuid)
        if granted.same_machine:
            right = client in grant.writers
            common = (volume.name, volume.uuid, volume.size, client, TRANSPORT, volume.path, said, right)
            return Offer(*common, path=volume.path)
        nqn = subsystem_nqn(volume.uuid, client)
        node = devmapper.of_role(_role(client)).get(volume.uuid)
        seen = target.observe(nqn)
        if node is None or seen is None or not _shows(seen, grant.host(client)):
            message = f"the NVMe target of volume {volume.name} does not run on host {self.site.host}"
            raise ServiceUnreachable(message, f"storkit host restore {self.site.host}")
        credential: Credential | None = None
        if granted.keys is not None:
            keys = granted.keys
            credential = Credential("chap", grant.host(client), keys.host, {"controller": keys.controller})
        address, port = portal(grant.portals[0])
        common = (volume.name, volume.uuid, device_size(seen.device), client, TRANSPORT, nqn, said, writable(node))
        return Offer(
            *common, server=address, port=port, portals=grant.portals, options={HOST: grant.host(client)},
            credential=credential,
        )  # fmt: skip

    def _reaches(self, grant: NvmeGrant, client: str) -> bool:
        return client in grant.clients or target.observe(subsystem_nqn(grant.volume.uuid, client)) is not None

    def _still_there(self, grants: Sequence[NvmeGrant], client: str) -> Iterable[StorkitError]:
        """Yield an error for each way in that `client` still has: a subsystem, and with it controllers, or a node."""
        nodes = devmapper.of_role(_role(client))
        for grant in grants:
            volume, hint = grant.volume, f"storkit fence {client}"
            if target.observe(subsystem_nqn(volume.uuid, client)) is not None or volume.uuid in nodes:
                yield Unsafe(f"the NVMe target of volume {volume.name} still knows host {client}", hint)
            if client == self.site.host:
                for attachment in self._local.find([volume.uuid]):
                    if attachment.writable:
                        yield Unsafe(f"{attachment.path} can still be written on {client}", hint)


def unauthenticated(host: str) -> StorkitError:
    """Why a host's kernel serves nobody whom the inventory does not trust."""
    return Unsupported(
        f"the kernel of host {host} has no in-band authentication for NVMe (NVME_TARGET_AUTH): whoever reaches its"
        " port could write",
        "use a kernel that has it (Debian 13, or 12's backport); or, if nobody else can reach that network, write into"
        f' the inventory, at [transports.{TRANSPORT}]: trusted_network = "{TRUSTED}"',
    )


def _role(client: str) -> str:
    return _ROLE + host_slug(client).replace("~", "+")  # device-mapper's names have no tilde


def _names(grant: NvmeGrant) -> set[str]:
    return {subsystem_nqn(grant.volume.uuid, client) for client in grant.remote()}


def _subsystems(grant: NvmeGrant) -> list[Subsystem]:
    """A grant as the kernel's target should have it."""
    volume = grant.volume
    return [
        Subsystem(
            subsystem_nqn(volume.uuid, client),
            grant.host(client),
            volume.uuid,
            devmapper.node_path(devmapper.node_name(volume.name, _role(client))),
            grant.clients[client].keys,
            grant.portals,
        )
        for client in grant.remote()
    ]


def _runs(grant: NvmeGrant, client: str) -> bool:
    seen = target.observe(subsystem_nqn(grant.volume.uuid, client))
    return seen is not None and _shows(seen, grant.host(client))


def _shows(seen: SeenSubsystem, host: str) -> bool:
    """Whether a client of that name can attach by it."""
    return bool(seen.identity) and seen.linked and host in seen.hosts
