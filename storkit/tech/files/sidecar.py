"""A directory of volume files, each with a sidecar that holds its metadata: NAME.raw or NAME.qcow2, and NAME.json.
A tree is a directory, NAME.tree.

A volume exists if, and only if, its sidecar does. What is being made or removed carries files.PARTIAL, in an order
that lets a kill at any moment be told apart afterwards (see `sweep`). Files that are neither are never touched.
"""

from __future__ import annotations

import errno
import json
import os
import re
import stat
from collections.abc import Collection, Iterator, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass, replace
from pathlib import Path

from storkit.core import codec
from storkit.core.errors import Conflict, NotFound, StorkitError, Unsafe, UsageError, raise_problems
from storkit.core.identities import Count, MaybeHost, check_name, check_uuid
from storkit.core.model import Volume
from storkit.system import files, locks
from storkit.system.files import PARTIAL
from storkit.system.timeouts import scaled
from storkit.tech.files import renaming, volumefile
from storkit.tech.files.volumefile import FORMATS

VERSION = 1
SHARED = 2
"""The version of sidecars in a directory of several managers: a storkit that knows nothing of these uses none."""
SPOOL = "spool"
"""The extension of an image being unpacked for the volume of that name."""
_NAME = r"([A-Za-z0-9][A-Za-z0-9._-]{0,62})"
_LEFTOVER = re.compile(rf"{_NAME}\.({'|'.join((*FORMATS, 'json', SPOOL))}){re.escape(PARTIAL)}", re.ASCII)
_RENAMING = re.compile(rf"{_NAME}\.{renaming.RENAME}({re.escape(PARTIAL)})?", re.ASCII)
_LOCK = ".storkit.lock"
_FEW = 4
"""Up to this many volumes are flushed one by one; syncfs(2) would wait for everyone's writes."""


@dataclass(frozen=True, slots=True)
class Sidecar:
    """The content of NAME.json."""

    version: int
    volume: Volume
    """Without host, pool and path, which follow from where the sidecar is."""
    backing: str = ""
    """The UUID of the volume of this directory that holds the bytes which are not in this one's file."""
    manager: MaybeHost = ""
    """Of several managers (storkit.tech.files.managed): the one that has the volume; empty: none."""
    term: Count = 0
    """How often that has changed; 0: the directory is one host's."""


def is_pool(directory: Path) -> bool:
    """Whether a directory is one that a pool has been in."""
    return (directory / _LOCK).exists()


class VolumeDirectory:
    """The files of one directory. Changes are made with `locked`; reading needs no lock."""

    def __init__(self, path: Path, shared: bool = False) -> None:
        """`shared`: by several managers."""
        self.path = path
        self.shared = shared

    @property
    def lock(self) -> Path:
        """The lock of the directory; it stays once it was used."""
        return self.path / _LOCK

    def data(self, name: str, format: str) -> Path:
        return self.path / f"{name}.{format}"

    def sidecar(self, name: str) -> Path:
        return self.path / f"{name}.json"

    def making(self, name: str, format: str) -> Path:
        """The volume's file while it is being made."""
        return self.path / f"{name}.{format}{PARTIAL}"

    def claim(self, name: str) -> Path:
        """The sidecar while the volume is being made; locked while that takes long."""
        return self.path / f"{name}.json{PARTIAL}"

    @contextmanager
    def locked(self, what: str) -> Iterator[None]:
        """Hold the directory's lock, having cleared away what a killed command left.

        Raises Conflict when another command holds it for more than 30 s.
        """
        try:
            lock = locks.acquire(
                self.lock,
                f"pool directory {self.path}",
                holder=f"{what} (pid {os.getpid()})",
                wait=scaled(30.0),
            )
        except OSError as error:
            raise files.explain(error, self.path) from error
        try:
            if self.shared:
                files.look_anew(self.path)
            self.sweep()
            yield
        except OSError as error:
            raise files.explain(error, files.place(error, self.path)) from error
        finally:
            lock.release()

    def names(self) -> list[str]:
        """The names of all volumes, sorted."""
        with os.scandir(self.path) as entries:
            found = [entry.name[:-5] for entry in entries if entry.name.endswith(".json") and entry.name[0] != "."]
        return sorted(found)

    def read(self, name: str) -> Sidecar | None:
        """A volume's sidecar, None if there is no such volume. Raises Unsafe, naming the file, if it is damaged."""
        if (to := renaming.new_name(self.path, name)) and os.path.lexists(self.sidecar(to)):
            return None
        return self._read(self.sidecar(name), name)

    def own_format(self, name: str) -> str:
        """The format of the volume whose sidecar has this name, also while it gets another; empty: there is none."""
        found = self._read(self.sidecar(name), name)
        return found.volume.format if found else ""

    def name_anew(self, name: str, to: str) -> None:
        """Write the sidecar of a volume under the name that it gets."""
        if found := self._read(self.sidecar(name), name):
            self.write([replace(found, volume=replace(found.volume, name=to))])

    def _read(self, path: Path, name: str) -> Sidecar | None:
        try:
            record = files.read_json(path, f"the sidecar of volume {name}")
        except FileNotFoundError:
            return None
        except OSError as error:
            raise files.explain(error, path) from error
        hint = "restore it from a backup, or move it away once you know what it held"
        if isinstance(record, dict) and isinstance(record.get("version"), int):
            if record["version"] > SHARED:
                why = f"{path} is of version {record['version']}, made by a newer storkit"
                raise Unsafe(why, "upgrade storkit here")
            if (record["version"] == SHARED) != self.shared:
                there = "one host" if self.shared else "several managers"
                why = f"the sidecar {path} is of a pool with {there}, and this pool has not"
                raise Unsafe(why, "storkit pool list; the hosts of a pool are in docs/shared-directory.md")
        try:
            sidecar = codec.load(Sidecar, record, str(path))
        except StorkitError as error:
            reasons = "; ".join(problem.message.removeprefix(f"{path}: ") for problem in error.each)
            raise Unsafe(f"the sidecar of volume {name} {path} is damaged: {reasons}", hint) from error
        volume = sidecar.volume
        if (volume.kind == "tree") != (volume.format == "tree"):
            said = f"a {volume.kind} in format {volume.format!r}"
            raise Unsafe(f"the sidecar of volume {name} {path} is damaged: {said}", hint)
        if volume.name != name or volume.format not in FORMATS:
            said = f"{volume.name!r} in {volume.format!r}"
            raise Unsafe(f"the sidecar {path} is that of another volume: {said}", "give the file its own name back")
        return sidecar

    def look(self, names: Sequence[str] | None) -> tuple[list[Sidecar], dict[str, StorkitError]]:
        """Every sidecar, or those of `names` that exist, by name order; and what is wrong with others, by name."""
        wanted = self.names() if names is None else sorted({check_name("volume", name) for name in names})
        found: list[Sidecar] = []
        damaged: dict[str, StorkitError] = {}
        for name in wanted:
            try:
                sidecar = self.read(name)
            except StorkitError as error:
                damaged[name] = error
                continue
            if sidecar is not None:
                found.append(sidecar)
        return found, damaged

    def select(self, names: Sequence[str] | None) -> list[Sidecar]:
        """As `look`, for those who need all of them. Raises Unsafe or Problems: the damaged ones."""
        found, damaged = self.look(names)
        raise_problems(list(damaged.values()))
        return found

    def check_data(self, sidecar: Sidecar) -> None:
        """Raise Unsafe if what should be the volume's file is none, or is gone: whoever opens it would open another."""
        volume = sidecar.volume
        path = self.data(volume.name, volume.format)
        wanted, what = (stat.S_ISDIR, "directory") if volume.format == "tree" else (stat.S_ISREG, "file")
        try:
            found = path.lstat()
        except OSError as error:
            hint = "bring it back from a backup; or, if it is lost: storkit volume delete " + volume.name
            if volume.was and os.path.lexists(volume.was):
                hint = f"it is at {volume.was}, where it was adopted: storkit plan list shows what was cut short"
            raise Unsafe(f"volume {volume.name} is damaged: {path}: {error.strerror}", hint) from error
        if not wanted(found.st_mode):
            message = f"volume {volume.name} is damaged: {path} is {files.kind(found.st_mode)}, and should be a {what}"
            raise Unsafe(message, f"see who has put it there: ls -l {path}")

    def known(self, volumes: Sequence[Volume]) -> list[Sidecar]:
        """The sidecars of volumes that must exist. Raises NotFound; Conflict: the name is that of another UUID."""
        known: list[Sidecar] = []
        problems: list[StorkitError] = []
        for volume in volumes:
            sidecar = self.read(check_name("volume", volume.name))
            if sidecar is None:
                problems.append(NotFound(f"{self.path} has no volume {volume.name}", "storkit volume list"))
            elif problem := other_volume(volume, sidecar):
                problems.append(problem)
            else:
                known.append(sidecar)
        raise_problems(problems)
        return known

    def admit(self, volumes: Sequence[Volume], format: str) -> list[Volume]:
        """Those of `volumes` that are still to be made. Raises everything that is wrong with the request."""
        problems: list[StorkitError] = []
        todo: list[Volume] = []
        seen: set[str] = set()
        with os.scandir(self.path) as entries:
            present = {entry.name for entry in entries}
        for volume in volumes:
            sidecar = None
            try:
                check_name("volume", volume.name)
                check_uuid(volume.uuid)
                if volume.name in seen:
                    raise UsageError(f"volume {volume.name} is asked for twice", "give each its own name")
                seen.add(volume.name)
                if f"{volume.name}.json" in present:
                    sidecar = self.read(volume.name)
            except StorkitError as error:
                problems.append(error)
                continue
            problems += volumefile.size_problems(volume, format)
            if sidecar is None:
                todo.append(volume)
                if way := self.taken(volume.name, present):
                    problems.append(Conflict(way, "choose another name"))
            elif sidecar.volume.uuid != volume.uuid or volume.size not in (sidecar.volume.size, _measured(sidecar)):
                hint = f"choose another name, or look at it: storkit volume show {volume.name}"
                problems.append(Conflict(f"volume {volume.name} exists already in {self.path}", hint))
        raise_problems(problems)
        return todo

    def needed(self, sidecars: Sequence[Sidecar], what: str) -> list[StorkitError]:
        """Conflicts for volumes whose bytes others, that are not among them, stand on."""
        bases = {sidecar.volume.uuid: sidecar.volume.name for sidecar in sidecars if sidecar.volume.kind != "disk"}
        if not bases:
            return []
        own = {sidecar.volume.uuid for sidecar in sidecars}
        users: dict[str, list[str]] = {}
        for sidecar in self.select(None):
            if sidecar.backing in bases and sidecar.volume.uuid not in own:
                users.setdefault(sidecar.backing, []).append(sidecar.volume.name)
        problems: list[StorkitError] = []
        for uuid, names in users.items():
            shown = ", ".join(names[:5]) + (f" and {len(names) - 5} more" if len(names) > 5 else "")
            message = f"volume {bases[uuid]} cannot be {what}: {shown} stand{'s' if len(names) == 1 else ''} on it"
            few = " ".join(names[:5])
            hint = f"delete them first: storkit volume delete {few}; or: storkit volume flatten {few}"
            problems.append(Conflict(message, hint))
        return problems

    def write(self, sidecars: Sequence[Sidecar]) -> None:
        """Replace the sidecars of existing volumes; durable when it returns."""
        pairs = [(self.sidecar(sidecar.volume.name), _text(sidecar)) for sidecar in sidecars]
        if len(pairs) > _FEW:
            files.write_many(pairs)
        else:
            for path, text in pairs:
                files.write_atomic(path, text)

    def publish(self, sidecars: Sequence[Sidecar]) -> None:
        """Turn volumes whose files are ready under their `making` names into existing ones; durable. All or none.

        Raises Conflict: a file that is not ours has taken a name.
        """
        done: list[Sidecar] = []
        version, term = (SHARED, 1) if self.shared else (VERSION, 0)
        sidecars = [replace(sidecar, version=version, manager="", term=term) for sidecar in sidecars]
        try:
            for sidecar in sidecars:
                files.write_new(self.claim(sidecar.volume.name), _text(sidecar))
            self._flush([path for sidecar in sidecars for path in self._partials(sidecar)])
            for sidecar in sidecars:
                making, claim = self._partials(sidecar)
                rename_new(making, self.data(sidecar.volume.name, sidecar.volume.format))
                rename_new(claim, self.sidecar(sidecar.volume.name))
                done.append(sidecar)
            files.sync_directory(self.path)
        except BaseException:
            self.remove(done)
            raise

    def whole(self, sidecar: Sidecar) -> Volume:
        """A volume as who opens it needs it: with where its bytes are, and who has it."""
        volume = sidecar.volume
        path = f"{self.path}/{volume.name}.{volume.format}"
        return replace(volume, path=path, manager=sidecar.manager, term=sidecar.term)

    def text(self, sidecar: Sidecar) -> str:
        """The content of a sidecar's file."""
        return _text(sidecar)

    def _partials(self, sidecar: Sidecar) -> tuple[Path, Path]:
        name = sidecar.volume.name
        return self.making(name, sidecar.volume.format), self.claim(name)

    def _flush(self, paths: list[Path]) -> None:
        if len(paths) > 2 * _FEW or any(path.is_dir() for path in paths):
            files.sync_filesystem(self.path)
            return
        for path in paths:
            volumefile.flush(path)

    def remove(self, sidecars: Sequence[Sidecar]) -> None:
        """Remove existing volumes. Once their sidecars are renamed they are gone; `sweep` finishes what was killed."""
        for sidecar in sidecars:
            with suppress(FileNotFoundError):
                self.sidecar(sidecar.volume.name).rename(self.claim(sidecar.volume.name))
        files.sync_directory(self.path)
        for sidecar in sidecars:
            self._retire(sidecar)

    def _retire(self, sidecar: Sidecar) -> None:
        making, claim = self._partials(sidecar)
        with suppress(FileNotFoundError):
            self.data(sidecar.volume.name, sidecar.volume.format).rename(making)
        claim.unlink(missing_ok=True)
        _remove(making)

    def sweep(self) -> None:
        """Remove what commands that were killed left. The directory's lock must be held."""
        with os.scandir(self.path) as entries:
            names = [entry.name for entry in entries]
        for match in filter(None, map(_RENAMING.fullmatch, names)):
            if match[2]:
                (self.path / match[0]).unlink(missing_ok=True)
            else:
                renaming.finish(self, match[1])
        matches = filter(None, map(_LEFTOVER.fullmatch, names))
        for name in {match[1] for match in matches}:
            self.discard(name)

    def discard(self, name: str, mine: bool = False) -> None:
        """Remove the partial files of a name, unless a living command has them locked (`mine`: it is this one).

        A claim that is a whole sidecar was written after the volume's file was made under its `making` name. So if
        that name is gone, the file has been renamed to its own (or its removal had begun), and is ours to remove; if
        it is still there, a file with the volume's own name is somebody else's. The claim goes before the file with
        the `making` name, so that a kill in here never leaves other evidence than that.
        """
        claim = self.claim(name)
        spool = self.path / f"{name}.{SPOOL}{PARTIAL}"
        if not locks.held(spool):
            spool.unlink(missing_ok=True)
        if not mine and locks.held(claim):
            return
        making = [path for path in (self.making(name, format) for format in FORMATS) if os.path.lexists(path)]
        if not making and not os.path.lexists(self.sidecar(name)):
            with suppress(Unsafe):  # a claim that was never finished: nothing was renamed
                if sidecar := self._read(claim, name):
                    self._retire(sidecar)
        claim.unlink(missing_ok=True)
        for path in making:
            _remove(path)

    def maker(self, name: str) -> str:
        """Who is making a volume of this name now, in a few words; "" if nobody is."""
        if not locks.held(self.claim(name)):
            return ""
        who = files.read_plain(self.claim(name)).decode(errors="replace").strip()
        return f"volume {name} is being made by {who if 0 < len(who) < 200 else 'another command'}"

    def taken(self, name: str, present: Collection[str]) -> str:
        """What among the files `present` stands in the way of a new volume of this name, "" if nothing does."""
        if f"{name}.json{PARTIAL}" in present and (maker := self.maker(name)):
            return maker
        for format in FORMATS:
            if f"{name}.{format}" in present:
                return f"{self.data(name, format)} is in the way: a file that storkit did not make"
        return ""


def other_volume(volume: Volume, sidecar: Sidecar) -> StorkitError | None:
    """A Conflict if the volume of that name is not the one that is meant."""
    if sidecar.volume.uuid == volume.uuid:
        return None
    return Conflict(
        f"volume {volume.name} is another one than was meant: its UUID is {sidecar.volume.uuid}, not {volume.uuid}",
        f"look at it: storkit volume show {volume.name}",
    )


def _measured(sidecar: Sidecar) -> int:
    """A tree's size is measured when it is made: who asks for one says 0."""
    return 0 if sidecar.volume.kind == "tree" else sidecar.volume.size


def _remove(path: Path) -> None:
    """Remove a file or a tree that may be gone; links in it are not followed."""
    if path.is_dir() and not path.is_symlink():
        import shutil

        shutil.rmtree(path)
    else:
        path.unlink(missing_ok=True)


def rename_new(source: Path, target: Path) -> None:
    """Rename a file to a name that must be free (renameat2(2), RENAME_NOREPLACE). Raises Conflict if it is taken."""
    import ctypes  # only what makes a volume needs it

    libc = ctypes.CDLL(None, use_errno=True)
    at_cwd, no_replace = -100, 1
    if libc.renameat2(at_cwd, os.fsencode(source), at_cwd, os.fsencode(target), no_replace) == 0:
        return
    number = ctypes.get_errno()
    if number in (errno.EINVAL, errno.ENOSYS) and not os.path.lexists(target):  # NFS
        source.rename(target)
        return
    if number in (errno.EEXIST, errno.EINVAL, errno.ENOSYS):
        raise Conflict(f"{target} is in the way: a file that storkit did not make", f"move it away: mv {target} ...")
    raise OSError(number, os.strerror(number), str(source))


def _text(sidecar: Sidecar) -> str:
    record = codec.dump(sidecar)
    for each in (record["volume"], record if sidecar.version < SHARED else {}):
        each.pop("manager", "")
        each.pop("term", 0)
    return json.dumps(record) + "\n"  # indented, it would take three times as long
