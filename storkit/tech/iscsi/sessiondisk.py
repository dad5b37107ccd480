"""The logical unit 0 of an iSCSI session: asked for, waited for, verified, dropped if it is a stale one.

A session that lost its target and found another one in its place keeps the old SCSI device, and whoever has it open
would write on the wrong disk. So what the device says of itself is asked anew at every attach, never taken from sysfs.
"""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

from storkit.core.errors import NotFound, ServiceUnreachable, TimedOut, Unsafe
from storkit.core.units import SECTOR
from storkit.system.block import grabbers, scsi, udev
from storkit.system.block.grabbers import LINKS, PROPERTY, GrabbableDisk
from storkit.system.timeouts import scaled
from storkit.tech.iscsi.initiator import INTERFACE, IscsiSession
from storkit.tech.iscsi.names import naa, stated

DISKS = Path("/sys/class/scsi_disk")
RULES = Path("/run/udev/rules.d/05-storkit-iscsi.rules")
_RULES = """\
# Made by storkit: what guests keep on their disks, and partitions there, is none of this host's business. These are the
# disks of storkit's own iSCSI sessions.
""" + grabbers.rule(
    'SUBSYSTEM=="block", KERNEL=="sd*", KERNELS=="session[0-9]*", \\\n'
    f'  PROGRAM=="/bin/grep -qx {INTERFACE} /sys/class/iscsi_session/$id/ifacename"'
)
COMMAND_TIMEOUT = 60
"""Seconds that a command may take before it is aborted: enough for a busy server under a guest's root disk."""
_APPEARS = scaled(30.0)


@dataclass(frozen=True, slots=True)
class Lun:
    """A logical unit as it describes itself now."""

    path: str
    """/dev/sdX"""
    identity: str
    size: int
    block: int
    """The logical block size, in bytes."""


def sample(several: bool = False) -> GrabbableDisk:
    """A disk of a session of storkit's, as multipathd and LVM would meet it; `several`: one of several paths."""
    wwid, names = "3" + naa("00000000-0000-4000-8000-000000000000"), (f"/dev/{LINKS}/sdzz",)
    properties = (PROPERTY, "ID_WWN")
    return GrabbableDisk("sdzz", names, "LIO-ORG", "IBLOCK", wwid, "scsi:iscsi", properties, several)


def find(session: IscsiSession) -> str:
    """The block device of a session's LUN 0, or nothing."""
    for directory in session.path.glob("target*/*:0/block/*"):
        path = f"/dev/{directory.name}"
        if Path(path).is_block_device():
            return path
    return ""


def read(path: str) -> Lun:
    """Ask a disk who it is."""
    with scsi.ScsiDisk(path) as disk:
        standard, identity = disk.standard(), disk.identity()
        size, block = disk.capacity()
    if not standard.connected or standard.type != 0:
        raise Unsafe(f"{path} is no disk (peripheral device type {standard.type})", "lsblk --scsi")
    return Lun(path, stated(identity.naa, identity.serial), size, block)


def attach(session: IscsiSession, volume: str, identity: str, size: int) -> Lun:
    """The LUN 0 of a session, verified; a stale one of another identity is dropped and asked for again.

    Raises Unsafe: the target shows another disk. NotFound: it has no LUN 0. TimedOut: it did not appear in time.
    """
    path = find(session)
    if path and _stale(path, identity):
        drop(session)
        path = ""
    lun = read(path or scan(session))
    where = f"volume {volume}: the target {session.target} at {session.portal}"
    hint = "leave it alone until you know what that target is: storkit status"
    if lun.identity != identity:
        raise Unsafe(f"{where} shows {lun.identity}, not {identity}", hint)
    if lun.size != size:
        raise Unsafe(f"{where} shows a disk of {lun.size} bytes, not {size}", hint)
    with _present(lun.path):
        if int(_attribute(lun.path, "size").read_text()) * SECTOR != size:  # it was resized since it was found
            rescan(lun.path)
        _attribute(lun.path, "device/timeout").write_text(str(COMMAND_TIMEOUT))
    return lun


def _stale(path: str, identity: str) -> bool:
    try:
        return read(path).identity != identity
    except Unsafe:
        return True  # the logical unit is gone, and the device is left


def writable(session: IscsiSession, identity: str) -> bool:
    """Whether the disk of this identity is still there, and the target lets this host write it."""
    path = find(session)
    if not path or _stale(path, identity):
        return False
    rescan(path)
    return not readonly(path)


def scan(session: IscsiSession) -> str:
    """Ask the session's target for LUN 0 alone, and wait for the disk; its path."""
    host = session.path.parent
    udev.keep_rules(RULES, _RULES)
    with udev.Watch("block", processed=False) as watch:
        with _present(f"the session with {session.target}"):
            number = (session.path / "iscsi_session" / session.path.name / "target_id").read_text().strip()
            (host / "scsi_host" / host.name / "scan").write_text(f"0 {number} 0")
        if not any(session.path.glob("target*/*:0/type")):
            raise NotFound(
                f"the target {session.target} at {session.portal} has no LUN 0 for this host",
                "storkit attach the volume again, which exports it again",
            )
        if not _opens(find(session)):
            what = f"the disk of {session.target}"
            try:
                watch.wait(lambda device: _opens(find(session)), _APPEARS, what)
            except TimedOut:
                if not find(session):
                    raise
    return find(session)


def _opens(path: str) -> bool:
    """Whether a disk is there in full. Its node and its directory in sysfs come first, and until the kernel announces
    the disk (device_add_disk in block/genhd.c) an open fails with ENXIO."""
    try:
        os.close(os.open(path, os.O_RDONLY | os.O_NONBLOCK | os.O_CLOEXEC))
    except OSError:
        return False
    return True


def drop(session: IscsiSession) -> None:
    """Delete the SCSI devices of a session; their users get I/O errors."""
    for device in list(session.path.glob("target*/*:*:*:*/delete")):
        try:
            device.write_text("1")
        except FileNotFoundError:
            continue


def rescan(path: str) -> None:
    """Let the kernel read the size and the write protection of a disk anew."""
    with _present(path):
        _attribute(path, "device/rescan").write_text("1")


def readonly(path: str) -> bool:
    """Whether the kernel takes the disk for write-protected, since it was found or rescanned last."""
    with _present(path):
        return _attribute(path, "ro").read_text().strip() == "1"


@contextmanager
def _present(what: str) -> Iterator[None]:
    """A session may end at any moment, and its disk with it."""
    try:
        yield
    except OSError as error:
        raise ServiceUnreachable(f"{what} is gone: {error.strerror}", "storkit status") from error


def others(serial: str, session_target: str, root: Path = DISKS) -> list[str]:
    """The SCSI disks of this host with this unit serial number that do not come from that target, by device name."""
    found = []
    for disk in root.glob("*/device"):
        try:
            device = disk.resolve(strict=True)
            if scsi.parse_serial((device / "vpd_pg80").read_bytes()).lower() != serial:
                continue
            names = [directory.name for directory in (device / "block").iterdir()]
        except (OSError, Unsafe):
            continue  # no serial number, or gone
        if _target(device) != session_target:
            found += names
    return sorted(found)


def _target(device: Path) -> str:
    """The iSCSI target that a SCSI device belongs to, or nothing."""
    for parent in device.parents:
        if parent.name.startswith("session"):
            return (parent / "iscsi_session" / parent.name / "targetname").read_text().strip()
    return ""


def _attribute(path: str, name: str) -> Path:
    return Path("/sys/class/block") / path.removeprefix("/dev/") / name
