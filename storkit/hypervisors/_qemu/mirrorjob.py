"""The job by which a guest's QEMU fills a copy of its disk, and the block nodes of both, by QMP (mirroring.py)."""

from __future__ import annotations

import time
from contextlib import suppress
from dataclasses import dataclass
from typing import Any

from storkit.core.errors import Conflict, NotFound, TimedOut
from storkit.core.identities import GuestName, Line, Uuid, Word
from storkit.core.model import DiskSource, MirrorState
from storkit.guests.render import device_id
from storkit.hypervisors._qemu.definition import Definition
from storkit.system.qemu import qmp
from storkit.system.timeouts import scaled

TICK = scaled(0.5)
SETTLE_TIMEOUT = scaled(30.0)
"""Seconds for a job to end that has nothing more to copy, or is called off."""
COPY_RECONNECT = 0
"""Seconds that requests to a copy wait for its server: none, since the guest would wait as well. The job does."""
DISK_RECONNECT = 300
"""Seconds that a guest waits for the server of its disk, as templates/qemu has it (guests.place)."""
AGAIN = "see that the copy's host can be reached, then: storkit plan resume, or the same command"


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


async def state(qemu: qmp.Monitor, known: Mirror) -> MirrorState:
    """Which of the two a guest uses, by what its QEMU has open."""
    used = {str(block["inserted"]["node-name"]) for block in await qemu.execute("query-block") if block.get("inserted")}
    if known.node in used:
        return "switched"
    return "copying" if await look(qemu, known) else "none"


async def look(qemu: qmp.Monitor, known: Mirror) -> dict[str, Any] | None:
    """What QEMU says of the job; None: it has none."""
    jobs = await qemu.execute("query-block-jobs", timeout=SETTLE_TIMEOUT)
    return next((job for job in jobs if job["device"] == known.job), None)


def reason(job: dict[str, Any] | None) -> str:
    """Why a job does not go on, in a few words."""
    return str(job.get("error") or job["status"]) if job else "its job is gone"


async def must_be_same(qemu: qmp.Monitor, known: Mirror, wait: float) -> None:
    """Raise Conflict unless the disk and its copy hold the same; of a guest that stands still, after `wait` seconds."""
    import asyncio

    deadline = time.monotonic() + wait
    while True:
        job = await look(qemu, known)
        good = job is not None and job["status"] in ("ready", "standby") and job["io-status"] == "ok"
        if job and good and (job["offset"] == job["len"] or not wait):
            return
        if not good or time.monotonic() > deadline:
            message = f"the copy of guest {known.guest}'s disk is not whole: {reason(job)}"
            raise Conflict(message, AGAIN)
        await asyncio.sleep(0.002)


async def concluded(qemu: qmp.Monitor, known: Mirror, events: qmp.Events | None = None) -> None:
    """Wait until the job has ended, for better or worse. Raises TimedOut."""
    import asyncio

    deadline = time.monotonic() + SETTLE_TIMEOUT
    while (job := await look(qemu, known)) and job["status"] not in ("concluded", "null"):
        if time.monotonic() > deadline:
            raise TimedOut(f"the copy of guest {known.guest} does not end", AGAIN)
        if events is None:
            await asyncio.sleep(0.01)
            continue
        with suppress(TimedOut):
            await events.next(TICK)


async def let_go_on(qemu: qmp.Monitor, known: Mirror) -> None:
    """Let a guest go on that was stopped for the switch."""
    if known.paused and (await qemu.execute("query-status"))["status"] == "paused":
        await qemu.execute("cont")


async def open_copy(qemu: qmp.Monitor, copy: DiskSource, name: str) -> None:
    """Have QEMU open the copy as a node."""
    if copy.tls:
        secret: dict[str, Any] = {"qom-type": f"tls-creds-{copy.tls}", "id": f"tls-{name}", "endpoint": "client"}
        secret["dir"] = copy.tls_dir
        secret.update({"verify-peer": True} if copy.tls == "x509" else {})
        secret.update({"username": copy.tls_user} if copy.tls_user else {})
        await qemu.execute("object-add", secret)
    wire = {"node-name": client(name), **_wire(copy, name, COPY_RECONNECT)}
    image = {"driver": "raw", "node-name": name, "discard": "unmap", "file": wire}
    await qemu.execute("blockdev-add", image, timeout=SETTLE_TIMEOUT)


def client(name: str) -> str:
    """QEMU's name of the NBD client of the copy `name`, as long as it is being filled."""
    return f"{name}-q"


def _wire(copy: DiskSource, name: str, reconnect: int) -> dict[str, Any]:
    """The NBD client below the node `name`, as templates/qemu has it."""
    server: dict[str, Any] = {"type": "unix", "path": copy.socket}
    if not copy.socket:
        server = {"type": "inet", "host": copy.server, "port": str(copy.port), "keep-alive": True}
    node = {"driver": "nbd", "export": copy.export, "server": server, "reconnect-delay": reconnect, "discard": "unmap"}
    return {**node, **({"tls-creds": f"tls-{name}"} if copy.tls else {})}


async def tidy(qemu: qmp.Monitor, known: Mirror) -> None:
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


async def dropped(qemu: qmp.Monitor, known: Mirror) -> None:
    """Close a copy that nothing fills any more."""
    with suppress(qmp.Refused):
        await qemu.execute("job-dismiss", {"id": known.job})
    for node in (known.node, f"{known.node}-w"):
        with suppress(qmp.Refused):
            await qemu.execute("blockdev-del", {"node-name": node}, timeout=SETTLE_TIMEOUT)
    with suppress(qmp.Refused):
        await qemu.execute("object-del", {"id": f"tls-{known.node}"})
