"""Pool `directory`: volumes are files in a directory of any local or shared file system (tech/files/pool.py)."""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path
from typing import ClassVar

from storkit.core.backend import HOSTS
from storkit.core.errors import UsageError
from storkit.tech.files.pool import FilePool, FilePoolSettings


@dataclass(frozen=True)
class DirectorySettings(FilePoolSettings):
    """The keys of a directory pool in the inventory."""

    managers: list[str] = field(default_factory=list, metadata=HOSTS)
    """`hosts` in the inventory: those that share the directory (tech/files/managed.py); empty: one host has it."""

    def __post_init__(self) -> None:
        if self.managers and self.others_write:
            raise UsageError("others_write is not for a pool with several managers", "leave it out")
        if self.managers and not self.path:
            raise UsageError("a pool with several managers needs the path of its directory", 'path = "/mnt/nas/pool"')


class Directory(FilePool):
    """A directory of volume files."""

    name: ClassVar[str] = "directory"
    several = True
    Settings: ClassVar[type] = DirectorySettings
    settings: DirectorySettings

    @property
    def path(self) -> Path:
        return Path(self.settings.path) if self.settings.path else self.site.state / "volumes"

    @property
    def _managers(self) -> list[str]:
        return self.settings.managers
