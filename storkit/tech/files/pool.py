"""Pools in a directory: volumes are files, NAME.raw or NAME.qcow2, each with its metadata in a sidecar NAME.json.

A clone is made by the first of these that works: shared blocks (reflink: XFS, btrfs, bcachefs), a qcow2 overlay over a
golden image (pools of format qcow2), a copy without the holes. 1,000 overlays take a fraction of a second: the headers
are written straight from Python, and one flush of the file system makes all of them durable.
"""

from __future__ import annotations

import os
from abc import abstractmethod
from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from typing import ClassVar, Literal

from storkit.core import holds
from storkit.core.backend import Needs, path_setting
from storkit.core.errors import Conflict, StorkitError, Unsafe, Unsupported, UsageError, collected, raise_problems
from storkit.core.guest import KeptGuest
from storkit.core.identities import check_name
from storkit.core.model import (
    FILLING,
    IMPORTING,
    Adoptable,
    Damaged,
    Existing,
    Finding,
    PoolContent,
    Usage,
    Volume,
    closes,
    relabelled,
)
from storkit.core.units import format_size
from storkit.system import files, locks, openers
from storkit.tech import strangers
from storkit.tech.files import adopting, deriving, managed, renaming, resizing, volumefile
from storkit.tech.files.content import flattening
from storkit.tech.files.place import PoolPlace
from storkit.tech.files.sidecar import VERSION, Sidecar, VolumeDirectory, other_volume
from storkit.tech.keptguests import KeepsGuests

_LITTLE_ROOM = 0.05
_GUESTS = ".guests"
"""What is kept of guests: below the directory of the pool, where every host finds it that has the pool."""


@dataclass(frozen=True)
class FilePoolSettings:
    """The keys of a pool of files in the inventory."""

    path: str = path_setting()
    """An existing directory; empty: `volumes` below the host's state directory, made when needed."""
    format: Literal["", "raw", "qcow2"] = ""
    """Of new volumes. Empty: raw, and a clone of a golden image is an overlay (qcow2) where the file system shares no
    blocks, if what serves it takes that."""
    overcommit: float = 1.0
    """Warn when the volumes could grow beyond this many times the file system's size, or its free space."""
    others_write: bool = False
    """Use a directory that other users may write or rename: whoever may can read, change and delete its volumes."""


class FilePool(KeepsGuests):
    """A directory of volume files on any local or shared file system."""

    overlays = True
    needs: ClassVar[Needs] = Needs(tools={"qemu-img": "qemu-utils"})
    settings: FilePoolSettings

    @property
    @abstractmethod
    def path(self) -> Path:
        """The directory."""

    def ready(self, serves: bool = False, attaches: bool = False) -> list[Finding]:
        if not self._exists():
            return []
        if self._managers and not managed.read(self.path) and self.path.stat().st_dev == Path("/").stat().st_dev:
            message = f"pool {self.pool}: {self.path} is on this host's own root file system, and nothing is in it yet"
            return [Finding(message, f"mount what its managers share: findmnt -T {self.path}; mount {self.path}")]
        if os.access(self.path, os.W_OK | os.X_OK):
            return []
        message = f"pool {self.pool}: {self.path} cannot be written: it is read-only, or not this user's"
        return [Finding(message, f"findmnt -T {self.path}; ls -ld {self.path}")]

    def look(self, names: list[str] | None = None) -> PoolContent:
        sidecars, damaged = self._files.look(names) if self._exists() else ([], {})
        volumes = []
        for sidecar in sidecars:
            try:
                self._files.check_data(sidecar)
            except Unsafe as error:
                if self._files.sidecar(sidecar.volume.name).exists():  # otherwise it has just been deleted
                    damaged[sidecar.volume.name] = error
                continue
            volumes.append(self._volume(sidecar))
        bad = [
            Damaged(name, self.pool, self.site.host, error.message, error.hint)
            for name, error in sorted(damaged.items())
        ]
        sharing = managed.read(self.path) if self._managers and self._exists() else None
        return PoolContent(volumes, bad, sharing.id if sharing else "", sharing.barred if sharing else [])

    def create(self, volumes: list[Volume]) -> list[Volume]:
        with self._locked("create") as directory:
            format = self.settings.format or "raw"
            todo = directory.admit(volumes, format)

            def make(volume: Volume, descriptor: int) -> None:
                volumefile.make_empty(descriptor, format, volume.size)

            made = [Sidecar(VERSION, deriving.fresh(volume, format, volume.made or "created")) for volume in todo]
            deriving.make(directory, made, make)
        return self._found(volumes)

    def clone(self, source: Volume, volumes: list[Volume]) -> list[Volume]:
        return self._derive("clone", source, volumes)

    def snapshot(self, source: Volume, volumes: list[Volume]) -> list[Volume]:
        """As the contract says; of a volume in use only where the file system shares blocks.

        It is then what a power cut would have left: crash-consistent.
        """
        return self._derive("snapshot", source, [replace(volume, kind="snapshot") for volume in volumes])

    def resize(self, volumes: list[Volume], shrink: bool = False, served: bool = False) -> list[Volume]:
        with self._locked("resize") as directory:
            known = directory.known(volumes)
            problems: list[StorkitError] = []
            for volume, sidecar in zip(volumes, known, strict=True):
                problems += volumefile.size_problems(volume, sidecar.volume.format)
                if volume.size != sidecar.volume.size:
                    problems += resizing.problems(directory, volume, sidecar, shrink)
                    if served:
                        problems += resizing.served_problems(volume, sidecar)
                        problems += managed.other(sidecar, self.site.host, "resized")
            pairs = list(zip(volumes, known, strict=True))
            if not served:
                changed = [there for volume, there in pairs if volume.size != there.volume.size]
                problems += self._busy(changed, "resized")
            raise_problems(problems)
            for volume, sidecar in pairs:
                with ExitStack() as stack:
                    if not served:
                        used = managed.use(self.site, directory.whole(sidecar), brief=True)
                        stack.callback(used.release)
                    resizing.resize(directory, sidecar, volume.size)
        return self._found(volumes)

    def rename(self, volumes: list[Volume], names: list[str]) -> list[Volume]:
        with self._locked("rename") as directory:
            there = {each.volume.name: each for each in directory.select([*names, *(each.name for each in volumes)])}
            todo: list[tuple[Sidecar, str]] = []
            problems: list[StorkitError] = []
            with os.scandir(self.path) as entries:
                present = {entry.name for entry in entries}
            for volume, name in zip(volumes, names, strict=True):
                if (new := there.get(check_name("volume", name))) and new.volume.uuid == volume.uuid:
                    continue
                with collected(problems):
                    (old,) = directory.known([volume])
                    todo.append((old, name))
                if way := f"volume {name} exists already in {self.path}" if new else directory.taken(name, present):
                    problems.append(Conflict(way, "choose another name"))
            renamed = [old for old, _ in todo]
            problems += self._busy(renamed, "renamed") + directory.needed(renamed, "renamed")
            problems += holds.all_held((each.volume for each in renamed), "renamed")
            raise_problems(problems)
            for old, name in todo:
                renaming.rename(directory, old.volume.name, name)
        return self._found([replace(volume, name=name) for volume, name in zip(volumes, names, strict=True)])

    def flatten(self, volumes: list[Volume]) -> list[Volume]:
        flattening.flatten(
            self.site, lambda: self._locked("flatten"), volumes, lambda todo: self._busy(todo, "flattened")
        )
        return self._found(volumes)

    def relabel(self, volumes: list[Volume]) -> list[Volume]:
        with self._locked("relabel") as directory:
            known = directory.known(volumes)
            problems: list[StorkitError] = []
            pairs = [(volume, sidecar.volume) for volume, sidecar in zip(volumes, known, strict=True)]
            problems += holds.all_held(holds.relabelled(pairs), "relabelled")
            both = list(zip(volumes, known, strict=True))
            changing = [sidecar for volume, sidecar in both if volume.kind != sidecar.volume.kind]
            closing = [sidecar for volume, sidecar in both if closes(sidecar.volume, volume)]
            problems += self._busy(changing, "made another kind of volume")
            problems += self._busy(closing, "closed")
            problems += directory.needed(changing, "made another kind of volume")
            raise_problems(problems)
            for volume, sidecar in zip(volumes, known, strict=True):
                files.change_mode(directory.data(volume.name, sidecar.volume.format), volumefile.mode(volume))
            changed = [
                replace(sidecar, volume=relabelled(sidecar.volume, volume))
                for volume, sidecar in zip(volumes, known, strict=True)
            ]
            directory.write([now for now, was in zip(changed, known, strict=True) if now != was])
        return self._found(volumes)

    def hold(self, volumes: list[Volume]) -> list[Volume]:
        return self._with_holds("hold", volumes, holds.begun)

    def release(self, volumes: list[Volume], hold: str) -> list[Volume]:
        return self._with_holds("release", volumes, lambda old, _: holds.over(old, hold))

    def _with_holds(self, verb: str, volumes: list[Volume], change: holds.Change) -> list[Volume]:
        with self._locked(verb) as directory:
            known = directory.known(volumes)
            changed = holds.changed([sidecar.volume for sidecar in known], volumes, change)
            pairs = zip(known, changed, strict=True)
            directory.write([replace(was, volume=now) for was, now in pairs if now != was.volume])
        return self._found(volumes)

    def bar(self, manager: str) -> None:
        if manager == self.site.host:
            raise UsageError(f"host {manager} is asked to bar itself", "ask another manager")
        if self._managers and self._exists() and not managed.read(self.path):
            # Whoever is barred in a directory that is not the pool's is not barred.
            raise managed.unmounted(self.path)
        with self._locked("bar a manager") as directory:
            managed.bar(directory, self._sharing(directory), manager)

    def unbar(self, manager: str) -> None:
        if self._managers and self._exists() and not managed.read(self.path):
            return  # nothing was made in it yet
        with self._locked("let a manager in", act=False) as directory:
            managed.unbar(directory, self._sharing(directory, act=False), manager)

    def _sharing(self, directory: VolumeDirectory, act: bool = True) -> managed.Sharing:
        if not self._managers:
            raise self._has_one_host()
        return managed.enter(directory, self.site.host, self._managers, act)

    def adoptable(self, found: list[Existing]) -> list[Adoptable]:
        self._exists()
        self._refuse_to_adopt()
        problems: list[StorkitError] = []
        seen: list[Adoptable] = []
        for each in found:
            with collected(problems):
                seen.append(adopting.adoptable(adopting.examine(each, self.path, self.site.host), each, self.path))
        raise_problems(problems)
        return seen

    def _refuse_to_adopt(self) -> None:
        if self._managers:
            # Who has a file open on another manager is not seen here.
            message = f"pool {self.pool} has several managers, and adopts nothing"
            raise Unsupported(message, f"make a copy: storkit volume import FILE NAME --pool {self.pool}")

    def adopt(self, volumes: list[Volume], found: list[Existing]) -> list[Volume]:
        self._refuse_to_adopt()
        with self._locked("adopt") as directory:
            made = [deriving.fresh(volume, "", adopting.ADOPTED) for volume in volumes]
            adopting.adopt(directory, volumes, found, made, self.site.host)
        volumes = self._found(volumes)
        openers.note_earlier(self.site.run, zip(volumes, found, strict=True))
        return volumes

    def disown(self, volumes: list[Volume]) -> list[str]:
        if not self._exists():
            return ["" for _ in volumes]
        with self._locked("disown") as directory:
            here = [sidecar.volume for sidecar in directory.select([volume.name for volume in volumes])]
            own = [volume for volume in here if volume.uuid in {each.uuid for each in volumes}]
            refusals = holds.all_held(own, "given back")
            refusals += [problem for volume in own for problem in self._in_use(volume, "given back")]
            places = adopting.disown(directory, volumes, refusals)
        gone = [volume.uuid for volume, place in zip(volumes, places, strict=True) if place]
        self._forget(gone)
        openers.forget_earlier(self.site.run, gone)
        return places

    def delete(self, volumes: list[Volume]) -> None:
        if not self._exists():
            return
        with self._locked("delete") as directory:
            gone = directory.select([volume.name for volume in volumes])
            meant = {volume.name: volume for volume in volumes}
            problems = [other for sidecar in gone if (other := other_volume(meant[sidecar.volume.name], sidecar))]
            raise_problems(problems)
            for name in meant:
                if maker := directory.maker(name):
                    problems.append(Conflict(maker, "wait until that command has ended, then try again"))
            problems += self._busy(gone, "deleted") + holds.all_held((each.volume for each in gone), "deleted")
            problems += directory.needed(gone, "deleted")
            raise_problems(problems)
            for sidecar in gone:
                adopting.remove_old_name(directory, sidecar.volume)
            # Overlays go before what they stand on.
            directory.remove(sorted(gone, key=lambda sidecar: sidecar.volume.kind != "disk"))
            for sidecar in gone:
                locks.use_lock(self.site.run, sidecar.volume.uuid).unlink(missing_ok=True)
                if sidecar.term:
                    managed.forget(self.path, sidecar.volume.uuid)
        self._forget(volume.uuid for volume in volumes)
        openers.forget_earlier(self.site.run, (volume.uuid for volume in volumes))

    def capacity(self, volumes: bool = False) -> Usage:
        sidecars, damaged = self._files.look(None) if self._exists() else ([], {})
        path = self.path if self._exists() else self.site.state
        try:
            room = os.statvfs(path)
        except OSError as error:
            raise files.explain(error, path) from error
        total, free = room.f_blocks * room.f_frsize, room.f_bavail * room.f_frsize
        provisioned = allocated = growth = 0
        used: dict[str, int] = {}
        for sidecar in sidecars:
            size = sidecar.volume.size
            file = self._files.data(sidecar.volume.name, sidecar.volume.format)
            try:
                self._files.check_data(sidecar)
            except Unsafe as error:
                damaged[sidecar.volume.name] = error
                continue
            # A tree was measured when it was made: doing that again would take as long as a backup.
            taken = size if sidecar.volume.kind == "tree" else volumefile.allocated(file)
            provisioned, allocated = provisioned + size, allocated + taken
            if volumes:
                used[sidecar.volume.name] = taken
            growth += max(0, size - taken) if sidecar.volume.kind == "disk" else 0
        warnings = self._uncounted(damaged)
        limit = self.settings.overcommit
        if provisioned > limit * total or growth > limit * free:
            warnings.append(
                f"pool {self.pool} is over-committed: its volumes can grow to {format_size(provisioned)}, by "
                f"{format_size(growth)}, and {path} has {format_size(free)} of {format_size(total)} free"
            )
        if free < total * _LITTLE_ROOM:
            warnings.append(f"pool {self.pool} is nearly full: {format_size(free)} of {format_size(total)} free")
        held = {sidecar.volume.name: hold for sidecar in sidecars if (hold := sidecar.volume.hold)}
        return Usage(self.pool, self.site.host, total, free, provisioned, allocated, warnings, held, used=used)

    # What the verbs share

    @property
    def _managers(self) -> list[str]:
        """Those that share the directory; none: it is this host's alone."""
        return []

    @property
    def _files(self) -> VolumeDirectory:
        return VolumeDirectory(self.path, shared=bool(self._managers))

    @property
    def _where(self) -> PoolPlace:
        settings = self.settings
        return PoolPlace(self.path, self.pool, self.site.state, bool(settings.path), settings.others_write)

    def _exists(self) -> bool:
        there = self._where.exists()
        if there:
            sharing = managed.check(self.path, self.pool, self._managers)
            if self._managers:
                self._where.recognize(sharing.id if sharing else "")
        return there

    def _guests(self) -> Path | None:
        if not self._exists():
            return None
        # Where others may write, what a guest is started as would be theirs to say.
        return self.site.state / "guests" / self.pool if self.settings.others_write else self.path / _GUESTS

    def _may_keep(self) -> None:
        if self._managers and self._exists():
            managed.refuse_barred(self.path, managed.read(self.path), self.site.host)

    def _must_have(self, guests: list[KeptGuest]) -> None:
        self._files.known([Volume(guest.volume, guest.uuid, 0) for guest in guests])

    @contextmanager
    def _locked(self, verb: str, act: bool = True) -> Iterator[VolumeDirectory]:
        """`act`: False for what a manager may do that is barred."""
        if not self._exists():
            files.make_private(self.path)
        directory = self._files
        with directory.locked(f"{verb} in pool {self.pool}" + (f" on {self.site.host}" if self._managers else "")):
            self._where.remember()
            if self._managers:
                sharing = managed.enter(directory, self.site.host, self._managers, act)
                self._where.recognize(sharing.id)
            yield directory

    def _sidecars(self, names: list[str] | None) -> list[Sidecar]:
        return self._files.select(names) if self._exists() else []

    def _found(self, volumes: Sequence[Volume]) -> list[Volume]:
        """The volumes as they are now, in the order asked for."""
        found = {volume.name: volume for volume in self.find([volume.name for volume in volumes])}
        return [found[volume.name] for volume in volumes if volume.name in found]

    def _volume(self, sidecar: Sidecar) -> Volume:
        return replace(self._files.whole(sidecar), host=self.site.host, pool=self.pool)

    def _derive(self, verb: str, source: Volume, volumes: Sequence[Volume]) -> list[Volume]:
        """Clones and snapshots: by reflink, overlay or copy."""
        with ExitStack() as stack:
            with self._locked(verb) as directory:
                (origin,) = directory.known([source])
                todo = directory.admit(volumes, origin.volume.format)
                busy = self._busy([origin], "cloned") if origin.volume.kind == "disk" else []
                problems = deriving.problems(directory, origin.volume, volumes)
                raise_problems(problems + (busy if verb == "clone" else []))
                path = directory.data(origin.volume.name, origin.volume.format)
                file = files.open_plain(path, os.O_RDONLY)
                stack.callback(os.close, file)
                if deriving.by_reflink(directory, origin, file, todo) or deriving.by_overlay(
                    directory, origin, todo, self.settings.format
                ):
                    return self._found(volumes)
                raise_problems(busy)
                for lock in deriving.claim(self.site, directory, verb, origin, todo):
                    stack.callback(lock.release)
            # A copy takes long: the directory is free for others, the names are held by their locked claims.
            deriving.by_copy(self.site, directory, origin, file, todo, self._locked)
        return self._found(volumes)

    def _busy(self, sidecars: Sequence[Sidecar], what: str) -> list[StorkitError]:
        """Why these volumes cannot be `what` now: a server or a command has them, or another program of this host."""
        here = self.site.host
        problems = [
            problem
            for sidecar in sidecars
            for problem in managed.other(sidecar, here, what) or self._in_use(sidecar.volume, what)
        ]
        # What a killed import has left running writes what is to be deleted.
        ours = [sidecar for sidecar in sidecars if not managed.other(sidecar, here, what)]
        looked = [self._volume(sidecar) for sidecar in ours if sidecar.volume.made not in (IMPORTING, FILLING)]
        return problems + [other.refuse(self.site.host) for other in strangers.find(self.site.run, looked)]

    def _in_use(self, volume: Volume, what: str) -> list[StorkitError]:
        here = locks.held(locks.use_lock(self.site.run, volume.uuid))
        if not (here or (self._managers and managed.in_use(self.path, volume.uuid))):
            return []
        hint = f"see who has it: storkit volume show {volume.name}"
        return [Conflict(f"volume {volume.name} is in use and cannot be {what}", hint)]
