"""Files that nobody but root can have written, and files below given directories: opened one directory after the other,
no symbolic link followed (openat(2), O_NOFOLLOW).

What was found is handed on as `/proc/PID/fd/N` (proc(5)), which leads to the very file that was opened, whatever its
name has come to stand for; programs that storkit starts can open it as well.
"""

from __future__ import annotations

import errno
import os
import stat
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path

from storkit.core.errors import NotAllowed, NotFound, Unsafe, UsageError
from storkit.system.files import explain

_STEP = os.O_PATH | os.O_DIRECTORY | os.O_NOFOLLOW | os.O_CLOEXEC


def read_trusted(path: Path, limit: int = 1 << 20) -> bytes:
    """What is in a file that only root, or this process's own user, can have put there.

    Raises FileNotFoundError. Unsafe: somebody else may write it, or a directory that leads to it, or it is no file.
    """
    directory = open_trusted(path.parent)
    try:
        file = os.open(path.name, os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_CLOEXEC, dir_fd=directory)
    except OSError as error:
        if error.errno == errno.ELOOP:
            raise Unsafe(f"{path} is a symbolic link", "put the file itself there") from None
        raise
    finally:
        os.close(directory)
    with os.fdopen(file, "rb") as stream:
        found = os.fstat(file)
        if not stat.S_ISREG(found.st_mode):
            raise Unsafe(f"{path} is not a file", f"ls -l {path}")
        _refuse_others(found, path)
        data = stream.read(limit + 1)
    if len(data) > limit:
        raise Unsafe(f"{path} is larger than {limit} bytes", f"ls -l {path}")
    return data


def open_trusted(path: Path, *, sticky: bool = False) -> int:
    """A directory, to be named in openat(2), that others may not write, and to which none leads that they may.

    One that leads there may be sticky and root's, as /tmp is; `sticky`: so may this one. Raises as `read_trusted`.
    """
    if not path.is_absolute() or ".." in path.parts:
        raise UsageError(f"{path} is not an absolute path", "name it from / on, without '..'")
    there, shown = os.open("/", _STEP), Path("/")
    for part in path.parts[1:]:
        there, shown = _step(there, part), shown / part
        found = os.fstat(there)
        if not found.st_mode & stat.S_ISVTX or found.st_uid != 0 or (shown == path and not sticky):
            try:
                _refuse_others(found, shown)
            except Unsafe:
                os.close(there)
                raise
    return there


def _step(directory: int, name: str) -> int:
    """The directory of a name in another one, which is closed."""
    try:
        return os.open(name, _STEP, dir_fd=directory)
    except OSError as error:
        if error.errno in (errno.ELOOP, errno.ENOTDIR):
            where = Path(f"/proc/self/fd/{directory}").readlink()
            raise Unsafe(f"{where}/{name} is not a directory, or a symbolic link", f"ls -ld {where}/{name}") from None
        raise
    finally:
        os.close(directory)


def _refuse_others(found: os.stat_result, path: Path) -> None:
    if found.st_uid not in (0, os.geteuid()):
        raise Unsafe(f"{path} belongs to another user, {found.st_uid}", f"chown root {path}")
    if found.st_mode & 0o022:
        raise Unsafe(f"others may write {path}", f"chmod go-w {path}")


@contextmanager
def reading(path: str, directories: Sequence[str]) -> Iterator[str]:
    """An existing file or directory below one of `directories`, as a path that leads to it and nowhere else.

    Links are followed as long as they stay below. Raises NotAllowed: it is elsewhere. NotFound.
    """
    top, parts = _place(path, path, directories, "--import-dir")
    try:
        directory = _descend(top, parts[:-1])
        try:
            file = os.open(parts[-1] if parts else ".", os.O_PATH | os.O_NOFOLLOW | os.O_CLOEXEC, dir_fd=directory)
        finally:
            os.close(directory)
    except FileNotFoundError:
        raise NotFound(f"there is no file {path}", "name the file on the pool's host") from None
    except OSError as error:
        raise explain(error, Path(path)) from error
    try:
        if stat.S_ISLNK(os.fstat(file).st_mode):
            raise NotAllowed(f"{path} was changed while it was looked at", "see who writes there")
        yield f"/proc/{os.getpid()}/fd/{file}"
    finally:
        os.close(file)


@contextmanager
def making(path: str, directories: Sequence[str]) -> Iterator[str]:
    """As `reading`, for a file that is yet to be made. Raises Unsafe: others may write the directory that it would be
    in, or one on the way there."""
    parent, name = os.path.split(path)
    if name in ("", ".", ".."):
        raise UsageError(f"{path} names no file", "name the new file, not a directory")
    top, parts = _place(path, parent, directories, "--export-dir")
    try:
        directory = _descend(top, parts, closed=True)
    except FileNotFoundError:
        raise UsageError(f"there is no directory {parent}", f"mkdir -p {parent}") from None
    except OSError as error:
        raise explain(error, Path(parent)) from error
    try:
        yield f"/proc/{os.getpid()}/fd/{directory}/{name}"
    finally:
        os.close(directory)


def _place(path: str, place: str, directories: Sequence[str], option: str) -> tuple[str, tuple[str, ...]]:
    """Which of the directories a place is below, and what leads there from it."""
    if Path(path).is_absolute() and "\0" not in path:
        real = Path(os.path.realpath(place))
        for top in directories:
            if real.is_relative_to(top):
                return top, real.relative_to(top).parts
    done, where = "read" if option == "--import-dir" else "written", ", ".join(directories) or "none"
    raise NotAllowed(
        f"{path!r} may not be {done} on this host: it is below no directory that is accepted for it ({where})",
        f"there, as root: storkit host accept {option} DIRECTORY",
    )


def _descend(top: str, parts: Sequence[str], *, closed: bool = False) -> int:
    """The directory that `parts` lead to; others may write none of those that lead to `top`, and with `closed` neither
    that nor one on the way."""
    shown = Path(top)
    there = open_trusted(shown) if closed else open_trusted(shown.parent, sticky=True)
    if not closed and shown.name:
        there = _step(there, shown.name)
    for part in parts:
        there, shown = _step(there, part), shown / part
        if closed:
            try:
                _refuse_others(os.fstat(there), shown)
            except Unsafe:
                os.close(there)
                raise
    return there
