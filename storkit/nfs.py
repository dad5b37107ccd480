"""Pool and transport `nfs`: volumes are files on an NFS server, and each client host mounts its own view of a volume.

The pool is a directory pool whose volumes can be exported. For each volume and client there is a directory with a hard
link to the volume's file; it is exported to that client's address alone, read-only or writable: so the server decides
for each host and each volume. At the client the stable path is a link to the file in the mounted directory. The home
host's own guests come through a mount too, so that their right can be taken as any other.

A pool on an NFS server that storkit does not manage (`server = "nas:/path"`) has the same directories; there nobody
checks who writes, which the inventory has to accept (`enforce = "locks"`).

A tree is exported itself, to its guest's address alone: the guest is the client, wherever it runs (docs/nfs.md).
"""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import ClassVar

from storkit.core.backend import Needs, path_setting, program_setting
from storkit.core.errors import Conflict, StorkitError, Unsupported, UsageError
from storkit.core.host import Door
from storkit.core.model import AttachedHere, Attachment, Evidence, Finding, Offer, Volume
from storkit.tech.exports import HomeSide
from storkit.tech.files.pool import FilePoolSettings
from storkit.tech.files.sidecar import VolumeDirectory
from storkit.tech.grants import GrantStore
from storkit.tech.nfs import attach as nfs_attach
from storkit.tech.nfs import server as nfs_server
from storkit.tech.nfs.attach import NfsAttachments
from storkit.tech.nfs.exports import NfsExports
from storkit.tech.nfs.names import EXPORTS, NfsGrant, NfsSettings
from storkit.tech.nfs.treepool import TreeDirectory


@dataclass(frozen=True)
class NfsPoolSettings(FilePoolSettings):
    """The keys of an nfs pool in the inventory: those of a directory pool, and these."""

    server: str = path_setting()
    """SERVER:/PATH of an NFS server that storkit does not manage; empty: the pool's host is the server."""
    options: str = program_setting("vers=4.2")
    """Mount options for `server`, for the pool's host."""

    def __post_init__(self) -> None:
        host, _, path = self.server.rpartition(":/")
        if self.server and (not host or not path):
            raise UsageError(f"nfs: server {self.server!r} names no directory of a server", "write SERVER:/PATH")


class NfsPool(TreeDirectory):
    """A directory of volume files and trees that NFS exports."""

    name: ClassVar[str] = "nfs"
    transport: ClassVar[str] = "nfs"
    Settings: ClassVar[type] = NfsPoolSettings
    settings: NfsPoolSettings

    @property
    def path(self) -> Path:
        if self.settings.path:
            return Path(self.settings.path)
        if self.settings.server:
            return self.site.run / "nfs" / f"pool-{self.pool}"
        return self.site.state / "nfs-volumes"

    def _exists(self) -> bool:
        if self.settings.server and not self.path.is_mount():
            server, _, path = self.settings.server.rpartition(":/")
            nfs_attach.mount(
                server.strip("[]"), f"/{path}", self.path, f"{self.settings.options},{nfs_attach.HARMLESS}"
            )
        return super()._exists()

    @contextmanager
    def _locked(self, verb: str, act: bool = True) -> Iterator[VolumeDirectory]:
        if self.settings.server and self._exists() and not os.access(self.path, os.W_OK | os.X_OK):
            message = f"the NFS server lets host {self.site.host} change nothing in {self.settings.server}"
            raise Conflict(message, "export it there with rw and no_root_squash: exports(5)")
        with super()._locked(verb) as directory:
            (directory.path / EXPORTS).mkdir(mode=0o711, exist_ok=True)
            yield directory

    def import_tree(self, volumes: list[Volume], source: str) -> list[Volume]:
        if self.settings.server:
            message = f"pool {self.pool} is on a server that storkit does not manage, which exports no tree to a guest"
            raise Unsupported(message, "use a pool whose host is the NFS server")
        return super().import_tree(volumes, source)

    def _in_use(self, volume: Volume, what: str) -> list[StorkitError]:
        return self._exported(volume, what) or super()._in_use(volume, what)

    def _exported(self, volume: Volume, what: str) -> list[StorkitError]:
        grants, problems = GrantStore(self.site, NfsGrant).find([volume.uuid])
        if any(grant.clients for grant in grants):
            hint = f"see who has it: storkit volume show {volume.name}"
            problems.append(Conflict(f"volume {volume.name} is exported and cannot be {what}", hint))
        return problems


class Nfs(HomeSide):
    """NFS by the kernel's server and client."""

    name = "nfs"
    needs = Needs(
        tools={"exportfs": nfs_server.PACKAGE, "mount.nfs": nfs_attach.PACKAGE}, modules=("nfsd", "nfs", "nfsv4")
    )
    Settings: ClassVar[type] = NfsSettings
    settings: NfsSettings

    def ready(self, serves: bool = False, attaches: bool = False) -> list[Finding]:
        found = []
        if os.geteuid() and (serves or attaches):
            message = "NFS is served and mounted by root alone, which this user is not"
            found.append(Finding(message, "reach this host as root"))
        if attaches and not nfs_attach.knows_tcp():
            found.append(Finding(*nfs_attach.NO_TCP))
        return found

    def doors(self) -> list[Door]:
        # Where only locks keep hosts apart, the server is somebody else's.
        return [] if self.settings.enforce == "locks" else [Door(self.site.address, nfs_attach.PORT, nfs_attach.PORT)]

    @cached_property
    def _exports(self) -> NfsExports:
        return NfsExports(self.site, self.settings)

    @cached_property
    def _attachments(self) -> NfsAttachments:
        return NfsAttachments(self.site, self.settings)

    # At the client.

    def attach(self, offers: list[Offer]) -> list[Attachment]:
        return self._attachments.attach(offers)

    def detach(self, volumes: list[Volume]) -> None:
        self._attachments.detach(volumes)

    def look_attachments(self, volumes: list[str] | None = None) -> AttachedHere:
        return self._attachments.look(volumes)

    def evidence(self, volumes: list[Volume], offsets: list[int] | None = None) -> list[Evidence]:
        return self._attachments.evidence(volumes, offsets)
