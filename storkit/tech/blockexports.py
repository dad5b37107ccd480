"""Transports that serve block devices, and whose home host is a client of its own through a node: what they share.

The home side is HomeExports with the node of storkit.tech.homenode; the face sends each offer, and each volume, to the
side that it is of: an offer with a path is for the home host itself.
"""

from __future__ import annotations

import hashlib
import mmap
import os
import stat
from abc import abstractmethod
from collections.abc import Iterable, Mapping, Sequence
from contextlib import AbstractContextManager
from pathlib import Path
from typing import Any

from storkit.core.backend import Site
from storkit.core.errors import NotFound, StorkitError, Unsafe, Unsupported, raise_problems
from storkit.core.model import AttachedHere, Attachment, Client, DiskSource, Evidence, Offer, Volume
from storkit.system.block.blockdevice import device_size
from storkit.system.block.devmapper import MappedNode
from storkit.tech.athand import at_hand
from storkit.tech.exports import HomeExports, HomeSide
from storkit.tech.grants import G, grants_of_client
from storkit.tech.homenode import LocalNodes, Stated
from storkit.tech.mapped import MappedAttachments

_READ = 4 << 20
"""Bytes that are read at once."""


class BlockExports(HomeExports[G]):
    """The exports of block devices on one home host."""

    def __init__(self, site: Site, settings: Any) -> None:
        super().__init__(site, settings)
        self._local: LocalNodes[G] = LocalNodes(site, self.kind.transport, self._identity, self._served)

    @abstractmethod
    def _machine_lock(self) -> AbstractContextManager[None]:
        """Keep other processes from changing what serves on this machine."""

    @abstractmethod
    def _identity(self, uuid: str) -> str:
        """What a server has to state of the volume with this UUID."""

    @abstractmethod
    def _served(self, grant: G, node: MappedNode, nodes: Mapping[str, MappedNode]) -> Stated:
        """What the volume's servers state: see LocalNodes."""

    def _lock(self, uuids: Iterable[str]) -> AbstractContextManager[None]:
        return self._machine_lock()

    def _refused_client(self, client: Client) -> Iterable[StorkitError]:
        if client.same_machine and client.name != self.site.host:
            message = f"{self.kind.title} cannot tell host {client.name} from {self.site.host}: they are one machine"
            yield Unsupported(message, 'use the transport "nbd" between hosts of one machine')

    def _refused_volume(self, volume: Volume) -> Iterable[StorkitError]:
        title = self.kind.title
        if volume.format not in ("", "raw"):
            message = f"volume {volume.name} is {volume.format}: {title} exports raw block devices"
            yield Unsupported(message, 'use the transport "nbd" for its pool, or import it into an LVM pool')
            return
        try:
            if not stat.S_ISBLK(Path(volume.path).stat().st_mode):
                message = f"volume {volume.name} is a file, {volume.path}: {title} exports block devices"
                yield Unsupported(message, 'use the transport "nbd" for its pool, or import it into an LVM pool')
            elif device_size(volume.path) < volume.size:
                yield _too_small(volume)
        except OSError:
            hint = f"storkit host restore {self.site.host}"
            yield NotFound(f"volume {volume.name} has no device {volume.path}", hint)

    def _remake(self, grants: Sequence[G]) -> None:
        at_hand([grant.volume for grant in grants])
        raise_problems(
            [_too_small(grant.volume) for grant in grants if device_size(grant.volume.path) < grant.volume.size]
        )
        super()._remake(grants)

    def _restored(self, grants: Sequence[G]) -> None:
        self._local.restore(grants)

    # The home host's own attachments.

    def attach_here(self, offers: list[Offer]) -> list[Attachment]:
        with self._machine_lock():
            grants, problems = self._grants.find(offer.uuid for offer in offers)
            raise_problems(problems)
            attached = self._local.attach(offers, grants)
            self._note(grants, True)
        return attached

    def sources_here(self, offers: list[Offer]) -> list[DiskSource]:
        with self._machine_lock():
            grants, problems = self._grants.find(offer.uuid for offer in offers)
            raise_problems(problems)
            return self._local.sources(offers, grants)

    def digests(self, volume: Volume, client: str, offset: int, length: int, block: int) -> list[str]:
        """As TransportVerbs.digests: of the device, past this host's page cache, as its server writes it."""
        grants, problems = self._grants.find([volume.uuid])
        raise_problems(problems)
        (grant,) = grants_of_client(grants, [volume], client)
        path, end = grant.volume.path, min(offset + length, grant.volume.size)
        together, found = max(1, _READ // block) * block, list[str]()
        descriptor = os.open(path, os.O_RDONLY | os.O_DIRECT | os.O_CLOEXEC)
        try:
            with mmap.mmap(-1, together) as buffer, memoryview(buffer) as view:
                for start in range(offset, end, together):
                    size = min(together, end - start)
                    with view[:size] as data:
                        if os.preadv(descriptor, [data], start) != size:
                            raise Unsafe(f"{path} ends before {start + size} bytes", f"lsblk --bytes {path}")
                    for at in range(0, size, block):
                        with view[at : min(at + block, size)] as piece:
                            found.append(hashlib.sha256(piece).hexdigest())
                    self.site.progress(min(1.0, (start + size - offset) / length), f"reading {volume.name}")
        finally:
            os.close(descriptor)
        return found

    def detach_here(self, volumes: list[Volume]) -> None:
        with self._machine_lock():
            self._local.detach(volumes)
            self._note(self._grants.find(volume.uuid for volume in volumes)[0], False)

    def find_here(self, volumes: list[str] | None) -> list[Attachment]:
        return self._local.find(volumes)

    def evidence_here(self, volumes: Iterable[Volume], offsets: list[int] | None) -> list[Evidence]:
        grants, problems = self._grants.find(volume.uuid for volume in volumes)
        raise_problems(problems)
        return [self._local.evidence(grant, offsets) for grant in grants]

    def _note(self, grants: list[G], attached: bool) -> None:
        """Remember whether this host, the home host, has these volumes attached."""
        changed = []
        for grant in grants:
            mine = grant.clients.get(self.site.host)
            if mine is not None and mine.attached != attached:
                mine.attached = attached
                changed.append(grant)
        self._grants.save(changed)


class BlockSides(HomeSide):
    """A transport of block devices: its home side, and its clients."""

    claims = True

    @classmethod
    def fills_nodes(cls, settings: Mapping[str, Any]) -> bool:
        return True

    @property
    @abstractmethod
    def _exports(self) -> BlockExports[Any]: ...

    @property
    @abstractmethod
    def _attachments(self) -> MappedAttachments: ...

    def attach(self, offers: list[Offer]) -> list[Attachment]:
        made: list[Attachment] = []
        if here := [offer for offer in offers if offer.path]:
            made += self._exports.attach_here(here)
        if there := [offer for offer in offers if not offer.path]:
            made += self._attachments.attach(there)
        order = {offer.uuid: number for number, offer in enumerate(offers)}
        return sorted(made, key=lambda attachment: order[attachment.uuid])

    def claim(self, volumes: list[Volume], writers: list[str]) -> None:
        # The home host's own node has the right since `set_writers` returned: there is nothing to take up.
        _, there = self._divided(volumes)
        if there:
            self._attachments.claim(there, writers)

    def detach(self, volumes: list[Volume]) -> None:
        # While a volume is moved under its guest, this host may have one as its home, and its copy at another.
        host = self.site.host
        if here := [volume for volume in volumes if volume.host in ("", host)]:
            self._exports.detach_here(here)
        if there := [volume for volume in volumes if volume.host != host]:
            self._attachments.detach(there)

    def sources(self, offers: list[Offer]) -> list[DiskSource]:
        made: dict[str, DiskSource] = {}
        if here := [offer for offer in offers if offer.path]:
            made |= zip((offer.uuid for offer in here), self._exports.sources_here(here), strict=True)
        if there := [offer for offer in offers if not offer.path]:
            made |= zip((offer.uuid for offer in there), self._attachments.sources(there), strict=True)
        return [made[offer.uuid] for offer in offers]

    def digests(self, volume: Volume, client: str, offset: int, length: int, block: int) -> list[str]:
        return self._exports.digests(volume, client, offset, length, block)

    def look_attachments(self, volumes: list[str] | None = None) -> AttachedHere:
        seen = self._attachments.look(volumes)
        found = [*self._exports.find_here(volumes), *seen.attachments]
        return AttachedHere(sorted(found, key=lambda each: (each.volume, each.uuid)), seen.damaged)

    def evidence(self, volumes: list[Volume], offsets: list[int] | None = None) -> list[Evidence]:
        here, there = self._divided(volumes)
        found = self._exports.evidence_here(here, offsets) if here else []
        if there:
            found += self._attachments.evidence(there, offsets)
        order = {volume.name: number for number, volume in enumerate(volumes)}
        return sorted(found, key=lambda evidence: order[evidence.volume])

    def _divided(self, volumes: list[Volume]) -> tuple[list[Volume], list[Volume]]:
        """Those that this host has attached as their home, and the others."""
        here = {attachment.uuid for attachment in self._exports.find_here([volume.uuid for volume in volumes])}
        mine = [volume for volume in volumes if volume.uuid in here]
        return mine, [volume for volume in volumes if volume.uuid not in here]


def _too_small(volume: Volume) -> StorkitError:
    return Unsafe(f"{volume.path} is smaller than volume {volume.name}", f"storkit volume show {volume.name}")
