"""What the kernel has of an iSCSI attachment: its session, the session's disk, and the node over that, all by sysfs and
device-mapper's ioctls. No process is started, and neither the target nor the disk is asked."""

from __future__ import annotations

from collections.abc import Iterable
from pathlib import Path

from storkit.core.errors import ServiceUnreachable
from storkit.core.model import Offer
from storkit.system.block.devmapper import MappedNode
from storkit.tech.iscsi import initiator, sessiondisk
from storkit.tech.iscsi.initiator import IscsiSession
from storkit.tech.mapped import node_fault


def session(record: Offer) -> IscsiSession | None:
    """The session of an attachment: an alive one if there is one."""
    return _best(found for found in initiator.find_sessions() if found.target == record.name)


def _best(sessions: Iterable[IscsiSession]) -> IscsiSession | None:
    return max(sessions, key=lambda session: session.alive, default=None)


def alive(record: Offer, host: str) -> IscsiSession:
    """Its session, with the target at the other end. Raises ServiceUnreachable."""
    found = session(record)
    if found is None or not found.alive:
        raise ServiceUnreachable(
            f"the target {record.name} of volume {record.volume} does not answer host {host}", "storkit status"
        )
    return found


def fault(record: Offer, node: MappedNode | None, sessions: Iterable[IscsiSession]) -> str:
    """Why an attachment does not work; empty if it does. `sessions` are those with its target."""
    found = _best(sessions)
    if found is None:
        return "it has no session with its target"
    if not found.alive:
        return f"its target does not answer: the session is lost ({found.state})"
    disk = sessiondisk.find(found)
    if not disk:
        return "its session has no disk"
    if (state := _state(disk)) != "running":
        return f"its disk {disk} is {state}"
    return node_fault(node, disk, "session", record.writable)


def _state(disk: str) -> str:
    """What the kernel says of a SCSI disk (sdev_states in drivers/scsi/scsi_sysfs.c)."""
    try:
        return Path("/sys/class/block", disk.removeprefix("/dev/"), "device/state").read_text().strip()
    except OSError:
        return "gone"
