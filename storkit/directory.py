"""Pool `directory`: volumes are files in a directory of any local or shared file system (tech/files/pool.py)."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import ClassVar

from storkit.tech.files.pool import FilePool, FilePoolSettings


@dataclass(frozen=True)
class DirectorySettings(FilePoolSettings):
    """The keys of a directory pool in the inventory."""


class Directory(FilePool):
    """A directory of volume files."""

    name: ClassVar[str] = "directory"
    Settings: ClassVar[type] = DirectorySettings
    settings: DirectorySettings

    @property
    def path(self) -> Path:
        return Path(self.settings.path) if self.settings.path else self.site.state / "volumes"
