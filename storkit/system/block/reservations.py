"""Persistent reservations through the kernel's ioctls of linux/pr.h, on a SCSI disk: the writer's right at the storage.

A writer registers its key; one of the writers holds the reservation "write exclusive, registrants only", and from then
on the logical unit refuses the writes of everyone who is not registered. To take a host's right away is to preempt its
key. Registrations and the reservation survive a power cut of the target: the kernel asks for that (APTPL).
"""

from __future__ import annotations

import fcntl
import hashlib
import os
import struct
from collections.abc import Iterable, Sequence

from storkit.core.errors import Conflict, ServiceUnreachable, StorkitError, TimedOut, Unsupported
from storkit.system.block import scsi

WRITE_EXCLUSIVE_REGISTRANTS = 3
"""enum pr_type of linux/pr.h; on the wire it is 5."""
ON_THE_WIRE = 5
_IGNORE_OLD_KEY = 1
_REGISTER, _RESERVE, _RELEASE, _PREEMPT, _PREEMPT_ABORT, _CLEAR = range(200, 206)
_ROUNDS = 5


def key_for(uuid: str, host: str) -> int:
    """The reservation key of a host at a volume's logical unit: 64 bits, the same wherever it is computed, never 0."""
    digest = hashlib.sha256(b"\0".join((b"storkit", uuid.encode(), host.encode()))).digest()
    return int.from_bytes(digest[:8]) or 1


def key_text(key: int) -> str:
    """A key as it is shown and compared."""
    return f"{key:016x}"


def register(disk: str, key: int) -> None:
    """Register this host's key, or replace the one it has; 0 takes the registration back.

    Raises Conflict, as the others here do: the logical unit refuses; ServiceUnreachable: it does not answer.
    """
    _call(disk, "register", _REGISTER, struct.pack("=QQII", 0, key, _IGNORE_OLD_KEY, 0))


def reserve(disk: str, key: int) -> None:
    """Hold the reservation; the others who are registered go on writing."""
    _call(disk, "reserve", _RESERVE, struct.pack("=QII", key, WRITE_EXCLUSIVE_REGISTRANTS, 0))


def release(disk: str, key: int) -> None:
    """Give the reservation back: from then on every host can write."""
    _call(disk, "release", _RELEASE, struct.pack("=QII", key, WRITE_EXCLUSIVE_REGISTRANTS, 0))


def preempt(disk: str, key: int, victim: int) -> None:
    """Take the registrations with the key `victim` away, and the reservation if one of them holds it."""
    _call(disk, "preempt", _PREEMPT, _preemption(key, victim))


def preempt_and_abort(disk: str, key: int, victim: int) -> None:
    """As `preempt`, and the victim's commands that the target has taken in are aborted."""
    _call(disk, "preempt and abort", _PREEMPT_ABORT, _preemption(key, victim))


def clear(disk: str, key: int) -> None:
    """Take the reservation and every registration away."""
    _call(disk, "clear", _CLEAR, struct.pack("=QII", key, 0, 0))


def _preemption(own: int, victim: int) -> bytes:
    # The kernel calls these old_key and new_key, and the own key is the first of them.
    return struct.pack("=QQII", own, victim, WRITE_EXCLUSIVE_REGISTRANTS, 0)


def hold(disks: Sequence[str], own: int, writers: Iterable[int] | None, *, only: bool = True) -> None:
    """Register `own` and make this host one of those who may write, and hold the reservation unless another does.

    `disks` are the paths to one logical unit, each of which is registered by itself: through a map over them the kernel
    takes the registration of those that work back when one does not. `writers` are the keys that may stay registered;
    all others are preempted. None: nobody is. `only`: this host has no other path. Raises Conflict if a reservation of
    another type is held, which is not storkit's, or if this host has been preempted meanwhile.
    """
    for each in disks:
        register(each, own)
    disk = disks[0]
    allowed = None if writers is None else {*writers, own}
    for attempt in range(_ROUNDS):
        with scsi.ScsiDisk(disk) as asked:
            keys, held = asked.registered_keys(), asked.reservation()
        if keys.count(own) < len(disks):
            raise Conflict(
                f"{disk} has lost this host's registration as a writer",
                "another host has taken the right: storkit status",
            )
        if held is not None and held.type != ON_THE_WIRE:
            name = scsi.RESERVATION_TYPES.get(held.type, str(held.type))
            raise Conflict(
                f"{disk} is reserved by key {key_text(held.key)}, {name}", f"see whose it is: sg_persist --in -k {disk}"
            )
        victims = set(keys) - allowed if allowed is not None else set()
        # Earlier sessions of this host, which ended without a word. With several paths they stay: who writes by another
        # path would meet a conflict before that is registered again.
        if only and keys.count(own) > len(disks) == 1 and attempt == 0:
            victims.add(own)
        if held is not None and not victims:
            return
        for victim in sorted(victims):
            preempt_and_abort(disk, own, victim)
        if held is None:
            _reserve_unless_held(disk, own)
    raise TimedOut(f"{disk}: other hosts keep registering as writers", "storkit status")


def _reserve_unless_held(disk: str, own: int) -> None:
    """Another writer may have reserved since we asked: that is as good."""
    try:
        reserve(disk, own)
    except Conflict:
        with scsi.ScsiDisk(disk) as asked:
            if asked.reservation() is None:
                raise


def _call(disk: str, what: str, number: int, argument: bytes) -> None:
    request = 1 << 30 | len(argument) << 16 | ord("p") << 8 | number  # _IOW('p', number, ...)
    buffer = bytearray(argument)
    descriptor = os.open(disk, os.O_RDONLY | os.O_NONBLOCK | os.O_CLOEXEC)
    try:
        for _ in range(_ROUNDS):
            # The disk's refusal is a positive return value, and no OSError; fcntl shows it with a mutable buffer only.
            status = fcntl.ioctl(descriptor, request, buffer)
            if status != scsi.CHECK_CONDITION:  # a unit attention comes once, in place of the answer
                break
    except OSError as error:
        raise _system_error(disk, what, error) from error
    finally:
        os.close(descriptor)
    if status:
        raise refusal(disk, what, status)


def refusal(disk: str, what: str, status: int) -> StorkitError:
    """What a positive return value means: a SCSI status, with the transport's in the third byte."""
    if status >> 16:
        return ServiceUnreachable(f"{disk} does not answer ({what} of a reservation key)", "storkit status")
    if status & 0xFF == scsi.RESERVATION_CONFLICT:
        return Conflict(
            f"{disk} refuses to {what}: this host's key is not registered there, or another reservation is held",
            f"sg_persist --in -k {disk}; sg_persist --in -r {disk}",
        )
    return Conflict(f"{disk} refuses to {what} a reservation key (SCSI status 0x{status & 0xFF:02x})", "dmesg | tail")


def _system_error(disk: str, what: str, error: OSError) -> StorkitError:
    import errno

    if error.errno in (errno.EOPNOTSUPP, errno.ENOTTY):
        return Unsupported(f"{disk} knows no persistent reservations", "use a transport or target that does")
    if error.errno in (errno.ENODEV, errno.ENXIO, errno.EIO):
        return ServiceUnreachable(f"{disk} is gone: {error.strerror}", "storkit status")
    return Conflict(f"{disk}: cannot {what} a reservation key: {error.strerror}", "it takes root")
