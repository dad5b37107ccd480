"""A guest of libvirt's into a file and back: `virsh save` and `virsh restore`, virsh(1).

`save` ends the guest by itself, in libvirtd, also when virsh is killed. libvirt begins its file with other bytes while
it writes than when it is whole (qemu_saveimage.h in libvirt), so that the file itself says whether it was finished.
"""

from __future__ import annotations

import os
import threading
import time
from collections.abc import Iterator
from concurrent.futures import Future, wait
from contextlib import contextmanager, suppress
from dataclasses import replace
from pathlib import Path

from storkit.core.backend import Site
from storkit.core.errors import CommandFailed, NotFound, ServiceUnreachable, StorkitError, Unsafe
from storkit.core.model import Saved
from storkit.hypervisors import _saved as memory
from storkit.hypervisors._libvirt import domain as domains
from storkit.hypervisors._libvirt.guests import WHOLE, XML, Guests, KnownGuest
from storkit.system import moving
from storkit.system.files import write_atomic

LONGEST = 24 * 3600.0
"""Seconds for one virsh process: what it writes is as large as the guest's memory."""
TICK = 0.25
_WHOLE = b"LibvirtQemudSave"


def save(site: Site, guests: Guests, name: str, saved: Saved, file: str) -> Saved:
    """As Hypervisor.save. The guest has ended when it returns."""
    path, own = memory.place(site, name, file), not file
    if there := memory.refuse_taken(path, own, saved):
        memory.partial(path, saved.hold).unlink(missing_ok=True)
        return there
    partial = memory.partial(path, saved.hold)
    known = _settled(guests, name)
    if known and not known.idle:
        os.close(memory.make(path, own, saved.hold))
        write_atomic(_mark(guests, name), saved.hold)
        try:
            _watched(guests, partial, "save", known.uuid, str(partial), "--paused")
        except CommandFailed:
            partial.unlink(missing_ok=True)
            raise
    elif not _is_of(guests, name, partial, saved):
        raise NotFound(f"guest {name} does not run here", f"storkit guest show {name}")
    descriptor = memory.reopen(path, saved.hold)
    try:
        os.fchmod(descriptor, 0o600)
        version = guests.virsh("version", "--daemon").strip().splitlines()[-1].rpartition(" ")[2]
        return memory.seal(path, descriptor, replace(saved, version=version), own)
    finally:
        os.close(descriptor)


def unsave(site: Site, guests: Guests, name: str, saved: Saved, file: str) -> None:
    """As Hypervisor.unsave: where the guest has ended, it is read again, and goes on."""
    path = memory.place(site, name, file)
    source = memory.partial(path, saved.hold)
    known = _settled(guests, name)
    if memory.is_of(path, saved.hold):
        write_atomic(_mark(guests, name), saved.hold)  # it is this that says what an unsealed file is of
    memory.unseal(path, saved.hold)
    if (known is None or known.idle) and _is_of(guests, name, source, saved):
        how = "--paused" if saved.paused else "--running"
        try:
            with _disks_of_here(guests, name, source) as xml:
                _watched(guests, source, "restore", str(source), "--xml", str(xml), how)
        except StorkitError as error:
            message = f"guest {name} has ended, and is not read again: {error.message}; it is all in {source}"
            raise Unsafe(message, f"storkit plan resume; then storkit guest restore {name}") from error
    source.unlink(missing_ok=True)
    _mark(guests, name).unlink(missing_ok=True)


def load(guests: Guests, known: KnownGuest, file: Path) -> None:
    """Read a memory into a defined guest, with the disks that it has here; it stands still."""
    with _disks_of_here(guests, known.name, file) as xml:
        guests.arriving(known.name).touch(0o600)
        try:
            _watched(guests, file, "restore", str(file), "--xml", str(xml), "--paused")
            write_atomic(guests.arriving(known.name), WHOLE)
        except StorkitError:
            guests.arriving(known.name).unlink(missing_ok=True)
            raise


@contextmanager
def _disks_of_here(guests: Guests, name: str, file: Path) -> Iterator[Path]:
    """A saved guest's configuration, in a file, with the disks that it is defined with here: it may have been saved
    elsewhere, or with those that it had before it was adopted."""
    directory = guests.directory(name)
    xml = directory / "waking.xml"
    inside = guests.virsh("save-image-dumpxml", str(file), "--security-info")
    write_atomic(xml, domains.moved(inside, domains.sources((directory / XML).read_text())))
    try:
        yield xml
    finally:
        xml.unlink(missing_ok=True)


def _settled(guests: Guests, name: str) -> KnownGuest | None:
    """The guest, once no job of an earlier call has it: libvirtd goes on when virsh is killed."""
    while (known := guests.one(name)) and not known.idle:
        if known.status == "unknown":
            raise ServiceUnreachable(
                f"guest {name} may run here, and libvirtd does not answer", "systemctl status libvirtd"
            )
        with suppress(CommandFailed):
            if guests.virsh.job(known.uuid) is None:
                break
        time.sleep(TICK)
    return known


def _watched(guests: Guests, file: Path, *words: str) -> None:
    """Run virsh, and give signs of life for as long as whoever has the file open gets on in it. virsh goes on by itself
    when this is interrupted, as libvirtd does."""
    done: Future[str] = Future()

    def run() -> None:
        try:
            done.set_result(guests.virsh(*words, timeout=LONGEST))
        except BaseException as error:
            done.set_exception(error)

    threading.Thread(target=run, name="virsh", daemon=True).start()
    before = ""
    while not done.done():
        if (now := _places(file)) != before:
            before = now
            moving.moved()
        wait([done], TICK)
    done.result()


def _places(file: Path) -> str:
    """Where in a file those that have it open are (proc(5), fdinfo)."""
    found = [str(file.stat().st_size)] if file.exists() else []
    for link in Path("/proc").glob("[0-9]*/fd/*"):
        with suppress(OSError):
            if link.readlink() == file:
                found.append((link.parents[1] / "fdinfo" / link.name).read_text().split()[1])
    return " ".join(found)


def _whole(path: Path) -> bool:
    try:
        with path.open("rb") as file:
            return file.read(len(_WHOLE)) == _WHOLE
    except FileNotFoundError:
        return False


def _mark(guests: Guests, name: str) -> Path:
    """The id of the sleep that this host has last begun of a guest: libvirt's file does not say what it is of."""
    return guests.directory(name) / "saving"


def _is_of(guests: Guests, name: str, partial: Path, saved: Saved) -> bool:
    """Whether a file that is not sealed is all of the memory of this sleep."""
    try:
        return _mark(guests, name).read_text() == saved.hold and _whole(partial)
    except FileNotFoundError:
        return False
