"""The contracts: what a pool, a transport and a hypervisor promise.

A technology has one face: a file at the package's top level (`storkit/nbd.py`), a file of `storkit/hypervisors`, or an
entry point of `storkit.backends`. The classes in it that derive from Pool, Transport or Hypervisor are the backends;
how they do it stands in a folder of the technology's own (`storkit/tech/nbd`). Methods run **on the host where they
act**, which `self.site` describes; no backend ever reaches another machine. Every verb

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
from collections.abc import Callable, Iterable
from dataclasses import dataclass, field, fields
from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar, Literal, get_args, get_origin, get_type_hints

from storkit.core.errors import ServiceUnreachable, Unsafe, Unsupported, raise_problems
from storkit.core.identities import (
    ClientName,
    GuestName,
    Line,
    MaybeAddress,
    MaybeUuid,
    Size,
    Uuid,
    VolumeName,
    Word,
    Words,
)
from storkit.core.model import (
    AttachedHere,
    Attachment,
    Credential,
    DiskSource,
    Door,
    Evidence,
    Export,
    Exported,
    Finding,
    Found,
    GuestState,
    MigrationResult,
    Offer,
    Usage,
    Volume,
)

if TYPE_CHECKING:
    from storkit.core.guest import Guest


def _silent(fraction: float, text: str) -> None:
    """Progress that nobody watches."""


@dataclass(frozen=True)
class Site:
    """The host a backend acts on."""

    host: str
    """The host's name, as the inventory or the command line has it."""
    state: Path
    """Where storkit keeps what must survive a reboot, 0700: /var/lib/storkit, or below a `local:DIR`."""
    run: Path
    """Sockets, locks and pid files, 0700. Short: a Unix socket's path has 107 bytes at most (unix(7))."""
    dev: Path
    """The directory of stable paths: /dev/storkit, or below a `local:DIR`."""
    address: str = ""
    """What other machines reach this host's servers at; empty where only this machine does."""
    progress: Callable[[float, str], None] = _silent
    """Called with the fraction done (0 to 1) and a few words, by verbs that take long."""
    epoch: int = 0
    """The number of the command that acts, larger than those of all commands that this host has let act before: rights
    that a later one has changed are not changed by an earlier one that was held up. 0: it has none (docs/design.md)."""


@dataclass(frozen=True)
class Needs:
    """What a backend wants of its host; asked by `host check` and before work starts."""

    tools: dict[str, str] = field(default_factory=dict)
    """Program to the Debian package that has it."""
    modules: tuple[str, ...] = ()
    """Kernel modules."""


_HOLDS = "storkit"
WORD = {_HOLDS: "word"}
"""As metadata of a field: see `word_setting`."""


def path_setting(default: str = "") -> Any:
    """A setting that names a place of the host: where the host has a file of its own, it comes from there alone."""
    return field(default=default, metadata={_HOLDS: "path"})


def program_setting(default: str = "") -> Any:
    """A setting that names a program, or tells one what to do (a URI that may start one, mount options): as
    `path_setting`."""
    return field(default=default, metadata={_HOLDS: "program"})


def word_setting(default: str = "") -> Any:
    """A setting that is text, and names neither a place nor a program: whoever may use the backend may choose it."""
    return field(default=default, metadata=WORD)


def own_settings(cls: type) -> dict[str, str]:
    """The settings (a dataclass) that are the host's own to say: name to what it holds (path, program, or unmarked).

    Text that nobody has marked counts as well, so that a backend that forgets is refused, and not believed.
    """
    hints = get_type_hints(cls)
    holds = {each.name: each.metadata.get(_HOLDS, "unmarked") for each in fields(cls)}
    return {name: kind for name, kind in holds.items() if kind != "word" and _may_hold_text(hints[name])}


def _may_hold_text(hint: Any) -> bool:
    if hint in (bool, int, float, type(None)) or get_origin(hint) is Literal:
        return False
    return not (args := get_args(hint)) or any(_may_hold_text(each) for each in args)


@dataclass(frozen=True)
class NoSettings:
    """A backend with nothing to set."""


@dataclass(frozen=True)
class Client:
    """A host that a volume is exported to."""

    name: ClientName
    same_machine: bool
    """True: it reaches the server's Unix sockets; False: it comes over the network."""
    address: MaybeAddress = ""
    """Where it comes from, as the inventory has it: a name or an address of the storage network."""
    told: MaybeAddress = ""
    """The IP address that it says it comes from when it connects to the server's host; empty: it was not asked."""


class Backend(ABC):
    """What pools, transports and hypervisors share."""

    name: ClassVar[str]
    needs: ClassVar[Needs] = Needs()
    Settings: ClassVar[type] = NoSettings
    """A dataclass: the keys that the inventory may set for this backend, with their defaults."""

    def __init__(self, site: Site, settings: Any = None) -> None:
        self.site = site
        self.settings = settings if settings is not None else self.Settings()

    def ready(self, serves: bool = False, attaches: bool = False) -> list[Finding]:
        """What keeps this host from its part, beyond what it `needs`; for `host check`. It changes nothing.

        Of a transport: `serves`, this host has volumes that go by it; `attaches`, hosts on other machines have.
        """
        return []


class Pool(Backend):
    """Where volumes are made. One object stands for one pool of the inventory."""

    snapshots: ClassVar[bool] = True
    """Whether `snapshot` works."""
    transport: ClassVar[str] = ""
    """The transport of this pool's volumes unless the inventory says otherwise; empty: its default."""

    def __init__(self, site: Site, settings: Any = None, pool: str = "default") -> None:
        super().__init__(site, settings)
        self.pool = pool

    @abstractmethod
    def look(self, names: list[VolumeName] | None = None) -> Found:
        """The volumes of this pool, by name order: all, or those of `names` that exist; damaged ones apart.

        Raises only what keeps the whole pool from being looked at (a directory or volume group that is not there).
        """

    def find(self, names: list[VolumeName] | None = None) -> list[Volume]:
        """As `look`, for those who need every one of these volumes: raises Unsafe if any of them is damaged."""
        found = self.look(names)
        raise_problems([Unsafe(each.message, each.hint) for each in found.damaged])
        return found.volumes

    @abstractmethod
    def create(self, volumes: list[Volume]) -> list[Volume]:
        """Make empty volumes of the given names, UUIDs, sizes and kinds; they read as zeros. All or none.

        Raises Conflict: a name is taken by another UUID, or there is no room (nothing is left behind).
        """

    def import_tree(self, volumes: list[Volume], source: Line) -> list[Volume]:
        """Make a volume of kind `tree` with the content of `source`, a tar or a directory on this host. All or none."""
        raise Unsupported(
            f"pool {self.pool} is of type {self.name}, which has no trees", "import it into a pool of type nfs"
        )

    @abstractmethod
    def clone(self, source: Volume, volumes: list[Volume]) -> list[Volume]:
        """Make volumes with the content of `source`, by the cheapest means there is; `made` of each says which.

        A clone may be larger than its source, never smaller. All or none. Raises as `create`; Conflict if the
        source is being written.
        """

    @abstractmethod
    def snapshot(self, source: Volume, volumes: list[Volume]) -> list[Volume]:
        """Keep `source` as it is now under new names, as volumes of kind `snapshot`."""

    @abstractmethod
    def resize(self, volumes: list[Volume], shrink: bool = False) -> list[Volume]:
        """Give existing volumes the sizes in `volumes`; a smaller one only with `shrink`. Not for volumes in use."""

    @abstractmethod
    def relabel(self, volumes: list[Volume]) -> list[Volume]:
        """Set the kind, and `made`, of existing volumes; an image cannot be written from then on."""

    @abstractmethod
    def hold(self, volumes: list[Volume]) -> list[Volume]:
        """Keep the `hold` of each of `volumes` with the existing one's metadata, and its generation; durable. All or
        none.

        A volume that is held is not resized, relabelled or deleted, and no transport gives a new right to write it.
        Raises Conflict: another sleep holds one of them.
        """

    @abstractmethod
    def release(self, volumes: list[Volume], hold: Uuid) -> list[Volume]:
        """End the hold of this id; the generation stays with the volume. One that has ended already is fine.

        Raises Conflict, and ends none: another sleep holds one of them.
        """

    @abstractmethod
    def delete(self, volumes: list[Volume]) -> None:
        """Delete volumes; those that are gone already are fine.

        Raises Conflict, and deletes none: a volume is in use or held, or others depend on its bytes.
        """

    @abstractmethod
    def capacity(self) -> Usage:
        """How full the pool is, with warnings (over-commitment, little room, damaged volumes)."""

    def _uncounted(self, damaged: Iterable[str]) -> list[str]:
        """The warning of `capacity` for damaged volumes: their sizes are not known."""
        names = ", ".join(sorted(damaged))
        return [f"pool {self.pool} has damaged volumes, which are not counted: {names}"] if names else []


RIGHTS = frozenset({"export", "unexport", "set_writers", "fence", "unfence"})
"""The verbs of transports that say who may have a volume, and who may write it: they carry the epoch."""


class Transport(Backend):
    """How a volume's bytes reach hosts. `export`, `unexport`, `find_exports`, `look_exports`, `offers`,
    `set_writers`, `fence`, `unfence` run at the volume's home host; `attach`, `claim`, `detach`, `find_attachments`,
    `look_attachments` and `evidence` at the client; `restore` on every host."""

    window: ClassVar[bool] = True
    """Whether two hosts can be writers at once, as a live migration by the hypervisor needs."""
    claims: ClassVar[bool] = False
    """Whether a client must take up a right that it is given: see `claim`."""

    def doors(self) -> list[Door]:
        """Where this host's servers listen for hosts on other machines; none: they are not of this host."""
        return []

    @abstractmethod
    def export(self, volumes: list[Volume], clients: list[Client]) -> list[Export]:
        """Offer volumes to hosts, for reading only: `set_writers` says who writes. Existing rights stay as they are."""

    @abstractmethod
    def unexport(self, volumes: list[Volume], clients: list[ClientName]) -> None:
        """Take the offer back; the client's connections are cut. The last one gone, the server is gone as well."""

    @abstractmethod
    def look_exports(self, volumes: list[Uuid] | None = None) -> Exported:
        """The exports of the volumes with these UUIDs (None: all of this host), as the servers have them now; those
        whose records are damaged apart."""

    def find_exports(self, volumes: list[Uuid] | None = None) -> list[Export]:
        """As `look_exports`, for those who need every one of them: raises Unsafe if a record is damaged."""
        found = self.look_exports(volumes)
        raise_problems([Unsafe(each.message, each.hint) for each in found.damaged])
        return found.exports

    @abstractmethod
    def offers(self, volumes: list[Volume], client: ClientName) -> list[Offer]:
        """What `client` needs for `attach`, its credential included. Raises NotFound if not exported to it."""

    @abstractmethod
    def set_writers(self, volumes: list[Volume], hosts: list[ClientName], hold: MaybeUuid = "") -> None:
        """Exactly `hosts` may write these volumes from now on; the server refuses everyone else.

        Rights are taken before others are given: when this returns, no write of a host that lost its right can still
        reach the disk. Hosts must have an export. Each time that a host gains the right, the volume's generation
        grows. Raises Unsafe for an image or a snapshot with any writer, or for a volume whose import has not ended;
        Conflict for one that a sleeping guest holds and a host that has no right yet, unless `hold` is the id of its
        hold: who wakes the guest has it. With `hold`, Conflict as well for a volume that is not held by it.
        """

    @abstractmethod
    def attach(self, offers: list[Offer]) -> list[Attachment]:
        """Make volumes available at their stable paths, after the server has shown the identity in the offer.

        Raises Unsafe if it shows another one; ServiceUnreachable if it does not answer.
        """

    def claim(self, volumes: list[Volume], writers: list[ClientName]) -> None:  # noqa: B027: most have nothing to do
        """At a client that `set_writers` has made one of `writers`: make its attachments of these volumes writable.

        What `attach` did with an offer that was for reading is done over under whoever has the path open. Volumes that
        are not attached here are fine.
        """

    @abstractmethod
    def detach(self, volumes: list[Volume]) -> None:
        """Remove the stable paths and credentials, also when the server is gone."""

    @abstractmethod
    def look_attachments(self, volumes: list[Uuid] | None = None) -> AttachedHere:
        """The attachments on this host of the volumes with these UUIDs (None: all); those whose records are damaged
        apart."""

    def find_attachments(self, volumes: list[Uuid] | None = None) -> list[Attachment]:
        """As `look_attachments`, for those who need every one of them: raises Unsafe if a record is damaged."""
        found = self.look_attachments(volumes)
        raise_problems([Unsafe(each.message, each.hint) for each in found.damaged])
        return found.attachments

    @abstractmethod
    def evidence(self, volumes: list[Volume], offsets: list[Size] | None = None) -> list[Evidence]:
        """What this host sees of its attachments: identity, size, and the digests of 4 KiB blocks.

        `offsets` are bytes, multiples of 4096; None means a spread chosen from the volume's size and UUID, the same
        on every host. The blocks are read from the server, never from a cache of this host.
        """

    @abstractmethod
    def fence(self, client: ClientName) -> list[Export]:
        """Cut `client` off every volume of this host, and refuse it until `unfence`. The exports it had."""

    @abstractmethod
    def restore(self) -> list[Export]:
        """Start the servers of everything granted on this host again, with the same rights, and make its attachments
        again: after a reboot."""

    @abstractmethod
    def unfence(self, client: ClientName) -> None:
        """Let a fenced host be exported to again; it gets no export back by itself."""


def refuse_broken(attachments: Iterable[Attachment]) -> None:
    """Raise ServiceUnreachable for those of these attachments that do not work, and are needed."""
    raise_problems(
        [
            ServiceUnreachable(
                f"volume {each.volume} is attached on {each.host}, and that is broken: {each.broken}",
                f"storkit attach {each.volume} --on {each.host}{'' if each.writable else ' --read-only'}",
            )
            for each in attachments
            if each.broken
        ]
    )


class Hypervisor(Backend):
    """Where a guest runs."""

    @abstractmethod
    def find(self, guests: list[GuestName] | None = None) -> list[GuestState]:
        """The guests that storkit defined on this host (all, or those of `guests` that are known here).

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

    def fingerprint(self, guest: Guest) -> dict[Words, Words]:
        """What both hosts of a migration must have alike for this guest (versions, digests), by name."""
        return {}

    @abstractmethod
    def define(self, guest: Guest, disks: list[DiskSource], machine: Word = "") -> Line:
        """Render the guest's configuration for this host; the path of it. `machine` pins the machine type.

        `disks` are in the order of the guest's disks. Raises Conflict if the guest is running here.
        """

    @abstractmethod
    def undefine(self, name: GuestName) -> None:
        """Forget a guest that does not run here."""

    @abstractmethod
    def start(self, name: GuestName) -> GuestState:
        """Start a defined guest; running already is fine."""

    @abstractmethod
    def stop(self, name: GuestName, force: bool = False, timeout: float = 60.0) -> None:
        """Shut a guest down and wait until it is gone; `force` takes its power away."""

    @abstractmethod
    def receive(self, name: GuestName, same_machine: bool, source: MaybeAddress = "", told: MaybeAddress = "") -> Line:
        """Get ready to receive the guest by live migration; the URI for `send`. It will not run before `resume`.

        `source` is the address that its host comes from, as the inventory has it, `told` the one that it says itself:
        no other is listened to. It listens for as long as the connection that asked lives; asked again, the URI may be
        another.
        """

    def credential(self, name: GuestName) -> Credential | None:
        """What `send` must show to be let in where `receive` waits; None where nothing is asked for."""
        return None

    @abstractmethod
    def send(self, name: GuestName, uri: Line, credential: Credential | None = None) -> MigrationResult:
        """Migrate the running guest to `uri` and wait for the end. Raises, with the guest still running here, if it
        fails. Called again during or after the same migration, it waits for it or reports it."""

    @abstractmethod
    def resume(self, name: GuestName, run: bool = True) -> None:
        """Let a guest that has arrived go on, or leave it paused as it was (`run` false); running already is fine.

        Called only once the source has let go of it, so that it cannot run twice. Raises Unsafe: it has not arrived.
        """

    def wake(self, name: GuestName) -> GuestState:
        """Let a guest go on that stands still here, since a disk had no room or failed, or since somebody paused it.

        Raises Conflict: a migration has it, or it stands still again at once.
        """
        raise Unsupported(f"hypervisor {self.name} does not pause guests", f"storkit guest show {name}")

    def messages(self, name: GuestName) -> Words:
        """What the hypervisor said of the guest since it was last started here: why a migration did not arrive."""
        return ""

    def cancel(self, name: GuestName) -> None:
        """Call off a migration that is under way from here, and wait until it has ended: from then on the guest either
        stays here or has moved. None under way is fine."""

    @abstractmethod
    def retire(self, name: GuestName) -> None:
        """End what is left here of a guest that migrated away, or of a migration that never arrived.

        Raises Unsafe if the guest runs here.
        """
