"""A disk of a running guest that has become larger: QEMU is told, and tells the guest."""

from __future__ import annotations

from pathlib import Path

from storkit.hypervisors._qemu.definition import Definition
from storkit.hypervisors._qemu.mirrorjob import disk_node
from storkit.system.qemu import qmp
from storkit.system.timeouts import scaled

_TOLD = scaled(30.0)


async def grow(monitor: Path, definition: Definition, disk: str, size: int) -> bool:
    """Have a guest see its disk of a volume (by UUID) at `size` bytes; False: QEMU does not let it.

    QEMU knows the size of an NBD export from when it last connected. The server has ended that connection, and QEMU
    connects again for the next request: a read, if the guest makes none.
    """
    async with qmp.connect(monitor, timeout=_TOLD) as qemu:
        node = await disk_node(qemu, definition, disk)
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
