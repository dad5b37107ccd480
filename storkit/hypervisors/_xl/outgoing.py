"""A migration's source: `xl migrate`, whose stream channel.py carries to the destination.

It runs by itself, so that it comes to an end whatever becomes of the command that started it. Its exit status says
nothing of where the guest is: that is asked of xl's list, after it.
"""

from __future__ import annotations

import json
import os
import re
import select
import shlex
import sys
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import storkit
from storkit.core.errors import (
    CommandFailed,
    Conflict,
    NotFound,
    StorkitError,
    TimedOut,
    Unsafe,
    UsageError,
)
from storkit.core.model import ALIVE, Credential, MigrationResult
from storkit.hypervisors._machine import look_command
from storkit.hypervisors._xl import channel, toolstack
from storkit.hypervisors._xl.ending import SETTLE_TIMEOUT
from storkit.hypervisors._xl.guests import XenGuest, XenGuests
from storkit.hypervisors._xl.host import can_move, no_live_pv
from storkit.hypervisors._xl.incoming import write_key
from storkit.hypervisors._xl.processes import GUEST, XlProcess, disconnect, kill, wait_until, xl_processes
from storkit.hypervisors._xl.toolstack import PACKAGE, XenDomain
from storkit.system import locks, moving
from storkit.system.files import make_private, write_atomic
from storkit.system.run import run
from storkit.system.timeouts import scaled

LOG = "sent.log"
DONE = "Migration successful."
"""xl's last words when the guest is at the destination and nothing is left here."""
TICK = 0.2
END_TIMEOUT = scaled(60.0)
"""Seconds for an xl whose connection has ended to put its domain in order."""
MIB = 1 << 20


@dataclass(frozen=True, slots=True)
class XlSource:
    """The guest on the host that it leaves."""

    guests: XenGuests
    name: str
    progress: Callable[[float, str], None]

    @property
    def _moving(self) -> Path:
        return self.guests.moving(self.name)

    @property
    def _log(self) -> Path:
        return self.guests.directory(self.name) / LOG

    @property
    def said(self) -> str:
        """What xl has said of the last migration from here."""
        return self._log.read_text(errors="replace").replace("\r", "\n").strip() if self._log.exists() else ""

    def send(self, uri: str, credential: Credential | None, stall: float) -> MigrationResult:
        """Migrate the guest away, or wait for the end of the migration that is under way; `stall` is as for `wait`."""
        found = self.guests.one(self.name)
        if (found is None or found.status == "stopped") and not self.moved():
            raise NotFound(f"guest {self.name} does not run here", look_command(self.name))
        if found and not found.idle:
            memory = found.record.guest.memory if found.record else 1 << 30
            if self.under_way():
                self.wait(stall, memory)
            elif self._leave(self._ready(found), uri, credential, stall, memory):
                return self._gone()
        return self._sent()

    def _ready(self, found: XenGuest) -> XenDomain:
        """The domain that leaves. Raises Conflict and Unsupported."""
        if self.let_go_on(found):
            found = self.guests.one(self.name) or found
        if found.status != "running":
            raise Conflict(f"guest {self.name} is {found.status} here", look_command(self.name))
        if found.record and not can_move(found.record.guest):
            raise no_live_pv(self.name)
        return found.of("running")[0]

    def _leave(self, domain: XenDomain, uri: str, credential: Credential | None, stall: float, memory: int) -> bool:
        """Migrate it; whether xl said that it has gone well."""
        if credential is None:
            raise Unsafe(f"the destination of guest {self.name} has made no key", look_command(self.name))
        ended = self.start(domain.id, uri, credential)
        try:
            self.wait(stall, memory, ended)
        finally:
            os.close(ended)
        return self.moved()

    def _sent(self) -> MigrationResult:
        """What became of the migration that has ended: whether this side has given the guest up."""
        name, found = self.name, self.guests.one(self.name)
        if found and found.status == "starting" and not found.seen:
            # The xl that watched over its domain ends a moment after that.
            wait_until(lambda: not self.guests.bringers(name), SETTLE_TIMEOUT)
            found = self.guests.one(name)
        if found and found.status in ALIVE:
            self.let_go_on(found)
            hint = f"guest {name} is still here"
            raise CommandFailed(["xl", "migrate"], 1, self.said or "xl ended, and said nothing", hint=hint)
        if found is None or found.status == "stopped":
            if not self.moved():
                raise CommandFailed(["xl", "migrate"], 1, self.said, hint=look_command(name))
        elif found.status != "migrated":
            raise Unsafe(f"guest {name} is {found.status} here after its migration", look_command(name))
        # Also one that is suspended here under its other name: it was told that it may run at the destination.
        return self._gone()

    def _gone(self) -> MigrationResult:
        self.progress(1.0, f"{self.name} has moved")
        return self.result()

    def let_go_on(self, found: XenGuest) -> bool:
        """Let a guest run that an xl has suspended which is not there any more; its name says that it is still ours.
        Whether there was one."""
        domains = [seen.domain for seen in found.seen if seen.status == "paused" and seen.domain.ended == "s"]
        for domain in (mine := [domain for domain in domains if not domain.away]):
            toolstack.go_on(domain)
        return bool(mine)

    def moved(self) -> bool:
        """Whether the last migration from here went well, by xl's word: else the guest may have ended here."""
        return DONE in self.said

    def forget(self) -> None:
        """Before the guest is here anew, or for good."""
        self._log.unlink(missing_ok=True)

    def start(self, domain: int, uri: str, credential: Credential) -> int:
        """Start the migration. A descriptor, for the caller to close, that has something to read when xl has ended."""
        make_private(self._moving)
        make_private(self._log.parent)
        self.forget()
        write_key(self._moving, credential)
        address, port = parse_uri(uri)
        write_atomic(self._moving / channel.TO, json.dumps({"address": address, "port": port}))
        (self._moving / channel.SENT).unlink(missing_ok=True)
        words = [toolstack.path(), "migrate", "-s", "", str(domain), program(self._moving)]
        lock = locks.acquire(self._lock, f"the migration of guest {self.name}", holder="xl migrate")
        ended, held = os.pipe()
        try:
            os.set_inheritable(lock.descriptor, True)
            # `exec` first: of what is started in the background, nothing may keep this command's pipes open.
            script = 'exec >"$0" 2>&1 </dev/null; exec "$@"'
            run(
                ["setsid", "--fork", "sh", "-c", script, self._log, *words],
                pass_fds=[lock.descriptor, held], package=PACKAGE, env={GUEST: self.name},
            )  # fmt: skip
        except StorkitError:
            os.close(ended)
            raise
        finally:
            os.close(held)
            lock.release()
        return ended

    def wait(self, stall: float, memory: int, ended: int | None = None) -> None:
        """Until xl has ended, of which `ended` tells where this process has started it (start). Raises TimedOut: it
        sent nothing for `stall` seconds, and was called off."""
        changed, before = time.monotonic(), -1
        while not self._over(ended is not None):
            if (sent := self.sent()) != before:
                changed, before = time.monotonic(), sent
                moving.moved()
                self.progress(min(0.99, sent / memory), f"{sent // MIB} MiB sent, of a memory of {memory // MIB} MiB")
            if time.monotonic() - changed > stall:
                self.cancel()
                raise TimedOut(
                    f"the migration of guest {self.name} sent nothing for {stall:g} seconds and was called off",
                    f"check the destination, then: storkit migrate status {self.name}",
                )
            select.select([] if ended is None else [ended], [], [], TICK)

    def _over(self, started: bool) -> bool:
        """Whether it has ended. The guest stands still until somebody lets it go on: of a migration that has gone well
        nobody is asked again, since xl's own last words say that nothing is left here."""
        if locks.held(self._lock):
            return False
        return (started and self.moved()) or not self._senders(self.guests.one(self.name))

    def result(self) -> MigrationResult:
        """What is known of the migration that has ended. xl measures nothing."""
        try:
            began, ended = (self._moving / channel.TO).stat().st_mtime, self._log.stat().st_mtime
        except FileNotFoundError:
            return MigrationResult(0, None)
        return MigrationResult(max(0, round((ended - began) * 1000)), None, transferred=self.sent())

    def sent(self) -> int:
        """Bytes that have been sent so far."""
        try:
            return int((self._moving / channel.SENT).read_text() or 0)
        except (FileNotFoundError, ValueError):
            return 0

    def under_way(self) -> bool:
        """Whether xl migrates the guest away now, by whoever's wish."""
        return locks.held(self._lock) or bool(self._senders(self.guests.one(self.name)))

    def cancel(self) -> bool:
        """Call the migration off, and wait for its end; False: there was none. Raises TimedOut."""
        if not self.under_way():
            return False
        deadline = time.monotonic() + END_TIMEOUT
        for end in (disconnect, kill):
            for sender in self._senders(self.guests.one(self.name)):
                end(sender)
            if wait_until(lambda: not self.under_way(), max(1.0, deadline - time.monotonic())):
                return True
        raise TimedOut(f"the migration of guest {self.name} does not end", "ps -C xl; storkit migrate status")

    @property
    def _lock(self) -> Path:
        return self._moving / "lock"

    def _senders(self, guest: XenGuest | None) -> list[XlProcess]:
        ids = [seen.domain.id for seen in guest.seen] if guest else []
        return [
            process
            for process in xl_processes()
            if process.verb == "migrate"
            and (process.guest == self.name or any(process.sends(self.name, one) for one in ids))
        ]


def program(directory: Path) -> str:
    """The shell's words for channel.py, with this very storkit, which may be a zipapp."""
    root = str(Path(storkit.__file__).parents[1])
    code = "import sys; sys.path.insert(0, sys.argv[1]); from storkit.hypervisors._xl import channel; channel.main()"
    return "exec " + shlex.join([sys.executable, "-P", "-s", "-c", code, root, str(directory)])


def parse_uri(uri: str) -> tuple[str, int]:
    """The address and port that `receive` gave. Raises UsageError."""
    found = re.fullmatch(r"xl:(?:\[([0-9A-Fa-f:.]+(?:%[A-Za-z0-9_.-]+)?)\]|([A-Za-z0-9][A-Za-z0-9.-]*)):(\d{1,5})", uri)
    if not found:
        raise UsageError(f"{uri!r} is no URI to migrate to", "take the one that `receive` gave at the destination")
    return found[1] or found[2], int(found[3])
