"""A disk of a running guest that has become larger: QEMU is told, and tells the guest."""

from __future__ import annotations

from pathlib import Path

from storkit.core.errors import NotFound
from storkit.core.model import DiskSource
from storkit.guests.render import node_name
from storkit.hypervisors._qemu.definition import Definition
from storkit.system.qemu import qmp
from storkit.system.timeouts import scaled

_TOLD = scaled(30.0)


async def grow(monitor: Path, definition: Definition, disk: str, size: int) -> bool:
    """Have a guest see its disk of a volume (by UUID) at `size` bytes; False: QEMU does not let it.

    QEMU knows the size of an NBD export from when it last connected. The server has ended that connection, and QEMU
    connects again for the next request: a read, if the guest makes none.
    """
    (number,) = [n for n, each in enumerate(definition.guest.disks) if each.uuid == disk]
    async with qmp.connect(monitor, timeout=_TOLD) as qemu:
        node = await _node(qemu, definition, number)
        for last in (False, True):
            try:
                await qemu.execute("block_resize", {"node-name": node, "size": size}, timeout=_TOLD)
                return True
            except qmp.Refused:
                if last:
                    return False
            command = {"command-line": f'qemu-io {node} "read 0 512"'}
            await qemu.execute("human-monitor-command", command, timeout=_TOLD)
    return False


async def _node(qemu: qmp.Monitor, definition: Definition, number: int) -> str:
    """QEMU's name of the disk's image. A document of the guest's own may have given it any."""
    if not definition.guest.document:
        return node_name(number)
    source = definition.disks[number]
    for block in await qemu.execute("query-block", timeout=_TOLD):
        inserted = block.get("inserted")
        if inserted and _is_of(source, str(inserted["image"]["filename"])):
            return str(inserted["node-name"])
    raise NotFound(f"QEMU of guest {definition.guest.name} has no disk {source.uri}", "storkit guest show")


def _is_of(source: DiskSource, filename: str) -> bool:
    if source.kind == "network":
        return f"/{source.export}" in filename or f'"{source.export}"' in filename
    return source.path in filename
