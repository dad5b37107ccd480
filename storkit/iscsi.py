"""The transport `iscsi`: block volumes by the kernel's own target (LIO) and initiator (open-iscsi).

Every volume has a target of its own, PREFIX:UUID, with one logical unit whose serial number is the volume's UUID; every
client host an access list in it, with secrets of its own. The home host itself comes through no target: its guest has a
node over the same device. Who may write is decided at the home host, in both. See storkit.tech.iscsi.exports and
storkit.tech.iscsi.attach.
"""

from __future__ import annotations

from functools import cached_property
from typing import TYPE_CHECKING, ClassVar

from storkit.core.backend import Needs
from storkit.core.host import Door
from storkit.core.model import AttachedHere, Attachment, Evidence, Finding, Offer, Volume
from storkit.tech.exports import HomeSide
from storkit.tech.iscsi.names import PORT, IscsiSettings, portal

if TYPE_CHECKING:
    from storkit.tech.iscsi.attach import IscsiAttachments
    from storkit.tech.iscsi.exports import IscsiExports


class Iscsi(HomeSide):
    """iSCSI by the kernel, at both ends."""

    name = "iscsi"
    beside = frozenset({"device"})
    needs = Needs(
        tools={"iscsiadm": "open-iscsi", "dmsetup": "dmsetup", "udevadm": "udev"},
        modules=("target_core_mod", "target_core_iblock", "iscsi_target_mod", "iscsi_tcp", "dm_mod", "dm_flakey"),
    )
    Settings: ClassVar[type] = IscsiSettings
    claims = True

    def ready(self, serves: bool = False, attaches: bool = False) -> list[Finding]:
        import os

        from storkit.tech.iscsi.initiator import missing_daemon

        found: list[Finding] = []
        if (serves or attaches) and os.geteuid() != 0:
            message = "iSCSI is served and attached by root alone, which this user is not"
            found.append(Finding(message, "reach this host as root"))
        if attaches and (problem := missing_daemon()):
            found.append(Finding(problem.message, problem.hint))
        if attaches:
            from storkit.system.block import grabbers
            from storkit.tech.iscsi.sessiondisk import LVM_FILTER, MULTIPATH_BLACKLIST, sample

            found += grabbers.findings(sample(), LVM_FILTER, MULTIPATH_BLACKLIST)
        if serves:
            from storkit.tech.iscsi import others

            found += others.findings(self.site, self.settings)
        return found

    def doors(self) -> list[Door]:
        address = self.site.address
        texts = self.settings.portals or ([f"[{address}]" if ":" in address else address] if address else [])
        portals = [portal(text) for text in texts] or [("", PORT)]
        return [Door(address, port, port) for address, port in portals]

    @cached_property
    def _exports(self) -> IscsiExports:
        from storkit.tech.iscsi.exports import IscsiExports

        return IscsiExports(self.site, self.settings)

    @cached_property
    def _attachments(self) -> IscsiAttachments:
        from storkit.tech.iscsi.attach import IscsiAttachments

        return IscsiAttachments(self.site, self.settings)

    # At the client. An offer with a path is for the home host itself.

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
        self._exports.detach_here(volumes)
        self._attachments.detach(volumes)

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
