"""Another name for a volume that is a file: a change of two files, which a kill at any moment leaves to be finished.

What is to be done is on the disk first, as NAME.rename: whoever changes the directory next does it
(`VolumeDirectory.sweep`), and who only looks takes the new name for it as soon as that is there.
"""

from __future__ import annotations

import errno
import json
import os
from pathlib import Path
from typing import Protocol

from storkit.core.errors import StorkitError, Unsafe, Unsupported, UsageError
from storkit.core.identities import check_name
from storkit.system import files

RENAME = "rename"


class NamedFiles(Protocol):
    """What a directory of volumes knows by their names: a VolumeDirectory (sidecar.py) is one."""

    path: Path

    def data(self, name: str, format: str) -> Path: ...
    def sidecar(self, name: str) -> Path: ...
    def own_format(self, name: str) -> str: ...
    def name_anew(self, name: str, to: str) -> None: ...


def intent(directory: Path, name: str) -> Path:
    """The file that says that a volume gets another name."""
    return directory / f"{name}.{RENAME}"


def new_name(directory: Path, name: str) -> str:
    """The name that a volume is just getting; empty: none. Raises Unsafe: that is not to be read."""
    path = intent(directory, name)
    if not os.path.lexists(path):
        return ""
    try:
        said = files.read_json(path, "the new name")
        return check_name("volume", said["to"] if isinstance(said, dict) else "")
    except FileNotFoundError:
        return ""
    except (StorkitError, KeyError, UsageError) as error:
        raise Unsafe(f"{path} is damaged", f"mv {path} elsewhere, and rename the volume again") from error


def rename(directory: NamedFiles, name: str, to: str) -> None:
    """Give a volume another name, which is free. The directory's lock must be held."""
    files.write_atomic(intent(directory.path, name), json.dumps({"to": to}) + "\n")
    finish(directory, name)


def _name_file(directory: NamedFiles, name: str, data: Path, there: Path) -> None:
    try:
        if data.is_dir():
            data.rename(there)
        else:
            os.link(data, there, follow_symlinks=False)
    except OSError as error:
        if error.errno not in (errno.EPERM, errno.EOPNOTSUPP, errno.ENOSYS, errno.EMLINK):
            raise
        # Nothing was done: what stands in the way of this must not stand in the way of all others.
        intent(directory.path, name).unlink()
        message = f"the file system of {directory.path} gives a file no second name: {error.strerror}"
        raise Unsupported(message, f"storkit volume clone {name}, under the new name") from None
    files.sync_directory(directory.path)


def finish(directory: NamedFiles, name: str) -> None:
    """Do what is left of a renaming. The file gets its second name before it loses the first: it is never without."""
    to = new_name(directory.path, name)
    if to and (format := directory.own_format(name)):
        data, there = directory.data(name, format), directory.data(to, format)
        if not os.path.lexists(there):
            _name_file(directory, name, data, there)
        elif os.path.lexists(data) and not os.path.samestat(data.lstat(), there.lstat()):
            message = f"{there} is another file than {data}, which was to get that name"
            raise Unsafe(message, f"mv {there} elsewhere, and try again")
        if not os.path.lexists(directory.sidecar(to)):
            directory.name_anew(name, to)
        directory.sidecar(name).unlink()
        files.sync_directory(directory.path)
    if to and (format := directory.own_format(to)):
        data, there = directory.data(name, format), directory.data(to, format)
        if not data.is_dir() and data.exists() and data.samefile(there):
            data.unlink()
    intent(directory.path, name).unlink(missing_ok=True)
    files.sync_directory(directory.path)
