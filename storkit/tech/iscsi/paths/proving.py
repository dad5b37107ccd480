"""What a host that has a disk by several paths says of it as evidence: all paths state one identity, and each place is
read by one of them, the same whenever it is read. So all are proved, at the cost of one."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from storkit.core.errors import ServiceUnreachable, Unsafe
from storkit.core.model import Evidence, Offer
from storkit.system.block import devmapper, reservations, scsi
from storkit.system.block.fingerprint import BLOCK
from storkit.tech import portals
from storkit.tech.iscsi import attached, sessiondisk
from storkit.tech.iscsi.names import portal
from storkit.tech.mapped import ROLE


@dataclass(frozen=True, slots=True)
class StatedByPath:
    """What a logical unit says by one path."""

    identity: str
    size: int
    keys: list[int]
    """Of all registrations."""


def answering(record: Offer, host: str) -> list[str]:
    """The disks of the sessions whose target answers, of several paths those in use. A session is lost some seconds
    after its target: who asks the disk meanwhile waits until that is back. Raises ServiceUnreachable: none answers."""
    alive = attached.alive(record, host)
    silent = {each.portal: reason for each in alive if (reason := portals.probe(*portal(each.portal)))}
    if len(silent) == len(alive):
        where = "; ".join(f"{at}: {why}" for at, why in silent.items())
        raise ServiceUnreachable(
            f"the target of volume {record.volume} does not answer {host} at {where}", "storkit status"
        )
    disks = [disk for each in alive if each.portal not in silent and (disk := sessiondisk.find(each))]
    if not attached.several(record):
        return disks
    node = devmapper.of_role(ROLE).get(record.uuid)
    used = devmapper.paths(node) if node else {}
    if not (found := [disk for disk in disks if used.get(disk)]):
        message = f"no path of volume {record.volume} is in use on {host}"
        raise ServiceUnreachable(message, f"storkit attach {record.volume} --on {host}")
    return found


def shares(disks: Sequence[str], ranges: Sequence[tuple[int, int]]) -> dict[str, list[tuple[int, int]]]:
    """Which places are read by which disk."""
    count = len(disks)
    return {disk: [each for each in ranges if each[0] // BLOCK % count == at] for at, disk in enumerate(disks)}


def ask(path: str) -> StatedByPath:
    disk = sessiondisk.read(path)
    with scsi.ScsiDisk(path) as asked:
        return StatedByPath(disk.identity, disk.size, asked.registered_keys())


def told(record: Offer, host: str, states: Sequence[StatedByPath], blocks: dict[str, str]) -> Evidence:
    """Raises Unsafe: the paths do not lead to one disk."""
    last = states[-1]
    if len(sizes := sorted({each.size for each in states})) > 1:
        message = f"the paths of volume {record.volume} on {host} show disks of {' and '.join(map(str, sizes))} bytes"
        raise Unsafe(message, f"storkit attach {record.volume} --on {host}")
    own = reservations.key_for(record.uuid, host)
    # The target has registered the paths one by one.
    key = reservations.key_text(own) if last.keys.count(own) >= len(states) else ""
    keys = sorted({reservations.key_text(each) for each in last.keys})
    return Evidence(record.volume, host, last.identity, last.size, blocks, key, keys)
