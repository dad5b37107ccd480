"""The contracts: the verbs that a host may be asked for, and their types. Nothing else crosses the wire.

One class of abstract methods for each kind of target. The backends (storkit.core.backend) derive from the first three;
what a coordinator holds of another host is a proxy of the same class (storkit.core.calls); and what an agent accepts is
the methods of these classes. A public method that a backend has beside them is nobody's to call from elsewhere.

Methods run **on the host where they act**; no backend ever reaches another machine. Every verb

- takes lists, so that a fleet costs one pass;
- is idempotent: what is already so stays so, and a second call after a kill finishes the first;
- identifies volumes by UUID: a volume of the right name and the wrong UUID is a Conflict, never touched;
- checks everything that it can refuse before it changes anything, and reports all of it (errors.raise_problems).

Arguments and results are records of storkit.core.model or plain JSON values: the same call crosses ssh unchanged. Their
types are checked on both sides, as they are declared here (storkit.core.identities): a backend gets no name, UUID or
path from elsewhere that was not looked at.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from typing import TYPE_CHECKING, Final

from storkit.core.host import Claim, Facts, Locked
from storkit.core.identities import (
    ClientName,
    Count,
    GuestName,
    HostName,
    Line,
    MaybeAddress,
    MaybePath,
    MaybeUuid,
    Port,
    Size,
    Uuid,
    VolumeName,
    Word,
    Words,
)
from storkit.core.model import (
    AttachedHere,
    Attachment,
    Client,
    Credential,
    Declared,
    DiskSource,
    Door,
    Evidence,
    Export,
    Exported,
    Finding,
    GuestState,
    ImageFile,
    ImageInfo,
    Listening,
    MigrationResult,
    Offer,
    PoolContent,
    Saved,
    Usage,
    Volume,
)

if TYPE_CHECKING:
    from storkit.core.guest import Guest


class BackendVerbs(ABC):
    """What pools, transports and hypervisors can all be asked."""

    @abstractmethod
    def ready(self, serves: bool = False, attaches: bool = False) -> list[Finding]:
        """Look for what keeps this host from its part, beyond what the backend `needs`; for `host check`.

        Args:
            serves: of a transport: this host has volumes that go by it.
            attaches: of a transport: hosts on other machines have such volumes.
        """


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
    def resize(self, volumes: list[Volume], shrink: bool = False) -> list[Volume]:
        """Give existing volumes the sizes in `volumes`. Not for volumes in use.

        Args:
            volumes: as they are to be.
            shrink: a smaller size is meant, and cuts bytes off.
        """

    @abstractmethod
    def relabel(self, volumes: list[Volume]) -> list[Volume]:
        """Set the kind, and `made`, of existing volumes; nobody can write an image from then on."""

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
    def capacity(self) -> Usage:
        """Say how full the pool is, with warnings (over-commitment, little room, damaged volumes)."""


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
    def set_writers(self, volumes: list[Volume], hosts: list[ClientName], hold: MaybeUuid = "") -> None:
        """Let exactly `hosts` write these volumes from now on; the server refuses everyone else.

        Rights are taken before others are given: when this returns, no write of a host that lost its right can still
        reach the disk. Hosts must have an export. Each time that a host gains the right, the volume's generation grows.

        Args:
            volumes: whose writers they are.
            hosts: all writers.
            hold: the id of the hold of a sleeping guest: who wakes it has that.

        Raises:
            Unsafe: an image or a snapshot with any writer, or a volume whose import has not ended.
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


RIGHTS: Final = frozenset({"export", "unexport", "set_writers", "fence", "unfence"})
"""The verbs of transports that say who may have a volume, and who may write it: they carry the epoch."""


class HypervisorVerbs(BackendVerbs):
    """The verbs of a hypervisor, at the host where the guest runs, or is to run."""

    @abstractmethod
    def find(self, guests: list[GuestName] | None = None) -> list[GuestState]:
        """Look for the guests that storkit defined on this host (all, or those of `guests` that are known here).

        One that does not answer is `unknown`: it may be running.
        """

    @abstractmethod
    def check(self, guest: Guest, arrives: bool = False) -> list[Words]:
        """Ask what stands in the way of running this guest here; nothing is changed.

        Args:
            guest: the guest's record.
            arrives: it will arrive by live migration from another machine, which has to reach this host.

        Returns:
            Each obstacle in one line, with what to do about it; none if all is well.
        """

    @abstractmethod
    def fingerprint(self, guest: Guest) -> dict[Words, Words]:
        """Say what both hosts of a migration must have alike for this guest (versions, digests), by name."""

    @abstractmethod
    def define(self, guest: Guest, disks: list[DiskSource], machine: Word = "") -> Line:
        """Render the guest's configuration for this host.

        Args:
            guest: the guest's record.
            disks: in the order of the guest's disks.
            machine: pins the machine type.

        Returns:
            The path of the configuration.

        Raises:
            Conflict: the guest is running here.
        """

    @abstractmethod
    def undefine(self, name: GuestName) -> None:
        """Forget a guest that does not run here."""

    @abstractmethod
    def start(self, name: GuestName) -> GuestState:
        """Start a defined guest; running already is fine."""

    @abstractmethod
    def stop(self, name: GuestName, force: bool = False, timeout: float = 60.0) -> None:
        """Shut a guest down and wait until it is gone.

        Args:
            name: the guest's.
            force: take its power away.
            timeout: seconds to wait.
        """

    @abstractmethod
    def receive(self, name: GuestName, same_machine: bool, source: MaybeAddress = "", told: MaybeAddress = "") -> Line:
        """Get ready to receive the guest by live migration. It will not run before `resume`.

        It listens for as long as the connection that asked lives; asked again, the URI may be another.

        Args:
            name: the guest's.
            same_machine: its host is on this machine.
            source: the address that its host comes from, as the inventory has it.
            told: the address that its host says itself. Nobody else is listened to.

        Returns:
            The URI for `send`.
        """

    @abstractmethod
    def credential(self, name: GuestName) -> Credential | None:
        """Say what `send` must show to be let in where `receive` waits; None where nothing is asked for."""

    @abstractmethod
    def send(self, name: GuestName, uri: Line, credential: Credential | None = None) -> MigrationResult:
        """Migrate the running guest to `uri` and wait for the end.

        Called again during or after the same migration, it waits for it or reports it.

        Raises:
            StorkitError: it failed, and the guest still runs here.
        """

    @abstractmethod
    def resume(self, name: GuestName, run: bool = True) -> None:
        """Let a guest that has arrived go on; running already is fine.

        Called only once the source has let go of it, so that it cannot run twice.

        Args:
            name: the guest's.
            run: false: leave it paused, as it was.

        Raises:
            Unsafe: it has not arrived.
        """

    @abstractmethod
    def wake(self, name: GuestName) -> GuestState:
        """Let a guest go on that stands still here, since a disk had no room or failed, or since somebody paused it.

        Raises:
            Conflict: a migration has it, or it stands still again at once.
            Unsupported: the hypervisor does not pause guests.
        """

    @abstractmethod
    def save(self, name: GuestName, saved: Saved, file: MaybePath = "") -> Saved:
        """Write the guest's memory into a new file of this host; all of it is on the disk on return. The guest stands
        still from then on, or has ended. Called again it goes on, or says what is there.

        Args:
            name: the guest's.
            saved: what the file is to say of itself.
            file: its path; empty: the host's own place.

        Raises:
            Conflict: there is another file of this name.
            StorkitError: it failed, and the guest is as it was.
        """

    @abstractmethod
    def unsave(self, name: GuestName, saved: Saved, file: MaybePath = "") -> None:
        """Take a save back, whole or half done: the guest goes on as it was, and the file is removed.

        Raises:
            Unsafe: the guest has ended, and the file is all that there is of it. Nothing is removed.
        """

    @abstractmethod
    def saved(self, name: GuestName, file: MaybePath = "") -> Saved:
        """Say what a guest's memory on this host says of itself.

        Raises:
            NotFound: there is no such file.
            Unsafe: it is something else, or not whole.
        """

    @abstractmethod
    def load(self, name: GuestName, hold: Uuid, file: MaybePath = "") -> None:
        """Read the memory of a defined guest; as one that has arrived by migration it stands still until `resume`.

        Raises:
            Conflict: the memory is of another sleep than `hold`, or was used.
            StorkitError: it failed, and nothing of the guest is left here.
        """

    @abstractmethod
    def spend(self, name: GuestName, guest: Uuid, file: MaybePath = "") -> None:
        """Keep a memory from being used again: the guest has run since, or its memory was given up.

        Raises:
            Unsafe: it is the memory of another guest than the one with the UUID `guest`, or no memory at all.
        """

    @abstractmethod
    def messages(self, name: GuestName) -> Words:
        """Say what the hypervisor said of the guest since it was last started here: why a migration did not arrive."""

    @abstractmethod
    def cancel(self, name: GuestName) -> None:
        """Call off a migration that is under way from here, and wait until it has ended: from then on the guest either
        stays here or has moved. None under way is fine."""

    @abstractmethod
    def retire(self, name: GuestName) -> None:
        """End what is left here of a guest that migrated away, or of a migration that never arrived.

        Raises:
            Unsafe: the guest runs here.
        """


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
    def export_image(self, volume: Volume, file: Line, format: Word = "qcow2", compress: bool = False) -> ImageFile:
        """Write a volume to a new image file, whole or not at all.

        Raises:
            Conflict: the file exists, the volume is in use, or there is no room.
            UsageError: the format cannot be compressed, or no directory for the file.
        """


class OffVerbs(ABC):
    """What a host keeps of a person's word that another one is off (storkit.hosts.declared)."""

    @abstractmethod
    def declare_off(self, client: ClientName, by: Line, keepers: list[HostName]) -> Declared:
        """Keep the word of `by` that host `client` is off, durably."""

    @abstractmethod
    def withdraw_off(self, client: ClientName) -> None:
        """Forget that `client` was declared off; nobody said so is fine."""

    @abstractmethod
    def find_off(self) -> list[Declared]:
        """Look for every host that was declared off here."""


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
    def listen(self, target: Line) -> Listening:
        """Listen for a moment where a transport's servers would, for others to try to reach it."""

    @abstractmethod
    def unlisten(self) -> None:
        """End that; the end of the connection does, too."""

    @abstractmethod
    def reach(self, address: Line, port: Port) -> Words:
        """Say why the host cannot connect to a port; empty: it can."""
