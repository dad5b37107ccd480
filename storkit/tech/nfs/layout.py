"""What is exported to a client: a directory of its own in the pool, `.exports/UUID+NONCE`.

It holds hard links to the volume's file and to the files that one stands on, under their own names, and a file with the
volume's identity. The directory and all but the volume's own file belong to root, and the server takes every client's
user for an unprivileged one: a client can write the one file, and make, rename or remove none.
"""

from __future__ import annotations

import os
import re
from collections.abc import Iterable
from contextlib import suppress
from pathlib import Path

from storkit.core.errors import StorkitError, Unsupported
from storkit.core.model import Volume
from storkit.system import files
from storkit.tech.files import volumefile
from storkit.tech.nfs.names import EXPORTS, NfsGrant, NfsSettings, pool_of

IDENTITY = ".storkit"
# A thread of the server that waits for one of these is in interruptible sleep: server.settle could not tell.
_NOT_LOCAL = re.compile(r"fuse.*|ceph|9p|cifs|smb3|afs|virtiofs|overlay|tmpfs|ramfs")


def check(volume: Volume, kind: str) -> list[StorkitError]:
    """What keeps a volume from being exported; `kind` is the type of the file system its file is on."""
    path = Path(volume.path or "/nonexistent/none/none")
    there = path.is_dir() if volume.kind == "tree" else path.is_file()
    if not there or path.is_symlink() or not _is_directory(pool_of(volume) / EXPORTS):
        message = f"volume {volume.name} is in pool {volume.pool or '-'}, and only volumes of nfs pools go over NFS"
        return [Unsupported(message, 'give the pool type = "nfs", or another transport')]
    if _NOT_LOCAL.fullmatch(kind):
        message = f"pool {volume.pool} is on {kind}, and the NFS server cannot keep its promises there"
        return [Unsupported(message, "put the pool on a disk's file system: ext4, XFS, Btrfs")]
    try:
        if volume.kind != "tree":
            volumefile.chain(path, volume.format)
    except StorkitError as error:
        return [error]
    return []


def identity(grant: NfsGrant) -> str:
    """What the client must find: the volume's UUID, when it was first exported, and the inode number of its file, which
    NFS shows to clients as it is on the server."""
    return stated(grant.volume.uuid, grant.instance, Path(grant.volume.path).lstat().st_ino)


def stated(uuid: str, instance: str, inode: int) -> str:
    return f"storkit:{uuid}:{instance}.{inode:x}"


def make(grant: NfsGrant, client: str, settings: NfsSettings, managed: bool) -> None:
    """Make a client's directory as it should be, whatever is there. `managed`: the server is this host."""
    directory = grant.path(client)
    if grant.volume.kind == "tree":
        return
    try:
        if not _is_directory(directory):
            directory.mkdir(mode=0o711)
        data, *below = volumefile.chain(Path(grant.volume.path), grant.volume.format)
        for file in (data, *below):
            _link(file, directory / file.name)
        if managed:
            own = grant.volume.kind == "disk"
            for file in below if own else (data, *below):
                _set(file, 0, settings.gid, 0o440)
            if own:
                _set(data, settings.uid, settings.gid, 0o600)
        label = directory / IDENTITY
        text = identity(grant) + "\n"
        if not label.exists() or files.read_plain(label) != text.encode():
            files.write_atomic(label, text, 0o444)
    except OSError as error:
        raise files.explain(error, directory) from error


def remove(paths: Iterable[Path]) -> None:
    """Remove clients' directories; those that are gone are fine."""
    for directory in paths:
        with suppress(FileNotFoundError):
            if directory.is_symlink():  # what it points to is not storkit's
                directory.unlink()
                continue
            for entry in directory.iterdir():
                entry.unlink()
            directory.rmdir()


def places(grant: NfsGrant) -> list[Path]:
    """Everything that may be exported of a volume."""
    return [Path(grant.volume.path)] if grant.volume.kind == "tree" else left(grant.pool, grant.volume.uuid)


def left(pool: Path, uuid: str) -> list[Path]:
    """The directories there are for a volume, granted or not."""
    return sorted((pool / EXPORTS).glob(f"{uuid}+*"))


def take_back(volume: Volume) -> None:
    """A volume that nobody has an export of belongs to root again."""
    if volume.kind == "tree":
        return
    with suppress(FileNotFoundError, PermissionError):
        _set(Path(volume.path), 0, 0, volumefile.mode(volume))


def _link(file: Path, name: Path) -> None:
    with suppress(FileNotFoundError):
        if os.path.samestat(name.lstat(), file.lstat()):
            return
        name.unlink()
    os.link(file, name, follow_symlinks=False)


def _set(file: Path, uid: int, gid: int, mode: int) -> None:
    descriptor = files.open_plain(file, os.O_RDONLY)
    try:
        now = os.fstat(descriptor)
        if (now.st_uid, now.st_gid) != (uid, gid):
            os.fchown(descriptor, uid, gid)
        if now.st_mode & 0o7777 != mode:
            os.fchmod(descriptor, mode)
    finally:
        os.close(descriptor)


def _is_directory(path: Path) -> bool:
    """Whether a directory is there, and no link to one."""
    return path.is_dir() and not path.is_symlink()
