"""Attachments of block devices below a device-mapper node: what the clients of such transports share.

The record is the offer. The stable path leads to a node of storkit's over the transport's device, so that a right can
be taken up, and another device be put below, under whoever has the path open.
"""

from __future__ import annotations

import os
from abc import abstractmethod
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import replace

from storkit.core.errors import (
    Conflict,
    ServiceUnreachable,
    StorkitError,
    TimedOut,
    Unsafe,
    Unsupported,
    UsageError,
    raise_problems,
)
from storkit.core.model import Attachment, DiskSource, Offer, Volume, check_name
from storkit.system.block import devmapper, reading
from storkit.system.block.devmapper import MappedNode, Wanted, node_name, node_path, node_uuid
from storkit.system.openers import only_killed
from storkit.tech import portals
from storkit.tech.attachments import Attaching, Attachments

ROLE = "attached"
FILL = devmapper.beside(ROLE)


class MappedAttachments(Attachments[Offer]):
    """The attachments of one host by one transport of block devices."""

    @abstractmethod
    def claim(self, volumes: list[Volume], writers: list[str]) -> None:
        """See `Transport.claim`."""

    def _attachment(self, record: Offer) -> Attachment:
        path = str(self.path(record.volume))
        return Attachment(
            record.volume, record.uuid, self.site.host, self.transport, path, DiskSource("block", path), record.size,
            record.writable,
        )  # fmt: skip

    def _refused_name(self, offer: Offer) -> Iterator[StorkitError]:
        """Another volume has the offered one's name, and so its node."""
        for uuid, node in devmapper.of_role(ROLE).items():
            if node.volume == offer.volume and uuid != offer.uuid:
                hint = f"storkit detach {offer.volume} --on {self.site.host}"
                yield Conflict(f"another volume {offer.volume}, {uuid}, is attached on {self.site.host}", hint)

    def _refused_portals(self, offer: Offer, port: int) -> Iterator[StorkitError]:
        """The offer names no place to connect to, or nonsense; `port` is the transport's."""
        if not offer.portals:
            yield UsageError(f"the offer of volume {offer.volume} names no portal", "storkit status")
        yield from portals.problems(offer.portals, port, self.transport)

    def _ours(self, target: str, name: str, uuid: str, record: Offer | None) -> bool:
        return target == node_path(node_name(name, ROLE))

    def _place(self, batch: Sequence[Attaching[Offer]]) -> None:
        nodes = []
        for one in batch:
            record, table = one.record, self._table(one)
            name, uuid = node_name(record.volume, ROLE), node_uuid(record.uuid, ROLE)
            nodes.append(Wanted(name, uuid, table, not record.writable))
            one.target = node_path(name)
        devmapper.ensure(nodes)

    def sources(self, offers: list[Offer]) -> list[DiskSource]:
        """Connect copies that are to be filled (TransportVerbs.sources): each has a node beside the stable path, and no
        record, so that nothing makes it again after a reboot."""
        problems = list[StorkitError]()
        with self._locked(offer.uuid for offer in offers):
            known = self._records.find(offer.uuid for offer in offers)[0]
            for offer in offers:
                check_name("volume", offer.volume)
                problems += self._refused(offer, None)
                if offer.uuid in known or len(offer.portals) > 1:
                    how = "by the same transport" if offer.uuid in known else "by several paths"
                    message = f"volume {offer.volume} is attached on {self.site.host} {how}: it is not copied to there"
                    problems.append(Unsupported(message, "stop its guest, then move its volume"))
            raise_problems(problems)
            batch = [Attaching(self._planned(offer), None, offer) for offer in offers]
            try:
                self._open(batch)
                nodes = [self._beside(one) for one in batch]
                devmapper.ensure(nodes)
            except BaseException:
                self._abandon([one for one in batch if one.fresh])
                raise
        return [DiskSource("block", node_path(node.name)) for node in nodes]

    def _beside(self, one: Attaching[Offer]) -> Wanted:
        """The node by which a copy is filled."""
        record = one.record
        name, uuid = node_name(record.volume, FILL), node_uuid(record.uuid, FILL)
        return Wanted(name, uuid, self._table(one), not record.writable)

    def _drop_copies(self, uuids: Iterable[str]) -> None:
        """Remove the nodes by which copies were filled. Raises Conflict: one is being filled."""
        there = devmapper.of_role(FILL)
        devmapper.remove([there[uuid].name for uuid in uuids if uuid in there])

    def _table(self, one: Attaching[Offer]) -> str:
        """What the node of an attachment is to stand on."""
        return devmapper.linear(one.device, one.record.size)

    def _taken_up(self, batch: Sequence[Attaching[Offer]]) -> None:
        """Make attachments writable that are connected, under whoever has the paths open."""
        if taken := [one for one in batch if one.device]:
            self._records.save({one.record.uuid: one.record for one in taken})
            self._place(taken)
        for one in taken:
            self._link(one.record.volume, one.target)

    def _in_use(self, record: Offer, node: MappedNode | None, lost: bool) -> Iterator[StorkitError]:
        """Somebody has a node open; `lost`: its connection is, so that who was killed waits for nothing else."""
        if node is not None and node.opens and not (lost and only_killed(node.device)):
            hint = f"see who has it: lsblk {node.path}; fuser -v {node.path}"
            yield Conflict(f"volume {record.volume} is in use on {self.site.host}", hint)

    def _must_answer(self, record: Offer, path: str, ranges: Sequence[tuple[int, int]] = reading.PROBE) -> list[bytes]:
        """Read from a disk before anything is asked of it that no child can ask. Raises ServiceUnreachable: its target
        has gone away, which the kernel has not noticed yet."""
        try:
            return reading.read(path, ranges).blocks
        except TimedOut as error:
            message = f"the target {record.name} of volume {record.volume} does not answer: {error.message}"
            raise ServiceUnreachable(message, "storkit status") from error
        except OSError:
            return []  # what the disk is, and why it fails, its own commands tell better

    def _blocks(self, record: Offer, path: str, seen: list[bytes], identity: str) -> list[bytes]:
        """What was read from a disk that states this identity. Raises Unsafe: it is another one."""
        if identity != record.identity:
            message = f"what answers for volume {record.volume} on {self.site.host} is {identity}"
            raise Unsafe(message, f"storkit detach {record.volume} --on {self.site.host}")
        if not seen:
            raise ServiceUnreachable(f"{path}, of volume {record.volume}, cannot be read", "storkit status")
        return seen


def claimed(record: Offer) -> Attaching[Offer]:
    """An attachment on its way to the right to write."""
    return Attaching(replace(record, writable=True), record, None)


def node_fault(node: MappedNode | None, disk: str, whose: str, writable: bool) -> str:
    """Why the node over a client's disk does not work; empty if it does. `whose` disk it is, for people."""
    if node is None:
        return "its device-mapper node is gone"
    if disk not in devmapper.below(node):
        return f"{node.path} does not lead to its {whose}'s disk {disk}"
    if node.suspended:
        return f"{node.path} is suspended"
    return f"a command that changed its right was killed: {node.path}" if node.readonly == writable else ""


def flush(node: MappedNode) -> OSError | None:
    """Write what this host's page cache holds for a node; why that failed."""
    descriptor = os.open(node.device, os.O_RDONLY | os.O_CLOEXEC)
    try:
        os.fsync(descriptor)
    except OSError as error:
        return error
    finally:
        os.close(descriptor)
    return None
