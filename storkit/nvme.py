"""The transport `nvme`: block volumes over NVMe/TCP, by the kernel's own target (nvmet) and host.

Every client of a volume has a subsystem of its own, PREFIX:UUID:CLIENT, whose one namespace states the volume's UUID
and stands on a device-mapper node of that client's. Who may write is decided at the home host, by the tables of these
nodes and of its own. Both sides prove that they know a key of that volume and client (DH-HMAC-CHAP), or the inventory
says that the network is trusted. See storkit.tech.nvme.exports and storkit.tech.nvme.attach.
"""

from __future__ import annotations

from collections.abc import Mapping
from functools import cached_property
from typing import TYPE_CHECKING, Any, ClassVar

from storkit.core.backend import Needs
from storkit.core.host import Door
from storkit.core.model import Finding
from storkit.tech import portals
from storkit.tech.blockexports import BlockSides
from storkit.tech.nvme.names import PORT, NvmeSettings

if TYPE_CHECKING:
    from storkit.tech.nvme.attach import NvmeAttachments
    from storkit.tech.nvme.exports import NvmeExports


class Nvme(BlockSides):
    """NVMe/TCP by the kernel, at both ends."""

    name = "nvme"
    needs = Needs(
        tools={"dmsetup": "dmsetup", "udevadm": "udev"},
        modules=("nvmet", "nvmet_tcp", "nvme_tcp", "dm_mod", "dm_flakey"),
    )
    Settings: ClassVar[type] = NvmeSettings

    @classmethod
    def fills_nodes(cls, settings: Mapping[str, Any]) -> bool:
        return False

    def ready(self, serves: bool = False, attaches: bool = False) -> list[Finding]:
        import os

        found: list[Finding] = []
        if (serves or attaches) and os.geteuid() != 0:
            message = "NVMe/TCP is served and attached by root alone, which this user is not"
            return [Finding(message, "reach this host as root")]
        if attaches:
            from storkit.system.block import grabbers
            from storkit.tech.nvme.controllers import sample

            found += grabbers.findings(sample(), grabbers.LVM_FILTER, grabbers.MULTIPATH_BLACKLIST)
        if serves and not self.settings.trusted_network:
            from storkit.tech.nvme import target
            from storkit.tech.nvme.exports import unauthenticated

            # Without the module nothing tells; the first export asks again.
            if target.HOSTS.is_dir() and not target.authenticates():
                problem = unauthenticated(self.site.host)
                found.append(Finding(problem.message, problem.hint))
        return found

    def doors(self) -> list[Door]:
        return portals.doors(self.site, self.settings.portals, PORT, self.name)

    @cached_property
    def _exports(self) -> NvmeExports:
        from storkit.tech.nvme.exports import NvmeExports

        return NvmeExports(self.site, self.settings)

    @cached_property
    def _attachments(self) -> NvmeAttachments:
        from storkit.tech.nvme.attach import NvmeAttachments

        return NvmeAttachments(self.site, self.settings)
