"""Who but us and root may change a directory, or put another in its place: it is asked before root works in one."""

from __future__ import annotations

import os
import stat
from collections.abc import Iterator
from pathlib import Path

from storkit.core.errors import StorkitError, Unsafe
from storkit.system import files

_LINKS = 40
"""As many symbolic links are followed as path_resolution(7) does."""
_OURS = frozenset(
    {"setup.json", "pending", "pools", "plans", "guests", "volumes", "nfs-volumes", "nbd", "iscsi", "nfs", "dev", "run"}
)
"""What a state directory holds."""


def exposed(path: Path) -> StorkitError | None:
    """Why others may change what is in the directory `path`, or what its name stands for; None: nobody may.

    The hint is the command that ends it. A sticky directory on the way, as /tmp, does no harm: nobody can rename
    there what belongs to somebody else.
    """
    us = {0, os.geteuid()}
    way = list(_way(path.absolute()))
    final = way[-1][0]
    for place, found in way:
        on_the_way = "" if place == final else f", which is on the way to {path}"
        if found.st_uid not in us:
            hint = f"chown {_name(os.geteuid())} {place} && chmod go-w {place}"
            return Unsafe(f"{place} belongs to user {_name(found.st_uid)}{on_the_way}", hint)
        sticky = found.st_mode & stat.S_ISVTX and place != final
        if stat.S_ISDIR(found.st_mode) and not sticky and (who := _writers(found)):
            return Unsafe(f"{place} may be written by {who}{on_the_way}", f"chmod {who[0]}-w {place}")
    return None


def keep_state(path: Path) -> Path:
    """A state directory that only its owner can enter: made if it is missing, closed if it is storkit's and was open.

    Raises Unsafe: it is another user's, or one that holds other things.
    """
    if path.is_dir() and path.stat().st_mode & 0o077:
        there = {entry.name for entry in path.iterdir()}
        if there and not there & _OURS and not files.has_acl(path):
            message = f"{path} is open to other users and holds what is not storkit's: it cannot be a state directory"
            raise Unsafe(message, f"name another directory, or give storkit this one: chmod 700 {path}")
    return files.make_private(path)


def _way(path: Path) -> Iterator[tuple[Path, os.stat_result]]:
    """Each directory and symbolic link that stands for a part of `path`, the directory itself last."""
    here, links = Path("/"), 0
    todo = list(reversed(path.parts[1:]))
    yield here, here.lstat()
    while todo:
        name = todo.pop()
        if name == "..":
            here = here.parent
            continue
        there = here / name
        found = there.lstat()
        yield there, found
        if not stat.S_ISLNK(found.st_mode):
            here = there
            continue
        links += 1
        if links > _LINKS:
            raise Unsafe(f"{path} is a circle of symbolic links", f"namei -l {path}")
        target = there.readlink()
        todo += reversed(target.parts[1:] if target.is_absolute() else target.parts)
        here = Path("/") if target.is_absolute() else here


def _writers(found: os.stat_result) -> str:
    """Who else may write a directory: `other users`, `group NAME`, or nobody (empty)."""
    if found.st_mode & stat.S_IWOTH:
        return "other users"
    if found.st_mode & stat.S_IWGRP and not _own_group(found.st_gid):
        return f"group {_group(found.st_gid)}"
    return ""


def _own_group(gid: int) -> bool:
    """Whether a group is that of this user alone, as distributions give one to every user; root's is not taken so."""
    import grp
    import pwd

    try:
        user, group = pwd.getpwuid(os.geteuid()), grp.getgrgid(gid)
    except KeyError:
        return False
    others = any(other.pw_gid == gid and other.pw_uid != user.pw_uid for other in pwd.getpwall())
    return user.pw_uid != 0 and user.pw_gid == gid and set(group.gr_mem) <= {user.pw_name} and not others


def _name(uid: int) -> str:
    import pwd

    try:
        return pwd.getpwuid(uid).pw_name
    except KeyError:
        return str(uid)


def _group(gid: int) -> str:
    import grp

    try:
        return grp.getgrgid(gid).gr_name
    except KeyError:
        return str(gid)
