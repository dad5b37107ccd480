"""What every hypervisor has whose guests open their disks at the stable path: the host's kernel moves a disk under its
guest, and the hypervisor notices nothing."""

from __future__ import annotations

from abc import ABC
from typing import TYPE_CHECKING

from storkit.core.backend import Hypervisor
from storkit.core.errors import NotFound
from storkit.core.identities import Count, GuestName, Line, Uuid
from storkit.core.model import ALIVE, DiskSource, MirrorState, Switched
from storkit.hypervisors._machine import look_command

if TYPE_CHECKING:
    from storkit.hypervisors._nodes.mirroring import NodeMirrors


class ByNode(Hypervisor, ABC):
    """A hypervisor whose guests' disks may be nodes of device-mapper."""

    mirrors = True

    def mirror(self, name: GuestName, disk: Uuid, copy: DiskSource, identity: Line, rate: Count = 0) -> None:
        if copy.kind != "block":
            return super().mirror(name, disk, copy, identity, rate)
        if not any(each.name == name and each.status in ALIVE for each in self.find([name])):
            raise NotFound(f"guest {name} does not run here", look_command(name))
        return self._node_mirrors().mirror(name, disk, copy, identity, rate)

    def mirrored(self, disk: Uuid) -> MirrorState:
        return self._node_mirrors().mirrored(disk)

    def switch(self, name: GuestName, disk: Uuid, identity: Line) -> Switched:
        return Switched(self._node_mirrors().switch(name, disk, identity))

    def unmirror(self, name: GuestName, disk: Uuid, over: bool = False) -> None:
        self._node_mirrors().unmirror(disk, over)

    def _node_mirrors(self) -> NodeMirrors:
        from storkit.hypervisors._nodes.mirroring import NodeMirrors

        return NodeMirrors(self.site, self.name)
