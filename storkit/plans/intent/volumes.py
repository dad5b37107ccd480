"""Volumes: made, copied, resized, deleted, looked at."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import TYPE_CHECKING, BinaryIO

from storkit.core import codec
from storkit.core.errors import Conflict, NotFound, StorkitError, Unsafe, UsageError, collected, raise_problems
from storkit.core.identities import several
from storkit.core.inventory import PoolConfig
from storkit.core.model import Attachment, Damaged, Export, Usage, Volume, check_name, closed
from storkit.core.units import format_size
from storkit.plans.intent.coordinator import Coordinator
from storkit.plans.intent.making import (
    Bytes,
    clone_format,
    clone_kind,
    hosts_of,
    in_bytes,
    made,
    must_be_free,
    new_volume,
    pool_of,
)
from storkit.plans.lookup import disk_of, parts

if TYPE_CHECKING:  # who only looks at volumes plans nothing, and needs nothing that plans
    from storkit.plans.intent.adopting.volumes import Released
    from storkit.plans.intent.relocating.volumes import Moved
    from storkit.plans.intent.resizing import Resized
    from storkit.plans.intent.restoring import Restored
    from storkit.plans.plan import Plan


@dataclass(frozen=True, slots=True)
class VolumeView:
    """A volume, who may write it, and where it is."""

    volume: Volume
    writers: list[str]
    exports: list[Export]
    attachments: list[Attachment]

    @property
    def generation(self) -> int:
        """A number that grows each time that a right to write is given."""
        return max([self.volume.generation, *(export.generation for export in self.exports)])


@dataclass(frozen=True, slots=True)
class Listing:
    """The volumes of pools, and those that are damaged."""

    volumes: list[Volume]
    damaged: list[Damaged]
    usages: list[Usage] = field(default_factory=list)
    """How full the pools are, and what each volume takes of them, where that was asked for."""
    guests: dict[str, list[str]] = field(default_factory=dict)
    """UUID of a volume to the guests whose disk or root it is, where that was asked for."""


class VolumeActs:
    """Make, copy, resize, delete and look at volumes. NAME is a volume's, or POOL/NAME."""

    def __init__(self, coordinator: Coordinator) -> None:
        self._coordinator = coordinator
        self._survey = coordinator.survey

    def create(self, name: str, size: Bytes, pool: str = "", if_missing: bool = False) -> Volume:
        """Make an empty volume. `pool`: the inventory's default if none is named. `if_missing`: one of this name and
        size that is there, in this pool, is as good."""
        problems: list[StorkitError] = []
        with collected(problems):
            bytes_ = in_bytes(size)
        with collected(problems):
            config = pool_of(self._coordinator, pool)
        with collected(problems):
            check_name("volume", name)
        raise_problems(problems)

        if if_missing and (there := self._there(name, config, bytes_)):
            return there

        def build() -> Plan:
            from storkit.plans import planner

            must_be_free(self._coordinator, [name], config)
            return planner.create([new_volume(config, name, bytes_)], self._coordinator.inventory)

        return made(self._coordinator, self._coordinator.change(build))[0]

    def _there(self, name: str, pool: PoolConfig, size: int) -> Volume | None:
        """The disk of this name, pool and size; None: there is no volume of that name. Raises Conflict: another is."""
        try:
            found = self._survey.volume(name)
        except NotFound:
            return None
        if (found.pool, found.size, found.kind) == (pool.name, size, "disk") and not closed(found):
            return found
        what = f"{found.kind} of {format_size(found.size)} in pool {found.pool}"
        raise Conflict(f"volume {name} exists already, and is another: a {what}", f"storkit volume show {name}")

    def adopt(self, place: str | Path, name: str = "", *, host: str = "", pool: str = "") -> Volume:
        """Make a volume of what is there, and copy nothing. `place`: the path of a file or of a device, or VG/LV, on
        the pool's host. `name`: by default what it is called. `host`: the default pool's, if none is named; `pool`: by
        default where it lies, or the first of the host that can take it."""
        from storkit.plans.intent.adopting import volumes as adoption

        return adoption.adopt(self._coordinator, str(place), name, host, pool)

    def release(self, names: Sequence[str], force: bool = False) -> list[Released]:
        """Give volumes back that no host has, and, without `force`, no guest: their bytes stay."""
        from storkit.plans.intent.adopting import volumes as adoption

        return adoption.release(self._coordinator, names, force)

    def import_image(
        self,
        source: str | Path | BinaryIO,
        name: str,
        *,
        pool: str = "",
        golden: bool = False,
        format: str = "",
        size: Bytes | None = None,
        max_size: Bytes | None = None,
        checksum: str = "",
    ) -> Volume:
        """Make a volume of a disk image: a file on the pool's host, a URL, or a stream; the last two are read here.

        `golden`: an image to be cloned, which nobody writes. `format`: of the file, if it cannot be told apart (raw).
        `size`: at least the image's, which is the default. `max_size`: a larger disk is refused. `checksum`: of the
        file, as `sha256:HEX`.
        """
        from storkit.plans.intent import images

        how = images.Import(name, pool, golden, format, size, max_size, checksum)
        return made(self._coordinator, images.import_image(self._coordinator, source, how))[0]

    def import_tree(self, source: str | Path, name: str, pool: str = "") -> Volume:
        """Make a tree, a guest's root, of a tar file or a directory on the pool's host."""
        from storkit.plans.intent import images

        return made(self._coordinator, images.import_tree(self._coordinator, str(source), name, pool))[0]

    def export(self, name: str, file: str | Path, format: str = "raw", compress: bool = False) -> None:
        """Write a volume to an image file on its host."""
        from storkit.plans.intent import images

        images.export(self._coordinator, name, str(file), format, compress)

    def pour(self, name: str, stream: BinaryIO, format: str = "raw", compress: bool = False) -> int:
        """Write a volume of this machine to a stream, once all of it is known to be there; the image's size."""
        from storkit.plans.intent import images

        return images.pour(self._coordinator, name, stream, format, compress)

    def clone(self, source: str, names: Sequence[str], size: Bytes | None = None) -> list[Volume]:
        """Make clones of a volume, in its own pool: of the newest version of a golden image, or of the one that NAME@3
        names. `size`: at least the source's, which is the default."""
        names = several(names)
        problems: list[StorkitError] = []
        wanted = 0
        with collected(problems):
            wanted = 0 if size is None else in_bytes(size)
        for name in names:
            with collected(problems):
                check_name("volume", name)
        if twice := sorted(name for name, count in Counter(names).items() if count > 1):
            problems.append(UsageError(f"named twice: {', '.join(twice)}", "name each clone once"))
        raise_problems(problems)

        clones = list[Volume]()

        def build() -> Plan:
            from storkit.plans import planner
            from storkit.plans.intent.golden import versions

            volume = versions.source(self._coordinator, source)
            if not clones:
                must_be_free(self._coordinator, names)
            if wanted and wanted < volume.size:
                raise UsageError(
                    f"{volume.name} is {format_size(volume.size)} large; a clone cannot be smaller", "leave --size out"
                )
            if volume.kind in ("disk", "tree"):
                planner.refuse_written(volume, self._survey.exports([volume]), "cloned")
            if not clones:
                pool, kind = self._coordinator.inventory.pool(volume.pool), clone_kind(volume)
                size = wanted or volume.size
                format = clone_format(self._coordinator, pool)
                clones.extend(
                    new_volume(pool, name, size, origin=volume.uuid, kind=kind, format=format) for name in names
                )
            return planner.clone([(volume, clones)], self._coordinator.inventory)

        return made(self._coordinator, self._coordinator.change(build))

    def snapshot(self, source: str, name: str) -> Volume:
        """Keep a volume as it is now, under another name. The file systems of a guest that runs and writes it stand
        still meanwhile, if its agent can have it so."""
        from storkit.plans.intent.running import snapshotting

        return snapshotting.snapshot_volume(self._coordinator, source, name)

    def restore(self, name: str, snapshot: str, discard: bool = False) -> Restored:
        """Set a volume that no host has back to what it was when a snapshot of it was made; its UUID and its name stay.
        What it is now is kept as another snapshot, unless that is to be discarded."""
        from storkit.plans.intent import restoring

        return restoring.restore(self._coordinator, name, snapshot, discard)

    def move(self, name: str, to: str, keep: bool = False, rate: Bytes | None = None) -> Moved:
        """Give a volume another pool, on the same host or on another: its name, its UUID, its content and what is kept
        with it stay. Nobody has it meanwhile, or one guest whose hypervisor moves a disk under it. `keep`: leave a
        snapshot where it was. `rate`: bytes a second at most."""
        from storkit.plans.intent.relocating import volumes as relocating

        return relocating.move(self._coordinator, name, to, keep, rate)

    def rename(self, name: str, new: str) -> Volume:
        """Give a volume that no host has another name, and have the guests that it is a disk of name it so."""
        from storkit.plans.intent.relocating import renaming

        return renaming.rename_volume(self._coordinator, name, new)

    def resize(self, name: str, size: Bytes, cut_off: bool = False) -> Resized:
        """Give a volume another size: `+5GiB` is that much more. A larger one also while it is in use; whether its
        guests see it before their next start is in the result. `cut_off`: also a smaller one, whatever is at its
        end."""
        from storkit.plans.intent import resizing

        return resizing.resize(self._coordinator, name, size, cut_off)

    def flatten(self, names: Sequence[str]) -> list[Volume]:
        """Let volumes that no host has stand on no other one: what they were cloned from can be deleted then."""
        names = several(names)

        def build() -> Plan:
            from storkit.plans import planner

            volumes = self._survey.find_all(names)
            return planner.flatten(volumes, self._survey.exports(volumes), self._coordinator.inventory)

        return codec.load(list[Volume], self._coordinator.change(build).of("flatten"), strict=False)

    def delete(self, names: Sequence[str], force: bool = False, if_exists: bool = False) -> list[str]:
        """Delete volumes that no host has, and, without `force`, no guest; their own names. `if_exists`: those that
        are not there are as good as deleted; that they are not must be known of every host."""
        names = several(names)
        if if_exists:
            names = [name for name in names if self._exists(name)]
            if not names:
                return []

        def build() -> Plan:
            from storkit.plans import planner
            from storkit.plans.intent import disks

            volumes = self._survey.find_all(names)
            if not force:
                disks.refuse_to_lose(self._coordinator, volumes, "delete")
                self._refuse_one_of_two([v for name, v in zip(names, volumes, strict=True) if "/" in name])
            return planner.delete(volumes, self._survey.exports(volumes), self._coordinator.inventory)

        self._coordinator.change(build)
        gone = [parts(name)[1] for name in names]
        for name in gone:
            self._survey.hints.drop(name)
        return gone

    def _refuse_one_of_two(self, volumes: list[Volume]) -> None:
        """Raise Unsafe if a pool at the same path has one of these as well, by its UUID: the two are one storage,
        perhaps, which two hosts have mounted. No other pool is asked."""
        pools = self._coordinator.inventory.pools
        problems: list[StorkitError] = []
        for volume in volumes:
            own = pools[volume.pool]
            same = [
                each
                for each in pools.values()
                if each is not own and "path" in own.settings and each.settings.get("path") == own.settings["path"]
            ]
            there = self._survey.volumes([volume.name], same) if same and not closed(volume) else []
            if others := [each.pool for each in there if each.uuid == volume.uuid and not closed(each)]:
                where = " and ".join([volume.pool, *others])
                message = f"pools {where} have volume {volume.name}, with one UUID: one storage, or a copy"
                hint = "take the pool that is not its own out of the inventory; if this is the copy: --force"
                problems.append(Unsafe(message, hint))
        raise_problems(problems)

    def _exists(self, name: str) -> bool:
        try:
            self._survey.volume(name)
        except NotFound:
            return False
        return True

    def listing(self, pool: str = "", long: bool = False) -> Listing:
        """The volumes of a pool, or of all that answer; `long`: with what they take, and whose they are."""
        pools = [self._coordinator.inventory.pool(pool)] if pool else None
        volumes = self._survey.volumes(pools=pools)
        self._warn_of_twins(volumes)
        found = Listing(volumes, [*self._survey.damaged.values()])
        return replace(found, usages=self._survey.usage(pools, volumes=True), guests=self._guests()) if long else found

    def _guests(self) -> dict[str, list[str]]:
        """The guests of each volume, by its UUID."""
        from storkit.plans.intent.kept import sources

        problems: list[StorkitError] = []
        found: dict[str, list[str]] = {}
        for guest in sources.everybody(self._coordinator, problems):
            roots = [guest.root.uuid] if guest.root else []
            for uuid in dict.fromkeys([*(disk.uuid for disk in guest.disks), *roots]):
                found.setdefault(uuid, []).append(guest.name)
        for problem in problems:
            self._coordinator.warn(problem.message)
        return found

    def show(self, name: str) -> VolumeView:
        """A volume, its exports, and what its clients have of it."""
        from storkit.plans import planner

        volume = self._survey.volume(name)
        exports = self._survey.exports([volume])
        attached = self._survey.attachments(hosts_of(exports), [volume])
        there = [attachment for group in attached.values() for attachment in group]
        return VolumeView(volume, sorted(planner.writers_of(exports, volume)), exports, there)

    def _warn_of_twins(self, volumes: list[Volume]) -> None:
        """A name that stands for two volumes, made while a pool could not be asked, is no name to go by."""
        pools: dict[str, list[str]] = {}
        for volume in volumes:
            pools.setdefault(volume.name, []).append(volume.pool)
        for name, places in pools.items():
            if len(places) > 1 and (disk := disk_of([volume for volume in volumes if volume.name == name])):
                others = " and ".join(pool for pool in places if pool != disk.pool)
                self._coordinator.warn(
                    f"volume {name} is being moved: the disk is in pool {disk.pool}, not in {others}"
                )
            elif len(places) > 1:
                self._survey.hints.drop(name)
                whole = " or ".join(f"{pool}/{name}" for pool in places)
                self._coordinator.warn(f"volume {name} is in pool {' and in pool '.join(places)}: write {whole}")
