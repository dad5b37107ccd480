"""What a backend is: the host it acts on, what it needs, what may be set of it, and the three kinds of backends.

A technology has one face: a file at the package's top level (`storkit/nbd.py`), a file of `storkit/hypervisors`, or an
entry point of `storkit.backends`. The classes in it that derive from Pool, Transport or Hypervisor are the backends;
how they do it stands in a folder of the technology's own (`storkit/tech/nbd`). What their methods promise is in
storkit.core.contracts. They run **on the host where they act**, which `self.site` describes.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, field, fields
from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar, Literal, get_args, get_origin, get_type_hints

from storkit.core.contracts.backends import BackendVerbs
from storkit.core.contracts.hypervisors import HypervisorVerbs
from storkit.core.contracts.pools import PoolVerbs
from storkit.core.contracts.transports import TransportVerbs
from storkit.core.errors import ServiceUnreachable, StorkitError, Unsafe, Unsupported, raise_problems
from storkit.core.host import Door
from storkit.core.identities import (
    Base64,
    ClientName,
    Count,
    GuestName,
    Hex,
    HostName,
    Line,
    MaybePath,
    Port,
    Seconds,
    Size,
    Uuid,
    VolumeName,
    Words,
)
from storkit.core.model import (
    Adoptable,
    Attachment,
    Credential,
    DiskSource,
    Existing,
    Export,
    Finding,
    GuestState,
    MirrorState,
    Offer,
    Original,
    Saved,
    Secrets,
    Switched,
    Volume,
)

if TYPE_CHECKING:
    from storkit.core.guest import Console, Executed, Frozen, Guest, GuestCard, KeptGuest, KeptHere, TakenGuest


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


HOSTS = {_HOLDS: "hosts"}
"""As metadata of a field: it names hosts that have a part in what the backend does; as `path_setting`."""


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


class Backend(BackendVerbs):
    """What pools, transports and hypervisors share."""

    name: ClassVar[str]
    needs: ClassVar[Needs] = Needs()
    Settings: ClassVar[type] = NoSettings
    """A dataclass: the keys that the inventory may set for this backend, with their defaults."""

    def __init__(self, site: Site, settings: Any = None) -> None:
        self.site = site
        self.settings = settings if settings is not None else self.Settings()

    def ready(self, serves: bool = False, attaches: bool = False) -> list[Finding]:
        return []


class Pool(Backend, PoolVerbs):
    """Where volumes are made. One object stands for one pool of the inventory."""

    snapshots: ClassVar[bool] = True
    """Whether `snapshot` works."""
    transport: ClassVar[str] = ""
    """The transport of this pool's volumes unless the inventory says otherwise; empty: its default."""
    devices: ClassVar[bool] = False
    """Whether its volumes are block devices; otherwise they are files."""
    several: ClassVar[bool] = False
    """Whether it can have several managers (docs/shared-directory.md)."""
    overlays: ClassVar[bool] = False
    """Whether a clone can be a file that stands on its source's (qcow2)."""

    def __init__(self, site: Site, settings: Any = None, pool: str = "default") -> None:
        super().__init__(site, settings)
        self.pool = pool

    def find(self, names: list[VolumeName] | None = None) -> list[Volume]:
        found = self.look(names)
        raise_problems([Unsafe(each.message, each.hint) for each in found.damaged])
        return found.volumes

    def import_tree(self, volumes: list[Volume], source: Line) -> list[Volume]:
        raise Unsupported(
            f"pool {self.pool} is of type {self.name}, which has no trees", "import it into a pool of type nfs"
        )

    def bar(self, manager: HostName) -> None:
        raise self._has_one_host()

    def unbar(self, manager: HostName) -> None:
        raise self._has_one_host()

    def _has_one_host(self) -> StorkitError:
        return Unsupported(f"pool {self.pool} has one host", "storkit pool list")

    def kept(self, volumes: list[Uuid] | None = None) -> KeptHere:
        raise self._keeps_none()

    def texts(self, volumes: list[Uuid], generation: int = 0) -> list[KeptGuest]:
        raise self._keeps_none()

    def keep(self, guests: list[KeptGuest], carried: bool = False) -> None:
        raise self._keeps_none()

    def unkeep(self, guests: list[KeptGuest]) -> None:
        raise self._keeps_none()

    def _keeps_none(self) -> StorkitError:
        return Unsupported(
            f"pool {self.pool} is of type {self.name}, which keeps no guests", "they are in guests/ alone"
        )

    def adoptable(self, found: list[Existing]) -> list[Adoptable]:
        raise self._adopts_none()

    def adopt(self, volumes: list[Volume], found: list[Existing]) -> list[Volume]:
        raise self._adopts_none()

    def disown(self, volumes: list[Volume]) -> list[Line]:
        raise self._adopts_none()

    def _adopts_none(self) -> StorkitError:
        message = f"pool {self.pool} is of type {self.name}, which neither adopts what is there nor gives volumes back"
        return Unsupported(message, "storkit volume import makes a copy")

    def _uncounted(self, damaged: Iterable[str]) -> list[str]:
        """The warning of `capacity` for damaged volumes: their sizes are not known."""
        names = ", ".join(sorted(damaged))
        return [f"pool {self.pool} has damaged volumes, which are not counted: {names}"] if names else []


class Transport(Backend, TransportVerbs):
    """How a volume's bytes reach hosts."""

    window: ClassVar[bool] = True
    """Whether two hosts can be writers at once, as a live migration by the hypervisor needs."""
    claims: ClassVar[bool] = False
    """Whether a client must take up a right that it is given: see `claim`."""
    formats: ClassVar[frozenset[str]] = frozenset({"raw"})
    """How the bytes may lie at home that it serves as a disk."""
    locks_images: ClassVar[bool] = False
    """Whether its server is a QEMU, which keeps every other QEMU of its host away from the volume."""
    several: ClassVar[bool] = False
    """Whether it serves volumes of pools that have several managers."""
    opened_by_qemu: ClassVar[bool] = False
    """Whether a guest's QEMU opens an export itself (`sources`), and the server can be asked for `digests`."""
    beside: ClassVar[frozenset[Literal["file", "device"]]] = frozenset()
    """Which raw volumes it serves that a guest's own process has open since before they were volumes."""

    @classmethod
    def fills_nodes(cls, settings: Mapping[str, Any]) -> bool:
        """Whether, with these settings of the inventory, volumes are block devices whose copies the kernel of a guest's
        host fills (`sources`), and the server can be asked for `digests`."""
        return False

    def doors(self) -> list[Door]:
        return []

    def take_over(self, volumes: list[Volume]) -> list[Export]:
        message = f"transport {self.name} serves no volumes of several managers"
        raise Unsupported(message, "storkit pool list")

    def grow(self, volumes: list[Volume]) -> None:
        names = ", ".join(volume.name for volume in volumes)
        message = f"transport {self.name} cannot show {names} larger while anybody has it"
        raise Unsupported(message, "stop its guest first, or: storkit detach VOLUME --on HOST")

    def find_exports(self, volumes: list[Uuid] | None = None) -> list[Export]:
        found = self.look_exports(volumes)
        raise_problems([Unsafe(each.message, each.hint) for each in found.damaged])
        return found.exports

    def sources(self, offers: list[Offer]) -> list[DiskSource]:
        raise self._not_by_qemu()

    def digests(self, volume: Volume, client: ClientName, offset: Size, length: Size, block: Count) -> list[Hex]:
        raise self._not_by_qemu()

    def _not_by_qemu(self) -> StorkitError:
        message = f"QEMU does not open what transport {self.name} serves by itself"
        return Unsupported(message, "stop the guest, then move its volume")

    def claim(self, volumes: list[Volume], writers: list[ClientName]) -> None:
        """Nothing, unless the technology's `claims` is true."""

    def find_attachments(self, volumes: list[Uuid] | None = None) -> list[Attachment]:
        found = self.look_attachments(volumes)
        raise_problems([Unsafe(each.message, each.hint) for each in found.damaged])
        return found.attachments


class Hypervisor(Backend, HypervisorVerbs):
    """Where a guest runs."""

    @classmethod
    def leads_to(cls, uri: str) -> str:
        """The address that a guest is sent to by what `receive` has answered; empty: a socket of this machine. Raises
        UsageError: it is no such answer."""
        return ""

    moves: ClassVar[bool] = True
    """Whether a running guest can leave its process: by live migration, or into a file."""
    reconnects: ClassVar[bool] = True
    """Whether its guests wait for an NBD server of QEMU's that has ended their connection, and connect again."""
    mirrors: ClassVar[bool] = False
    """Whether a guest that runs can copy its disk to another place and go on from there (`mirror`)."""
    keeps: ClassVar[bool] = False
    """Whether it keeps the configurations of guests itself, whoever made them."""
    takes_running: ClassVar[bool] = False
    """Whether it can take a guest that somebody else has started, and of which it keeps no configuration."""
    tells: ClassVar[bool] = True
    """Whether a guest that runs says its configuration itself; else a file of its administrator's does."""

    def strangers(self) -> list[Words]:
        return []

    def originals(self, names: list[GuestName], process: Count = 0) -> list[Original]:
        raise self._keeps_none()

    def edited(self, name: GuestName) -> list[Original]:
        return []

    def note(self, guest: Guest, seen: Words, secrets: Secrets = None) -> None:
        raise self._keeps_none()

    def take(self, taken: list[TakenGuest]) -> list[Line]:
        raise self._keeps_none()

    def give_back(self, guest: Guest, secrets: Secrets = None) -> None:
        raise self._keeps_none()

    def _keeps_none(self) -> StorkitError:
        message = f"hypervisor {self.name} keeps no configurations of guests"
        return Unsupported(message, "name the guest's own: --config FILE")

    def fingerprint(self, guest: Guest) -> dict[Words, Words]:
        return {}

    def credential(self, name: GuestName) -> Credential | None:
        return None

    def grow(self, name: GuestName, disk: Uuid, size: Size) -> bool:
        return False

    def wake(self, name: GuestName) -> GuestState:
        raise Unsupported(f"hypervisor {self.name} does not pause guests", f"storkit guest show {name}")

    def save(self, name: GuestName, saved: Saved, file: MaybePath = "") -> Saved:
        raise self._no_sleep()

    def unsave(self, name: GuestName, saved: Saved, file: MaybePath = "") -> None:
        raise self._no_sleep()

    def saved(self, name: GuestName, file: MaybePath = "") -> Saved:
        raise self._no_sleep()

    def load(self, name: GuestName, hold: Uuid, file: MaybePath = "") -> None:
        raise self._no_sleep()

    def spend(self, name: GuestName, guest: Uuid, file: MaybePath = "") -> None:
        raise self._no_sleep()

    def _no_sleep(self) -> StorkitError:
        return Unsupported(f"hypervisor {self.name} does not save guests", "storkit guest stop, and later guest start")

    def mirror(self, name: GuestName, disk: Uuid, copy: DiskSource, identity: Line, rate: Count = 0) -> None:
        raise self._no_mirror()

    def mirrored(self, disk: Uuid) -> MirrorState:
        return "none"

    def switch(self, name: GuestName, disk: Uuid, identity: Line) -> Switched:
        raise self._no_mirror()

    def unmirror(self, name: GuestName, disk: Uuid, over: bool = False) -> None:
        """Nothing, unless the technology's `mirrors` is true."""

    def _no_mirror(self) -> StorkitError:
        message = f"hypervisor {self.name} does not move a disk under its guest"
        return Unsupported(message, "storkit guest stop, then move its volume")

    def messages(self, name: GuestName) -> Words:
        return ""

    def pause(self, name: GuestName) -> GuestState:
        raise Unsupported(f"hypervisor {self.name} does not pause guests", f"storkit guest stop {name}")

    def console(self, name: GuestName) -> Console:
        message = f"hypervisor {self.name} lets nobody in at the console of guest {name}"
        raise Unsupported(message, f"what it says: storkit guest show {name}")

    def forwarded(self, guests: list[GuestName]) -> dict[GuestName, Port]:
        return {}

    def execute(self, name: GuestName, words: list[Words], stdin: Base64 = "", timeout: Seconds = 600.0) -> Executed:
        message = f"hypervisor {self.name} has no way to an agent inside guest {name}"
        raise Unsupported(message, f"storkit guest console {name}, or ssh: storkit guest address {name}")

    def cards(self, guests: list[GuestName]) -> dict[GuestName, list[GuestCard]]:
        return {}

    def freeze(self, name: GuestName) -> Frozen:
        from storkit.core.guest import Frozen

        return Frozen(name, 0, f"hypervisor {self.name} has no way to an agent inside it")

    def thaw(self, name: GuestName) -> Frozen:
        return self.freeze(name)

    def cancel(self, name: GuestName) -> None:
        """Nothing, unless a migration of the technology outlives the command that began it."""


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
