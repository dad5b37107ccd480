"""Pool `lvm`: volumes are logical volumes of one volume group, thin ones of a thin pool or thick ones.

Thin: made and cloned in milliseconds of metadata, whatever their size; a clone shares its source's chunks and depends
on it no longer. Thick: zeroed when they are made, so that no volume shows what another one left; a clone is a copy.
Metadata are LVM tags (storkit.tech.lvm.tools). A batch of volumes is made by one `lvm` process, and exists from the
moment that its tag is taken from the volume group. Logical volumes that storkit did not make are never touched.

An LV is whole extents, a volume whole sectors: what lies beyond a volume's size in its LV is no part of it. The volumes
are active where they were made until that host is booted: see `tools.activate`.
"""

from __future__ import annotations

import datetime
import re
from collections.abc import Callable, Sequence
from contextlib import ExitStack, suppress
from dataclasses import dataclass, replace
from pathlib import Path
from typing import ClassVar

from storkit.core import holds
from storkit.core.backend import Needs, word_setting
from storkit.core.errors import (
    Conflict,
    NotFound,
    StorkitError,
    Unsafe,
    UsageError,
    raise_problems,
)
from storkit.core.guest import KeptGuest
from storkit.core.model import (
    Adoptable,
    Damaged,
    Existing,
    PoolContent,
    Usage,
    Volume,
    VolumeHold,
    check_name,
    closes,
    relabelled,
)
from storkit.system import locks, openers
from storkit.system.block import udev
from storkit.tech.files import volumefile
from storkit.tech.keptguests import KeepsGuests
from storkit.tech.lvm import adopting, checks, making, tools
from storkit.tech.lvm.batches import Batches
from storkit.tech.lvm.tools import LogicalVolume, VolumeGroup

_LVM_NAME = re.compile(r"[A-Za-z0-9_+.][A-Za-z0-9_+.-]{0,125}", re.ASCII)


@dataclass(frozen=True)
class LvmSettings:
    """The keys of an LVM pool in the inventory."""

    vg: str = word_setting()
    """The volume group."""
    thinpool: str = word_setting()
    """A thin pool in it; empty: thick volumes."""
    floor: str = word_setting("5%")
    """Of a thin pool's data that must be free, as a share or a size: below it nothing is made. Of its metadata, the
    same share, or 5% where this is a size."""
    warn: str = word_setting("80%")
    """Warn when this share of a thin pool's data or metadata is taken."""
    overcommit: float = 1.0
    """Warn when thin volumes could grow beyond this many times the thin pool's size."""
    zeroing: bool = True
    """False: also use a thin pool that does not zero new chunks (lvchange -Zn). Around the first bytes that a guest
    writes to a chunk, it then finds what another volume left there."""


class Lvm(KeepsGuests):
    """Logical volumes of one volume group."""

    name: ClassVar[str] = "lvm"
    devices = True
    transport: ClassVar[str] = "iscsi"
    needs: ClassVar[Needs] = Needs(
        tools={"lvm": "lvm2", "dmsetup": "dmsetup", "thin_check": "thin-provisioning-tools"},
        modules=("dm_mod", "dm_thin_pool"),
    )
    Settings: ClassVar[type] = LvmSettings
    settings: LvmSettings

    def look(self, names: list[str] | None = None) -> PoolContent:
        wanted = None if names is None else {check_name("volume", name) for name in names}
        group = tools.read(self._vg)
        found = PoolContent([])
        for name, lv in sorted(group.lvs.items()):
            if (wanted is None or name in wanted) and self._is_ours(group, lv):
                try:
                    found.volumes.append(self._volume(group, lv))
                except Unsafe as error:
                    found.damaged.append(Damaged(name, self.pool, self.site.host, error.message, error.hint))
        return found

    def create(self, volumes: list[Volume]) -> list[Volume]:
        with ExitStack() as stack:
            with self._batches.locked("create") as (lock, group):
                todo = self._admit(group, volumes)
                self._check_room(lock, group, todo)
                made = [_fresh(volume, volume.made or "created") for volume in todo]
                if not made:
                    return self._these(group, volumes)
                batch = stack.enter_context(self._batches.claimed("create"))
                self._batches.carve(
                    lock, batch, made, [making.new(self._vg, self.settings.thinpool, volume, batch) for volume in made]
                )
                if self.settings.thinpool:
                    return self._these(self._batches.publish(lock, batch), volumes)
            return self._these(self._fill(batch, made, lambda: making.zero(self.site, group, made)), volumes)

    def clone(self, source: Volume, volumes: list[Volume]) -> list[Volume]:
        return self._derive("clone", source, volumes)

    def snapshot(self, source: Volume, volumes: list[Volume]) -> list[Volume]:
        """As the contract says; of a volume in use only where it is thin: what a power cut would have left."""
        return self._derive("snapshot", source, [replace(volume, kind="snapshot") for volume in volumes])

    def resize(self, volumes: list[Volume], shrink: bool = False, served: bool = False) -> list[Volume]:
        with self._batches.locked("resize") as (lock, group):
            known = self._known(group, volumes)
            group = self._settled(group, known)
            problems: list[StorkitError] = []
            for volume, old in zip(volumes, known, strict=True):
                problems += volumefile.size_problems(volume, "raw")
                if volume.size != old.size:
                    if served:
                        problems += checks.served_problems(volume, old)
                    else:
                        problems += self._in_use(group, old, "resized")
                    problems += checks.needed(group, old.name, "resized") + holds.held(old, "resized")
                    problems += checks.resize_problems(volume, old, shrink)
            if not self.settings.thinpool and not problems:
                more = [group.extents(volume.size) - group.lvs[volume.name].size for volume in volumes]
                problems += checks.thick_problems(group, sum(size for size in more if size > 0))
            raise_problems(problems)
            for volume, old in zip(volumes, known, strict=True):
                if volume.size != old.size:
                    with ExitStack() as stack:
                        if not served:
                            use = locks.use_lock(self.site.run, volume.uuid)
                            stack.callback(locks.acquire(use, f"volume {volume.name}").release)
                        making.resize(lock, group, old, volume.size, bool(self.settings.thinpool))
            return self._these(tools.read(self._vg), volumes)

    def rename(self, volumes: list[Volume], names: list[str]) -> list[Volume]:
        with self._batches.locked("rename") as (lock, group):
            pairs = [(each, name) for each, name in zip(volumes, names, strict=True) if not self._is(group, each, name)]
            known = self._known(group, [volume for volume, _ in pairs])
            group = self._settled(group, known)
            problems = holds.all_held(known, "renamed")
            for old, (_, name) in zip(known, pairs, strict=True):
                problems += checks.request_problems(replace(old, name=check_name("volume", name)), self._vg)
                problems += self._in_use(group, old, "renamed") + checks.needed(group, old.name, "renamed")
                if there := group.lvs.get(name):
                    problems.append(self._in_the_way(group, there))
            raise_problems(problems)
            commands = [["lvrename", self._vg, old.name, name] for old, (_, name) in zip(known, pairs, strict=True)]
            after, said = tools.batch(self._vg, lock, commands) if commands else (group, "")
        if not all(self._is(after, volume, name) for volume, name in pairs):
            raise Conflict(f"{', '.join(each.name for each in known)} could not be renamed: {said}", f"lvs {self._vg}")
        return self._these(after, [replace(volume, name=name) for volume, name in zip(volumes, names, strict=True)])

    def _is(self, group: VolumeGroup, volume: Volume, name: str) -> bool:
        """Whether a volume has this name."""
        lv = group.lvs.get(name)
        return lv is not None and self._is_ours(group, lv) and lv.tags.get("uuid") == volume.uuid

    def flatten(self, volumes: list[Volume]) -> list[Volume]:
        """As the contract says; no volume here stands on another. Thin ones share chunks, which their pool counts."""
        return self._known(tools.read(self._vg), volumes)

    def relabel(self, volumes: list[Volume]) -> list[Volume]:
        with self._batches.locked("relabel") as (lock, group):
            known = self._known(group, volumes)
            both = list(zip(volumes, known, strict=True))
            changed = [old for volume, old in both if volume.kind != old.kind or closes(old, volume)]
            group = self._settled(group, changed)
            problems = holds.all_held(holds.relabelled(zip(volumes, known, strict=True)), "relabelled")
            raise_problems(problems + [each for old in changed for each in self._in_use(group, old, "relabelled")])
            commands = []
            for volume, old in zip(volumes, known, strict=True):
                command = tools.change_tags(old, relabelled(old, volume))
                if group.lvs[old.name].readonly != (volume.kind != "disk"):
                    command += ["--permission", "r" if volume.kind != "disk" else "rw"]
                if command:
                    commands.append(["lvchange", "-y", *command, f"{self._vg}/{old.name}"])
            after, said = tools.batch(self._vg, lock, commands) if commands else (group, "")
        found = self._these(after, volumes)
        for volume, now in zip(volumes, found, strict=True):
            if now != relabelled(now, volume):
                raise Conflict(f"volume {volume.name} could not be relabelled: {said}", f"lvs {self._vg}")
        return found

    def hold(self, volumes: list[Volume]) -> list[Volume]:
        return self._with_holds("hold", volumes, holds.begun)

    def release(self, volumes: list[Volume], hold: str) -> list[Volume]:
        return self._with_holds("release", volumes, lambda old, _: holds.over(old, hold))

    def _with_holds(self, verb: str, volumes: list[Volume], change: holds.Change) -> list[Volume]:
        with self._batches.locked(verb) as (lock, group):
            known = self._known(group, volumes)
            wanted = holds.changed(known, volumes, change)
            raise_problems([problem for volume in wanted for problem in checks.tag_problems(volume)])
            commands = [
                ["lvchange", "-y", *words, f"{self._vg}/{old.name}"]
                for old, new in zip(known, wanted, strict=True)
                if (words := tools.change_tags(old, new))
            ]
            after, said = tools.batch(self._vg, lock, commands) if commands else (group, "")
        found = self._these(after, volumes)
        if [(each.hold, each.generation) for each in found] != [(each.hold, each.generation) for each in wanted]:
            raise Conflict(f"the hold could not be changed in volume group {self._vg}: {said}", f"lvs {self._vg}")
        return found

    def adoptable(self, found: list[Existing]) -> list[Adoptable]:
        return adopting.adoptable(tools.read(self._vg), self.settings.thinpool, found, self.site.host)

    def adopt(self, volumes: list[Volume], found: list[Existing]) -> list[Volume]:
        with self._batches.locked("adopt") as (lock, group):
            made = [_fresh(volume, adopting.ADOPTED) for volume in volumes]
            after = adopting.adopt(group, lock, self.settings.thinpool, made, found, self.site.host)
        made = self._these(after, volumes)
        openers.note_earlier(self.site.run, zip(made, found, strict=True))
        return made

    def disown(self, volumes: list[Volume]) -> list[str]:
        with self._batches.locked("disown") as (lock, group):
            refusals: list[StorkitError] = []
            for lv in group.lvs.values():
                mine = [volume for volume in volumes if volume.uuid == lv.tags.get("uuid")]
                refusals += [each for volume in mine for each in self._served(volume, "given back")]
                if mine and "hold" in lv.tags:
                    refusals += holds.held(self._volume(group, lv), "given back")
            places = adopting.disown(group, lock, volumes, refusals)
        gone = [volume.uuid for volume, place in zip(volumes, places, strict=True) if place]
        self._forget(gone)
        openers.forget_earlier(self.site.run, gone)
        return places

    def delete(self, volumes: list[Volume]) -> None:
        with self._batches.locked("delete", only_removes=True) as (lock, group):
            problems: list[StorkitError] = []
            gone = []
            for volume in volumes:
                lv = group.lvs.get(check_name("volume", volume.name))
                if lv is not None and self._is_ours(group, lv):
                    problems += checks.another(lv, volume)
                    gone.append(volume)
                elif lv is not None and lv.tags.get(tools.BATCH) in group.making:
                    problems.append(checks.being_made(group, lv))
            raise_problems(problems)
            group = self._settled(group, gone)
            for volume in gone:
                problems += self._in_use(group, volume, "deleted")
                if "hold" in group.lvs[volume.name].tags:
                    problems += holds.held(self._volume(group, group.lvs[volume.name]), "deleted")
                problems += checks.needed(group, volume.name, "deleted")
            raise_problems(problems)
            self._batches.remove(lock, [volume.name for volume in gone])
            for volume in gone:
                locks.use_lock(self.site.run, volume.uuid).unlink(missing_ok=True)
            self._forget(volume.uuid for volume in volumes)
            openers.forget_earlier(self.site.run, (volume.uuid for volume in volumes))

    def capacity(self, volumes: bool = False) -> Usage:
        group = tools.read(self._vg)
        found = [lv for lv in group.lvs.values() if self._is_ours(group, lv)]
        sizes, damaged, held = [], [], dict[str, VolumeHold]()
        used: dict[str, int] = {}
        for lv in found:
            try:
                volume = self._volume(group, lv)
            except Unsafe:
                damaged.append(lv.name)
                continue
            if volumes and lv.used is not None:
                used[volume.name] = lv.used
            sizes.append(volume.size)
            held |= {volume.name: volume.hold} if volume.hold else {}
        warnings = self._uncounted(damaged)
        if group.missing:
            warnings.append(f"pool {self.pool} lacks {', '.join(group.missing)}: nothing can be made in it")
        if not self.settings.thinpool:
            allocated, free = sum(lv.size for lv in found), group.free
            return Usage(
                self.pool, self.site.host, group.size, free, sum(sizes), allocated, warnings, held, used=used
            )  # fmt: skip
        pool = group.thin_pool(self.settings.thinpool)
        # lvs rounds to hundredths of a percent: this is the most that can be taken.
        allocated = min(pool.size, int(pool.size * (pool.data + 0.005) / 100)) if pool.data else 0
        free = pool.size - allocated if pool.data is not None else 0
        warnings += checks.warnings(self.pool, pool, sizes, self.settings.warn, self.settings.overcommit)
        thin = None if pool.metadata is None else round(pool.metadata)
        return Usage(
            self.pool, self.site.host, pool.size, free, sum(sizes), allocated, warnings, held, thin, used
        )  # fmt: skip

    # The volume group

    @property
    def _vg(self) -> str:
        if not self.settings.vg:
            raise UsageError(f"pool {self.pool} names no volume group", f'add vg = "NAME" to [pools.{self.pool}]')
        for name in (self.settings.vg, self.settings.thinpool):
            if not _LVM_NAME.fullmatch(name or self.settings.vg):
                raise UsageError(f"pool {self.pool}: {name!r} cannot be a name in LVM", "vgs; lvs")
        return self.settings.vg

    @property
    def _batches(self) -> Batches:
        return Batches(self.pool, self._vg, self.site.host, self.site.run)

    def _guests(self) -> Path:
        # A tag holds 1024 bytes of a few letters, and a document is larger: it is kept by this manager.
        return self.site.state / "lvm-guests" / tools.uuid(self._vg) / (self.settings.thinpool or "-")

    def _must_have(self, guests: list[KeptGuest]) -> None:
        self._known(tools.read(self._vg), [Volume(guest.volume, guest.uuid, 0) for guest in guests])

    def _is_ours(self, group: VolumeGroup, lv: LogicalVolume) -> bool:
        return group.exists(lv) and lv.pool == self.settings.thinpool

    def _volume(self, group: VolumeGroup, lv: LogicalVolume) -> Volume:
        where = tools.path(self._vg, lv.name)
        return replace(tools.volume_of(lv, group.missing), pool=self.pool, host=self.site.host, path=where)

    def _these(self, group: VolumeGroup, volumes: Sequence[Volume]) -> list[Volume]:
        """The volumes as they are in `group`, in the order asked for."""
        return [self._volume(group, group.lvs[volume.name]) for volume in volumes]

    # Making

    def _derive(self, verb: str, source: Volume, volumes: Sequence[Volume]) -> list[Volume]:
        """Clones and snapshots: thin ones of the same pool, or copies."""
        thin = bool(self.settings.thinpool)
        with ExitStack() as stack:
            with self._batches.locked(verb) as (lock, group):
                (old,) = self._known(group, [source])
                todo = self._admit(group, volumes)
                group = self._settled(group, [old])
                problems = checks.derive_problems(old, volumes)
                if old.kind == "disk" and not (thin and verb == "snapshot"):
                    problems += self._in_use(group, old, "copied")
                raise_problems(problems)
                self._check_room(lock, group, todo)
                made = [replace(_fresh(volume, "thin" if thin else "copy"), origin=old.uuid) for volume in todo]
                if not made:
                    return self._these(group, volumes)
                batch = stack.enter_context(self._batches.claimed(verb))
                if thin:
                    size = group.lvs[old.name].size
                    commands = [
                        command for volume in made for command in making.share(self._vg, old, size, volume, batch)
                    ]
                    self._batches.carve(lock, batch, made, commands)
                    for volume in made:
                        if old.size < min(volume.size, size):  # the rest of the last extent is nobody's
                            making.clear(self._vg, volume, old.size, size, thin)
                    return self._these(self._batches.publish(lock, batch), volumes)
                if old.kind == "disk":
                    use = locks.use_lock(self.site.run, old.uuid)
                    stack.callback(locks.acquire(use, f"volume {old.name}", shared=True).release)
                tools.activate([old])
                self._batches.carve(
                    lock, batch, made, [making.new(self._vg, self.settings.thinpool, volume, batch) for volume in made]
                )
            return self._these(self._fill(batch, made, lambda: making.copy(self.site, group, old, made)), volumes)

    def _fill(self, batch: str, made: Sequence[Volume], work: Callable[[], None]) -> VolumeGroup:
        """Let `work` write the content of thick volumes, which takes long, while others use the volume group."""
        try:
            try:
                work()
            except OSError as error:
                raise Conflict(f"volume group {self._vg}: {error.strerror}", "see what the disk says: dmesg") from error
            with self._batches.locked("publish") as (lock, _):
                sealed = [f"{self._vg}/{volume.name}" for volume in made if volume.kind != "disk"]
                seal = [["lvchange", "-y", "--permission", "r", *sealed]] if sealed else []
                return self._batches.publish(lock, batch, *seal)
        except BaseException:
            with suppress(StorkitError), self._batches.locked("undo", only_removes=True) as (lock, _):
                self._batches.discard(lock, batch)
            raise

    # What stands in the way

    def _admit(self, group: VolumeGroup, volumes: Sequence[Volume]) -> list[Volume]:
        """Those of `volumes` that are still to be made. Raises everything that is wrong with the request."""
        problems: list[StorkitError] = []
        todo: list[Volume] = []
        seen: set[str] = set()
        for volume in volumes:
            try:
                check_name("volume", volume.name)
            except UsageError as error:
                problems.append(error)
                continue
            if volume.name in seen:
                problems.append(UsageError(f"volume {volume.name} is asked for twice", "give each its own name"))
                continue
            seen.add(volume.name)
            lv = group.lvs.get(volume.name)
            problems += checks.request_problems(volume, self._vg)
            if lv is None:
                todo.append(volume)
            elif not self._is_ours(group, lv):
                problems.append(self._in_the_way(group, lv))
            elif (lv.tags.get("uuid"), lv.tags.get("size")) != (volume.uuid, str(volume.size)):
                hint = f"choose another name, or look at it: storkit volume show {volume.name}"
                problems.append(Conflict(f"volume {volume.name} exists already in {self._vg}", hint))
        raise_problems(problems)
        return todo

    def _check_room(self, lock: locks.Lock, group: VolumeGroup, todo: Sequence[Volume]) -> None:
        if not todo:
            return
        if not self.settings.thinpool:
            raise_problems(checks.thick_problems(group, sum(group.extents(volume.size) for volume in todo)))
            return
        pool = group.thin_pool(self.settings.thinpool)
        if not pool.active:  # how full it is, only the kernel knows
            tools.change(self._vg, lock, ["lvchange", "-ay", f"{self._vg}/{pool.name}"])
            pool = tools.read(self._vg).thin_pool(self.settings.thinpool)
        raise_problems(checks.thin_problems(self._vg, pool, self.settings.floor, self.settings.zeroing))

    def _in_the_way(self, group: VolumeGroup, lv: LogicalVolume) -> StorkitError:
        if lv.tags.get(tools.BATCH) in group.making:
            return checks.being_made(group, lv)
        whose = "of another pool" if group.exists(lv) else "that storkit did not make"
        message = f"{tools.path(self._vg, lv.name)} is in the way: a logical volume {whose}"
        return Conflict(message, "choose another name")

    def _known(self, group: VolumeGroup, volumes: Sequence[Volume]) -> list[Volume]:
        """The volumes as they are. Raises NotFound; Conflict: the name is that of another UUID."""
        known = []
        problems: list[StorkitError] = []
        for volume in volumes:
            lv = group.lvs.get(check_name("volume", volume.name))
            if lv is None or not self._is_ours(group, lv):
                problems.append(NotFound(f"pool {self.pool} has no volume {volume.name}", "storkit volume list"))
                continue
            problems += checks.another(lv, volume)
            known.append(self._volume(group, lv))
        raise_problems(problems)
        return known

    def _settled(self, group: VolumeGroup, volumes: Sequence[Volume]) -> VolumeGroup:
        """The volume group once udevd has let go of these volumes: it looks into those that were written to."""
        if not any(group.lvs[volume.name].open for volume in volumes):
            return group
        udev.settle()
        return tools.read(self._vg)

    def _in_use(self, group: VolumeGroup, volume: Volume, what: str) -> list[StorkitError]:
        """Somebody has the lock, or has the device open: a process, a mount, an export, a device-mapper node on it."""
        if not group.lvs[volume.name].open:
            return self._served(volume, what)
        return [self._used(volume, what)]

    def _served(self, volume: Volume, what: str) -> list[StorkitError]:
        """Somebody has the lock: a server, or a command."""
        return [self._used(volume, what)] if locks.held(locks.use_lock(self.site.run, volume.uuid)) else []

    def _used(self, volume: Volume, what: str) -> StorkitError:
        hint = f"see who has it: storkit volume show {volume.name}; lsblk {tools.path(self._vg, volume.name)}"
        return Conflict(f"volume {volume.name} is in use and cannot be {what}", hint)


def _fresh(volume: Volume, made: str) -> Volume:
    now = datetime.datetime.now(datetime.UTC).strftime("%Y-%m-%dT%H:%M:%SZ")
    return replace(volume, made=made, created=volume.created or now, origin="", hold=None, was="", checksum="")
