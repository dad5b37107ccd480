"""SCSI commands to a disk through the kernel's SG_IO ioctl: who it is, how large, which reservations it holds.

The answers are fresh: sysfs shows what the disk said when it was found. The layouts are those of SPC-4 (INQUIRY,
PERSISTENT RESERVE IN) and SBC-3 (READ CAPACITY); SG_IO is that of linux/Documentation/scsi/scsi-generic.rst.
"""

from __future__ import annotations

import ctypes
import errno
import fcntl
import os
import struct
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path

from storkit.core.errors import Conflict, NotFound, ServiceUnreachable, StorkitError, Unsafe
from storkit.system.timeouts import scaled

TIMEOUT = scaled(10.0)
_SG_IO = 0x2285
_FROM_DEVICE = -3
CHECK_CONDITION, _BUSY, RESERVATION_CONFLICT, _TASK_SET_FULL = 0x02, 0x08, 0x18, 0x28
_RETRIES = 5
_LONGEST = 4096
SENSE_KEYS = {
    0x2: "not ready", 0x3: "medium error", 0x4: "hardware error", 0x5: "illegal request", 0x6: "unit attention",
    0x7: "data protect", 0x8: "blank check", 0xB: "aborted command",
}  # fmt: skip
_UNIT_ATTENTION = 0x6
RESERVATION_TYPES = {
    1: "write exclusive", 3: "exclusive access", 5: "write exclusive, registrants only",
    6: "exclusive access, registrants only", 7: "write exclusive, all registrants",
    8: "exclusive access, all registrants",
}  # fmt: skip


class _Header(ctypes.Structure):
    """struct sg_io_hdr of scsi/sg.h."""

    _fields_ = (
        ("interface_id", ctypes.c_int), ("dxfer_direction", ctypes.c_int), ("cmd_len", ctypes.c_ubyte),
        ("mx_sb_len", ctypes.c_ubyte), ("iovec_count", ctypes.c_ushort), ("dxfer_len", ctypes.c_uint),
        ("dxferp", ctypes.c_void_p), ("cmdp", ctypes.c_void_p), ("sbp", ctypes.c_void_p), ("timeout", ctypes.c_uint),
        ("flags", ctypes.c_uint), ("pack_id", ctypes.c_int), ("usr_ptr", ctypes.c_void_p), ("status", ctypes.c_ubyte),
        ("masked_status", ctypes.c_ubyte), ("msg_status", ctypes.c_ubyte), ("sb_len_wr", ctypes.c_ubyte),
        ("host_status", ctypes.c_ushort), ("driver_status", ctypes.c_ushort), ("resid", ctypes.c_int),
        ("duration", ctypes.c_uint), ("info", ctypes.c_uint),
    )  # fmt: skip


@dataclass(frozen=True, slots=True)
class Sense:
    """Why a disk refused a command."""

    key: int
    asc: int
    ascq: int

    def __str__(self) -> str:
        return f"{SENSE_KEYS.get(self.key, f'sense key {self.key:x}')} (ASC {self.asc:02x}, ASCQ {self.ascq:02x})"


@dataclass(frozen=True, slots=True)
class Identity:
    """Who a logical unit says it is."""

    serial: str
    """VPD page 0x80; empty if it has none."""
    naa: str
    """The NAA designator of the logical unit in VPD page 0x83, in hexadecimal; empty if it has none."""


@dataclass(frozen=True, slots=True)
class Standard:
    """The standard INQUIRY data."""

    connected: bool
    """False: the target has no logical unit at this LUN (peripheral qualifier)."""
    type: int
    vendor: str
    product: str


@dataclass(frozen=True, slots=True)
class Reservation:
    key: int
    type: int
    """As on the wire: a key of RESERVATION_TYPES. The kernel's ioctls number the types in another way."""


# Parsing


def parse_sense(data: bytes) -> Sense | None:
    """Sense data in fixed or descriptor format (SPC-4, 4.5)."""
    code = data[0] & 0x7F if data else 0
    if code in (0x70, 0x71) and len(data) >= 14:
        return Sense(data[2] & 0xF, data[12], data[13])
    if code in (0x72, 0x73) and len(data) >= 4:
        return Sense(data[1] & 0xF, data[2], data[3])
    return None


def parse_inquiry(data: bytes) -> Standard:
    """Standard INQUIRY data (SPC-4, 6.6.2). Raises Unsafe."""
    if len(data) < 36:
        raise _malformed(f"{len(data)} bytes of INQUIRY data")
    return Standard(data[0] >> 5 == 0, data[0] & 0x1F, _text(data[8:16]), _text(data[16:32]))


def parse_page_list(data: bytes) -> set[int]:
    """The VPD pages that a logical unit has: page 0x00. Raises Unsafe."""
    return set(_page(data, 0x00))


def parse_serial(data: bytes) -> str:
    """The unit serial number of VPD page 0x80 (SPC-4, 7.8.15). Raises Unsafe."""
    return _text(_page(data, 0x80))


def parse_naa(data: bytes) -> str:
    """The logical unit's NAA designator of VPD page 0x83 (SPC-4, 7.8.5), or nothing. Raises Unsafe."""
    page = _page(data, 0x83)
    while len(page) >= 4:
        length = page[3]
        # code set 1: binary; association 0: the logical unit, not the port or the target; type 3: NAA
        if page[0] & 0xF == 1 and page[1] & 0x3F == 3:
            return page[4 : 4 + length].hex()
        page = page[4 + length :]
    return ""


def _page(data: bytes, code: int) -> bytes:
    if len(data) < 4 or data[1] != code:
        raise _malformed(f"no VPD page 0x{code:02x}: {data[:4].hex()}")
    return data[4 : 4 + int.from_bytes(data[2:4])]


def parse_capacity(data: bytes) -> tuple[int, int]:
    """Size and logical block size in bytes, of READ CAPACITY(16) (SBC-3, 5.16). Raises Unsafe."""
    if len(data) < 12:
        raise _malformed(f"{len(data)} bytes of READ CAPACITY data")
    last, block = struct.unpack_from(">QI", data)
    return (last + 1) * block, block


def parse_keys(data: bytes) -> list[int]:
    """The registered keys of READ KEYS (SPC-4, 6.15.2), one per registration. Raises Unsafe."""
    return [key for (key,) in struct.iter_unpack(">Q", _additional(data, 8))]


def parse_reservation(data: bytes) -> Reservation | None:
    """The reservation of READ RESERVATION (SPC-4, 6.15.3), or None if nobody holds one. Raises Unsafe."""
    rest = _additional(data, 16)
    return Reservation(int.from_bytes(rest[:8]), rest[13] & 0xF) if rest else None


def _additional(data: bytes, unit: int) -> bytes:
    length = int.from_bytes(data[4:8]) if len(data) >= 8 else -1
    if length < 0 or length % unit or len(data) < 8 + length:
        raise _malformed(f"reservation data of {len(data)} bytes announces {length}")
    return data[8 : 8 + length]


def _malformed(what: str) -> StorkitError:
    return Unsafe(f"a disk's answer is malformed: {what}", "do not use it until you know what it is: lsblk --scsi")


def _text(data: bytes) -> str:
    return data.decode("ascii", "replace").strip(" \0")


# Asking


class ScsiDisk:
    """A SCSI disk, open for commands. Opened without O_RDWR: closing that would make udev look at it anew.

    A command waits for as long as the session of an iSCSI disk is in recovery, whatever its timeout: look there first.
    """

    def __init__(self, path: str) -> None:
        self.path = path
        try:
            self._descriptor = os.open(path, os.O_RDONLY | os.O_NONBLOCK | os.O_CLOEXEC)
        except OSError as error:
            raise NotFound(f"{path} cannot be opened: {error.strerror}", "lsblk --scsi") from error

    def __enter__(self) -> ScsiDisk:
        return self

    def __exit__(self, *_: object) -> None:
        os.close(self._descriptor)

    def standard(self) -> Standard:
        return parse_inquiry(self._inquire(0, 0))

    def identity(self) -> Identity:
        """Both identifying VPD pages; what the disk does not have is empty."""
        pages = parse_page_list(self._inquire(1, 0x00))
        serial = parse_serial(self._inquire(1, 0x80)) if 0x80 in pages else ""
        return Identity(serial, parse_naa(self._inquire(1, 0x83)) if 0x83 in pages else "")

    def capacity(self) -> tuple[int, int]:
        """Size and logical block size, in bytes."""
        return parse_capacity(self._ask("READ CAPACITY", struct.pack(">BBQIBB", 0x9E, 0x10, 0, 32, 0, 0), 32))

    def registered_keys(self) -> list[int]:
        """The reservation keys of every registration at the logical unit; a host may be there several times."""
        return parse_keys(self._reserve_in("READ KEYS", 0))

    def reservation(self) -> Reservation | None:
        return parse_reservation(self._reserve_in("READ RESERVATION", 1))

    def _inquire(self, vital: int, page: int) -> bytes:
        return self._ask("INQUIRY", struct.pack(">BBBHB", 0x12, vital, page, 255, 0), 255)

    def _reserve_in(self, what: str, action: int) -> bytes:
        return self._ask(what, struct.pack(">BB5xHB", 0x5E, action, _LONGEST, 0), _LONGEST)

    def _ask(self, what: str, command: bytes, length: int) -> bytes:
        """Send a command that reads up to `length` bytes.

        Raises ServiceUnreachable: the disk does not answer; Conflict: another host's reservation; StorkitError: its
        sense.
        """
        for _ in range(_RETRIES):
            header, data, sense = self._send(what, command, length)
            # The disk reports an event once, in place of the answer: a power-on, a reservation taken away, a new size.
            if not (header.status == CHECK_CONDITION and sense and sense.key == _UNIT_ATTENTION):
                break
        refused = explain(self.path, what, header.status, sense, header.host_status)
        if refused is not None:
            raise refused
        return data[: length - header.resid]

    def _send(self, what: str, command: bytes, length: int) -> tuple[_Header, bytes, Sense | None]:
        data, sense = ctypes.create_string_buffer(length), ctypes.create_string_buffer(64)
        words = ctypes.create_string_buffer(command, len(command))
        header = _Header(
            interface_id=ord("S"), dxfer_direction=_FROM_DEVICE, cmd_len=len(command), mx_sb_len=64, dxfer_len=length,
            dxferp=ctypes.addressof(data), cmdp=ctypes.addressof(words), sbp=ctypes.addressof(sense),
            timeout=int(TIMEOUT * 1000),
        )  # fmt: skip
        try:
            fcntl.ioctl(self._descriptor, _SG_IO, header)
        except OSError as error:
            if error.errno in (errno.ENODEV, errno.ENXIO, errno.EIO):
                raise ServiceUnreachable(f"{self.path} is gone: {error.strerror}", "storkit status") from error
            raise StorkitError(
                f"{self.path} takes no SCSI commands ({what}): {error.strerror}", "it takes root and a SCSI disk"
            ) from error
        return header, data.raw, parse_sense(sense.raw[: header.sb_len_wr])


def explain(device: str, what: str, status: int, sense: Sense | None, host_status: int = 0) -> StorkitError | None:
    """What a command's status means: None if it was carried out."""
    if host_status:
        return ServiceUnreachable(
            f"{device} does not answer ({what}, host status 0x{host_status:02x})", "storkit status"
        )
    if status == RESERVATION_CONFLICT:
        return Conflict(f"{device} refuses {what}: another host holds a reservation", f"sg_persist --in -k {device}")
    if status in (_BUSY, _TASK_SET_FULL):
        return Conflict(f"{device} is busy ({what})", "try again")
    if status == CHECK_CONDITION:
        return StorkitError(f"{device} refuses {what}: {sense or 'no sense data'}", f"dmesg | grep {device[5:]}")
    if status:
        return StorkitError(f"{device} fails {what} with SCSI status 0x{status:02x}", "dmesg | tail")
    return None


# How long commands of an iSCSI disk wait for its target


def patience(device: str) -> str:
    """The seconds that the kernel waits for the target of an iSCSI disk that is away before it fails what was sent
    there, or `off`: for ever. Empty: it is no such disk."""
    return path.read_text().strip() if (path := _patience(device)) else ""


def be_patient(device: str, seconds: str) -> None:
    """Set that, as `patience` tells it; nothing for other disks. Of a target that is away just now it stays (EBUSY)."""
    if seconds and (path := _patience(device)):
        with suppress(OSError):
            path.write_text("off" if seconds == "-1" else seconds)


def _patience(device: str) -> Path | None:
    for parent in Path("/sys/class/block", device.removeprefix("/dev/")).resolve().parents:
        if parent.name.startswith("session"):
            return parent / "iscsi_session" / parent.name / "recovery_tmo"
    return None
