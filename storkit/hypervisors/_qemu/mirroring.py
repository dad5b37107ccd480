"""A disk of a running guest that is moved: the guest's own QEMU copies it, writes both, and switches to the copy.

QEMU's mirror (`blockdev-mirror`, write-blocking) ends a guest's write when it is in the disk and in the copy. If the
copy fails, the guest goes on with its disk alone, the job stands still and knows what the copy lacks.

What is kept of it here says after QEMU's death, and after a power cut, which of the two is the disk. It says `switched`
only while the guest stands still and both are the same, and the guest goes on after the switch alone: so whoever finds
that word finds everything in the copy, and whoever does not finds everything in the disk. While QEMU lives it is asked.

QEMU 7.2 aborts now and then if a guest writes while its disk is switched (microvm, ioeventfd=off): hence the pause.
"""

from __future__ import annotations

import json
import os
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from storkit.core import codec
from storkit.core.backend import Site
from storkit.core.errors import Conflict, NotFound, ServiceUnreachable, StorkitError, TimedOut, Unsafe, Unsupported
from storkit.core.identities import GuestName, Line, Uuid, Word
from storkit.core.model import DiskSource, MirrorState, Switched
from storkit.guests.render import device_id
from storkit.hypervisors._machine import look_command
from storkit.hypervisors._qemu.definition import Definition
from storkit.hypervisors._qemu.process import Process
from storkit.system import locks
from storkit.system.files import make_private, read_json, write_atomic
from storkit.system.qemu import qmp
from storkit.system.timeouts import scaled

TICK = scaled(0.5)
SETTLE_TIMEOUT = scaled(30.0)
"""Seconds for a job to end that has nothing more to copy, or is called off."""
SAME_TIMEOUT = scaled(2.0)
"""Seconds that a guest stands still at most for its last writes to be in both."""
LOCK_TIMEOUT = scaled(60.0)
COPY_RECONNECT = 0
"""Seconds that requests to a copy wait for its server: none, since the guest would wait as well. The job does."""
DISK_RECONNECT = 300
"""Seconds that a guest waits for the server of its disk, as templates/qemu has it (guests.place)."""


@dataclass(frozen=True, slots=True)
class Mirror:
    """What is kept of a guest's copy, in a file of the volume's UUID."""

    guest: GuestName
    disk: Uuid
    copy: DiskSource
    identity: Line
    """What the copy's server said of itself."""
    before: Word
    """QEMU's name of the node that was the guest's disk."""
    node: Word
    """Of the one that is its copy. Names are never used a second time."""
    paused: bool = False
    """The guest was about to be stopped for the switch, and is to go on whatever comes of it."""
    switched: bool = False
    stall: int = 0
    """Milliseconds that the guest stood still."""

    @property
    def job(self) -> Line:
        return f"storkit-{self.node}"


class Mirrors:
    """The copies that guests of one host fill."""

    def __init__(self, site: Site, process: Callable[[str], Process], stall: float) -> None:
        """`stall`: seconds after which a copy that makes no progress is given up."""
        self._site = site
        self._directory = site.state.absolute() / "mirrors"
        self._process = process
        self._stall = stall

    def mirror(self, definition: Definition, disk: str, copy: DiskSource, identity: str, rate: int) -> None:
        """As HypervisorVerbs.mirror."""
        import asyncio

        name = definition.guest.name
        here = self._alive(name)
        with self._locked(disk):
            known = self._read(disk)
            if known and known.copy == copy and self.state(known) == "switched":
                return  # of another copy it is what an earlier move has left
            known = asyncio.run(self._begun(here, definition, disk, copy, identity, rate, known))
        asyncio.run(self._watch(here, known))

    def mirrored(self, disk: str) -> MirrorState:
        """As HypervisorVerbs.mirrored."""
        with self._locked(disk):
            known = self._read(disk)
            return self.state(known) if known else "none"

    def state(self, known: Mirror) -> MirrorState:
        """What has become of a copy. Raises StorkitError: QEMU lives and does not answer."""
        here = self._process(known.guest)
        if not here.alive():
            return "switched" if known.switched else "none"
        import asyncio

        async def ask() -> MirrorState:
            async with qmp.connect(here.monitor) as qemu:
                return await _state(qemu, known)

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
        with self._locked(disk):
            known = self._read(disk)
            if known is None or known.guest != name:
                raise Conflict(f"guest {name} fills no copy of this disk here", look_command(name))
            return Switched(asyncio.run(self._switch(here, known, identity)))

    def unmirror(self, disk: str, over: bool) -> None:
        """As HypervisorVerbs.unmirror."""
        import asyncio

        with self._locked(disk):
            known = self._read(disk)
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
            self._path(disk).unlink(missing_ok=True)

    def switched(self, disk: str) -> bool:
        """Whether a guest here has switched to a copy whose pool has not said yet that it is the disk."""
        known = self._read(disk)
        return known is not None and known.switched

    # What is kept

    def _path(self, disk: str) -> Path:
        return self._directory / f"{disk}.json"

    def _read(self, disk: str) -> Mirror | None:
        path = self._path(disk)
        try:
            return codec.load(Mirror, read_json(path, "what is kept of a copy"), str(path))
        except FileNotFoundError:
            return None

    def _keep(self, known: Mirror) -> Mirror:
        write_atomic(self._path(known.disk), json.dumps(codec.dump(known)))
        return known

    @contextmanager
    def _locked(self, disk: str) -> Iterator[None]:
        """A command that was killed may still be at it."""
        make_private(self._directory)
        lock = locks.acquire(self._directory / f"{disk}.lock", "this guest's copy", wait=LOCK_TIMEOUT)
        try:
            yield
        finally:
            lock.release(remove=True)

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
                job = await _job(qemu, known)
                whose = (known.copy, known.identity) == (copy, identity)
                if whose and job and job["status"] not in ("concluded", "aborting", "null"):
                    await _let_go_on(qemu, known)
                    if job["paused"] or job["io-status"] != "ok":
                        await qemu.execute("block-job-resume", {"device": known.job})
                    if rate != job["speed"]:
                        await qemu.execute("block-job-set-speed", {"device": known.job, "speed": rate})
                    return self._keep(replace(known, paused=False))
                if job:
                    await self._call_off(here, known, qemu)
                await _dropped(qemu, known)
            node = await disk_node(qemu, definition, disk)
            name = "copy-" + os.urandom(6).hex()
            known = self._keep(Mirror(definition.guest.name, disk, copy, identity, node, name))
            await _open(qemu, copy, name)
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
                await _dropped(qemu, known)
                raise
            return known

    async def _watch(self, here: Process, known: Mirror) -> None:
        """Wait until both hold the same."""
        import asyncio

        moved, offset, rate, before = time.monotonic(), -1, 0.0, time.monotonic()
        async with qmp.connect(here.migration) as qemu:
            with qemu.events("BLOCK_JOB_READY", "BLOCK_JOB_ERROR", "JOB_STATUS_CHANGE") as events:
                while True:
                    job = await _job(qemu, known)
                    if job is None or job["status"] in ("concluded", "aborting", "null"):
                        await _dropped(qemu, known)
                        raise ServiceUnreachable(f"guest {known.guest} has given up its copy: {_reason(job)}", _AGAIN)
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
                        raise ServiceUnreachable(f"{why}; the guest goes on with its disk alone", _AGAIN)
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
        while (job := await _job(qemu, known)) and job["status"] not in ("concluded", "null"):
            if time.monotonic() > deadline:
                raise TimedOut(f"the copy of guest {known.guest} does not end", _AGAIN)
            # A server that takes connections and says nothing is waited for otherwise, each time.
            hangs = {"type": "block-node", "node-name": _client(known.node)}
            with suppress(qmp.Refused):
                await qemu.execute("yank", {"instances": [hangs]})
            with suppress(qmp.Refused):  # it has concluded by itself
                await qemu.execute("block-job-cancel", {"device": known.job, "force": True})
            await asyncio.sleep(0.01 if job["ready"] else TICK / 5)
        await _let_go_on(qemu, known)
        await _dropped(qemu, known)

    # The switch

    async def _switch(self, here: Process, known: Mirror, identity: str) -> int:
        async with qmp.connect(here.monitor, timeout=SETTLE_TIMEOUT) as qemu:
            if await _state(qemu, known) != "switched":
                if known.identity != identity:
                    message = f"the server of the copy that guest {known.guest} fills has begun anew since"
                    raise Conflict(message, "storkit plan rollback, then move the volume again")
                known = await self._pivot(qemu, known)
            await _let_go_on(qemu, known)
            if not known.switched:
                known = self._keep(replace(known, switched=True))
            await _tidy(qemu, known)
            self._keep(replace(known, paused=False))
            return known.stall

    async def _pivot(self, qemu: qmp.Monitor, known: Mirror) -> Mirror:
        await _must_be_same(qemu, known, 0.0)
        runs = (await qemu.execute("query-status"))["status"] == "running"
        # What lies in caches at the copy's end would be waited for while the guest stands still.
        with suppress(StorkitError):
            flush = {"command-line": f'qemu-io {known.node} "flush"'}
            await qemu.execute("human-monitor-command", flush, timeout=SETTLE_TIMEOUT)
        known = self._keep(replace(known, paused=known.paused or runs))
        began = time.monotonic()
        with qemu.events("JOB_STATUS_CHANGE") as events:
            try:
                await qemu.execute("stop", timeout=SETTLE_TIMEOUT)
                await _must_be_same(qemu, known, SAME_TIMEOUT)
                known = self._keep(replace(known, switched=True))
                await qemu.execute("job-complete", {"id": known.job})
                await _concluded(qemu, known, events)
                if await _state(qemu, known) != "switched":
                    raise Conflict(f"guest {known.guest} did not switch to its copy", _AGAIN)
            except StorkitError:
                await self._stays(qemu, known)
                raise
        await _let_go_on(qemu, known)
        stall = int((time.monotonic() - began) * 1000) if runs else 0
        self._site.progress(1.0, f"guest {known.guest} stood still for {stall} ms")
        return replace(known, stall=stall)

    async def _stays(self, qemu: qmp.Monitor, known: Mirror) -> None:
        """After a switch that failed: the guest goes on with its disk, if that is what it has. Of one that hangs
        nothing is said."""
        if await _state(qemu, known) == "switched":
            return
        if (job := await _job(qemu, known)) and job["status"] not in ("ready", "standby", "running", "paused"):
            await _concluded(qemu, known)
            if await _state(qemu, known) == "switched":
                return
        self._keep(replace(known, switched=False))
        await _let_go_on(qemu, known)


_AGAIN = "see that the copy's host can be reached, then: storkit plan resume, or the same command"


async def disk_node(qemu: qmp.Monitor, definition: Definition, disk: str) -> str:
    """QEMU's name of the node that a guest's disk of a volume (by UUID) is, whatever it was moved to since it started.

    Raises NotFound. A document of the guest's own may have given its device any name.
    """
    (number,) = [n for n, each in enumerate(definition.guest.disks) if each.uuid == disk]
    source = definition.disks[number]
    for block in await qemu.execute("query-block", timeout=SETTLE_TIMEOUT):
        if not (inserted := block.get("inserted")):
            continue
        device = str(block.get("qdev") or "").removeprefix("/machine/peripheral/").partition("/")[0]
        if definition.guest.document:
            found = _is_of(source, str(inserted["image"]["filename"]))
        else:
            found = device == device_id(number)
        if found:
            return str(inserted["node-name"])
    raise NotFound(f"QEMU of guest {definition.guest.name} has no disk {source.uri}", "storkit guest show")


def _is_of(source: DiskSource, filename: str) -> bool:
    if source.kind == "network":
        return f"/{source.export}" in filename or f'"{source.export}"' in filename
    return source.path in filename


async def _state(qemu: qmp.Monitor, known: Mirror) -> MirrorState:
    used = {str(block["inserted"]["node-name"]) for block in await qemu.execute("query-block") if block.get("inserted")}
    if known.node in used:
        return "switched"
    return "copying" if await _job(qemu, known) else "none"


async def _job(qemu: qmp.Monitor, known: Mirror) -> dict[str, Any] | None:
    jobs = await qemu.execute("query-block-jobs", timeout=SETTLE_TIMEOUT)
    return next((job for job in jobs if job["device"] == known.job), None)


def _reason(job: dict[str, Any] | None) -> str:
    return str(job.get("error") or job["status"]) if job else "its job is gone"


async def _must_be_same(qemu: qmp.Monitor, known: Mirror, wait: float) -> None:
    """Raise Conflict unless the disk and its copy hold the same; of a guest that stands still, after `wait` seconds."""
    import asyncio

    deadline = time.monotonic() + wait
    while True:
        job = await _job(qemu, known)
        good = job is not None and job["status"] in ("ready", "standby") and job["io-status"] == "ok"
        if job and good and (job["offset"] == job["len"] or not wait):
            return
        if not good or time.monotonic() > deadline:
            message = f"the copy of guest {known.guest}'s disk is not whole: {_reason(job)}"
            raise Conflict(message, _AGAIN)
        await asyncio.sleep(0.002)


async def _concluded(qemu: qmp.Monitor, known: Mirror, events: qmp.Events | None = None) -> None:
    """Wait until the job has ended, for better or worse. Raises TimedOut."""
    import asyncio

    deadline = time.monotonic() + SETTLE_TIMEOUT
    while (job := await _job(qemu, known)) and job["status"] not in ("concluded", "null"):
        if time.monotonic() > deadline:
            raise TimedOut(f"the copy of guest {known.guest} does not end", _AGAIN)
        if events is None:
            await asyncio.sleep(0.01)
            continue
        with suppress(TimedOut):
            await events.next(TICK)


async def _let_go_on(qemu: qmp.Monitor, known: Mirror) -> None:
    """Let a guest go on that was stopped for the switch."""
    if known.paused and (await qemu.execute("query-status"))["status"] == "paused":
        await qemu.execute("cont")


async def _open(qemu: qmp.Monitor, copy: DiskSource, name: str) -> None:
    """Have QEMU open the copy as a node."""
    if copy.tls:
        secret: dict[str, Any] = {"qom-type": f"tls-creds-{copy.tls}", "id": f"tls-{name}", "endpoint": "client"}
        secret["dir"] = copy.tls_dir
        secret.update({"verify-peer": True} if copy.tls == "x509" else {})
        secret.update({"username": copy.tls_user} if copy.tls_user else {})
        await qemu.execute("object-add", secret)
    wire = {"node-name": _client(name), **_wire(copy, name, COPY_RECONNECT)}
    image = {"driver": "raw", "node-name": name, "discard": "unmap", "file": wire}
    await qemu.execute("blockdev-add", image, timeout=SETTLE_TIMEOUT)


def _client(name: str) -> str:
    """QEMU's name of the NBD client of the copy `name`, as long as it is being filled."""
    return f"{name}-q"


def _wire(copy: DiskSource, name: str, reconnect: int) -> dict[str, Any]:
    """The NBD client below the node `name`, as templates/qemu has it."""
    server: dict[str, Any] = {"type": "unix", "path": copy.socket}
    if not copy.socket:
        server = {"type": "inet", "host": copy.server, "port": str(copy.port), "keep-alive": True}
    node = {"driver": "nbd", "export": copy.export, "server": server, "reconnect-delay": reconnect, "discard": "unmap"}
    return {**node, **({"tls-creds": f"tls-{name}"} if copy.tls else {})}


async def _tidy(qemu: qmp.Monitor, known: Mirror) -> None:
    """After the switch: the guest waits for its server from now on if that goes away; the old disk is closed."""
    named = {str(node["node-name"]) for node in await qemu.execute("query-named-block-nodes", {"flat": True})}
    wire = f"{known.node}-w"
    if wire not in named:
        await qemu.execute("blockdev-add", {"node-name": wire, **_wire(known.copy, known.node, DISK_RECONNECT)})
        image = {"driver": "raw", "node-name": known.node, "discard": "unmap", "file": wire}
        await qemu.execute("blockdev-reopen", {"options": [image]}, timeout=SETTLE_TIMEOUT)
    with suppress(qmp.Refused):
        await qemu.execute("job-dismiss", {"id": known.job})
    # The NBD client of an earlier move is a node of its own. Left behind, it would wait for a server that is gone, and
    # with it QEMU's main loop, as soon as all nodes are flushed: at the next migration.
    for node in (known.before, f"{known.before}-w"):
        if node in named:
            await qemu.execute("blockdev-del", {"node-name": node}, timeout=SETTLE_TIMEOUT)


async def _dropped(qemu: qmp.Monitor, known: Mirror) -> None:
    """Close a copy that nothing fills any more."""
    with suppress(qmp.Refused):
        await qemu.execute("job-dismiss", {"id": known.job})
    for node in (known.node, f"{known.node}-w"):
        with suppress(qmp.Refused):
            await qemu.execute("blockdev-del", {"node-name": node}, timeout=SETTLE_TIMEOUT)
    with suppress(qmp.Refused):
        await qemu.execute("object-del", {"id": f"tls-{known.node}"})
