"""What a transport can be asked: at the home host to export and to give rights, at a client to attach."""

from __future__ import annotations

from abc import abstractmethod
from typing import TYPE_CHECKING, Final

from storkit.core.contracts.backends import BackendVerbs
from storkit.core.host import Door
from storkit.core.identities import (
    ClientName,
    Count,
    Hex,
    MaybeUuid,
    Size,
    Uuid,
)
from storkit.core.model import AttachedHere, Attachment, Client, DiskSource, Evidence, Export, Exported, Offer, Volume

if TYPE_CHECKING:
    pass


class TransportVerbs(BackendVerbs):
    """The verbs of a transport. `export`, `unexport`, `find_exports`, `look_exports`, `offers`, `set_writers`, `fence`
    and `unfence` run at the volume's home host; `attach`, `claim`, `detach`, `find_attachments`, `look_attachments` and
    `evidence` at the client; `restore` on every host."""

    @abstractmethod
    def doors(self) -> list[Door]:
        """Say where this host's servers listen for hosts on other machines; none: they are not of this host."""

    @abstractmethod
    def export(self, volumes: list[Volume], clients: list[Client]) -> list[Export]:
        """Offer volumes to hosts, for reading only: `set_writers` says who writes. Existing rights stay as they are."""

    @abstractmethod
    def take_over(self, volumes: list[Volume]) -> list[Export]:
        """At another manager of their pool: serve volumes that a barred one (PoolVerbs.bar) has served, to the same
        clients under the same names, with the same rights. Called again it goes on.

        Returns:
            All exports of these volumes.

        Raises:
            Unsafe: a manager that serves one of them is not barred.
            Conflict: the storage still has its lock: it may be alive.
            Unsupported: this transport serves no volumes of several managers.
        """

    @abstractmethod
    def grow(self, volumes: list[Volume]) -> None:
        """Show volumes that were made larger at the sizes in `volumes`, to all that have them; they go on writing. An
        image that the server itself has open (qcow2) becomes larger by this.

        Raises:
            Unsupported: this transport cannot, as long as anybody has them.
            Conflict: one of them is to become smaller.
        """

    @abstractmethod
    def unexport(self, volumes: list[Volume], clients: list[ClientName]) -> None:
        """Take the offer back, and cut the client's connections. When no client is left, the server is stopped."""

    @abstractmethod
    def look_exports(self, volumes: list[Uuid] | None = None) -> Exported:
        """Look for the exports of the volumes with these UUIDs (None: all of this host).

        Returns:
            The exports as the servers have them now, and the damaged records apart.
        """

    @abstractmethod
    def find_exports(self, volumes: list[Uuid] | None = None) -> list[Export]:
        """As `look_exports`, for those who need every one of them.

        Raises:
            Unsafe: a record is damaged.
        """

    @abstractmethod
    def offers(self, volumes: list[Volume], client: ClientName) -> list[Offer]:
        """Say what `client` needs for `attach`, its credential included.

        Raises:
            NotFound: a volume is not exported to it.
        """

    @abstractmethod
    def set_writers(
        self, volumes: list[Volume], hosts: list[ClientName], hold: MaybeUuid = "", fills: bool = False
    ) -> None:
        """Let exactly `hosts` write these volumes from now on; the server refuses everyone else.

        Rights are taken before others are given: when this returns, no write of a host that lost its right can still
        reach the disk. Hosts must have an export. Each time that a host gains the right, the volume's generation grows.

        Args:
            volumes: whose writers they are.
            hosts: all writers.
            hold: the id of the hold of a sleeping guest: who wakes it has that.
            fills: the volumes are copies that the one host of `hosts` fills, for the guest that has their disk there.

        Raises:
            Unsafe: an image or a snapshot with any writer, or a volume whose import has not ended, or that is
                moved.
            Conflict: a sleeping guest holds a volume of which a host is to gain the right, and `hold` is not its id; or
                `hold` is given, and a volume is not held by it.
        """

    @abstractmethod
    def attach(self, offers: list[Offer]) -> list[Attachment]:
        """Make volumes available at their stable paths, after the server has shown the identity in the offer.

        Raises:
            Unsafe: the server shows another identity.
            ServiceUnreachable: the server does not answer.
        """

    @abstractmethod
    def claim(self, volumes: list[Volume], writers: list[ClientName]) -> None:
        """At a client that `set_writers` has made one of `writers`: make its attachments of these volumes writable.

        What `attach` did with an offer that was for reading is done over under whoever has the path open. Volumes that
        are not attached here are fine.
        """

    @abstractmethod
    def detach(self, volumes: list[Volume]) -> None:
        """Remove the stable paths and credentials, also when the server is gone."""

    @abstractmethod
    def look_attachments(self, volumes: list[Uuid] | None = None) -> AttachedHere:
        """Look for the attachments on this host of the volumes with these UUIDs (None: all).

        Returns:
            The attachments, and the damaged records apart.
        """

    @abstractmethod
    def find_attachments(self, volumes: list[Uuid] | None = None) -> list[Attachment]:
        """As `look_attachments`, for those who need every one of them.

        Raises:
            Unsafe: a record is damaged.
        """

    @abstractmethod
    def evidence(self, volumes: list[Volume], offsets: list[Size] | None = None) -> list[Evidence]:
        """Say what this host sees of its attachments: identity, size, and the digests of 4 KiB blocks.

        The blocks are read from the server, never from a cache of this host.

        Args:
            volumes: what is attached here.
            offsets: bytes, multiples of 4096; None: a spread chosen from the volume's size and UUID, the same on every
                host.
        """

    @abstractmethod
    def sources(self, offers: list[Offer]) -> list[DiskSource]:
        """Say how a QEMU of this host opens volumes at their servers by itself, after each server has shown the
        identity in the offer. Nothing is attached, and what is attached stays; credentials are kept until `attach` or
        `detach`.

        Raises:
            Unsafe: a server shows another identity.
            Unsupported: QEMU does not speak this transport.
        """

    @abstractmethod
    def digests(self, volume: Volume, client: ClientName, offset: Size, length: Size, block: Count) -> list[Hex]:
        """At the home host: read a part of a volume as its server gives it to `client`, who may be writing it.

        Args:
            volume: which one.
            client: has an export of it.
            offset: bytes, where to begin.
            length: bytes, as far as there are.
            block: bytes of which there is one digest (SHA-256) each, in order.

        Raises:
            Unsupported: this transport's servers cannot be asked so.
        """

    @abstractmethod
    def fence(self, client: ClientName) -> list[Export]:
        """Cut `client` off every volume of this host, and refuse it until `unfence`.

        Returns:
            The exports that it had.
        """

    @abstractmethod
    def restore(self) -> list[Export]:
        """After a reboot: start the servers of everything granted on this host again, with the same rights, and make
        its attachments again."""

    @abstractmethod
    def unfence(self, client: ClientName) -> None:
        """Let a fenced host be exported to again; it gets no export back by itself."""


RIGHTS: Final = frozenset({"export", "unexport", "take_over", "set_writers", "fence", "unfence"})
"""The verbs of transports that say who may have a volume, and who may write it: they carry the epoch."""
