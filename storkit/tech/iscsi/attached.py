"""What is attached on this host over iSCSI: nodes and sessions as the kernel has them, and what was expected of them.

The record of an attachment is its offer without the secrets, which open-iscsi's own record has. Nothing here starts a
process: device-mapper's nodes are read from sysfs.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass, replace
from pathlib import Path

from storkit.core.backend import Site
from storkit.core.errors import NotFound, ServiceUnreachable, StorkitError, Unsafe, UsageError, raise_problems
from storkit.core.model import Evidence, Offer, Volume
from storkit.core.units import SECTOR
from storkit.system.block import devmapper, reservations, scsi
from storkit.system.block.fingerprint import BLOCK, digests, read_direct, wanted
from storkit.system.parallel import every
from storkit.tech.iscsi import initiator, sessiondisk
from storkit.tech.iscsi.initiator import IscsiSession
from storkit.tech.iscsi.names import portal, target_iqn
from storkit.tech.records import RecordFiles

ROLE = "attached"
BLOCK_DEVICES = Path("/sys/class/block")


@dataclass(frozen=True, slots=True)
class AttachedNode:
    """The device-mapper node of an attachment."""

    name: str
    uuid: str
    """The volume's."""
    volume: str
    size: int
    readonly: bool
    disks: tuple[str, ...]
    """What lies below: /dev/sdX, or nothing where it is gone."""

    @property
    def path(self) -> str:
        return devmapper.node_path(self.name)


def find_nodes(root: Path = BLOCK_DEVICES) -> list[AttachedNode]:
    """The nodes of the role `attached`, whatever transport made them, by volume name."""
    found = []
    for directory in root.glob("dm-*"):
        try:
            name = (directory / "dm/name").read_text().strip()
            uuid = (directory / "dm/uuid").read_text().strip()
            uuid = uuid.removeprefix(devmapper.PREFIX).removesuffix(f"-{ROLE}")
            volume = name.removeprefix("storkit:").removesuffix(f":{ROLE}")
            if name != devmapper.node_name(volume, ROLE):
                continue
            size = int((directory / "size").read_text()) * SECTOR
            readonly = (directory / "ro").read_text().strip() == "1"
            disks = sorted(f"/dev/{slave.name}" for slave in (directory / "slaves").iterdir())
        except OSError:
            continue  # it went while we looked
        found.append(AttachedNode(name, uuid, volume, size, readonly, tuple(disks)))
    return sorted(found, key=lambda node: (node.volume, node.uuid))


class IscsiAttached:
    """The attachments of one host."""

    def __init__(self, site: Site, prefix: str) -> None:
        self.site = site
        self.prefix = prefix
        self._records = RecordFiles(site.state / "iscsi-attached", Offer, "the attachment")

    def nodes(self) -> dict[str, AttachedNode]:
        """UUID to node of the volumes that are attached over iSCSI."""
        ours = set(self._records.uuids())
        targets = {session.target for session in initiator.find_sessions()}
        return {
            node.uuid: node
            for node in find_nodes()
            if node.uuid in ours or target_iqn(self.prefix, node.uuid) in targets
        }

    def session(self, offer: Offer) -> IscsiSession | None:
        """The session of an attachment: an alive one if there is one."""
        found = [session for session in initiator.find_sessions() if session.target == offer.name]
        return max(found, key=lambda session: session.alive, default=None)

    def alive(self, offer: Offer) -> IscsiSession:
        """Its session, with the target at the other end. Raises ServiceUnreachable."""
        session = self.session(offer)
        if session is None or not session.alive:
            raise ServiceUnreachable(
                f"the target {offer.name} of volume {offer.volume} does not answer host {self.site.host}",
                "storkit status",
            )
        return session

    def evidence(self, volumes: list[Volume], offsets: list[int] | None) -> list[Evidence]:
        nodes = self.nodes()
        offers, problems = self.offers(volume.uuid for volume in volumes)
        known = {offer.uuid: offer for offer in offers if offer.uuid in nodes}
        for volume in volumes:
            if volume.uuid not in known:
                hint = f"storkit attach {volume.name} --on {self.site.host}"
                problems.append(NotFound(f"volume {volume.name} is not attached on {self.site.host}", hint))
            elif any(offset % BLOCK or not 0 <= offset < nodes[volume.uuid].size for offset in offsets or ()):
                problems.append(UsageError(f"offsets are multiples of {BLOCK} below {nodes[volume.uuid].size}"))
        raise_problems(problems)
        found: dict[str, Evidence] = {}

        def look(offer: Offer) -> None:
            found[offer.uuid] = self._look(offer, nodes[offer.uuid], offsets)

        every(look, list(known.values()))
        return [found[volume.uuid] for volume in volumes]

    def _look(self, offer: Offer, node: AttachedNode, offsets: list[int] | None) -> Evidence:
        session = self.alive(offer)
        # A session is lost ten seconds after its target: who asks the disk meanwhile waits until that is back.
        if reason := initiator.probe(*portal(session.portal)):
            message = f"the target of volume {offer.volume} does not answer {self.site.host} at {session.portal}"
            raise ServiceUnreachable(f"{message}: {reason}", "storkit status")
        path = sessiondisk.find(session)
        hint = f"storkit detach {offer.volume} --on {self.site.host}"
        if not path or node.disks != (path,):
            message = f"the path of volume {offer.volume} on {self.site.host} does not lead to its target's disk"
            raise Unsafe(message, hint)
        disk = sessiondisk.read(path)
        if disk.identity != offer.identity:
            raise Unsafe(f"what answers for volume {offer.volume} on {self.site.host} is {disk.identity}", hint)
        with scsi.ScsiDisk(path) as asked:
            keys = {reservations.key_text(key) for key in asked.registered_keys()}
        own = reservations.key_text(reservations.key_for(offer.uuid, self.site.host))
        ranges = wanted(offer.uuid, disk.size, offsets)
        try:
            blocks = digests(ranges, read_direct(path, ranges))
        except OSError as error:
            raise ServiceUnreachable(f"{path} cannot be read: {error.strerror}", "storkit status") from error
        key = own if own in keys else ""
        return Evidence(offer.volume, self.site.host, disk.identity, disk.size, blocks, key, sorted(keys))

    def save(self, offers: Iterable[Offer]) -> None:
        self._records.save({offer.uuid: replace(offer, credential=None) for offer in offers})

    def forget(self, offers: Iterable[Offer]) -> None:
        """Forget records, open-iscsi's first: as long as ours is there, it names what may be left."""
        for offer in offers:
            initiator.delete_records(offer.name)
            self._records.forget([offer.uuid])

    def offers(self, uuids: Iterable[str] | None = None) -> tuple[list[Offer], list[StorkitError]]:
        """What was expected of these attachments (None: all), by name, and what is wrong with damaged records."""
        found, problems = self._records.find(uuids)
        return sorted(found.values(), key=lambda offer: offer.volume), problems

    def bare_offer(self, volume: Volume) -> Offer:
        """What is known of an attachment without a record: its target's name."""
        name = target_iqn(self.prefix, volume.uuid)
        return Offer(volume.name, volume.uuid, volume.size, self.site.host, "iscsi", name, "", False)
