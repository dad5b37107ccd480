"""What a host can be asked itself, and of its image files."""

from __future__ import annotations

from abc import ABC, abstractmethod
from typing import TYPE_CHECKING

from storkit.core.host import Claim, Declared, Drained, Facts, Listening, Locked, Neighbour
from storkit.core.identities import (
    AbsolutePath,
    ClientName,
    Count,
    HostName,
    Line,
    Mac,
    MaybeAddress,
    Port,
    Uuid,
    Word,
    Words,
)
from storkit.core.imagefiles import Examined, FileToLay, ImageFile, ImageInfo, Inside, Laid, Piece
from storkit.core.model import Attachment, Volume

if TYPE_CHECKING:
    pass


class ImageVerbs(ABC):
    """The verbs of disk images (storkit.images), at the host that the file is on."""

    @abstractmethod
    def inspect(self, source: Line, format: Word = "", checksum: Line = "", max_size: Count = 0) -> ImageInfo:
        """Look at an image file; nothing is changed.

        Args:
            source: the file.
            format: only where a file must be taken as raw though it looks like something else.
            checksum: `sha256:HEX` or `sha512:HEX` of the file as it is.
            max_size: the largest disk that is let in, in bytes; 0: 64 TiB.

        Raises, together:
            NotFound: there is no such file.
            UsageError: it is damaged, truncated, too large, or has another checksum.
            Unsafe: it points to other files.
            Unsupported: no format that storkit reads.
        """

    @abstractmethod
    def fill(
        self, volume: Volume, source: Line, format: Word = "", checksum: Line = "", max_size: Count = 0
    ) -> ImageInfo:
        """Write the image `source` into `volume`, which must be marked as importing; it starts anew when called again.

        What lies beyond the image's end reads as zeros.

        Raises:
            StorkitError: as `inspect`.
            Conflict: no room, or the volume is in use.
            Unsafe: the file was changed meanwhile, or the volume is not one that is being imported.
        """

    @abstractmethod
    def refill(self, volumes: list[Volume], rate: Count = 0) -> None:
        """Give the first of two volumes, which must be marked as importing, the content of the second; it starts anew
        when called again. What lies beyond that reads as zeros.

        Args:
            volumes: the one that is written, and the one that is read.
            rate: bytes a second at most; 0: as many as there can be.

        Raises:
            Conflict: no room, or the first is in use.
            Unsafe: it is not marked.
            UsageError: it is smaller than the second.
        """

    @abstractmethod
    def pull(self, volume: Volume, attached: Attachment, rate: Count = 0) -> None:
        """Give a volume, which must be marked as importing, the content of the volume of the same UUID that is attached
        here, from another host; it starts anew when called again.

        Args:
            volume: the one that is written.
            attached: which attachment; where it leads is what this host knows of it.
            rate: bytes a second at most; 0: as many as there can be.

        Raises:
            Conflict: no room, or the volume is in use.
            NotFound: it is not attached here.
            Unsafe: the volume is not marked, or is another one.
        """

    @abstractmethod
    def digest(self, volume: Volume) -> Line:
        """Read all of a volume that nobody writes.

        Returns:
            A digest of what it holds, which is the same for every copy of it, in whatever format.

        Raises:
            Conflict: somebody uses it, or there is no room for its bytes beside it (an image is made raw).
        """

    @abstractmethod
    def export_image(self, volume: Volume, file: Line, format: Word = "qcow2", compress: bool = False) -> ImageFile:
        """Write a volume to a new image file, whole or not at all.

        Raises:
            Conflict: the file exists, the volume is in use, or there is no room.
            UsageError: the format cannot be compressed, or no directory for the file.
        """

    @abstractmethod
    def look_inside(self, volume: Volume) -> Inside:
        """Find out what in a volume makes one machine another than its clones; nothing is changed, nothing mounted."""

    @abstractmethod
    def lay(self, volume: Volume, inside: Inside, files: list[FileToLay]) -> list[Laid]:
        """Write files into the file system of a volume that nobody uses. Called again it says the same, and writes
        nothing that is there.

        Args:
            volume: the volume.
            inside: what `look_inside` found in it.
            files: to be written, over what is there; or not to be there.

        Returns:
            Where the slots among the files lie.

        Raises:
            Unsafe: its file system cannot be changed, or it is an image and lacks one of them.
            Conflict: it is in use, or there is no room in it.
        """

    @abstractmethod
    def put_back(self, volumes: list[Volume], inside: Inside, paths: list[AbsolutePath]) -> None:
        """Give files of the first of two volumes, which nobody uses, the content that they have in the second; those
        that it does not have, or that are no text, are removed.

        Raises:
            Unsafe: a file system of them cannot be changed, or read.
            Conflict: the first is in use.
        """

    @abstractmethod
    def examine(self, volume: Volume) -> Examined:
        """Read all of a volume that nobody writes, and check the files that its bytes are in.

        Raises:
            Conflict: somebody uses it, or there is no room for its bytes beside it (an overlay is made whole).
        """

    @abstractmethod
    def write_in(self, volumes: list[Volume], pieces: dict[Uuid, list[Piece]]) -> None:
        """Write bytes at places of volumes that nobody uses, durably.

        Args:
            volumes: the volumes.
            pieces: by the UUIDs of volumes.

        Raises:
            Unsafe: one of them is no disk, or ends before that place.
            Conflict: one is in use.
        """


class WordVerbs(ABC):
    """What a host keeps of persons' words: that another host is off, that it takes no guests itself
    (storkit.hosts.declared)."""

    @abstractmethod
    def declare_off(self, client: ClientName, by: Line, keepers: list[HostName]) -> Declared:
        """Keep the word of `by` that host `client` is off, durably."""

    @abstractmethod
    def withdraw_off(self, client: ClientName) -> None:
        """Forget that `client` was declared off; nobody said so is fine."""

    @abstractmethod
    def find_off(self) -> list[Declared]:
        """Look for every host that was declared off here."""

    @abstractmethod
    def drain(self, by: Line) -> Drained:
        """Keep the word of `by` that this host takes no guests, durably; an earlier one stays as it is."""

    @abstractmethod
    def undrain(self) -> None:
        """Forget that this host takes no guests; nobody said so is fine."""

    @abstractmethod
    def find_drained(self) -> list[Drained]:
        """Look whether this host takes no guests: the word that says so, or none."""


class AgentVerbs(ABC):
    """What a host is asked itself: each verb is a request of its own, without a target."""

    @abstractmethod
    def lock(
        self,
        claims: list[Claim],
        holder: Words,
        plan: Line = "",
        over_marks: bool = False,
        titles: dict[Line, Words] | None = None,
    ) -> Locked:
        """Take every claim or none, and see that no unfinished plan other than `plan` has marked any of the names.

        The locks are held until `unlock`, or until who has asked dies.

        Args:
            claims: the names, for itself or shared.
            holder: who it is, for others' messages.
            plan: the plan that is resumed or rolled back; empty: a new one.
            over_marks: remove other plans' marks instead; the result names these plans.
            titles: what messages call the names.

        Raises:
            Conflict: somebody else has one of the names; it says who, or which command ends the unfinished plan.
        """

    @abstractmethod
    def unlock(self) -> None:
        """Let go of every lock, once no verb is under way any more: one that was given up may still act."""

    @abstractmethod
    def epoch(self) -> Count:
        """Draw a number for a command that changes rights, larger than all that this host has given before."""

    @abstractmethod
    def mark(self, plan: Line, names: list[Line], title: Words, coordinator: Words) -> None:
        """Say, durably, that `plan` is under way for these names."""

    @abstractmethod
    def marked(self, plan: Line) -> bool:
        """Say whether the mark of `plan` is there."""

    @abstractmethod
    def unmark(self, plan: Line) -> None:
        """Note that the plan has ended, or was rolled back."""

    @abstractmethod
    def facts(self) -> Facts:
        """Say what the machine is: versions, clock, what its backends miss. For `host check`."""

    @abstractmethod
    def source(self, towards: Line) -> MaybeAddress:
        """Say which IP address the host's connections to an address come from; empty: there is no way to it."""

    @abstractmethod
    def neighbours(self, macs: list[Mac]) -> list[Neighbour]:
        """Say which IP addresses the host has seen network cards with: its neighbours, and whom its DHCP servers have
        given a lease. Nobody is asked for it: a card that was silent is not there."""

    @abstractmethod
    def listen(self, target: Line) -> Listening:
        """Listen for a moment where a transport's servers would, for others to try to reach it."""

    @abstractmethod
    def unlisten(self) -> None:
        """End that; the end of the connection does, too."""

    @abstractmethod
    def reach(self, address: Line, port: Port) -> Words:
        """Say why the host cannot connect to a port; empty: it can."""
