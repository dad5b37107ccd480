"""What device-mapper has, asked by its ioctls (linux/dm-ioctl.h): no process, however many nodes there are.

Only to look: what changes nodes goes through dmsetup(8), which waits for udevd.
"""

from __future__ import annotations

import fcntl
import os
import select
import struct
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path

from storkit.core.errors import Unsupported

CONTROL = Path("/dev/mapper/control")

_HEADER = struct.Struct("=3I I I I i I I I Q 128s 129s 7x")
"""struct dm_ioctl: version, data_size, data_start, target_count, open_count, flags, event_nr, padding, dev, name,
uuid."""
_NAME = struct.Struct("=Q I")
"""struct dm_name_list: dev, next (from this one on; 0: the last), then the name."""
_TARGET = struct.Struct("=Q Q i I 16s")
"""struct dm_target_spec: sector_start, length, status, next (from the first one on), target_type; then the
parameters."""
_LIST_DEVICES, _TABLE_STATUS, _ARM_POLL = 2, 12, 16
_READONLY, _SUSPENDED, _TABLE, _INACTIVE, _FULL = 1 << 0, 1 << 1, 1 << 4, 1 << 6, 1 << 8


@dataclass(frozen=True, slots=True)
class Mapped:
    """A node as the kernel has it."""

    name: str
    uuid: str
    device: str
    """What the kernel calls it: `dm-3`."""
    readonly: bool
    suspended: bool
    pending: bool
    """Whether another table has been loaded, which the next resume makes the active one."""
    opens: int
    targets: list[tuple[int, int, str, str]]
    """Start and length in 512-byte sectors, type, parameters."""


def all_nodes(prefix: str = "") -> list[Mapped]:
    """The nodes whose UUID starts with `prefix`, by name order; none where there is no device-mapper."""
    with _control() as control:
        if control is None:
            return []
        found = [node for name in parse_names(_ask(control, _LIST_DEVICES)) if (node := _status(control, name))]
    return sorted((node for node in found if node.uuid.startswith(prefix)), key=lambda node: node.name)


def status(name: str) -> str:
    """What the targets of a node say of their state, as `dmsetup status` does, without where they lie; empty: there is
    no such node."""
    with _control() as control, suppress(OSError):
        if control is not None:
            answer = _ask(control, _TABLE_STATUS, name.encode(errors="surrogateescape"), table=False)
            return "\n".join(f"{kind} {words}" for _, _, kind, words in parse_status(answer).targets)
    return ""


@contextmanager
def events() -> Iterator[Callable[[float], bool]]:
    """Wait for events of nodes: what is yielded waits so many seconds for the next one at most, of any node, and says
    whether there was one. None is lost between two calls."""
    with _control() as control:
        if control is None:
            raise Unsupported("this kernel has no device-mapper", "modprobe dm-mod")
        _ask(control, _ARM_POLL)
        poll = select.poll()
        poll.register(control, select.POLLIN)

        def wait(seconds: float) -> bool:
            assert control is not None
            happened = bool(poll.poll(max(0.0, seconds) * 1000))
            _ask(control, _ARM_POLL)
            return happened

        yield wait


@contextmanager
def _control() -> Iterator[int | None]:
    try:
        descriptor = os.open(CONTROL, os.O_RDWR | os.O_CLOEXEC)
    except PermissionError:
        message = "device-mapper tells only root what there is, which this user is not"
        raise Unsupported(message, "reach this host as root") from None
    except OSError:  # no such file, or no driver behind it
        yield None
        return
    try:
        yield descriptor
    finally:
        os.close(descriptor)


def _status(control: int, name: bytes) -> Mapped | None:
    with suppress(OSError):  # ENXIO: removed since it was listed
        return parse_status(_ask(control, _TABLE_STATUS, name))
    return None


def _ask(control: int, command: int, name: bytes = b"", table: bool = True) -> bytearray:
    """The kernel's answer, header and data."""
    size = 1 << 14
    while True:
        buffer = bytearray(size)
        flags = _TABLE if command == _TABLE_STATUS and table else 0
        _HEADER.pack_into(buffer, 0, 4, 0, 0, size, _HEADER.size, 0, 0, flags, 0, 0, 0, name, b"")
        fcntl.ioctl(control, 3 << 30 | _HEADER.size << 16 | 0xFD << 8 | command, buffer)
        if not _HEADER.unpack_from(buffer)[7] & _FULL:
            return buffer
        size *= 4


def parse_names(answer: bytes | bytearray) -> list[bytes]:
    """Names of all nodes from DM_LIST_DEVICES."""
    at, names = _HEADER.unpack_from(answer)[4], []
    while True:
        device, following = _NAME.unpack_from(answer, at)
        if device:
            names.append(_text(answer, at + _NAME.size))
        if not following:
            return names
        at += following


def parse_status(answer: bytes | bytearray) -> Mapped:
    """A node from DM_TABLE_STATUS: its tables with DM_STATUS_TABLE_FLAG, or what its targets say of their state."""
    header = _HEADER.unpack_from(answer)
    first, count, opens, flags = header[4], header[5], header[6], header[7]
    targets, at = [], first
    for _ in range(count):
        start, length, _status, following, kind = _TARGET.unpack_from(answer, at)
        parameters = _text(answer, at + _TARGET.size).decode()
        targets.append((start, length, kind.rstrip(b"\0").decode(), parameters))
        at = first + following
    name, uuid = (field.partition(b"\0")[0].decode(errors="surrogateescape") for field in header[11:13])
    device = f"dm-{os.minor(header[10])}"
    readonly, suspended, pending = (bool(flags & flag) for flag in (_READONLY, _SUSPENDED, _INACTIVE))
    return Mapped(name, uuid, device, readonly, suspended, pending, opens, targets)


def _text(answer: bytes | bytearray, at: int) -> bytes:
    return bytes(answer[at : answer.index(0, at)])
