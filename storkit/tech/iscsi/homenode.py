"""The home host as a client of itself: a device-mapper node over the volume's device, beside the target's own.

Its guest comes through no initiator, so the target's access lists do not bind it. Its right is the node's table: with
it `linear`, without it the device for reading and an error for every write (devmapper.refuse_writes). The swap suspends
the node, which waits until all that was written has reached the device; what comes later meets the new table, also
through a descriptor that has long been open. A read-only table would not do: until Linux 6.5 the block layer only warns
of a write to a read-only device, and lets it through.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from pathlib import Path

from storkit.core.backend import Site, refuse_broken
from storkit.core.errors import Conflict, NotFound, StorkitError, Unsafe, raise_problems
from storkit.core.model import Attachment, DiskSource, Evidence, Offer, Volume, check_name
from storkit.system import files
from storkit.system.block import devmapper, fingerprint, holders, reading
from storkit.system.block.blockdevice import device_size
from storkit.system.block.devmapper import Wanted
from storkit.tech.attachments import check_offsets, point_at, state
from storkit.tech.iscsi import target
from storkit.tech.iscsi.lio import FABRIC
from storkit.tech.iscsi.names import IscsiGrant, identity, naa, stated

ROLE = "local"
EXPORT_ROLE = "export"
"""The node that the target has open; so both can be open at once, each for itself."""


def export_node(volume: Volume) -> str:
    return devmapper.node_name(volume.name, EXPORT_ROLE)


def wanted_export(volume: Volume) -> Wanted:
    """The target's node over a volume's device. Raises NotFound: the device is not there."""
    name, uuid = export_node(volume), devmapper.node_uuid(volume.uuid, EXPORT_ROLE)
    return Wanted(name, uuid, devmapper.linear(volume.path, volume.size), volume.kind != "disk")


class LocalNodes:
    """The home host's own attachments."""

    def __init__(self, site: Site) -> None:
        self.site = site

    def attach(self, offers: Sequence[Offer], grants: Sequence[IscsiGrant]) -> list[Attachment]:
        """Make nodes and stable paths. What may be written is what the grants say now, whatever the offer said then."""
        found = {grant.volume.uuid: grant for grant in grants}
        there = {node.uuid: node for node in devmapper.find()}
        problems: list[StorkitError] = []
        for offer in offers:
            problems += self._refused(offer, found.get(offer.uuid), there)
        raise_problems(problems)
        mine = [found[offer.uuid] for offer in offers]
        wanted = [self._wanted(grant) for grant in mine]
        if new := [node for node in wanted if node.uuid not in there]:
            devmapper.create(new)
        self.allow(mine)
        for grant in mine:
            self._link(grant.volume.name)
        known = {attachment.uuid: attachment for attachment in self.find([offer.uuid for offer in offers])}
        return [known[offer.uuid] for offer in offers]

    def _refused(
        self, offer: Offer, grant: IscsiGrant | None, there: dict[str, devmapper.MappedNode]
    ) -> Iterable[StorkitError]:
        check_name("volume", offer.volume)
        if grant is None or self.site.host not in grant.clients:
            hint = f"storkit attach {offer.volume} --on {self.site.host}"
            yield NotFound(f"volume {offer.volume} is not exported to host {self.site.host}", hint)
            return
        if grant.volume.name != offer.volume or offer.identity != identity(grant.volume.uuid):
            message = f"the offer of volume {offer.volume} is for another disk: {offer.identity}"
            yield Unsafe(message, f"storkit volume show {offer.volume}")
        if offer.size != grant.volume.size or device_size(grant.volume.path) < offer.size:
            yield Unsafe(f"volume {offer.volume} is not {offer.size} bytes", f"storkit volume show {offer.volume}")
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

    def _attachment(self, uuid: str, node: devmapper.MappedNode) -> Attachment:
        path, where = str(self.path(node.volume)), state(self._fault(node))
        disk = DiskSource("block", path)
        return Attachment(
            node.volume, uuid, self.site.host, "iscsi", path, disk, node.size, _writable(node), where
        )  # fmt: skip

    def _fault(self, node: devmapper.MappedNode) -> str:
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

    def allow(self, grants: Iterable[IscsiGrant], *, giving: bool = True) -> None:
        """Give the nodes that exist the tables that these grants call for; without `giving`, only take rights away."""
        mine = [grant for grant in grants if Path(self._node(grant.volume.name)).exists()]
        there = {node.uuid for node in devmapper.find()} if mine else set()
        guarded: list[Wanted] = []
        cut: list[Wanted] = []
        for grant in mine:
            wanted = self._wanted(grant)
            if wanted.uuid in there and (giving or not self._may_write(grant)):
                (guarded if self.site.host in grant.clients else cut).append(wanted)
        if guarded:
            devmapper.swap(guarded)
        if cut:  # nothing that this host's cache holds for the disk is written any more
            devmapper.swap(cut, flush=False)

    def restore(self, grants: Sequence[IscsiGrant]) -> None:
        """Make the nodes and paths again that these grants say were attached."""
        mine = [grant for grant in grants if self._attached(grant)]
        if not mine:
            return
        there = {node.uuid for node in devmapper.find()}
        if new := [node for node in map(self._wanted, mine) if node.uuid not in there]:
            devmapper.create(new)
        self.allow(mine)
        for grant in mine:
            self._link(grant.volume.name)

    def evidence(self, grant: IscsiGrant, offsets: list[int] | None) -> Evidence:
        """What this host sees of its own node, past its cache.

        Where the volume has a target, its node has to stand on the same bytes of the same device as this one.
        """
        volume = grant.volume
        nodes = {node.uuid: node for node in devmapper.find()}
        node = nodes[devmapper.node_uuid(volume.uuid, ROLE)]
        refuse_broken([self._attachment(volume.uuid, node)])
        exported = nodes.get(devmapper.node_uuid(volume.uuid, EXPORT_ROLE))
        seen = target.observe(grant.iqn) if grant.iqn and FABRIC.is_dir() else None
        serial, keys = volume.uuid, None
        if seen is not None and seen.backstore is not None:
            serial = seen.serial
            if exported is None or exported.path != seen.device or _below(exported) != _below(node):
                message = f"the target of volume {volume.name} does not stand on the device of {node.path}"
                raise Unsafe(message, f"dmsetup table {node.name} {export_node(volume)}")
            keys = sorted(set(target.registrations(seen.backstore).values()))
        check_offsets(node.size, offsets)
        ranges = fingerprint.wanted(volume.uuid, node.size, offsets)
        try:
            blocks = fingerprint.digests(ranges, reading.read(node.path, ranges).blocks)
        except OSError as error:
            raise Conflict(f"{node.path} cannot be read: {error.strerror}", f"dmsetup table {node.name}") from error
        said = stated(naa(serial), serial)
        return Evidence(volume.name, self.site.host, said, node.size, blocks, keys=keys)

    def path(self, volume: str) -> Path:
        """The stable path."""
        return self.site.dev / volume

    def _node(self, volume: str) -> str:
        return devmapper.node_path(devmapper.node_name(volume, ROLE))

    def _link(self, volume: str) -> None:
        point_at(files.make_private(self.site.dev) / volume, self._node(volume))

    def _attached(self, grant: IscsiGrant) -> bool:
        return self.site.host in grant.clients and grant.clients[self.site.host].attached

    def _may_write(self, grant: IscsiGrant) -> bool:
        return self.site.host in grant.clients and self.site.host in grant.writers and grant.volume.kind == "disk"

    def _wanted(self, grant: IscsiGrant) -> Wanted:
        volume = grant.volume
        name, uuid = devmapper.node_name(volume.name, ROLE), devmapper.node_uuid(volume.uuid, ROLE)
        if self.site.host not in grant.clients:
            return Wanted(name, uuid, devmapper.error(volume.size))
        if self._may_write(grant):
            return Wanted(name, uuid, devmapper.linear(volume.path, volume.size))
        return Wanted(name, uuid, devmapper.refuse_writes(volume.path, volume.size), volume.kind != "disk")


def _writable(node: devmapper.MappedNode) -> bool:
    return not node.readonly and " linear " in node.table


def _below(node: devmapper.MappedNode) -> tuple[str, str]:
    """The device and the offset that a node of one line stands on."""
    words = node.table.split()
    return (words[3], words[4]) if len(words) > 4 else ("", "")
