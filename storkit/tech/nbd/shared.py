"""The grants of volumes of several managers: also kept beside the volumes, for whoever takes them over.

A host's own grant of such a volume counts for as long as the host has the volume, in the term that the grant is of
(storkit.tech.files.managed). One of another term is what a host was granting when it lost its power, and what another
manager serves by now: it is never served again, and `stale` finds it. The copy in the pool's directory goes from one
manager to the next: the same clients, under the same names, with the same rights. Keys are not in it.
"""

from __future__ import annotations

from collections.abc import Iterable
from contextlib import suppress
from dataclasses import replace
from pathlib import Path

from storkit.core import codec
from storkit.core.backend import Site
from storkit.core.errors import StorkitError, Unsafe
from storkit.core.model import Volume
from storkit.system import files
from storkit.tech.files import managed
from storkit.tech.grants import GrantStore
from storkit.tech.nbd.names import NbdGrant

_SERVED = ".storkit.served"


class NbdGrants(GrantStore[NbdGrant]):
    """The NBD grants of one host."""

    def __init__(self, site: Site) -> None:
        super().__init__(site, NbdGrant)
        self._site = site

    def find(self, uuids: Iterable[str] | None = None) -> tuple[list[NbdGrant], list[StorkitError]]:
        """As GrantStore.find, for those that count."""
        found, problems = super().find(uuids)
        counting: list[NbdGrant] = []
        for grant in found:
            try:
                if self._counts(grant):
                    counting.append(grant)
            except StorkitError as error:
                problems.append(error)
        return counting, problems

    def stale(self, uuids: Iterable[str] | None = None) -> list[NbdGrant]:
        """Those that do not count any more. Where the directory cannot be read that is not known of any."""
        found: list[NbdGrant] = []
        for grant in super().find(uuids)[0]:
            with suppress(StorkitError):
                found += [] if self._counts(grant) else [grant]
        return found

    def _counts(self, grant: NbdGrant) -> bool:
        return not grant.volume.term or managed.has(self._host, grant.volume)

    def save(self, grants: Iterable[NbdGrant]) -> None:
        # The copy first: a right that is taken has to be gone for whoever takes over as well.
        wanted = list(grants)
        for grant in wanted:
            if grant.volume.term:
                path = copy_of(grant.volume)
                files.make_private(path.parent)
                files.write_atomic(path, codec.text(grant))
        super().save(wanted)

    def forget(self, uuids: Iterable[str]) -> None:
        gone = list(uuids)
        shared = [grant for grant in super().find(gone)[0] if grant.volume.term]
        mine = [grant for grant in shared if self._counts(grant)]
        for grant in mine:
            copy_of(grant.volume).unlink(missing_ok=True)
        # The name goes before the record: without it, the record counts for nothing.
        managed.give_up(
            self._site, [grant.volume for grant in mine], {grant.volume.uuid: grant.generation for grant in mine}
        )
        super().forget(gone)

    def drop(self, uuids: Iterable[str]) -> None:
        """Forget what does not count, here alone."""
        super().forget(uuids)

    def inherited(self, volumes: Iterable[Volume]) -> list[NbdGrant]:
        """What was granted of these volumes by whoever had them before, as grants of this host."""
        found = []
        for volume in volumes:
            with suppress(FileNotFoundError):
                path = copy_of(volume)
                files.look_anew(path.parent)
                grant = codec.load(NbdGrant, files.read_json(path, "the shared NBD grant"), str(path), strict=False)
                if grant.volume.uuid != volume.uuid:
                    raise Unsafe(f"{path} is that of another volume, {grant.volume.uuid}", "move it away")
                # Epochs are each host's own; generations are the volume's.
                grant = replace(grant, volume=volume, epoch=self._epoch)
                found.append(self.without_fenced(grant))
        return found


def copy_of(volume: Volume) -> Path:
    """Where the grant of a volume is kept beside it."""
    return Path(volume.path).parent / _SERVED / f"{volume.uuid}.json"
