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
from storkit.core.errors import StorkitError, Unsafe, raise_problems
from storkit.core.model import Volume
from storkit.system import files
from storkit.tech.files import managed
from storkit.tech.files.sidecar import VolumeDirectory
from storkit.tech.grants import GrantStore
from storkit.tech.nbd.names import NbdGrant

_SERVED = ".storkit.served"


class NbdGrants(GrantStore[NbdGrant]):
    """The NBD grants of one host."""

    def __init__(self, site: Site) -> None:
        super().__init__(site, NbdGrant)
        self._site = site
        self.dropped: list[tuple[NbdGrant, str]] = []
        """What was not inherited, and whose it was: of clients that are fenced."""

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

    def alone(self) -> tuple[list[NbdGrant], list[StorkitError]]:
        """Those of volumes that have one host: for them no storage is asked. And an error for each damaged record."""
        found, problems = super().find()
        return [grant for grant in found if not grant.volume.term], problems

    def stored(self, uuids: Iterable[str]) -> list[NbdGrant]:
        """Those that this host has a record of, whether they count or not."""
        return super().find(uuids)[0]

    def several(self) -> tuple[list[NbdGrant], list[StorkitError]]:
        """Those that count of volumes that have several managers, and an error where that cannot be said."""
        uuids = [grant.volume.uuid for grant in super().find()[0] if grant.volume.term]
        return self.find(uuids)

    def _counts(self, grant: NbdGrant) -> bool:
        return not grant.volume.term or managed.has(self._host, grant.volume)

    def save(self, grants: Iterable[NbdGrant]) -> None:
        # The copy first: a right that is taken has to be gone for whoever takes over as well.
        wanted = list(grants)
        for directory, shared in _by_directory(wanted):
            with directory.locked(f"save what {self._host} grants"):
                # A command that hung may come here when another manager has the volume, and its copy.
                raise_problems([_lost(grant, self._host) for grant in shared if not self._counts(grant)])
                for grant in shared:
                    path = copy_of(grant.volume)
                    files.make_private(path.parent)
                    files.write_atomic(path, codec.text(grant))
        super().save(wanted)

    def forget(self, uuids: Iterable[str]) -> None:
        gone = list(uuids)
        shared = [grant for grant in super().find(gone)[0] if grant.volume.term]
        mine: list[NbdGrant] = []
        for directory, group in _by_directory(shared):
            with directory.locked(f"forget what {self._host} granted"):
                mine += (left := [grant for grant in group if self._counts(grant)])
                for grant in left:
                    copy_of(grant.volume).unlink(missing_ok=True)
        # The name goes before the record: without it, the record counts for nothing.
        managed.give_up(
            self._site, [grant.volume for grant in mine], {grant.volume.uuid: grant.generation for grant in mine}
        )
        super().forget(gone)

    def drop(self, uuids: Iterable[str]) -> None:
        """Forget what does not count, here alone."""
        super().forget(uuids)

    def inherit(self, volume: Volume) -> tuple[bool, int]:
        """Save what was granted of a volume by whoever had it before as a grant of this host, in the term in which it
        comes to have the volume. The directory's lock is held. Nothing is saved where nobody is left that was not
        fenced, and the copy goes.

        Returns whether there is a grant, and the generation of the right that was given last.
        """
        if (grant := self.copied(volume)) is None:
            return False, 0
        self.dropped += [(grant, name) for name in grant.clients if self.fenced(name)]
        if (left := self.without_fenced(grant)).clients:
            super().save([left])
        else:
            copy_of(volume).unlink(missing_ok=True)
        return bool(left.clients), grant.generation

    def copied(self, volume: Volume) -> NbdGrant | None:
        """What is granted of a volume by the copy beside it, as a grant of this host; None: there is no copy."""
        path = copy_of(volume)
        files.look_anew(path.parent)
        try:
            read = files.read_json(path, "the shared NBD grant")
        except FileNotFoundError:
            return None
        grant = codec.load(NbdGrant, read, str(path), strict=False)
        if grant.volume.uuid != volume.uuid:
            raise Unsafe(f"{path} is that of another volume, {grant.volume.uuid}", "move it away")
        # Epochs are each host's own; generations are the volume's.
        return replace(grant, volume=volume, epoch=self._epoch)


def _lost(grant: NbdGrant, host: str) -> StorkitError:
    message = f"volume {grant.volume.name} is not {host}'s to serve any more: another manager has it"
    return Unsafe(message, f"storkit volume show {grant.volume.name}")


def _by_directory(grants: Iterable[NbdGrant]) -> list[tuple[VolumeDirectory, list[NbdGrant]]]:
    """The grants of volumes of several managers, by the directory that those share."""
    groups: dict[Path, list[NbdGrant]] = {}
    for grant in grants:
        if grant.volume.term:
            groups.setdefault(Path(grant.volume.path).parent, []).append(grant)
    return [(VolumeDirectory(path, shared=True), group) for path, group in groups.items()]


def copy_of(volume: Volume) -> Path:
    """Where the grant of a volume is kept beside it."""
    return Path(volume.path).parent / _SERVED / f"{volume.uuid}.json"
