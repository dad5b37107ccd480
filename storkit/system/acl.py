"""POSIX access control lists of directories: one more user who may search a private one, and nobody else.

The list is the extended attribute system.posix_acl_access (acl(5); its form is linux/posix_acl_xattr.h): so it needs
neither setfacl nor a library.
"""

from __future__ import annotations

import errno
import os
import stat
import struct
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

_NAME = "system.posix_acl_access"
_VERSION = struct.pack("<I", 2)
_ENTRY = struct.Struct("<HHI")
_OWNER, _USER, _GROUP, _NAMED_GROUP, _MASK, _OTHER = 0x01, 0x02, 0x04, 0x08, 0x10, 0x20
_NOBODY = 0xFFFFFFFF
SEARCH = 1

Entries = dict[tuple[int, int], int]
"""Tag and user or group number, to permissions."""


def decode(value: bytes) -> Entries:
    """The entries of an access control list."""
    return {(tag, who): may for tag, may, who in _ENTRY.iter_unpack(value[len(_VERSION) :])}


def encode(entries: Entries) -> bytes:
    """The attribute's value: the kernel wants the entries in order."""
    return _VERSION + b"".join(_ENTRY.pack(tag, may, who) for (tag, who), may in sorted(entries.items()))


def may_search(path: Path, user: int) -> bool:
    """Whether a user, groups left aside, may search a directory. Raises OSError: it cannot be looked at."""
    status = path.stat()
    if status.st_uid == user:
        return bool(status.st_mode & stat.S_IXUSR)
    entries = _entries(path)
    if (_USER, user) in entries:
        return bool(entries[_USER, user] & entries.get((_MASK, _NOBODY), 7) & SEARCH)
    return bool(status.st_mode & stat.S_IXOTH)


def let_search(path: Path, user: int) -> None:
    """Let one more user search a directory. Where that cannot be, `may_search` still says so."""
    entries = _entries(path)
    entries[_USER, user] = entries.get((_USER, user), 0) | SEARCH
    named = (_USER, _GROUP, _NAMED_GROUP)
    entries[_MASK, _NOBODY] = 0
    for (tag, _), may in list(entries.items()):
        if tag in named:
            entries[_MASK, _NOBODY] |= may
    with _passing(errno.EOPNOTSUPP, errno.EPERM, errno.EROFS):
        os.setxattr(path, _NAME, encode(entries))


@contextmanager
def _passing(*numbers: int) -> Iterator[None]:
    """Let OSErrors of these numbers pass."""
    try:
        yield
    except OSError as error:
        if error.errno not in numbers:
            raise


def _entries(path: Path) -> Entries:
    """The list of a directory; where it has none, what its mode says."""
    with _passing(errno.ENODATA, errno.EOPNOTSUPP):
        return decode(os.getxattr(path, _NAME))
    mode = stat.S_IMODE(path.stat().st_mode)
    return {(_OWNER, _NOBODY): mode >> 6 & 7, (_GROUP, _NOBODY): mode >> 3 & 7, (_OTHER, _NOBODY): mode & 7}
