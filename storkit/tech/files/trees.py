"""Trees: directories that are guests' root file systems. From a tar, from a directory, from another tree.

GNU tar and cp do the work, which keep owners, modes, times, hard links, device nodes, holes, ACLs and extended
attributes. A tar is read through first, and refused whole if a name in it could lead out of the tree.
"""

from __future__ import annotations

import os
import threading
from collections.abc import Iterator
from contextlib import closing, contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import IO, TYPE_CHECKING

from storkit.core.errors import Conflict, NotFound, StorkitError, Unsafe, UsageError, raise_problems
from storkit.core.units import format_size
from storkit.system.run import run
from storkit.tech.files import clonefile
from storkit.tech.images import unpack

if TYPE_CHECKING:
    import tarfile

ROOT = "root"
"""The tree itself, in a directory of its volume's that only root can enter: what a guest has there may be set-user-ID,
or a device."""
_LONG = 86400.0
_SHOWN = 5
"""So many of a tar's problems are told."""


@dataclass(frozen=True, slots=True)
class Content:
    """What a tar or a directory holds."""

    files: int
    size: int
    """About what it takes on the disk, in bytes; 0: not known."""


def inspect(source: str, pool: Path) -> Content:
    """What there is to import from `source`, a tar or a directory; nothing is changed.

    Raises, together: NotFound; UsageError: neither, or damaged; Unsafe: names in the tar lead out of it.
    """
    path = Path(source)
    if path.is_dir():
        top = path.resolve()
        if pool.resolve().is_relative_to(top) or top.is_relative_to(pool.resolve()):
            raise UsageError(f"{path} and the pool's directory {pool} are one in the other", "import another directory")
        return Content(1, 0)
    if not path.exists():
        raise NotFound(f"there is no file {path}", "name the tar or the directory on the pool's host")
    if not path.is_file():
        raise UsageError(f"{path} is no file that can be read twice", "write the tar to a file first")
    content = _read_through(path)
    free = os.statvfs(pool)
    if content.size > free.f_bavail * free.f_frsize:
        raise Conflict(f"no room for {path}: it takes {format_size(content.size)}", f"free some: df -h {pool}")
    return content


def fill(source: str, target: Path) -> None:
    """Put what is in `source` into the directory `target`, which is empty. Raises CommandFailed."""
    path = Path(source)
    if path.is_dir():
        # Not across mounts: /proc and /sys of a machine that runs are no part of its tree.
        copy(path, target, "-x", "-H")  # -H: the directory that a link stands for, not the link
        return
    with _plain(path) as (name, fds):
        words = "tar -x -p --numeric-owner --same-owner --acls --xattrs --xattrs-include=* --delay-directory-restore"
        run([*words.split(), "-C", target, "-f", name], package="tar", timeout=_LONG, pass_fds=fds)


def copy(source: Path, target: Path, *options: str) -> None:
    """Copy a directory's content, and what it is itself, to the directory `target`; files share blocks where the file
    system can (cp(1))."""
    words = ["cp", "-a", "-T", "--reflink=auto", "--sparse=auto", *options, "--"]
    run([*words, source, target], package="coreutils", timeout=_LONG)


def shares_blocks(directory: Path) -> bool:
    """Whether copies in a directory share their blocks (reflink): tried out on files without names."""
    try:
        one, two = (os.open(directory, os.O_TMPFILE | os.O_RDWR | os.O_CLOEXEC, 0o600) for _ in range(2))
    except OSError:  # what has no such files shares no blocks either
        return False
    try:
        os.write(one, bytes(4096))
        return clonefile.reflink(one, two)
    finally:
        os.close(one)
        os.close(two)


def used(path: Path) -> int:
    """The bytes that a tree takes on the disk, hard links once (du(1)); blocks shared with other trees count."""
    return int(run(["du", "-s", "-x", "-B1", "--", path], package="coreutils", timeout=_LONG).stdout.split()[0])


def _read_through(path: Path) -> Content:
    """The content of a tar, if nothing speaks against it."""
    import tarfile

    finder = Finder()
    size = 0
    try:
        with _stream(path) as stream, tarfile.open(fileobj=stream, mode="r|") as archive:
            for member in archive:
                finder.look(member)
                sparse: list[tuple[int, int]] | None = getattr(member, "sparse", None)
                data = sum(length for _, length in sparse) if sparse else member.size
                size += 4096 + (data if member.isreg() else 0)
                archive.members = []  # type: ignore[attr-defined]  # it would keep them all
    except tarfile.ReadError as error:
        raise UsageError(f"{path} is no tar, or damaged: {error}", f"look at it: tar -tf {path}") from None
    problems = finder.problems
    if len(problems) > _SHOWN:
        problems = [*problems[:_SHOWN], Unsafe(f"{path}: {len(problems) - _SHOWN} more such names")]
    if not finder.count:
        problems = [UsageError(f"{path} has nothing in it", "give the tar of a root file system")]
    raise_problems(problems)
    return Content(finder.count, size)


class Finder:
    """Finds what in a tar leads out of the directory that it is unpacked in.

    A link may point wherever it wants, it is followed in the guest; but nothing may be unpacked through it.
    """

    def __init__(self) -> None:
        self.count = 0
        self.problems: list[StorkitError] = []
        self._out: set[str] = set()
        """The symbolic links that lead out."""

    def look(self, member: tarfile.TarInfo) -> None:
        self.count += 1
        names = {"is named": member.name}
        if member.islnk():
            names["is a hard link to"] = member.linkname
        for what, name in names.items():
            parts = [part for part in name.split("/") if part not in ("", ".")]
            if name.startswith("/"):
                self._refuse(member, f"{what} {name!r}, an absolute path")
            elif ".." in parts:
                self._refuse(member, f"{what} {name!r}, which has a '..'")
            elif through := next(("/".join(parts[:n]) for n in range(1, len(parts)) if self._leads_out(parts[:n])), ""):
                self._refuse(member, f"{what} {name!r}, and {through} is a link that leads out of the tree")
        if member.issym() and _climbs(member):
            self._out.add("/".join(part for part in member.name.split("/") if part not in ("", ".")))

    def _leads_out(self, parts: list[str]) -> bool:
        return bool(self._out) and "/".join(parts) in self._out

    def _refuse(self, member: tarfile.TarInfo, why: str) -> None:
        hint = "make it as tar -C DIRECTORY -cf FILE . would, or do not use it"
        self.problems.append(Unsafe(f"a member of the tar {why}", hint))


def _climbs(link: tarfile.TarInfo) -> bool:
    """Whether a symbolic link leads out of the directory that it is unpacked in: any way up may."""
    return link.linkname.startswith("/") or ".." in link.linkname.split("/")


@contextmanager
def _stream(path: Path) -> Iterator[IO[bytes]]:
    """The uncompressed bytes of a file, to be read."""
    with path.open("rb") as file:
        kind = unpack.compression(file.peek(16))
        if not kind:
            yield file
            return
    with closing(unpack.unpack(path, kind)) as pieces:
        yield _Pieces(pieces)  # type: ignore[misc]


class _Pieces:
    """Pieces of bytes as a file that is read once."""

    def __init__(self, pieces: Iterator[bytes]) -> None:
        self._pieces, self._rest = pieces, b""

    def read(self, size: int) -> bytes:
        found = bytearray(self._rest)
        while len(found) < size and (piece := next(self._pieces, b"")):
            found += piece
        self._rest = bytes(found[size:])
        return bytes(found[:size])


@contextmanager
def _plain(path: Path) -> Iterator[tuple[str, list[int]]]:
    """The name of a file of a tar that is not compressed, and the descriptors that it needs."""
    with path.open("rb") as file:
        kind = unpack.compression(file.peek(16))
    if not kind:
        yield str(path), []
        return
    reader, writer = os.pipe2(os.O_CLOEXEC)
    os.set_inheritable(reader, True)  # sh keeps it open in the child, but leaves close-on-exec as it is
    failed: list[StorkitError] = []

    def work() -> None:
        try:
            with os.fdopen(writer, "wb") as pipe, closing(unpack.unpack(path, kind)) as pieces:
                for piece in pieces:
                    pipe.write(piece)
        except BrokenPipeError:  # tar has seen enough
            pass
        except StorkitError as error:
            failed.append(error)

    thread = threading.Thread(target=work, daemon=True)
    thread.start()
    try:
        yield f"/dev/fd/{reader}", [reader]
    finally:
        os.close(reader)
        thread.join()
        if failed:
            raise failed[0]
