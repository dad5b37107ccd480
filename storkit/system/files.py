"""Files that are never half written, and never another's: temporary file, fsync, rename, fsync of the directory
(rename(2), fsync(2)); and no opening of what somebody has put in a file's place.
"""

from __future__ import annotations

import errno
import json
import os
import stat
from collections.abc import Iterable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

from storkit.core.errors import Conflict, StorkitError, Unsafe

PARTIAL = ".partial"
"""The suffix of files that are being made: what carries it is no volume and no record, and may be removed."""


LIMIT = 4 << 20
"""The largest record that is read, in bytes."""
_PLAINLY = os.O_NOFOLLOW | os.O_NONBLOCK | os.O_NOCTTY | os.O_CLOEXEC


def open_plain(path: Path, flags: int, mode: int = 0o600) -> int:
    """Open a regular file, with the flags of open(2); the descriptor. Every file of a directory that others may
    write is opened by it: a link is not followed, and a FIFO not waited for.

    Raises Unsafe: it is something else; OSError.
    """
    try:
        descriptor = os.open(path, flags | _PLAINLY, mode)
    except OSError as error:
        if (there := _lstat(path)) and not stat.S_ISREG(there.st_mode):
            raise _not_plain(path, there.st_mode) from error
        raise
    found = os.fstat(descriptor)
    if not stat.S_ISREG(found.st_mode):
        os.close(descriptor)
        raise _not_plain(path, found.st_mode)
    return descriptor


def set_length(path: Path, size: int) -> None:
    """Make a regular file longer or shorter, in bytes. Raises as `open_plain`.

    Not by a descriptor that may write: to get one without waiting is refused (EAGAIN) while an NFS client of this host
    has a delegation of the file, which is called back for it.
    """
    descriptor = open_plain(path, os.O_PATH)
    try:
        os.truncate(f"/proc/self/fd/{descriptor}", size)
    finally:
        os.close(descriptor)


def is_device(path: Path) -> bool:
    """Whether a volume is a block device, such as LVM's; a link to one in a pool's directory is none.

    Raises Unsafe: it is neither that nor a file.
    """
    if path.is_relative_to("/dev") and not path.is_relative_to("/dev/shm") and path.is_block_device():
        return True
    os.close(open_plain(path, os.O_RDONLY))
    return False


def open_own(path: Path, flags: int, mode: int = 0o600) -> int:
    """As `open_plain`, for a file that is going to be written over. Raises Unsafe also if it has a second name, which
    may be that of another file, or belongs to another user."""
    descriptor = open_plain(path, flags, mode)
    found = os.fstat(descriptor)
    if found.st_nlink > 1 or found.st_uid not in (os.geteuid(), 0):
        os.close(descriptor)
        why = "has another name as well" if found.st_nlink > 1 else f"belongs to user {found.st_uid}"
        raise Unsafe(f"{path} {why}, and is not written over", f"see who has put it there: ls -l {path}")
    return descriptor


def read_plain(path: Path, limit: int = LIMIT) -> bytes:
    """The content of a file. Raises as `open_plain`; Unsafe: it has more than `limit` bytes."""
    descriptor = open_plain(path, os.O_RDONLY)
    try:
        data = bytearray()
        while len(data) <= limit and (piece := os.read(descriptor, min(1 << 20, limit + 1 - len(data)))):
            data += piece
    finally:
        os.close(descriptor)
    if len(data) > limit:
        raise Unsafe(f"{path} is damaged: it has more than {limit} bytes", f"see who has put it there: ls -l {path}")
    return bytes(data)


def by_descriptor(descriptor: int) -> str:
    """A path by which a program that inherits the descriptor opens the same file, whatever has become of its name."""
    return f"/proc/self/fd/{descriptor}"


def change_mode(path: Path, mode: int) -> None:
    """chmod(2) of a regular file and of nothing else."""
    descriptor = open_plain(path, os.O_RDONLY)
    try:
        os.fchmod(descriptor, mode)
    finally:
        os.close(descriptor)


def _lstat(path: Path) -> os.stat_result | None:
    try:
        return path.lstat()
    except OSError:
        return None


def _not_plain(path: Path, mode: int) -> StorkitError:
    return Unsafe(
        f"{path} is {kind(mode)}, and not opened: it should be a file", f"see who has put it there: ls -l {path}"
    )


def write_atomic(path: Path, content: str | bytes, mode: int = 0o600) -> None:
    """Replace `path` by `content`: whoever reads it sees the old or the new, also after a power cut."""
    partial = path.with_name(path.name + PARTIAL)
    write_new(partial, content, mode, durable=True)
    partial.rename(path)
    sync_directory(path.parent)


def write_many(files: Iterable[tuple[Path, str]], mode: int = 0o600) -> None:
    """As `write_atomic` for many files of one directory, with one flush of the file system for all (syncfs(2)).

    A file that has been written to before this call, on the same file system, is durable as well when it returns.
    """
    pairs = [(path, path.with_name(path.name + PARTIAL), content) for path, content in files]
    if not pairs:
        return
    directory = pairs[0][0].parent
    for _, partial, content in pairs:
        write_new(partial, content, mode)
    sync_filesystem(directory)
    for path, partial, _ in pairs:
        partial.rename(path)
    sync_directory(directory)


def write_new(path: Path, content: str | bytes, mode: int = 0o600, *, durable: bool = False) -> None:
    """Write a file from its start, removing it again if it cannot be written whole (ENOSPC is a Conflict)."""
    data = content.encode() if isinstance(content, str) else content
    try:
        descriptor = open_own(path, os.O_WRONLY | os.O_CREAT, mode)
    except OSError as error:
        raise explain(error, path) from error
    try:
        os.ftruncate(descriptor, 0)
        view = memoryview(data)
        while view:
            view = view[os.write(descriptor, view) :]
        if durable:
            os.fsync(descriptor)
    except OSError as error:
        path.unlink(missing_ok=True)
        raise explain(error, path) from error
    finally:
        os.close(descriptor)


def read_json(path: Path, what: str) -> Any:
    """The JSON value in a file. Raises Unsafe, naming the file, if it is not JSON; FileNotFoundError if it is gone."""
    try:
        return json.loads(read_plain(path))
    except (ValueError, RecursionError) as error:
        raise Unsafe(
            f"{what} {path} is damaged: {error}",
            "restore it from a backup, or move it away once you know what it held",
        ) from error


def kind(mode: int) -> str:
    """What a file of this mode (stat(2)) is, in words."""
    kinds = {
        stat.S_IFREG: "a file",
        stat.S_IFDIR: "a directory",
        stat.S_IFLNK: "a symbolic link",
        stat.S_IFIFO: "a FIFO",
        stat.S_IFSOCK: "a socket",
    }
    return kinds.get(stat.S_IFMT(mode), "a device")


def sync_directory(path: Path) -> None:
    """Make renames and removals in a directory durable."""
    descriptor = os.open(path, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def look_anew(path: Path) -> None:
    """Have an NFS client ask its server about a directory (statx(2), AT_STATX_FORCE_SYNC): it may go on for a minute
    not to see a file that another host has made. What has no server, or is not there, is left as it is."""
    import ctypes  # only directories that several hosts change need it

    at_cwd, force_sync, basic = -100, 0x2000, 0x7FF
    ctypes.CDLL(None).statx(at_cwd, os.fsencode(path), force_sync, basic, ctypes.create_string_buffer(256))


def remove_tree(path: Path) -> None:
    """Remove a directory and what is in it, as far as that can be done."""
    import shutil  # it brings three compressors along

    shutil.rmtree(path, ignore_errors=True)


def sync_filesystem(path: Path) -> None:
    """Flush the file system that `path` is on (syncfs(2)), which reports write errors since Linux 5.8."""
    import ctypes  # most commands and agents do nothing of the kind

    descriptor = os.open(path, os.O_RDONLY | os.O_CLOEXEC)
    try:
        if ctypes.CDLL(None, use_errno=True).syncfs(descriptor) != 0:
            number = ctypes.get_errno()
            raise explain(OSError(number, os.strerror(number)), path)
    finally:
        os.close(descriptor)


_SYSTEM_DIRECTORIES = {
    *("/", "/bin", "/boot", "/dev", "/dev/mapper", "/dev/shm", "/etc", "/home", "/lib", "/lib32", "/lib64", "/libx32"),
    *("/media", "/mnt", "/opt", "/proc", "/root", "/run", "/run/lock", "/run/user", "/sbin", "/srv", "/sys", "/tmp"),
    *("/usr", "/usr/bin", "/usr/lib", "/usr/local", "/usr/sbin", "/usr/share", "/var", "/var/cache", "/var/lib"),
    *("/var/local", "/var/log", "/var/mail", "/var/opt", "/var/spool", "/var/tmp"),
}
"""Those of hier(7): whoever names one as a state, a pool or a host's directory has slipped."""


def make_private(path: Path) -> Path:
    """A directory that only its owner can enter; made, with its parents, if it is missing, closed if it was open.

    Raises Unsafe: it is another user's, or the system's own, which nobody could use any more.
    """
    missing = [place for place in (path, *path.parents) if not place.exists()]
    for place in reversed(missing):
        place.mkdir(mode=0o700, exist_ok=True)
    found = path.stat()
    if found.st_uid not in (os.geteuid(), 0):
        message = f"{path} belongs to user {found.st_uid}, and storkit keeps there what decides who may write"
        raise Unsafe(message, f"chown -R {os.geteuid()} {path}, once you know what is in it; or name another directory")
    # Of a directory with an access control list the group's bits are the most that the list may give: who was let
    # through by name (a guest's user) stays so.
    private = stat.S_IMODE(found.st_mode) & ~(0o067 if has_acl(path) else 0o077)
    if private != stat.S_IMODE(found.st_mode) and found.st_uid == os.geteuid():
        if found.st_mode & stat.S_ISVTX or os.path.realpath(path) in _SYSTEM_DIRECTORIES:
            message = f"{path} would be closed to everybody else, and it is the system's own"
            raise Unsafe(message, f"name a directory of storkit's own, as {path / 'storkit'}")
        try:
            path.chmod(private)
        except OSError as error:
            if error.errno != errno.EROFS:
                raise
    return path


def has_acl(path: Path) -> bool:
    """Whether a file has an access control list (acl(5))."""
    try:
        return "system.posix_acl_access" in os.listxattr(path)
    except OSError:  # a file system that has none
        return False


MEANINGS = {
    errno.ENOSPC: ("no space left", "free some, or choose another place: df -h {0}; df -i {0}"),
    errno.EDQUOT: ("the disk quota is used up", "free some, or have it raised: quota; df -h {0}"),
    errno.EFBIG: ("the file would be larger than is allowed", "ulimit -f"),
    errno.EROFS: ("the file system is read-only", "see why: dmesg; findmnt -T {0}; then mount -o remount,rw"),
    errno.EACCES: ("storkit may not", "see whose it is: ls -ld {0}; or run storkit as root"),
    errno.EPERM: ("storkit may not", "see whose it is: ls -ld {0}; or run storkit as root"),
    errno.EIO: (
        "the disk or its file system fails",
        "see what the kernel says: dmesg; and keep a copy of what is there",
    ),
    errno.ESTALE: ("its file server has given it up", "mount it again: findmnt -T {0}"),
    errno.EMFILE: ("storkit has too many files open", "ulimit -n"),
    errno.ENFILE: ("this host has too many files open", "sysctl fs.file-max"),
}
"""What an error of the system means, and what to do about it. {0} is the directory of the file."""


def explain(error: OSError, path: Path) -> StorkitError:
    """An operating system error on a file, as one line that names it, with a hint."""
    said = error.strerror or str(error)
    meaning, hint = MEANINGS.get(error.errno or 0, ("", "check the file system it is on: findmnt -T {0}"))
    return Conflict(f"{path}: {meaning} ({said})" if meaning else f"{path}: {said}", hint.format(path.parent))


def place(error: OSError, otherwise: Path) -> Path:
    """The path that an error of the system is about."""
    return Path(os.fsdecode(error.filename)) if isinstance(error.filename, (str, bytes)) else otherwise


@contextmanager
def explained(otherwise: Path) -> Iterator[None]:
    """Raise what the operating system refuses inside as what it is; `otherwise` is the path where it names none."""
    try:
        yield
    except OSError as error:
        raise explain(error, place(error, otherwise)) from error


def point_at(path: Path, target: str) -> None:
    """Have a stable path lead to `target`, at once or not at all."""
    partial = path.with_name(path.name + PARTIAL)
    if path.is_symlink() and str(path.readlink()) == target:
        return
    with suppress(FileNotFoundError):
        partial.unlink()
    partial.symlink_to(target)
    partial.rename(path)
