"""Files with the memory of a sleeping guest, for every hypervisor: its own stream, and at the end what it belongs to.

    the hypervisor's stream · a Saved as JSON · the JSON's length (8 bytes) · MAGIC (8 bytes)

Hypervisors read their stream to its own end, and no further. What it belongs to is written last, once the stream is on
the disk: a file without it is not whole. A file is made under another name, of its sleep alone, and gets its own only
when it is whole: two that are saved into one file at the same time do not meet, and the second is refused.
"""

from __future__ import annotations

import json
import os
import stat
import struct
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path

from storkit.core import codec
from storkit.core.backend import Site
from storkit.core.errors import Conflict, NotFound, StorkitError, Unsafe
from storkit.core.model import Saved, check_name
from storkit.system import files, locks
from storkit.system.timeouts import scaled

MAGIC = b"storkit\1"
_TAIL = struct.Struct("<Q8s")
_LIMIT = 1 << 20
_WAIT = scaled(30.0)
"""Seconds for another command to say what is in the host's own place."""


def place(site: Site, name: str, file: str) -> Path:
    """Where the memory of a guest is: the given file, or, without one, the host's own place."""
    return Path(file) if file else site.state.absolute() / "saved" / f"{check_name('guest', name)}.memory"


def partial(path: Path, hold: str) -> Path:
    """The file while it is being made by this sleep."""
    return path.with_name(f"{path.name}.{hold}{files.PARTIAL}")


def read(path: Path) -> Saved:
    """What a file says of itself. Raises NotFound: there is none; Unsafe: it is something else, or not whole."""
    with opened(path) as (_, saved):
        return saved


@contextmanager
def opened(path: Path) -> Iterator[tuple[int, Saved]]:
    """A file to be read by a hypervisor, at its start, and what it says of itself. Raises as `read`."""
    try:
        descriptor = os.open(path, os.O_RDONLY | os.O_NONBLOCK | os.O_CLOEXEC)
    except FileNotFoundError:
        raise NotFound(f"there is no memory of a guest in {path}", "name the file it was saved in") from None
    except OSError as error:
        raise files.explain(error, path) from error
    try:
        yield descriptor, _said(descriptor, path)
    finally:
        os.close(descriptor)


def _said(descriptor: int, path: Path) -> Saved:
    found = os.fstat(descriptor)
    wrong = Unsafe(f"{path} is no memory of a guest, or not all of it is there", "copy it again, whole")
    if not stat.S_ISREG(found.st_mode) or found.st_size < _TAIL.size:
        raise wrong
    if found.st_uid not in (0, os.geteuid()) or found.st_mode & 0o022:
        message = f"{path} can be written by others than user {os.geteuid()}, and is no memory to run a guest from"
        raise Unsafe(message, f"once you know what is in it: chown {os.geteuid()} {path}; chmod 600 {path}")
    length, magic = _TAIL.unpack(os.pread(descriptor, _TAIL.size, found.st_size - _TAIL.size))
    if magic != MAGIC or length > min(_LIMIT, found.st_size - _TAIL.size):
        raise wrong
    try:
        text = os.pread(descriptor, length, found.st_size - _TAIL.size - length)
        saved = codec.load(Saved, json.loads(text), str(path))
    except (ValueError, RecursionError, StorkitError):
        raise wrong from None
    if saved.size != found.st_size - _TAIL.size - length:
        raise wrong
    return replace(saved, file=str(path))


def refuse_taken(path: Path, own: bool, new: Saved) -> Saved | None:
    """What is in the file already if it is the memory of this very sleep. Raises Conflict: the file is another's.

    `own`: it is the host's own place, where what an earlier sleep of the same guest has left is written over. The
    place goes by the guest's name, which another inventory may have given to another guest.
    """
    if not path.exists() and not path.is_symlink():
        return None
    try:
        saved = read(path)
    except Unsafe:
        saved = None
    if saved is not None and saved.hold == new.hold:
        return saved
    if own and saved is not None and not saved.used and saved.guest != new.guest:
        message = f"{path} is the memory of another guest {saved.name} ({saved.guest})"
        raise Conflict(message, f"storkit guest save {new.name} FILE")
    if not own:
        raise Conflict(f"{path} exists already", f"choose another name, or: rm {path}")
    return None


def refuse_other(saved: Saved, name: str, hold: str) -> None:
    """Raise Conflict if a memory is not that of this sleep, or was used."""
    if saved.used or saved.hold != hold:
        why = "has run since it was saved there" if saved.used else "was saved there another time"
        raise Conflict(f"the memory in {saved.file} cannot be used: guest {name} {why}", f"storkit guest show {name}")


def make(path: Path, own: bool, hold: str) -> int:
    """Open the file to be made by this sleep, empty and for its owner alone."""
    if own:
        files.make_private(path.parent)
    try:
        descriptor = files.open_own(partial(path, hold), os.O_RDWR | os.O_CREAT)
        os.ftruncate(descriptor, 0)
        os.fchmod(descriptor, 0o600)
        return descriptor
    except OSError as error:
        raise files.explain(error, path) from error


def seal(path: Path, descriptor: int, saved: Saved, own: bool) -> Saved:
    """Say what the stream in the open, partial file belongs to, and give it its name; durable. Raises Conflict: another
    file has taken the name, or, in the host's own place, another guest's memory."""
    there = partial(path, saved.hold)
    try:
        os.fsync(descriptor)
        whole = replace(saved, size=os.fstat(descriptor).st_size, file="")
        os.pwrite(descriptor, _tail(whole), whole.size)
        os.fsync(descriptor)
        if own:
            _clear(path, saved)
        os.link(there, path)  # unlike a rename, it replaces nothing
        there.unlink()
        files.sync_directory(path.parent)
    except FileExistsError:
        raise Conflict(f"{path} exists already", f"choose another name, or: rm {path}") from None
    except OSError as error:
        raise files.explain(error, path) from error
    return replace(whole, file=str(path))


def _clear(path: Path, saved: Saved) -> None:
    """Remove from the host's own place what an earlier sleep of this guest has left. Raises Conflict: it is another
    guest's."""
    lock = locks.acquire(path.with_name(f"{path.name}.lock"), str(path), wait=_WAIT)
    try:
        refuse_taken(path, True, saved)
        path.unlink(missing_ok=True)
    finally:
        lock.release(remove=True)


def reopen(path: Path, hold: str) -> int:
    """Open the file that is being made by this sleep, as it is."""
    try:
        return files.open_own(partial(path, hold), os.O_RDWR)
    except OSError as error:
        raise files.explain(error, partial(path, hold)) from error


def unseal(path: Path, hold: str) -> None:
    """Make the whole file of a sleep a partial one again, durable: before its guest goes on, nobody may take it for the
    guest's memory any more. Where it was cut short it can be asked again."""
    there = partial(path, hold)
    try:
        if is_of(path, hold):
            there.unlink(missing_ok=True)  # the second name that a seal cut short has left: rename(2) leaves both
            path.rename(there)
            files.sync_directory(path.parent)
        if is_of(there, hold):
            descriptor = files.open_own(there, os.O_RDWR)
            try:
                os.ftruncate(descriptor, _said(descriptor, there).size)
                os.fsync(descriptor)
            finally:
                os.close(descriptor)
    except OSError as error:
        raise files.explain(error, path) from error


def is_of(path: Path, hold: str) -> bool:
    """Whether a file is the whole memory of this sleep."""
    try:
        return read(path).hold == hold
    except (NotFound, Unsafe):
        return False


def _tail(saved: Saved) -> bytes:
    text = json.dumps(codec.dump(saved)).encode()
    return text + _TAIL.pack(len(text), MAGIC)


def spend(path: Path, own: bool, name: str, guest: str) -> None:
    """The guest with this UUID runs again: its memory is of no use any more. In the host's own place it is removed; a
    file that a person has named stays, and says that it was used. Raises Unsafe: it is another guest's.

    Which file it is a volume's home has said: nothing is removed beside one that is not this guest's memory.
    """
    try:
        saved = read(path)
    except NotFound:
        return None
    except Unsafe:
        if own:  # whatever it was, nobody wakes up by it
            return path.unlink()
        raise
    if (saved.name, saved.guest) != (name, guest):
        message = f"{path} is the memory of guest {saved.name} ({saved.guest}), not of {name} ({guest})"
        raise Unsafe(message, f"storkit guest show {name}")
    partial(path, saved.hold).unlink(missing_ok=True)  # a seal that was cut short has left it
    if own:
        return path.unlink()
    descriptor = files.open_own(path, os.O_RDWR)
    try:
        os.ftruncate(descriptor, saved.size)
        os.pwrite(descriptor, _tail(replace(saved, file="", used=True)), saved.size)
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
