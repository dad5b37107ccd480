"""Guests that stand still without anybody's wish: QEMU stops one whose disk has no room or fails (werror=stop).

Nothing is lost then: QEMU keeps the requests that failed, and makes them again when the guest goes on.
"""

from __future__ import annotations

from collections.abc import Mapping
from contextlib import suppress
from pathlib import Path

from storkit.core.errors import Conflict, StorkitError, TimedOut
from storkit.core.guest import Guest
from storkit.core.model import ALIVE, GuestState
from storkit.system.timeouts import scaled

NO_ROOM = "no space left (ENOSPC)"
FAILED = "input/output error (EIO)"
FAILS_AGAIN = scaled(0.3)
"""Seconds in which a guest that goes on and meets the same error stands still again."""


def because(failed: Mapping[str, bool]) -> str:
    """The reason, of the disks that have failed: name to whether it was for want of room."""
    said = ", ".join(f"{disk}: {NO_ROOM if no_room else FAILED}" for disk, no_room in failed.items())
    return said or "a disk failed, or had no room"


def qemu_reason(guest: Guest, said: str, failed: Mapping[str, bool]) -> str:
    """Why QEMU has paused a guest, of its run state and the devices that failed; empty: somebody wanted it so."""
    from storkit.guests.render import device_id

    if said == "paused":
        return ""
    if said == "postmigrate":
        return "its memory has been saved"
    if said != "io-error":
        return f"QEMU says {said}"
    # A document has names of its own.
    ours = [] if guest.document else guest.disks
    volumes = {device_id(index): f"volume {disk.volume}" for index, disk in enumerate(ours)}
    return because({volumes.get(device, device): no_room for device, no_room in failed.items()})


async def go_on(monitor: Path) -> None:
    """Let a guest of QEMU's that stands still run, and see whether it is stopped again."""
    from storkit.system.qemu import qmp

    async with qmp.connect(monitor) as qemu:
        with qemu.events("STOP") as events:
            await qemu.execute("cont")
            with suppress(TimedOut):
                await events.next(FAILS_AGAIN)


def asleep(state: GuestState) -> bool:
    """Whether a guest stands still. Raises Conflict: it cannot be told to go on, for a migration has it."""
    if state.status in ALIVE:
        return state.status == "paused"
    message = f"guest {state.name} does not stand still on {state.host}: it is {state.status}"
    raise Conflict(message, f"storkit migrate status {state.name}")


def still(state: GuestState) -> StorkitError:
    """It was told to go on, and stands still."""
    message = f"guest {state.name} stands still again on {state.host}: {state.reason or 'somebody has paused it'}"
    return Conflict(message, f"storkit guest resume {state.name}, once that is mended")
