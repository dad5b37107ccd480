"""Live migration by libvirt: what the source is told, and how its end is told.

libvirtd of the source carries it out from its begin to its confirmation (`--p2p`), so that it comes to an end when
whoever asked for it is killed; and the guest arrives paused (`--suspend`). libvirt itself would let it go on at the
destination before the source has confirmed: when the answer to that is lost, it runs at the source again as well
(qemuMigrationSrcPerformPeer2Peer3 in libvirt's qemu_migration.c leaves that case to a lock manager).
"""

from __future__ import annotations

import json
import re
import time
from collections.abc import Callable
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from storkit.core import codec
from storkit.core.errors import CommandFailed, NotFound, StorkitError, TimedOut, Unsafe, UsageError
from storkit.core.model import MigrationResult
from storkit.hypervisors._libvirt import domain as domains
from storkit.hypervisors._libvirt.virsh import BY_MIGRATION, OUTGOING, PAUSED, Job, State, Virsh
from storkit.system.files import write_atomic
from storkit.system.timeouts import scaled

TICK = 1.0
LONGEST = 7 * 24 * 3600.0
"""Seconds for one virsh process; what ends a migration that does not move is LibvirtLimits.stall."""
SETTLE_TIMEOUT = scaled(60.0)
"""Seconds for a migration that was called off to end: libvirt gives a destination that is silent up 30 s
(keepalive_interval and keepalive_count in qemu.conf)."""
MIB = 1024**2


@dataclass(frozen=True, slots=True)
class MigrationRoute:
    """How the source reaches the destination: `receive` gives it to `send`, as JSON."""

    connect: str
    """The destination's libvirtd, as the source's connects to it."""
    data: str
    """Where its QEMU is sent the guest's memory, unless that goes through the connection."""
    sources: dict[str, str]
    """Where its disks come from there: see domain.sources."""

    def __str__(self) -> str:
        return json.dumps(codec.dump(self))


_ADDRESS = r"(\[[0-9A-Fa-f:.%]+\]|[A-Za-z0-9][A-Za-z0-9.-]*)"


def _route(text: str) -> MigrationRoute:
    try:
        return codec.load(MigrationRoute, json.loads(text), "URI")
    except (ValueError, RecursionError):
        raise UsageError(
            f"{text!r} is no way to migrate by libvirt", "take the one that `receive` gave at the destination"
        ) from None


def route_address(text: str) -> str:
    """The address in what `receive` gave. Raises UsageError."""
    return _route(text).data.removeprefix("tcp://").strip("[]")


def parse_route(text: str, migrate_uri: str) -> MigrationRoute:
    """The Way in what `receive` gave. Raises UsageError: it is none, or leads elsewhere than `migrate_uri` of this host
    does. A libvirt URI can name a program that libvirtd runs as root (libvirt.org/uri.html, `command`), and what the
    destination says chooses nothing but the address in it."""
    found = _route(text)
    address = found.data.removeprefix("tcp://")
    connect = re.escape(migrate_uri).replace(re.escape("{address}"), re.escape(address))
    for said, pattern, wanted in (
        (found.data, f"tcp://{_ADDRESS}", "tcp://{address}"),
        (found.connect, connect, migrate_uri.replace("{address}", address)),
    ):
        if not re.fullmatch(pattern, said):
            raise UsageError(
                f"the destination wants the guest sent to {said!r}, and {wanted} is what this host goes by",
                "give both hosts the same migrate_uri in the inventory",
            )
    return found


@dataclass(frozen=True, slots=True)
class LibvirtLimits:
    """What a migration may take, and how its data travels."""

    path: Literal["tunnelled", "tls", "plain"]
    downtime: int
    """Milliseconds."""
    bandwidth: int
    """Bytes a second; 0: no limit."""
    stall: float
    """Seconds without a byte sent after which it is given up."""


def arguments(uuid: str, to: MigrationRoute, limits: LibvirtLimits, xml: Path) -> list[str]:
    """The words of `virsh migrate` (virsh(1))."""
    words = ["migrate", "--live", "--p2p", "--suspend", "--auto-converge", "--domain", uuid, "--desturi", to.connect]
    if limits.path == "tunnelled":
        words.append("--tunnelled")
    else:
        words += ["--migrateuri", to.data, *(["--tls"] if limits.path == "tls" else [])]
    if limits.bandwidth:
        words += ["--bandwidth", str(-(-limits.bandwidth // MIB))]
    return [*words, "--xml", str(xml)]


@dataclass(frozen=True, slots=True)
class Source:
    """The guest on the host that it leaves."""

    virsh: Virsh
    name: str
    uuid: str
    progress: Callable[[float, str], None]

    def send(self, to: MigrationRoute, limits: LibvirtLimits, xml: Path, defined: str, moved: bool) -> MigrationResult:
        """Migrate, or go on waiting for the migration under way, or report the one that has ended well (`moved`).
        `defined`: the domain as storkit has defined it here.

        Raises CommandFailed with libvirt's reason, TimedOut if nothing moves any more; the guest is here then.
        """
        if moved:
            return self._result()
        with ThreadPoolExecutor(1) as thread:
            moving: Future[str] | None = None
            if not self._job():
                downtime = f"migrate-setmaxdowntime {self.uuid} {limits.downtime}"
                live = self.virsh.batch([downtime, f"dumpxml {self.uuid} --migratable --security-info"])
                write_atomic(xml, domains.moved(live, to.sources))
                words = arguments(self.uuid, to, limits, xml)
                if domains.seems_alone(live, defined):
                    words.append("--unsafe")
                moving = thread.submit(lambda: self.virsh(*words, timeout=LONGEST))
            try:
                self._watch(moving, limits.stall)
            except BaseException:
                # An interrupt must not wait for the end of a migration that nobody wants any more.
                with suppress(StorkitError):
                    self.virsh("domjobabort", self.uuid)
                raise
        return self._end(moving)

    def cancel(self) -> None:
        """Call the migration off, and wait until it has failed or is complete. Raises TimedOut."""
        deadline = time.monotonic() + SETTLE_TIMEOUT
        while self._job():
            with suppress(CommandFailed):  # it is past the point where it can be called off, or has just ended
                self.virsh("domjobabort", self.uuid)
            if time.monotonic() > deadline:
                raise TimedOut(f"the migration of guest {self.name} does not end", f"virsh domjobinfo {self.name}")
            time.sleep(TICK / 4)

    def _watch(self, moving: Future[str] | None, stall: float) -> None:
        """Report until virsh has ended, or the migration of an earlier call has."""
        changed, sent = time.monotonic(), -1
        while not moving.done() if moving else True:
            try:
                job = self._job()
            except TimedOut:  # a busy libvirtd is no reason to give up
                job = Job(OUTGOING, {"data_processed": sent})
            if moving is None and job is None:
                return
            numbers = job.numbers if job else {}
            if numbers.get("data_processed", 0) != sent:
                changed, sent = time.monotonic(), numbers.get("data_processed", 0)
            self._report(numbers)
            if time.monotonic() - changed > stall:
                raise self._stalled(stall)
            _pause(moving)

    def _stalled(self, stall: float) -> TimedOut:
        self.cancel()
        return TimedOut(
            f"the migration of guest {self.name} sent nothing for {stall:g} seconds and was called off",
            f"check the destination, then: storkit migrate status {self.name}",
        )

    def _report(self, numbers: dict[str, int]) -> None:
        total, left = numbers.get("data_total", 0), numbers.get("data_remaining", 0)
        if total:
            self.progress(min(0.99, 1 - left / total), f"{(total - left) // MIB} of {total // MIB} MiB")

    def _end(self, moving: Future[str] | None) -> MigrationResult:
        """What became of it, by the state of the guest here: virsh may have been killed and libvirt have gone on."""
        said = moving.exception() if moving else None
        if isinstance(said, CommandFailed):
            self._settled()
        elif said is not None:
            raise said
        state = self._state()
        if state.migrated:
            self.progress(1.0, f"{self.name} has moved")
            return self._result()
        reason = said.stderr if isinstance(said, CommandFailed) else "the migration ended, and the guest is still here"
        if not state.active or (state.state, state.reason) == (PAUSED, BY_MIGRATION):
            raise Unsafe(
                f"the migration of guest {self.name} failed ({reason.splitlines()[-1]}), and it does not run here",
                f"storkit migrate status {self.name}",
            )
        raise CommandFailed(["virsh", "migrate"], 1, reason, hint=f"guest {self.name} is still here")

    def _settled(self) -> None:
        """Wait for a job that outlives its virsh, or another one than ours."""
        while self._job():
            time.sleep(TICK / 4)

    def _job(self) -> Job | None:
        job = self.virsh.job(self.uuid)
        return job if job and job.outgoing else None

    def _state(self) -> State:
        try:
            return self.virsh.states()[self.uuid]
        except KeyError:
            raise NotFound(f"guest {self.name} is not here", f"storkit migrate status {self.name}") from None

    def _result(self) -> MigrationResult:
        job = self.virsh.job(self.uuid, completed=True)
        numbers = job.numbers if job else {}
        return MigrationResult(
            total_ms=numbers.get("time_elapsed", 0),
            downtime_ms=numbers.get("downtime", 0),
            setup_ms=numbers.get("setup_time", 0),
            transferred=numbers.get("data_processed", 0),
        )


def _pause(moving: Future[str] | None) -> None:
    """Until the next look: at once when virsh ends."""
    if moving is None:
        time.sleep(TICK)
        return
    with suppress(TimeoutError, StorkitError):
        moving.result(TICK)
