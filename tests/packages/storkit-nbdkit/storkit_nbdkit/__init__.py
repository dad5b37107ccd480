"""The transport `nbdkit`: one nbdkit(1) process for each volume and client, which is all that client can reach.

A right to write is given and taken by ending the client's process and starting it anew, with or without --readonly:
nothing that runs is ever told another right. Clients attach as those of storkit's own NBD do, whose wire this is.
Over a network it is TLS with a key for each client; certificates and plain TCP are not offered.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property
from typing import ClassVar

from storkit.core.backend import Needs
from storkit.core.errors import UsageError
from storkit.core.host import Door
from storkit.core.model import AttachedHere, Attachment, Evidence, Offer, Volume
from storkit.nbd import Nbd
from storkit.tech.exports import HomeSide
from storkit.tech.nbd.attach import NbdAttachments
from storkit_nbdkit.exports import NbdkitExports


@dataclass(frozen=True, slots=True)
class NbdkitSettings:
    """The keys of [transports.nbdkit] in the inventory."""

    port_first: int = 11809
    port_last: int = 12808
    """TCP ports for clients on other machines, one for each volume and client."""

    def __post_init__(self) -> None:
        if not 0 < self.port_first <= self.port_last < 65536:
            raise UsageError(f"nbdkit: ports {self.port_first} to {self.port_last} are no range")


class NbdkitAttachments(NbdAttachments):
    """QEMU opens the export itself, as that of any NBD server."""

    transport = "nbdkit"


class Nbdkit(HomeSide):
    """Raw volumes, served by nbdkit's file plugin."""

    name = "nbdkit"
    needs = Needs(tools={"nbdkit": "nbdkit", "qemu-nbd": "qemu-utils", "qemu-io": "qemu-utils"})
    Settings: ClassVar[type] = NbdkitSettings

    def doors(self) -> list[Door]:
        return [Door(self.site.address, self.settings.port_first, self.settings.port_last)]

    @cached_property
    def _exports(self) -> NbdkitExports:
        return NbdkitExports(self.site, self.settings)

    @cached_property
    def _attachments(self) -> NbdkitAttachments:
        return NbdkitAttachments(self.site, Nbd.Settings())

    def attach(self, offers: list[Offer]) -> list[Attachment]:
        return self._attachments.attach(offers)

    def detach(self, volumes: list[Volume]) -> None:
        self._attachments.detach(volumes)

    def look_attachments(self, volumes: list[str] | None = None) -> AttachedHere:
        return self._attachments.look(volumes)

    def evidence(self, volumes: list[Volume], offsets: list[int] | None = None) -> list[Evidence]:
        return self._attachments.evidence(volumes, offsets)
