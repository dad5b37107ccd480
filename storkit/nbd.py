"""The transport `nbd`: volumes over the Network Block Device protocol, served in user space.

It needs no kernel module and no root: QEMU opens the export itself, and an attachment is a `network` disk source. Where
the inventory says `attach = "kernel"`, hosts have block devices instead (tech/nbd/kernel.py). At the volume's home
host one qemu-storage-daemon per volume is the only process that has the image open; every client host has an export of
its own there, and the server refuses writes on an export that may not. Hosts on one machine use its Unix socket, others
TLS with a key (or certificate) that opens their own export and nothing else.

Identity on the wire is the export's description, `storkit:UUID:INSTANCE`: INSTANCE is drawn when a server starts, so
the servers of two copies of one disk can never be taken for one.
"""

from __future__ import annotations

from collections.abc import Mapping
from functools import cached_property
from pathlib import Path
from typing import Any, ClassVar

from storkit.core.backend import Needs
from storkit.core.errors import StorkitError, collected
from storkit.core.host import Door
from storkit.core.model import AttachedHere, Attachment, DiskSource, Evidence, Export, Finding, Offer, Volume
from storkit.system import modules
from storkit.system.qemu.storagedaemon import PACKAGE, PROGRAM
from storkit.tech.exports import HomeSide
from storkit.tech.nbd.arguments import check_x509
from storkit.tech.nbd.attach import X509_CLIENT_FILES, NbdAttachments
from storkit.tech.nbd.exports import NbdExports
from storkit.tech.nbd.server import X509_SERVER_FILES, NbdSettings


class Nbd(HomeSide):
    """NBD, served by QEMU's storage daemon."""

    name = "nbd"
    claims = True
    several = True
    locks_images = True
    opened_by_qemu = True
    beside = frozenset({"file"})
    formats = frozenset({"raw", "qcow2"})
    needs = Needs(tools={PROGRAM: PACKAGE, "qemu-nbd": "qemu-utils", "qemu-io": "qemu-utils"})
    Settings: ClassVar[type] = NbdSettings

    @classmethod
    def fills_nodes(cls, settings: Mapping[str, Any]) -> bool:
        return settings.get("attach") == "kernel"

    def ready(self, serves: bool = False, attaches: bool = False) -> list[Finding]:
        problems: list[StorkitError] = []
        if self.settings.tls == "x509" and not self.settings.plain_tcp:
            for used, files in ((serves, X509_SERVER_FILES), (attaches, X509_CLIENT_FILES)):
                if used:
                    with collected(problems):
                        check_x509(Path(self.settings.tls_dir), files)
        found = [Finding(each.message, each.hint) for each in problems]
        if self.settings.attach == "kernel" and not modules.there("nbd"):
            hint = 'apt install linux-image-amd64; or set attach = "qemu" for nbd'
            found.append(Finding("this kernel has no module nbd", hint))
        if self.settings.attach == "kernel" and (serves or attaches):
            from storkit.system.block import grabbers

            found += grabbers.findings(grabbers.GrabbableDisk("nbd15"), '"r|^/dev/nbd|", "r|^/dev/mapper/storkit:|"')
        return found

    def doors(self) -> list[Door]:
        return [Door(self.site.address, self.settings.port_first, self.settings.port_last)]

    @cached_property
    def _exports(self) -> NbdExports:
        return NbdExports(self.site, self.settings)

    @cached_property
    def _attachments(self) -> NbdAttachments:
        return NbdAttachments(self.site, self.settings)

    def take_over(self, volumes: list[Volume]) -> list[Export]:
        return self._exports.take_over(volumes)

    # At the client.

    def attach(self, offers: list[Offer]) -> list[Attachment]:
        return self._attachments.attach(offers)

    def claim(self, volumes: list[Volume], writers: list[str]) -> None:
        self._attachments.claim(volumes)

    def detach(self, volumes: list[Volume]) -> None:
        self._attachments.detach(volumes)

    def look_attachments(self, volumes: list[str] | None = None) -> AttachedHere:
        return self._attachments.look(volumes)

    def sources(self, offers: list[Offer]) -> list[DiskSource]:
        return self._attachments.sources(offers)

    def digests(self, volume: Volume, client: str, offset: int, length: int, block: int) -> list[str]:
        return self._exports.digests(volume, client, offset, length, block)

    def evidence(self, volumes: list[Volume], offsets: list[int] | None = None) -> list[Evidence]:
        return self._attachments.evidence(volumes, offsets)
