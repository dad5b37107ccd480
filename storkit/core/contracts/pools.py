"""What a pool can be asked: to make volumes, copy, change and delete them."""

from __future__ import annotations

from abc import abstractmethod
from typing import TYPE_CHECKING

from storkit.core.contracts.backends import BackendVerbs
from storkit.core.identities import (
    Count,
    HostName,
    Line,
    Uuid,
    VolumeName,
)
from storkit.core.model import (
    Adoptable,
    Existing,
    PoolContent,
    Usage,
    Volume,
)

if TYPE_CHECKING:
    from storkit.core.guest import KeptGuest, KeptHere


class PoolVerbs(BackendVerbs):
    """The verbs of a pool, at the host that it is on."""

    @abstractmethod
    def look(self, names: list[VolumeName] | None = None) -> PoolContent:
        """Look for volumes: all of this pool, or those of `names` that exist.

        Returns:
            The volumes by name order, and the damaged ones apart.

        Raises:
            StorkitError: the whole pool cannot be looked at (a directory or volume group is not there).
        """

    @abstractmethod
    def find(self, names: list[VolumeName] | None = None) -> list[Volume]:
        """As `look`, for those who need every one of these volumes.

        Raises:
            Unsafe: one of them is damaged.
        """

    @abstractmethod
    def create(self, volumes: list[Volume]) -> list[Volume]:
        """Make empty volumes of the given names, UUIDs, sizes and kinds; they read as zeros. All or none.

        Raises:
            Conflict: another UUID has the name, or there is no room. Nothing is left behind.
        """

    @abstractmethod
    def import_tree(self, volumes: list[Volume], source: Line) -> list[Volume]:
        """Make a volume of kind `tree` with the content of `source`, a tar or a directory on this host. All or none.

        Raises:
            Unsupported: the pool has no trees.
        """

    @abstractmethod
    def clone(self, source: Volume, volumes: list[Volume]) -> list[Volume]:
        """Make volumes with the content of `source`, by the cheapest means there is. All or none.

        A clone may be larger than its source, never smaller.

        Returns:
            The volumes; `made` of each says by which means.

        Raises:
            Conflict: as `create`; or somebody writes the source.
        """

    @abstractmethod
    def snapshot(self, source: Volume, volumes: list[Volume]) -> list[Volume]:
        """Keep `source` as it is now under new names, as volumes of kind `snapshot`."""

    @abstractmethod
    def resize(self, volumes: list[Volume], shrink: bool = False, served: bool = False) -> list[Volume]:
        """Give existing volumes the sizes in `volumes`.

        Args:
            volumes: as they are to be.
            shrink: a smaller size is meant, and cuts bytes off.
            served: they become larger under those who have them open. What only such a one can do itself (a qcow2
                image) has been done already.

        Raises:
            Conflict: one is in use, and not `served`.
        """

    @abstractmethod
    def rename(self, volumes: list[Volume], names: list[VolumeName]) -> list[Volume]:
        """Give existing volumes these names, in the same order; all else of them stays. Called again, with the volumes
        as they were, it goes on.

        Raises:
            Conflict: a name is taken, a volume is in use or held, or others find its bytes by its name.
        """

    @abstractmethod
    def flatten(self, volumes: list[Volume]) -> list[Volume]:
        """Make existing volumes stand on no other one's bytes; what they read as stays. Those that do are left as they
        are. Each is done by itself, whole or not at all; called again it goes on. Not for volumes in use.

        Raises:
            Conflict: a volume is in use, or there is no room.
        """

    @abstractmethod
    def relabel(self, volumes: list[Volume]) -> list[Volume]:
        """Set the kind, `made`, the origin and the checksum of existing volumes; nobody can write an image from then
        on."""

    @abstractmethod
    def hold(self, volumes: list[Volume]) -> list[Volume]:
        """Keep the `hold` of each of `volumes` with the existing one's metadata, and its generation; durable. All or
        none.

        A volume that is held is not resized, relabelled or deleted, and no transport gives a new right to write it.

        Raises:
            Conflict: another sleep holds one of them.
        """

    @abstractmethod
    def release(self, volumes: list[Volume], hold: Uuid) -> list[Volume]:
        """End the hold of this id; the generation stays with the volume. One that has ended already is fine.

        Raises:
            Conflict: another sleep holds one of them. Then none is ended.
        """

    @abstractmethod
    def delete(self, volumes: list[Volume]) -> None:
        """Delete volumes; those that are gone already are fine.

        Raises:
            Conflict: a volume is in use or held, or others depend on its bytes. Then none is deleted.
        """

    @abstractmethod
    def bar(self, manager: HostName) -> None:
        """Note, durably and for all managers of this pool, that one of them is off: it changes and serves nothing until
        `unbar`, also if it comes back. What it served may be taken over from then on (TransportVerbs.take_over).

        Raises:
            Unsupported: the pool has one host.
            UsageError: that host is no manager of it, or the one that is asked.
        """

    @abstractmethod
    def unbar(self, manager: HostName) -> None:
        """Let a manager act again; one that was not barred is fine. What was taken over from it stays where it is."""

    @abstractmethod
    def adoptable(self, found: list[Existing]) -> list[Adoptable]:
        """Look at bytes that are no volumes yet, as `adopt` would; nothing is changed.

        Raises:
            NotFound: this pool has no such things.
            StorkitError: everything else that speaks against making them volumes.
        """

    @abstractmethod
    def adopt(self, volumes: list[Volume], found: list[Existing]) -> list[Volume]:
        """Make volumes of what is there, each of its own of `found`, and copy nothing. All or none; called again it
        goes on.

        Args:
            volumes: names and UUIDs; sizes and formats are as they are found.
            found: in the same order.

        Returns:
            The volumes; `was` of each says where it lay.

        Raises:
            StorkitError: as `adoptable`; or a name is taken.
        """

    @abstractmethod
    def disown(self, volumes: list[Volume]) -> list[Line]:
        """Give volumes back: their bytes stay, at the place that they were adopted from, and are volumes no more. All
        or none; those that are no volumes already are fine.

        Returns:
            Where the bytes of each are; empty for those.

        Raises:
            Conflict: a volume is in use or held, others depend on its bytes, or its old place is taken.
        """

    @abstractmethod
    def capacity(self, volumes: bool = False) -> Usage:
        """Say how full the pool is, with warnings (over-commitment, little room, damaged volumes); with `volumes` also
        what each takes of it."""

    @abstractmethod
    def kept(self, volumes: list[Uuid] | None = None) -> KeptHere:
        """Look for the guests that are kept with volumes of these UUIDs, or with any: the newest generation of each,
        without its texts, those that were deleted among them.

        Raises:
            Unsupported: the pool keeps no guests.
        """

    @abstractmethod
    def texts(self, volumes: list[Uuid], generation: Count = 0) -> list[KeptGuest]:
        """Read what is kept with volumes of these UUIDs, with its texts; what there is not is left out.

        Args:
            generation: this one of each, of the last ten; 0: the newest.

        Raises:
            Unsafe: what is kept with one of them is damaged.
        """

    @abstractmethod
    def keep(self, guests: list[KeptGuest], carried: bool = False) -> None:
        """Keep a new generation of each of these guests, durable; the last ten are there. All or none.

        Args:
            guests: the generations.
            carried: another pool kept them, and their volumes have come from there: the first may have any number.

        Raises:
            Conflict: the generation is not the one that follows the newest, since somebody else has kept one; another
                guest has the volume; or the pool has no such volume.
            UsageError: the texts are too large.
        """

    @abstractmethod
    def unkeep(self, guests: list[KeptGuest]) -> None:
        """Take the generations of these guests back; those that are gone already are fine.

        Raises:
            Conflict: one of them is not the newest any more. Then none is taken back.
        """
