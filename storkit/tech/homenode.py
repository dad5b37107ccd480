"""Rights to write as tables of device-mapper nodes at the home host; and its own node, by which it is its own client.

The home host's guest comes through no server, so no server's access lists bind it: it has a node over the volume's
device, beside the server's own. With the right its table is `linear`, without it the device for reading and an error
for every write (devmapper.refuse_writes). The swap suspends the node, which waits until all that was written has
reached the device; what comes later meets the new table, also through a descriptor that has long been open. A read-only
table would not do: until Linux 6.5 the block layer only warns of a write to a read-only device, and lets it through.

A server without rights of its own is given a node of this kind for each client as well.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Generic

from storkit.core.backend import Site, refuse_broken
from storkit.core.errors import Conflict, NotFound, StorkitError, Unsafe, raise_problems
from storkit.core.model import Attachment, DiskSource, Evidence, Offer, Volume, check_name
from storkit.system import files
from storkit.system.block import devmapper, fingerprint, holders, mirrornode, reading
from storkit.system.block.blockdevice import device_size
from storkit.system.block.devmapper import MappedNode, Wanted
from storkit.tech.attachments import check_offsets, state
from storkit.tech.grants import G, VolumeGrant

ROLE = "local"
FILL = devmapper.beside(ROLE)

Stated = tuple[str, list[str] | None]
"""An identity, and the reservation keys, that a server states."""


class RightNodes(ABC, Generic[G]):
    """Nodes whose tables are their clients' rights to write."""

    readonly = True
    """Whether the nodes of images and snapshots are read-only devices: not for a server that opens none."""

    @abstractmethod
    def _nodes(self, grant: G, there: Mapping[str, MappedNode]) -> Iterator[tuple[str, str]]:
        """Client and role of each node that this grant may have; of one that it does not name, the client is empty.
        `there` are those of storkit's that there are, by their UUID."""

    def allow(self, grants: Sequence[G], *, giving: bool = True) -> None:
        """Give the nodes that exist the tables that these grants call for; without `giving`, only take rights away."""
        there = {node.uuid: node for node in devmapper.find()} if grants else {}
        guarded: list[Wanted] = []
        cut: list[Wanted] = []
        for grant in grants:
            for client, role in self._nodes(grant, there):
                if devmapper.node_uuid(grant.volume.uuid, role) in there and (giving or not may_write(grant, client)):
                    wanted = self._wanted(grant, client, role)
                    (guarded if client in grant.clients else cut).append(wanted)
        if guarded:
            devmapper.swap(guarded)
        if cut:  # nothing that this host's cache holds for the disk is written any more
            devmapper.swap(cut, flush=False)

    def make(self, nodes: Iterable[tuple[G, str, str]]) -> None:
        """Have the nodes that there are not yet, by grant, client and role, with their rights."""
        there = {node.uuid for node in devmapper.find()}
        wanted = [self._wanted(*node) for node in nodes]
        if missing := [node for node in wanted if node.uuid not in there]:
            devmapper.create(missing)

    def _wanted(self, grant: G, client: str, role: str) -> Wanted:
        volume = grant.volume
        name, uuid = devmapper.node_name(volume.name, role), devmapper.node_uuid(volume.uuid, role)
        if client not in grant.clients:
            return Wanted(name, uuid, devmapper.error(volume.size))
        if may_write(grant, client):
            return Wanted(name, uuid, devmapper.linear(volume.path, volume.size))
        table = devmapper.refuse_writes(volume.path, volume.size)
        return Wanted(name, uuid, table, self.readonly and volume.kind != "disk")


def may_write(grant: VolumeGrant, client: str) -> bool:
    return client in grant.clients and client in grant.writers and grant.volume.kind == "disk"


def writable(node: MappedNode) -> bool:
    """Whether a node lets writes through."""
    return not node.readonly and (" linear " in node.table or mirrornode.legs(node.table) is not None)


def place(node: MappedNode) -> tuple[str, str]:
    """The device and the offset that a node of one line stands on."""
    if copied := mirrornode.legs(node.table):
        return copied[0], "0"
    words = node.table.split()
    return (words[3], words[4]) if len(words) > 4 else ("", "")


class LocalNodes(RightNodes[G]):
    """The home host's own attachments by one transport."""

    def __init__(
        self,
        site: Site,
        transport: str,
        identity: Callable[[str], str],
        served: Callable[[G, MappedNode, Mapping[str, MappedNode]], Stated],
    ) -> None:
        """`identity`: what the transport's servers have to state of the volume with a UUID. `served`: what they do
        state; raises Unsafe for one that does not stand on the bytes of this host's own node, which it is given with
        all nodes of storkit's by their UUID."""
        self.site = site
        self._transport, self._identity, self._served = transport, identity, served

    def _nodes(self, grant: G, there: Mapping[str, MappedNode]) -> Iterator[tuple[str, str]]:
        yield self.site.host, ROLE
        yield self.site.host, FILL

    def attach(self, offers: Sequence[Offer], grants: Sequence[G]) -> list[Attachment]:
        """Make nodes and stable paths. What may be written is what the grants say now, whatever the offer said then."""
        found = {grant.volume.uuid: grant for grant in grants}
        there = {node.uuid: node for node in devmapper.find()}
        problems: list[StorkitError] = []
        for offer in offers:
            problems += self._refused(offer, found.get(offer.uuid), there)
        raise_problems(problems)
        self._bring([found[offer.uuid] for offer in offers])
        known = {attachment.uuid: attachment for attachment in self.find([offer.uuid for offer in offers])}
        return [known[offer.uuid] for offer in offers]

    def sources(self, offers: Sequence[Offer], grants: Sequence[G]) -> list[DiskSource]:
        """Nodes beside the stable paths, by which copies are filled (TransportVerbs.sources)."""
        found, problems = {grant.volume.uuid: grant for grant in grants}, list[StorkitError]()
        for offer in offers:
            problems += self._refused(offer, found.get(offer.uuid), {}, beside=True)
        raise_problems(problems)
        mine = [found[offer.uuid] for offer in offers]
        self.make([(grant, self.site.host, FILL) for grant in mine])
        self.allow(mine)
        return [DiskSource("block", devmapper.node_path(devmapper.node_name(o.volume, FILL))) for o in offers]

    def _refused(
        self, offer: Offer, grant: G | None, there: Mapping[str, MappedNode], beside: bool = False
    ) -> Iterable[StorkitError]:
        check_name("volume", offer.volume)
        if grant is None or self.site.host not in grant.clients:
            hint = f"storkit attach {offer.volume} --on {self.site.host}"
            yield NotFound(f"volume {offer.volume} is not exported to host {self.site.host}", hint)
            return
        if grant.volume.name != offer.volume or offer.identity != self._identity(grant.volume.uuid):
            message = f"the offer of volume {offer.volume} is for another disk: {offer.identity}"
            yield Unsafe(message, f"storkit volume show {offer.volume}")
        if offer.size != grant.volume.size or device_size(grant.volume.path) < offer.size:
            yield Unsafe(f"volume {offer.volume} is not {offer.size} bytes", f"storkit volume show {offer.volume}")
        if beside:
            return
        path = self.path(offer.volume)
        if path.is_symlink() or path.exists():
            node = there.get(devmapper.node_uuid(offer.uuid, ROLE))
            if not path.is_symlink() or (str(path.readlink()) != self._node(offer.volume) and node is None):
                yield Conflict(
                    f"{path} exists, and storkit did not make it", f"look at it, then remove it: ls -ld {path}"
                )

    def detach(self, volumes: Iterable[Volume]) -> None:
        """Remove nodes and stable paths. Raises Conflict: one is in use."""
        nodes, wanted = devmapper.of_role(ROLE), {volume.uuid: volume for volume in volumes}
        mine = [nodes[uuid] for uuid in wanted if uuid in nodes]
        held = {node.volume: found for node in mine if (found := holders.find([node.path]))}
        raise_problems([holders.conflict(name, self.site.host, found) for name, found in held.items()])
        copies = devmapper.of_role(FILL)
        mine += [copies[uuid] for uuid in wanted if uuid in copies]
        if mine:
            devmapper.remove([node.name for node in mine])
        for path in map(self.path, {node.volume for node in mine} | {volume.name for volume in wanted.values()}):
            # a link that was left by a kill has no node; one of another attachment points elsewhere
            if path.is_symlink() and str(path.readlink()) == self._node(path.name):
                path.unlink()

    def find(self, uuids: Iterable[str] | None = None) -> list[Attachment]:
        chosen = None if uuids is None else set(uuids)
        nodes = devmapper.of_role(ROLE).items()
        return [self._attachment(uuid, node) for uuid, node in nodes if chosen is None or uuid in chosen]

    def _attachment(self, uuid: str, node: MappedNode) -> Attachment:
        path, where = str(self.path(node.volume)), state(self._fault(node))
        disk = DiskSource("block", path)
        return Attachment(
            node.volume, uuid, self.site.host, self._transport, path, disk, node.size, writable(node), where
        )  # fmt: skip

    def _fault(self, node: MappedNode) -> str:
        """Why a node does not work; empty if it does, as far as the kernel tells."""
        path = self.path(node.volume)
        if node.table.endswith(" error"):
            return "its export to this host has been taken back"
        if not devmapper.below(node):
            return f"the device below {node.path} is gone"
        if node.suspended:
            return f"{node.path} is suspended"
        if not path.is_symlink() or str(path.readlink()) != node.path:
            return f"{path} leads elsewhere" if path.is_symlink() or path.exists() else f"{path} is gone"
        return ""

    def restore(self, grants: Sequence[G]) -> None:
        """Make the nodes and paths again that these grants say were attached."""
        mine = [grant for grant in grants if self._attached(grant)]
        if mine:
            self._bring(mine)

    def _bring(self, grants: Sequence[G]) -> None:
        self.make([(grant, self.site.host, ROLE) for grant in grants])
        self.allow(grants)
        for grant in grants:
            self._link(grant.volume.name)

    def evidence(self, grant: G, offsets: list[int] | None) -> Evidence:
        """What this host sees of its own node, past its cache; and what the volume's servers state of it."""
        volume = grant.volume
        nodes = {node.uuid: node for node in devmapper.find()}
        node = nodes[devmapper.node_uuid(volume.uuid, ROLE)]
        refuse_broken([self._attachment(volume.uuid, node)])
        said, keys = self._served(grant, node, nodes)
        check_offsets(node.size, offsets)
        ranges = fingerprint.wanted(volume.uuid, node.size, offsets)
        try:
            blocks = fingerprint.digests(ranges, reading.read(node.path, ranges).blocks)
        except OSError as error:
            raise Conflict(f"{node.path} cannot be read: {error.strerror}", f"dmsetup table {node.name}") from error
        return Evidence(volume.name, self.site.host, said, node.size, blocks, keys=keys)

    def path(self, volume: str) -> Path:
        """The stable path."""
        return self.site.dev / volume

    def _node(self, volume: str) -> str:
        return devmapper.node_path(devmapper.node_name(volume, ROLE))

    def _link(self, volume: str) -> None:
        files.point_at(files.make_private(self.site.dev) / volume, self._node(volume))

    def _attached(self, grant: G) -> bool:
        return self.site.host in grant.clients and grant.clients[self.site.host].attached
