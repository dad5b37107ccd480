"""What a hypervisor can be asked: to run guests, to move them, to put them to sleep."""

from __future__ import annotations

from abc import abstractmethod
from typing import TYPE_CHECKING

from storkit.core.contracts.backends import BackendVerbs
from storkit.core.identities import (
    Base64,
    Count,
    GuestName,
    Line,
    MaybeAddress,
    MaybePath,
    Port,
    Seconds,
    Size,
    Uuid,
    Word,
    Words,
)
from storkit.core.model import (
    Credential,
    DiskSource,
    GuestState,
    MigrationResult,
    MirrorState,
    Original,
    Saved,
    Secrets,
    Switched,
)

if TYPE_CHECKING:
    from storkit.core.guest import Console, Executed, Frozen, Guest, GuestCard, TakenGuest


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
    def define(self, guest: Guest, disks: list[DiskSource], machine: Word = "", secrets: Secrets = None) -> Line:
        """Render the guest's configuration for this host.

        Args:
            guest: the guest's record.
            disks: in the order of the guest's disks.
            machine: pins the machine type.
            secrets: the passwords that the guest's own document has names in the place of, by these.

        Returns:
            The path of the configuration.

        Raises:
            Conflict: the guest is running here.
        """

    @abstractmethod
    def strangers(self) -> list[Words]:
        """Name the guests that the hypervisor keeps, and storkit does not know."""

    @abstractmethod
    def originals(self, names: list[GuestName], process: Count = 0) -> list[Original]:
        """Say how the hypervisor keeps, or runs, guests that storkit does not know, in this order; nothing is changed.

        Args:
            names: the guests'.
            process: the one that runs it, of one guest whose name does not tell; 0: it is found by the name.

        Raises:
            NotFound: there is none of that name.
            Conflict: it is storkit's already.
            Unsupported: the hypervisor keeps no configurations.
        """

    @abstractmethod
    def edited(self, name: GuestName) -> list[Original]:
        """Say how the hypervisor keeps a guest of storkit's, with its disks where they are on the host, if somebody has
        changed that there since storkit wrote it. None: nobody has, or the record has no document."""

    @abstractmethod
    def note(self, guest: Guest, seen: Words, secrets: Secrets = None) -> None:
        """The record of a guest says by now what the hypervisor has of it, which was `seen` (the document of `edited`):
        nothing is changed there.

        Raises:
            Conflict: the hypervisor has something else than was seen.
        """

    @abstractmethod
    def take(self, taken: list[TakenGuest]) -> list[Line]:
        """As `define`, for guests that the hypervisor keeps, or runs, and storkit does not know: name and UUID are in
        the record, and the configuration is the record's document. Called again it goes on.

        One that runs goes on as it is, and is storkit's from now on; the disks are what it gets at its next start, none
        where nobody else may open what it has open.

        Raises:
            Conflict: it was started since it was looked at, or its memory was saved.
        """

    @abstractmethod
    def give_back(self, guest: Guest, secrets: Secrets = None) -> None:
        """The hypervisor keeps the guest as the record's document has it, and storkit knows it here no more.

        Raises:
            Conflict: it is running.
        """

    @abstractmethod
    def undefine(self, name: GuestName) -> None:
        """Forget a guest that does not run here."""

    @abstractmethod
    def start(self, name: GuestName) -> GuestState:
        """Start a defined guest; running already is fine."""

    @abstractmethod
    def stop(self, name: GuestName, force: bool = False, timeout: Seconds = 60.0) -> None:
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
    def pause(self, name: GuestName) -> GuestState:
        """Have a guest stand still here until `wake`: nothing more is written by it on return. One that does is fine.

        Raises:
            Conflict: a migration has it, or it does not run here.
            Unsupported: the hypervisor does not pause guests.
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
    def grow(self, name: GuestName, disk: Uuid, size: Size) -> bool:
        """Tell a guest that runs here that its disk of this volume, by its UUID, has become larger.

        Args:
            name: the guest's.
            disk: the volume's UUID.
            size: bytes.

        Returns:
            Whether the guest sees it now. Otherwise it does at its next start.
        """

    @abstractmethod
    def mirror(self, name: GuestName, disk: Uuid, copy: DiskSource, identity: Line, rate: Count = 0) -> None:
        """Have a guest that runs here copy its disk, and write the disk and the copy from then on: on return both hold
        the same. The disk stays the disk until `switch`. Called again it goes on with what is there. A copy that cannot
        be reached is waited for; the guest goes on with its disk alone meanwhile.

        Args:
            name: the guest's.
            disk: the volume's UUID.
            copy: where the copy is.
            identity: what its server says of itself: another one may have lost what it had, and is filled anew.
            rate: bytes a second at most; 0: no limit. What the guest writes is not counted.

        Raises:
            ServiceUnreachable: the copy cannot be written.
            Unsupported: this guest, or every guest of this hypervisor, cannot.
        """

    @abstractmethod
    def mirrored(self, disk: Uuid) -> MirrorState:
        """Say which of two copies a guest here uses, or used when it ended.

        Args:
            disk: the volume's UUID.

        Raises:
            StorkitError: its process does not say so.
        """

    @abstractmethod
    def switch(self, name: GuestName, disk: Uuid, identity: Line) -> Switched:
        """Have a guest use the copy alone that it has filled. What it was told is written is in the copy, whatever is
        killed meanwhile. Called again it does what is left.

        Raises:
            Conflict: the copy is not whole, or was filled under another identity of its server. The guest goes on with
                its disk.
        """

    @abstractmethod
    def unmirror(self, name: GuestName, disk: Uuid, over: bool = False) -> None:
        """Forget a copy that a guest was filling: it goes on with its disk. None is fine.

        Args:
            name: the guest's.
            disk: the volume's UUID.
            over: the copy is the disk by now, as its pool says; that it is one is forgotten here.

        Raises:
            Unsafe: the guest uses the copy, and not `over`.
        """

    @abstractmethod
    def messages(self, name: GuestName) -> Words:
        """Say what the hypervisor said of the guest since it was last started here: why a migration did not arrive."""

    @abstractmethod
    def console(self, name: GuestName) -> Console:
        """Say how a person gets at a guest's serial console here; nothing is changed.

        Raises:
            NotFound: it does not run here.
            Conflict: nothing in the guest listens there.
            Unsupported: it has none that takes input, or the hypervisor gives nobody in.
        """

    @abstractmethod
    def forwarded(self, guests: list[GuestName]) -> dict[GuestName, Port]:
        """Say which TCP ports of this host's loopback lead to the SSH of guests that run here; others are left out."""

    @abstractmethod
    def execute(self, name: GuestName, words: list[Words], stdin: Base64 = "", timeout: Seconds = 600.0) -> Executed:
        """Run a command inside a guest that runs here, by its guest agent, and wait for its end.

        Args:
            name: the guest's.
            words: the program, by its path or its name, and its arguments: no shell takes them apart.
            stdin: what it reads.
            timeout: seconds that it may take; it is killed then.

        Raises:
            NotFound: the guest does not run here.
            Unsupported: it has no agent, or its hypervisor has no way to one.
            TimedOut: the agent does not answer, or the command did not end in time.
            CommandFailed: the agent does not run it, or was lost.
        """

    @abstractmethod
    def cards(self, guests: list[GuestName]) -> dict[GuestName, list[GuestCard]]:
        """Say which network cards guests that run here have, as their agents say; those without one are left out."""

    @abstractmethod
    def freeze(self, name: GuestName) -> Frozen:
        """Have the file systems of a guest that runs here stand still, whole, until `thaw`; they go on without that as
        well where whoever asked is gone, or after a minute. Where it cannot be, `why` says so.
        """

    @abstractmethod
    def thaw(self, name: GuestName) -> Frozen:
        """Have the file systems of a guest go on. Those that stood still all the time until now are counted."""

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
