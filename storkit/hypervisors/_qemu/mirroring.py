"""A disk of a running guest that is moved: the guest's own QEMU copies it, writes both, and switches to the copy.

QEMU's mirror (`blockdev-mirror`, write-blocking) ends a guest's write when it is in the disk and in the copy. If the
copy fails, the guest goes on with its disk alone, the job stands still and knows what the copy lacks.

What is kept of it here says after QEMU's death, and after a power cut, which of the two is the disk. It says `switched`
only while the guest stands still and both are the same, and the guest goes on after the switch alone: so whoever finds
that word finds everything in the copy, and whoever does not finds everything in the disk. While QEMU lives it is asked.

QEMU 7.2 aborts now and then if a guest writes while its disk is switched (microvm, ioeventfd=off): hence the pause.
"""

from __future__ import annotations

import os
import time
from collections.abc import Callable
from contextlib import suppress
from dataclasses import replace

from storkit.core.backend import Site
from storkit.core.errors import Conflict, NotFound, ServiceUnreachable, StorkitError, TimedOut, Unsafe, Unsupported
from storkit.core.model import DiskSource, MirrorState, Switched
from storkit.hypervisors._copynotes import CopyNotes
from storkit.hypervisors._machine import look_command
from storkit.hypervisors._qemu import mirrorjob
from storkit.hypervisors._qemu.definition import Definition
from storkit.hypervisors._qemu.mirrorjob import SETTLE_TIMEOUT, TICK, Mirror
from storkit.hypervisors._qemu.process import Process
from storkit.system.qemu import qmp
from storkit.system.timeouts import scaled

SAME_TIMEOUT = scaled(2.0)
"""Seconds that a guest stands still at most for its last writes to be in both."""


class Mirrors:
    """The copies that guests of one host fill."""

    def __init__(self, site: Site, process: Callable[[str], Process], stall: float) -> None:
        """`stall`: seconds after which a copy that makes no progress is given up."""
        self._site = site
        self._notes = CopyNotes(site.state.absolute() / "mirrors", Mirror)
        self._process = process
        self._stall = stall

    def mirror(self, definition: Definition, disk: str, copy: DiskSource, identity: str, rate: int) -> None:
        """As HypervisorVerbs.mirror."""
        import asyncio

        name = definition.guest.name
        here = self._alive(name)
        with self._notes.locked(disk):
            known = self._notes.read(disk)
            if known and known.copy == copy and self.state(known) == "switched":
                return  # of another copy it is what an earlier move has left
            known = asyncio.run(self._begun(here, definition, disk, copy, identity, rate, known))
        asyncio.run(self._watch(here, known))

    def mirrored(self, disk: str) -> MirrorState:
        """As HypervisorVerbs.mirrored."""
        with self._notes.locked(disk):
            known = self._notes.read(disk)
            return self.state(known) if known else "none"

    def state(self, known: Mirror) -> MirrorState:
        """What has become of a copy. Raises StorkitError: QEMU lives and does not answer."""
        here = self._process(known.guest)
        if not here.alive():
            return "switched" if known.switched else "none"
        import asyncio

        async def ask() -> MirrorState:
            async with qmp.connect(here.monitor) as qemu:
                return await mirrorjob.state(qemu, known)

        try:
            return asyncio.run(ask())
        except (NotFound, qmp.Lost):
            if here.alive():
                raise
            return "switched" if known.switched else "none"

    def switch(self, name: str, disk: str, identity: str) -> Switched:
        """As HypervisorVerbs.switch."""
        import asyncio

        here = self._alive(name)
        with self._notes.locked(disk):
            known = self._notes.read(disk)
            if known is None or known.guest != name:
                raise Conflict(f"guest {name} fills no copy of this disk here", look_command(name))
            return Switched(asyncio.run(self._switch(here, known, identity)))

    def unmirror(self, disk: str, over: bool) -> None:
        """As HypervisorVerbs.unmirror."""
        import asyncio

        with self._notes.locked(disk):
            known = self._notes.read(disk)
            if known is None:
                return
            state = self.state(known)
            if state == "switched" and not over:
                message = f"guest {known.guest} uses the copy of its disk by now, which alone has what it wrote since"
                raise Unsafe(message, "give the command again that moved the volume there")
            if state == "copying" and over:
                raise Unsafe(f"guest {known.guest} still uses the disk that its copy is to replace")
            if state == "copying":
                asyncio.run(self._call_off(self._process(known.guest), known))
            self._notes.forget(disk)

    def switched(self, disk: str) -> bool:
        """Whether a guest here has switched to a copy whose pool has not said yet that it is the disk."""
        known = self._notes.read(disk)
        return known is not None and known.switched

    def _alive(self, name: str) -> Process:
        here = self._process(name)
        if not here.alive():
            raise NotFound(f"guest {name} does not run here", look_command(name))
        if here.adopted:
            message = f"guest {name} was adopted while it ran: until its next stop its disks stay where they are"
            raise Unsupported(message, f"storkit guest stop {name}, then move its volume")
        return here

    # Copying

    async def _begun(
        self,
        here: Process,
        definition: Definition,
        disk: str,
        copy: DiskSource,
        identity: str,
        rate: int,
        known: Mirror | None,
    ) -> Mirror:
        """The job, which goes on if it is there for this copy."""
        async with qmp.connect(here.migration) as qemu:
            if known:
                job = await mirrorjob.look(qemu, known)
                whose = (known.copy, known.identity) == (copy, identity)
                if whose and job and job["status"] not in ("concluded", "aborting", "null"):
                    await mirrorjob.let_go_on(qemu, known)
                    if job["paused"] or job["io-status"] != "ok":
                        await qemu.execute("block-job-resume", {"device": known.job})
                    if rate != job["speed"]:
                        await qemu.execute("block-job-set-speed", {"device": known.job, "speed": rate})
                    return self._notes.keep(replace(known, paused=False))
                if job:
                    await self._call_off(here, known, qemu)
                await mirrorjob.dropped(qemu, known)
            node = await mirrorjob.disk_node(qemu, definition, disk)
            name = "copy-" + os.urandom(6).hex()
            known = self._notes.keep(Mirror(definition.guest.name, disk, copy, identity, node, name))
            await mirrorjob.open_copy(qemu, copy, name)
            wanted = {
                "job-id": known.job,
                "device": node,
                "target": name,
                "sync": "full",
                "copy-mode": "write-blocking",
                "on-target-error": "stop",
                "auto-dismiss": False,
                "speed": rate,
            }
            try:
                await qemu.execute("blockdev-mirror", wanted, timeout=SETTLE_TIMEOUT)
            except StorkitError:
                await mirrorjob.dropped(qemu, known)
                raise
            return known

    async def _watch(self, here: Process, known: Mirror) -> None:
        """Wait until both hold the same."""
        import asyncio

        moved, offset, rate, before = time.monotonic(), -1, 0.0, time.monotonic()
        async with qmp.connect(here.migration) as qemu:
            with qemu.events("BLOCK_JOB_READY", "BLOCK_JOB_ERROR", "JOB_STATUS_CHANGE") as events:
                while True:
                    job = await mirrorjob.look(qemu, known)
                    if job is None or job["status"] in ("concluded", "aborting", "null"):
                        await mirrorjob.dropped(qemu, known)
                        raise ServiceUnreachable(
                            f"guest {known.guest} has given up its copy: {mirrorjob.reason(job)}", mirrorjob.AGAIN
                        )
                    if job["ready"] and job["offset"] == job["len"]:
                        self._site.progress(1.0, "the disk and its copy are the same")
                        return
                    now = time.monotonic()
                    if job["offset"] != offset:
                        if offset >= 0 and now > before:
                            rate = (job["offset"] - offset) / (now - before)
                        moved, offset, before = now, job["offset"], now
                    stopped = job["io-status"] != "ok" or job["paused"]
                    if now - moved > self._stall:
                        await self._call_off(here, known, qemu)
                        why = f"nothing was copied of a disk of guest {known.guest} for {self._stall:g} seconds"
                        raise ServiceUnreachable(f"{why}; the guest goes on with its disk alone", mirrorjob.AGAIN)
                    if stopped:
                        # Its server may be back. Until then the guest writes its disk alone, and the job knows what.
                        self._site.progress(job["offset"] / max(1, job["len"]), "the copy cannot be reached: waiting")
                        with suppress(qmp.Refused):
                            await qemu.execute("block-job-resume", {"device": known.job})
                        await asyncio.sleep(TICK)
                        continue
                    left = job["len"] - job["offset"]
                    eta = f", {left / rate:.0f} s left" if rate else ""
                    text = f"{job['offset'] >> 20} of {job['len'] >> 20} MiB, {rate / 1e6:.0f} MB/s{eta}"
                    self._site.progress(min(0.99, job["offset"] / max(1, job["len"])), text)
                    with suppress(TimedOut):
                        await events.next(TICK)
                    await asyncio.sleep(0)

    async def _call_off(self, here: Process, known: Mirror, qemu: qmp.Monitor | None = None) -> None:
        """End the job: the guest goes on with its disk. Its requests to a server that hangs are given up."""
        import asyncio

        if qemu is None:
            async with qmp.connect(here.monitor) as own:
                await self._call_off(here, known, own)
            return
        deadline = time.monotonic() + SETTLE_TIMEOUT
        while (job := await mirrorjob.look(qemu, known)) and job["status"] not in ("concluded", "null"):
            if time.monotonic() > deadline:
                raise TimedOut(f"the copy of guest {known.guest} does not end", mirrorjob.AGAIN)
            # A server that takes connections and says nothing is waited for otherwise, each time.
            hangs = {"type": "block-node", "node-name": mirrorjob.client(known.node)}
            with suppress(qmp.Refused):
                await qemu.execute("yank", {"instances": [hangs]})
            with suppress(qmp.Refused):  # it has concluded by itself
                await qemu.execute("block-job-cancel", {"device": known.job, "force": True})
            await asyncio.sleep(0.01 if job["ready"] else TICK / 5)
        await mirrorjob.let_go_on(qemu, known)
        await mirrorjob.dropped(qemu, known)

    # The switch

    async def _switch(self, here: Process, known: Mirror, identity: str) -> int:
        async with qmp.connect(here.monitor, timeout=SETTLE_TIMEOUT) as qemu:
            if await mirrorjob.state(qemu, known) != "switched":
                if known.identity != identity:
                    message = f"the server of the copy that guest {known.guest} fills has begun anew since"
                    raise Conflict(message, "storkit plan rollback, then move the volume again")
                known = await self._pivot(qemu, known)
            await mirrorjob.let_go_on(qemu, known)
            if not known.switched:
                known = self._notes.keep(replace(known, switched=True))
            await mirrorjob.tidy(qemu, known)
            self._notes.keep(replace(known, paused=False))
            return known.stall

    async def _pivot(self, qemu: qmp.Monitor, known: Mirror) -> Mirror:
        await mirrorjob.must_be_same(qemu, known, 0.0)
        runs = (await qemu.execute("query-status"))["status"] == "running"
        # What lies in caches at the copy's end would be waited for while the guest stands still.
        with suppress(StorkitError):
            flush = {"command-line": f'qemu-io {known.node} "flush"'}
            await qemu.execute("human-monitor-command", flush, timeout=SETTLE_TIMEOUT)
        known = self._notes.keep(replace(known, paused=known.paused or runs))
        began = time.monotonic()
        with qemu.events("JOB_STATUS_CHANGE") as events:
            try:
                await qemu.execute("stop", timeout=SETTLE_TIMEOUT)
                await mirrorjob.must_be_same(qemu, known, SAME_TIMEOUT)
                known = self._notes.keep(replace(known, switched=True))
                await qemu.execute("job-complete", {"id": known.job})
                await mirrorjob.concluded(qemu, known, events)
                if await mirrorjob.state(qemu, known) != "switched":
                    raise Conflict(f"guest {known.guest} did not switch to its copy", mirrorjob.AGAIN)
            except StorkitError:
                await self._stays(qemu, known)
                raise
        await mirrorjob.let_go_on(qemu, known)
        stall = int((time.monotonic() - began) * 1000) if runs else 0
        self._site.progress(1.0, f"guest {known.guest} stood still for {stall} ms")
        return replace(known, stall=stall)

    async def _stays(self, qemu: qmp.Monitor, known: Mirror) -> None:
        """After a switch that failed: the guest goes on with its disk, if that is what it has. Of one that hangs
        nothing is said."""
        if await mirrorjob.state(qemu, known) == "switched":
            return
        if (job := await mirrorjob.look(qemu, known)) and job["status"] not in (
            "ready",
            "standby",
            "running",
            "paused",
        ):
            await mirrorjob.concluded(qemu, known)
            if await mirrorjob.state(qemu, known) == "switched":
                return
        self._notes.keep(replace(known, switched=False))
        await mirrorjob.let_go_on(qemu, known)
