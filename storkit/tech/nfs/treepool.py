"""Directory pools that hold trees: guests' root file systems as directories, NAME.tree, beside the volumes' files."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import replace
from pathlib import Path
from typing import Final

from storkit.core.errors import Conflict, StorkitError, Unsupported, raise_problems
from storkit.core.model import Volume
from storkit.system import files, locks
from storkit.tech.files import trees
from storkit.tech.files.deriving import derived, fresh
from storkit.tech.files.pool import FilePool
from storkit.tech.files.sidecar import VERSION, Sidecar, VolumeDirectory
from storkit.tech.nfs import attach

TREE: Final = "tree"


class TreeDirectory(FilePool):
    """A directory of volume files and trees. A tree's size is what its files took when it was made."""

    def import_tree(self, volumes: list[Volume], source: str) -> list[Volume]:
        if not self._found(volumes):
            if not self._exists():
                files.make_private(self.path)
            trees.inspect(source, self.path)
        with self._naming("import", volumes) as (directory, todo):
            made = [Sidecar(VERSION, fresh(volume, TREE, "imported")) for volume in todo]
            self._build(directory, made, lambda target: trees.fill(source, target))
        return self._found(volumes)

    def clone(self, source: Volume, volumes: list[Volume]) -> list[Volume]:
        if not self._is_tree(source):
            return super().clone(source, volumes)
        with self._naming("clone", volumes) as (directory, todo):
            (origin,) = directory.known([source])
            use = locks.acquire(
                locks.use_lock(self.site.run, source.uuid), f"volume {source.name}", shared=True, holder="clone"
            )
            try:
                raise_problems(self._exported(origin.volume, "cloned") + self._mounted(origin.volume, "cloned"))
                made = "reflink" if trees.shares_blocks(self.path) else "copy"
                there = directory.data(source.name, TREE) / trees.ROOT
                copies = [Sidecar(VERSION, derived(origin, each, TREE, made)) for each in todo]
                self._build(directory, copies, lambda target: trees.copy(there, target))
            finally:
                use.release()
        return self._found(volumes)

    def snapshot(self, source: Volume, volumes: list[Volume]) -> list[Volume]:
        if self._is_tree(source):
            message = f"volume {source.name} is a tree, and no file system keeps one moment of a directory"
            raise Unsupported(message, f"stop its guest, then: storkit volume clone {source.name} NEW")
        return super().snapshot(source, volumes)

    def resize(self, volumes: list[Volume], shrink: bool = False, served: bool = False) -> list[Volume]:
        raise_problems(
            [
                Unsupported(f"volume {volume.name} is a tree: it has the room of its pool's file system", "df -h")
                for volume in volumes
                if self._is_tree(volume)
            ]
        )
        return super().resize(volumes, shrink, served)

    def relabel(self, volumes: list[Volume]) -> list[Volume]:
        raise_problems(
            [
                Unsupported(f"volume {volume.name} is a tree, and cannot become another kind of volume")
                for volume in volumes
                if self._is_tree(volume)
            ]
        )
        return super().relabel(volumes)

    def _is_tree(self, volume: Volume) -> bool:
        return any(sidecar.volume.kind == TREE for sidecar in self._sidecars([volume.name]))

    def _in_use(self, volume: Volume, what: str) -> list[StorkitError]:
        return super()._in_use(volume, what) + self._mounted(volume, what)

    def _mounted(self, volume: Volume, what: str) -> list[StorkitError]:
        """Whoever has worked in a tree by chroot(1) may have left this host's /dev there, which is not the volume's."""
        if volume.kind != TREE:
            return []
        tree = self._files.data(volume.name, TREE).resolve()
        points = [mount.point for mount in attach.mounts() if Path(mount.point).is_relative_to(tree)]
        return [
            Conflict(f"volume {volume.name} cannot be {what}: something is mounted at {point}", f"umount {point}")
            for point in reversed(points)
        ]

    def _exported(self, volume: Volume, what: str) -> list[StorkitError]:
        """Why a tree cannot be read as it is, if a guest has it."""
        return []

    def _volume(self, sidecar: Sidecar) -> Volume:
        volume = super()._volume(sidecar)
        return replace(volume, path=f"{volume.path}/{trees.ROOT}") if volume.kind == TREE else volume

    @contextmanager
    def _naming(self, verb: str, volumes: Sequence[Volume]) -> Iterator[tuple[VolumeDirectory, list[Volume]]]:
        """Hold the names of trees that are still to be made, while the directory is free for others."""
        with ExitStack() as stack:
            with self._locked(verb) as directory:
                todo = directory.admit(volumes, TREE)
                for volume in todo:
                    claim = locks.acquire(directory.claim(volume.name), f"volume {volume.name}", holder=verb)
                    stack.callback(claim.release)
                    stack.callback(directory.discard, volume.name, mine=True)
            yield directory, todo

    def _build(self, directory: VolumeDirectory, made: list[Sidecar], fill: Callable[[Path], None]) -> None:
        """Make each tree under another name by `fill`, then all of them volumes; nothing is left on any error."""
        measured = []
        try:
            for number, sidecar in enumerate(made):
                name = sidecar.volume.name
                self.site.progress(number / len(made), f"making the files of {name}")
                making = directory.making(name, TREE)
                target = making / trees.ROOT
                making.mkdir(mode=0o700)
                target.mkdir(mode=0o755)
                fill(target)
                measured.append(replace(sidecar, volume=replace(sidecar.volume, kind=TREE, size=trees.used(target))))
            with self._locked("make trees"):
                directory.publish(measured)
        except OSError as error:
            raise files.explain(error, self.path) from error
