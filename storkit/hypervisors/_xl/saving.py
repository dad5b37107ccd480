"""A guest of Xen's into a file and back: `xl save -p` and `xl restore -p`, xl(1).

`xl save` has the guest suspend itself and writes its memory; with -p the guest stands still here afterwards, so that a
save can be taken back until the guest is ended. It runs by itself, as `xl migrate` does (outgoing.py). Its file does
not say whether it is whole: the shell around xl leaves a mark when that has ended well, and nothing else counts.

    RUN/xl/NAME/saving        the id of the sleep that was last begun here
    RUN/xl/NAME/saved         the same, once all of the memory is in the file
    STATE/xl/NAME/saved.log   what xl said of it
"""

from __future__ import annotations

import json
import os
import struct
import time
from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path

from storkit.core.backend import Site
from storkit.core.errors import CommandFailed, Conflict, NotFound, StorkitError, TimedOut, Unsafe
from storkit.core.model import DiskSource, Saved
from storkit.hypervisors import _saved as memory
from storkit.hypervisors._xl import toolstack
from storkit.hypervisors._xl.guests import SAVED, XenGuest, XenGuests, silent
from storkit.hypervisors._xl.processes import GUEST, XlProcess, disconnect, kill, wait_until, xl_processes
from storkit.hypervisors._xl.toolstack import PACKAGE
from storkit.system import locks, moving
from storkit.system.files import write_atomic
from storkit.system.run import run
from storkit.system.timeouts import scaled

LONGEST = 24 * 3600.0
"""Seconds for one xl: what it reads is as large as the guest's memory."""
END_TIMEOUT = scaled(60.0)
"""Seconds for an xl that is called off to let its domain go on."""
TICK = 0.2
_HEADER = struct.Struct("<32sIIIII")
_MAGIC = b"Xen saved domain, xl format\n \0 \r"
_LIMIT = 1 << 20


@dataclass(frozen=True, slots=True)
class XlSave:
    """A guest on the host where it is saved."""

    guests: XenGuests
    name: str

    def start(self, domain: int, hold: str, partial: Path) -> None:
        """Start writing the memory of a domain into a file that is there already."""
        self._at(SAVED).unlink(missing_ok=True)
        write_atomic(self._at("saving"), hold)
        lock = locks.acquire(self._lock, f"the memory of guest {self.name}", holder="xl save")
        try:
            os.set_inheritable(lock.descriptor, True)
            # `exec` first: of what is started in the background, nothing may keep this command's pipes open.
            script = 'exec >"$0" 2>&1 </dev/null; hold=$1 mark=$2; shift 2; "$@" && echo "$hold" >"$mark"'
            words: list[str | Path] = [toolstack.path(), "save", "-p", str(domain), partial]
            run(
                ["setsid", "--fork", "sh", "-c", script, self._log, hold, self._at(SAVED), *words],
                pass_fds=[lock.descriptor], package=PACKAGE, env={GUEST: self.name},
            )  # fmt: skip
        finally:
            lock.release()

    def wait(self, partial: Path, stall: float, progress: Callable[[int], None]) -> None:
        """Until xl has ended. Raises TimedOut: nothing was written for `stall` seconds."""
        changed, before = time.monotonic(), -1
        while self.under_way():
            if (size := partial.stat().st_size) != before:
                changed, before = time.monotonic(), size
                moving.moved()
                progress(size)
            if time.monotonic() - changed > stall:
                message = f"nothing was written of guest {self.name}'s memory for {stall:g} seconds"
                raise TimedOut(message, "see the file system: dmesg")
            time.sleep(TICK)

    def begun(self, hold: str) -> bool:
        """Whether this is the sleep that was begun last."""
        return self._read("saving") == hold

    def whole(self, hold: str) -> bool:
        """Whether all of the memory of this sleep has been written, and the guest has not gone on since."""
        found = self.guests.one(self.name)
        return found is not None and found.status == "paused" and self._read(SAVED) == hold

    def under_way(self) -> bool:
        return locks.held(self._lock)

    def cancel(self) -> None:
        """Have xl give up what it writes and let its domain go on; none under way is fine. Raises TimedOut: it waits
        for the file system that has its last write."""
        for end in (disconnect, kill):
            if not self.under_way():
                return
            for process in self._writers():
                end(process)
            wait_until(lambda: not self.under_way(), END_TIMEOUT)
        if self.under_way():
            message = f"xl does not let go of the file with guest {self.name}'s memory"
            raise TimedOut(message, "storkit plan rollback, once the file system answers")

    def forget(self) -> None:
        """From here on the guest was never saved."""
        for mark in ("saving", SAVED):
            self._at(mark).unlink(missing_ok=True)

    def go_on(self) -> None:
        """Let the guest go on, whatever a save has left of it, as one that was never saved."""
        found = self.guests.one(self.name)
        self.forget()
        for domain in found.of("paused") if found else []:
            toolstack.go_on(domain)

    @property
    def said(self) -> str:
        return self._log.read_text(errors="replace").strip() if self._log.exists() else ""

    @property
    def _log(self) -> Path:
        return self.guests.directory(self.name) / "saved.log"

    @property
    def _lock(self) -> Path:
        return self._at("saving.lock")

    def _at(self, mark: str) -> Path:
        return self.guests.moving(self.name) / mark

    def _read(self, mark: str) -> str:
        try:
            return self._at(mark).read_text().strip()
        except FileNotFoundError:
            return ""

    def _writers(self) -> list[XlProcess]:
        return [process for process in xl_processes() if process.verb == "save" and process.guest == self.name]


def save(site: Site, guests: XenGuests, name: str, saved: Saved, file: str, stall: float) -> Saved:
    """As Hypervisor.save."""
    path, own = memory.place(site, name, file), not file
    if there := memory.refuse_taken(path, own, saved):
        memory.partial(path, saved.hold).unlink(missing_ok=True)
        return there
    found, writing = _here(guests, name), XlSave(guests, name)
    guests.make(name)
    if not writing.begun(saved.hold):
        _refuse_still(found)
    elif not writing.under_way() and not writing.whole(saved.hold):
        writing.go_on()  # its xl was killed
    descriptor = None
    try:
        if not writing.begun(saved.hold):
            os.close(memory.make(path, own, saved.hold))
            domain = next(iter(_here(guests, name).of("running")), None)
            if domain is None:
                raise Conflict(f"guest {name} does not run here any more", f"storkit guest show {name}")
            writing.start(domain.id, saved.hold, memory.partial(path, saved.hold))
        most = found.record.guest.memory if found.record else 1 << 30
        text = f"writing {name}'s memory"
        writing.wait(memory.partial(path, saved.hold), stall, lambda size: site.progress(min(0.99, size / most), text))
        if not writing.whole(saved.hold):
            raise CommandFailed(["xl", "save"], 1, writing.said or "xl ended, and said nothing", hint="df -h; dmesg")
        descriptor = memory.reopen(path, saved.hold)
        return memory.seal(path, descriptor, replace(saved, version=toolstack.machine().version), own)
    except StorkitError:
        unsave(site, guests, name, saved, file)
        raise
    finally:
        if descriptor is not None:
            os.close(descriptor)


def unsave(site: Site, guests: XenGuests, name: str, saved: Saved, file: str) -> None:
    """As Hypervisor.unsave."""
    path, writing = memory.place(site, name, file), XlSave(guests, name)
    if writing.begun(saved.hold):
        writing.cancel()
    found = guests.one(name)
    if found and found.status == "unknown":
        raise silent(name, "let go on")
    if found and not found.idle:
        memory.unseal(path, saved.hold)
        if writing.begun(saved.hold):
            writing.go_on()
    elif memory.is_of(path, saved.hold):
        message = f"guest {name} has ended, and sleeps: all that there is of it is in {path}"
        raise Unsafe(message, f"storkit guest restore {name}")
    memory.partial(path, saved.hold).unlink(missing_ok=True)


def load(guests: XenGuests, name: str, path: Path, disks: list[DiskSource]) -> None:
    """Read a memory into a new domain, which stands still. Whoever is called again begins anew. Raises Unsafe: the
    domain that was saved had other disks."""
    missing = {disk.path for disk in disks} - set(disk_paths(path))
    if missing:
        message = f"guest {name} was saved without {', '.join(sorted(missing))}, which it has here"
        raise Unsafe(message, f"storkit guest restore {name}, on the host where it was saved")
    guests.expect(name, memory=True)
    # By its name the xl that stays to watch the domain is known when that reboots.
    toolstack.xl("restore", "-p", str(path), timeout=LONGEST, env={GUEST: name})
    guests.expect(name)


def disk_paths(path: Path) -> list[str]:
    """The disks of the domain in a file of `xl save`: its header is followed by the domain's configuration (xl.h and
    xl_saverestore.c of Xen 4.17). Raises Unsafe: it is something else."""
    wrong = Unsafe(f"{path} does not begin as a file of xl save does", "copy it again, whole")
    with path.open("rb") as file:
        start = file.read(_HEADER.size)
        if len(start) < _HEADER.size:
            raise wrong
        magic, _, mandatory, _, _, length = _HEADER.unpack(start)
        if magic != _MAGIC or not mandatory & 1 or length > _LIMIT:
            raise wrong
        try:
            found = json.loads(file.read(length).rstrip(b"\0"))
            return [disk["pdev_path"] for disk in found.get("disks", []) if isinstance(disk.get("pdev_path"), str)]
        except (ValueError, AttributeError, TypeError, RecursionError):
            raise wrong from None


def _here(guests: XenGuests, name: str) -> XenGuest:
    found = guests.one(name)
    if found and found.status == "unknown":
        raise silent(name, "saved")
    if found is None or found.idle:
        raise NotFound(f"guest {name} does not run here", f"storkit guest show {name}")
    return found


def _refuse_still(found: XenGuest) -> None:
    """Raise Conflict if a guest cannot be asked to suspend itself."""
    if found.status == "paused":
        message = f"guest {found.name} stands still, and Xen saves a guest only while it runs"
        raise Conflict(message, f"storkit guest resume {found.name}, then save it")
    if found.status != "running" or (found.first and found.first.migration):
        raise Conflict(f"guest {found.name} is being moved, or is not here yet", f"storkit guest show {found.name}")
