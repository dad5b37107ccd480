"""A guest of QEMU's into a file and back: a migration to a file that this process has opened (migrate `fd:`).

QEMU has let go of the disks once it is over, and stands still (postmigrate). The mark `saving` of its process tells it
from a guest that has migrated away. From there it can go on where it was, as long as nobody else had its disks.
"""

from __future__ import annotations

import os
import time
from collections.abc import Awaitable, Callable
from contextlib import suppress
from typing import Any

from storkit.core.backend import Site
from storkit.core.errors import CommandFailed, Conflict, NotFound, StorkitError, TimedOut, Unsafe
from storkit.core.model import Saved
from storkit.hypervisors import _saved as memory
from storkit.hypervisors._qemu.migration import ACTIVE, TICK
from storkit.hypervisors._qemu.process import Process
from storkit.system.files import write_atomic
from storkit.system.qemu import qmp
from storkit.system.timeouts import scaled

NAME = "memory"
CALL_OFF = scaled(30.0)
"""Seconds for QEMU to give up what it writes: it waits for the file system that has its last write."""
CAPABILITIES = ("return-path", "auto-converge", "postcopy-ram", "multifd")
"""What a migration between hosts may have set, and a file cannot do."""


def save(site: Site, process: Process, saved: Saved, file: str, stall: float) -> Saved:
    """As Hypervisor.save."""
    import asyncio

    path, own = memory.place(site, process.name, file), not file
    if there := memory.refuse_taken(path, own, saved):
        memory.partial(path, saved.hold).unlink(missing_ok=True)
        return there
    if not process.alive():
        raise NotFound(f"guest {process.name} does not run here", f"storkit guest show {process.name}")
    under_way = process.saving.exists() and process.saving.read_text() == saved.hold
    if not under_way:
        asyncio.run(_refuse_still(process, stall))
    descriptor = memory.reopen(path, saved.hold) if under_way else memory.make(path, own, saved.hold)
    try:
        if not under_way:
            write_atomic(process.saving, saved.hold)
        version = asyncio.run(_store(site, process, saved, descriptor, stall))
        from dataclasses import replace

        return memory.seal(path, descriptor, replace(saved, version=version), own)
    except StorkitError:
        unsave(site, process, saved, file)
        raise
    finally:
        os.close(descriptor)


async def _refuse_still(process: Process, stall: float) -> None:
    """Raise Conflict if a guest has stood still since another save, or is being migrated: nothing of it would be
    written, and then it would be ended."""
    async with qmp.connect(process.migration, timeout=stall) as qemu:
        runs = (await qemu.execute("query-status"))["status"]
        status = (await qemu.execute("query-migrate")).get("status", "none")
    if runs == "inmigrate":
        raise Conflict(f"guest {process.name} is not here yet", f"storkit migrate status {process.name}")
    if runs == "postmigrate" or status in ACTIVE:
        name = process.name
        raise Conflict(
            f"guest {name} stands still since it was saved before", f"storkit guest resume {name}, then save it"
        )


async def _store(site: Site, process: Process, saved: Saved, descriptor: int, stall: float) -> str:
    """Have the memory written, or wait until that has ended; QEMU's version. Raises CommandFailed: QEMU's own words."""
    async with qmp.connect(process.migration, timeout=stall) as qemu:
        runs = (await qemu.execute("query-status"))["status"]
        status = (await qemu.execute("query-migrate")).get("status", "none")
        if runs != "postmigrate" and status not in ACTIVE:
            os.ftruncate(descriptor, 0)
            await qemu.execute("stop")
            await _plain(qemu)
            await qemu.send_file(descriptor, NAME)
            await qemu.execute("migrate", {"uri": f"fd:{NAME}"})
        size, moved = -1, time.monotonic()
        while (status := (await qemu.execute("query-migrate")))["status"] in ACTIVE:
            if (now := os.fstat(descriptor).st_size) != size:
                size, moved = now, time.monotonic()
                site.progress(_done(status), f"{size >> 20} MiB of {process.name}'s memory")
            if time.monotonic() - moved > stall:
                await qemu.execute("migrate_cancel")
                raise TimedOut(f"the file with guest {process.name}'s memory takes nothing more", "see its file system")
            await _pause()
        if status["status"] != "completed":
            raise CommandFailed(["QMP migrate"], 1, status.get("error-desc", status["status"]), hint="df -h; dmesg")
        version = await qemu.execute("query-version")
        return ".".join(str(version["qemu"][part]) for part in ("major", "minor", "micro"))


def unsave(site: Site, process: Process, saved: Saved, file: str) -> None:
    """As Hypervisor.unsave."""
    import asyncio

    path = memory.place(site, process.name, file)
    if process.alive():
        memory.unseal(path, saved.hold)
        asyncio.run(_go_on(process, saved))
    elif memory.is_of(path, saved.hold):
        message = f"guest {process.name} has ended, and sleeps: all that there is of it is in {path}"
        raise Unsafe(message, f"storkit guest restore {process.name}")
    memory.partial(path, saved.hold).unlink(missing_ok=True)


async def _go_on(process: Process, saved: Saved) -> None:
    """Let a guest go on that was being saved by this sleep, unless it stood still before."""
    if not process.saving.exists() or process.saving.read_text() != saved.hold:
        return
    async with qmp.connect(process.migration) as qemu:
        await _call_off(qemu, process.name)
        if not saved.paused:
            await qemu.execute("cont")
        elif (await qemu.execute("query-status"))["status"] == "postmigrate":
            return  # as it was: it stands still. The mark says that it has not migrated away.
    process.saving.unlink(missing_ok=True)


def forget(process: Process) -> None:
    """Give up what is left of a save, so that the guest can go on: from here on it was never saved."""
    import asyncio

    async def call_off() -> None:
        async with qmp.connect(process.migration) as qemu:
            await _call_off(qemu, process.name)

    if process.saving.exists():
        asyncio.run(call_off())
        process.saving.unlink(missing_ok=True)


async def _call_off(qemu: qmp.Monitor, name: str) -> None:
    """Have QEMU give up what it writes, and wait until it has. Raises TimedOut: it waits for the file system."""
    if (await qemu.execute("query-migrate")).get("status") not in ACTIVE:
        return
    await qemu.execute("migrate_cancel")
    deadline = time.monotonic() + CALL_OFF
    while (await qemu.execute("query-migrate")).get("status") in ACTIVE:
        if time.monotonic() > deadline:
            message = f"QEMU does not let go of the file with guest {name}'s memory"
            raise TimedOut(message, "storkit plan rollback, once the file system answers")
        await _pause()


def load(site: Site, process: Process, descriptor: int, saved: Saved, stall: float) -> None:
    """Have a waiting QEMU read a memory, and wait until it has. Raises: it has ended, or will not."""
    import asyncio

    async def read() -> None:
        async with qmp.connect(process.migration, timeout=stall) as qemu:
            await _plain(qemu)
            await qemu.send_file(descriptor, NAME)
            await qemu.execute("migrate-incoming", {"uri": f"fd:{NAME}"})
            while await _reading(qemu, descriptor, stall, lambda at: site.progress(at / max(1, saved.size), text)):
                await _pause()

    text = f"reading {process.name}'s memory"
    asyncio.run(read())


async def _reading(qemu: qmp.Monitor, descriptor: int, stall: float, progress: Callable[[float], None]) -> bool:
    """Whether QEMU still reads. It answers nothing while it does: how far it is, the position in the file says."""
    import asyncio

    asked = asyncio.ensure_future(qemu.execute("query-status", timeout=24 * 3600.0))
    at, moved = -1, time.monotonic()
    while not (await asyncio.wait({asked}, timeout=TICK))[0]:
        if (now := os.lseek(descriptor, 0, os.SEEK_CUR)) != at:
            at, moved = now, time.monotonic()
            progress(at)
        if time.monotonic() - moved > stall:
            asked.cancel()
            with suppress(asyncio.CancelledError, StorkitError):
                await asked
            raise TimedOut("the file with the guest's memory gives nothing more", "see its file system: dmesg")
    return bool((await asked)["status"] == "inmigrate")


async def _plain(qemu: qmp.Monitor) -> None:
    """Set what a migration by file needs, whatever one between hosts has left."""
    wanted: dict[str, Any] = {"events": True, "late-block-activate": True, **dict.fromkeys(CAPABILITIES, False)}
    capabilities = [{"capability": name, "state": state} for name, state in wanted.items()]
    await qemu.execute("migrate-set-capabilities", {"capabilities": capabilities})
    await qemu.execute("migrate-set-parameters", {"max-bandwidth": 0, "tls-creds": ""})


def _done(status: dict[str, Any]) -> float:
    ram = status.get("ram", {})
    return min(0.99, 1 - ram.get("remaining", 0) / ram["total"]) if ram.get("total") else 0.0


def _pause() -> Awaitable[None]:
    import asyncio

    return asyncio.sleep(TICK / 10)
