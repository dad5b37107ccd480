"""What the kernel has of an iSCSI attachment: its sessions, their disks, and the node over these, all by sysfs and
device-mapper's ioctls. No process is started, and neither the target nor the disk is asked."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from pathlib import Path

from storkit.core.errors import ServiceUnreachable
from storkit.core.model import WORKING, AttachmentPath, Offer
from storkit.system.block import devmapper
from storkit.system.block.devmapper import MappedNode
from storkit.tech.iscsi import initiator, sessiondisk
from storkit.tech.iscsi.initiator import IscsiSession
from storkit.tech.iscsi.names import portal
from storkit.tech.mapped import node_fault


def several(record: Offer) -> bool:
    """Whether an attachment may have several paths: its node stands on all of their disks then."""
    return len(record.portals) > 1


def sessions(record: Offer) -> list[IscsiSession]:
    """The sessions of an attachment, alive ones first: the one that it has, or those at its portals."""
    found = [found for found in initiator.find_sessions() if found.target == record.name]
    return sorted(found, key=lambda session: not session.alive)


def session(record: Offer) -> IscsiSession | None:
    """The session of an attachment: an alive one if there is one."""
    return _best(sessions(record))


def _best(sessions: Iterable[IscsiSession]) -> IscsiSession | None:
    return max(sessions, key=lambda session: session.alive, default=None)


def alive(record: Offer, host: str) -> list[IscsiSession]:
    """Its sessions with the target at the other end, at least one. Raises ServiceUnreachable."""
    found = [each for each in sessions(record) if each.alive]
    if not found:
        raise ServiceUnreachable(
            f"the target {record.name} of volume {record.volume} does not answer host {host}", "storkit status"
        )
    return found if several(record) else found[:1]


def fault(record: Offer, node: MappedNode | None, sessions: Sequence[IscsiSession]) -> str:
    """Why an attachment does not work; empty if it does. `sessions` are those with its target."""
    found = _best(sessions)
    if found is None:
        return "it has no session with its target"
    if not found.alive:
        return f"its target does not answer: the session is lost ({found.state})"
    if several(record):
        return _fault_of_all(record, node, [each for each in sessions if each.alive])
    disk = sessiondisk.find(found)
    if not disk:
        return "its session has no disk"
    if (state := _state(disk)) != "running":
        return f"its disk {disk} is {state}"
    return node_fault(node, disk, "session", record.writable)


def _fault_of_all(record: Offer, node: MappedNode | None, alive: Sequence[IscsiSession]) -> str:
    """The same for one of several paths: one that works is enough."""
    disks = [disk for each in alive if (disk := sessiondisk.find(each)) and _state(disk) == "running"]
    if not disks:
        return "none of its sessions has a disk that works"
    if node and (used := devmapper.paths(node)) and not any(used.values()):
        return f"none of its paths is in use: storkit attach {record.volume} takes them up"
    below = devmapper.below(node) if node else []
    return node_fault(node, next((disk for disk in disks if disk in below), disks[0]), "session", record.writable)


def paths(record: Offer, node: MappedNode | None) -> list[AttachmentPath]:
    """The state of each of several paths."""
    used = dict.fromkeys(devmapper.below(node), True) | devmapper.paths(node) if node else {}
    places = {portal(each.portal): each for each in sessions(record) if each.portal}
    return [AttachmentPath(text, _path_state(places.get(portal(text)), used)) for text in record.portals]


def _path_state(session: IscsiSession | None, used: dict[str, bool]) -> str:
    if session is None:
        return "it has no session"
    if not session.alive:
        return f"its session is lost ({session.state})"
    disk = sessiondisk.find(session)
    if not disk or (state := _state(disk)) == "gone":
        return "its session has no disk"
    if state != "running":
        return f"its disk {disk} is {state}"
    if disk not in used:
        return f"its disk {disk} is not in use"
    return WORKING if used[disk] else f"its disk {disk} failed, and is not taken up again yet"


def _state(disk: str) -> str:
    """What the kernel says of a SCSI disk (sdev_states in drivers/scsi/scsi_sysfs.c)."""
    try:
        return Path("/sys/class/block", disk.removeprefix("/dev/"), "device/state").read_text().strip()
    except OSError:
        return "gone"
