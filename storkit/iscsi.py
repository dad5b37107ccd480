"""The transport `iscsi`: block volumes by the kernel's own target (LIO) and initiator (open-iscsi).

Every volume has a target of its own, PREFIX:UUID, with one logical unit whose serial number is the volume's UUID; every
client host an access list in it for each portal, with secrets of its own. The home host itself comes through no target:
its guest has a node over the same device. Who may write is decided at the home host, in both. See
storkit.tech.iscsi.exports and storkit.tech.iscsi.attach; of several portals storkit.tech.iscsi.paths.sessions.
"""

from __future__ import annotations

from functools import cached_property
from typing import TYPE_CHECKING, ClassVar

from storkit.core.backend import Needs
from storkit.core.host import Door
from storkit.core.model import Finding
from storkit.tech import portals
from storkit.tech.blockexports import BlockSides
from storkit.tech.iscsi.names import PORT, IscsiSettings

if TYPE_CHECKING:
    from storkit.tech.iscsi.attach import IscsiAttachments
    from storkit.tech.iscsi.exports import IscsiExports


class Iscsi(BlockSides):
    """iSCSI by the kernel, at both ends."""

    name = "iscsi"
    beside = frozenset({"device"})
    needs = Needs(
        tools={"iscsiadm": "open-iscsi", "dmsetup": "dmsetup", "udevadm": "udev"},
        modules=("target_core_mod", "target_core_iblock", "iscsi_target_mod", "iscsi_tcp", "dm_mod", "dm_flakey"),
    )
    Settings: ClassVar[type] = IscsiSettings

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
            from storkit.tech.iscsi.paths import checks
            from storkit.tech.iscsi.sessiondisk import sample

            several = len(self.settings.portals) > 1
            found += grabbers.findings(sample(several), grabbers.LVM_FILTER, grabbers.MULTIPATH_BLACKLIST)
            found += checks.findings(self.site, self.settings, self._attachments)
        if serves:
            from storkit.tech.iscsi import others

            found += others.findings(self.site, self.settings)
        return found

    def doors(self) -> list[Door]:
        return portals.doors(self.site, self.settings.portals, PORT, self.name)

    @cached_property
    def _exports(self) -> IscsiExports:
        from storkit.tech.iscsi.exports import IscsiExports

        return IscsiExports(self.site, self.settings)

    @cached_property
    def _attachments(self) -> IscsiAttachments:
        from storkit.tech.iscsi.attach import IscsiAttachments

        return IscsiAttachments(self.site, self.settings)
