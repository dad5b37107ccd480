"""The words of storkit as records: volume, offer, export, attachment, disk source, guest state.

Every record is plain data with a JSON form (storkit.core.codec). Sizes are bytes, times are ISO 8601 in UTC.
"""

from __future__ import annotations

from dataclasses import dataclass, field, replace
from typing import Annotated, Literal

from storkit.core.identities import (
    NAME_MAX,
    Check,
    ClientName,
    Count,
    Decimal,
    GuestName,
    Hex,
    HostName,
    Line,
    MaybeAddress,
    MaybeHost,
    MaybePath,
    MaybePool,
    MaybeUuid,
    PoolName,
    Port,
    Portal,
    Size,
    Uuid,
    VolumeName,
    Word,
    Words,
    check_name,
    check_secret,
    guest_client,
    guest_of,
)

__all__ = ["NAME_MAX", "check_name", "guest_client", "guest_of"]


class Secret:
    """A string that prints as stars. It travels on stdin or in 0600 files only, never in argv, logs or journals."""

    __slots__ = ("_value",)

    def __init__(self, value: str) -> None:
        self._value = value

    def __repr__(self) -> str:
        return "***"

    def __eq__(self, other: object) -> bool:
        return isinstance(other, Secret) and self._value == other._value

    def __hash__(self) -> int:
        return hash(self._value)

    def __bool__(self) -> bool:
        return bool(self._value)

    def reveal(self) -> str:
        """The secret itself: only for a pipe or a 0600 file."""
        return self._value


Secrets = dict[Word, Secret] | None
"""Secrets by their names."""
SecretLine = Annotated[Secret, Check(check_secret)]
"""A secret that is a line of a file."""

VolumeKind = Literal["disk", "image", "snapshot", "tree"]
"""disk: a guest writes it. image: golden, never written, cloned. snapshot: one moment of a disk, never written.
tree: a directory, a guest's root file system; the guest itself mounts it over the network."""


@dataclass(frozen=True, slots=True)
class VolumeHold:
    """What a sleeping guest has of its disk: no host is given the right to write it until the guest wakes up."""

    guest: Uuid
    name: GuestName
    id: Uuid
    """Of this one sleep, and of the memory image that belongs to it."""
    generation: Count
    """The volume's when the memory was saved: a memory of another generation is not that of these bytes."""
    since: Line
    host: HostName
    """Where the memory was saved, and in which file."""
    file: Line


@dataclass(frozen=True, slots=True)
class Volume:
    """One disk, named, with a UUID that is its identity on every wire."""

    name: VolumeName
    uuid: Uuid
    size: Size
    pool: MaybePool = ""
    host: MaybeHost = ""
    """The home host: where the pool is and where the volume's locks are held."""
    kind: VolumeKind = "disk"
    format: Word = ""
    """How the bytes lie at home (raw, qcow2, ...); on every wire a volume is raw."""
    path: MaybePath = ""
    """Where the bytes lie on the home host."""
    origin: MaybeUuid = ""
    """The UUID of the volume this one was cloned or snapshotted from."""
    made: Line = ""
    """How it came to be: created, imported, reflink, overlay, copy, flattened."""
    created: Line = ""
    hold: VolumeHold | None = None
    """The sleep of its guest; None: nobody sleeps on it."""
    generation: Count = 0
    """No right to write it has had a smaller number than this (see Export.generation): that of its last hold."""
    was: Line = ""
    """Of a volume that was adopted: where its bytes lay before, to which they are given back; empty: it was made."""
    checksum: Line = ""
    """`sha256:HEX` of an image's bytes as a guest reads them, when it was sealed; empty: none was taken."""


def closed(volume: Volume) -> str:
    """Why nothing uses a volume now, in a few words; empty: it is what its name says."""
    return {
        IMPORTING: f"the import of volume {volume.name} has not ended",
        MOVING: f"volume {volume.name} is being moved to another pool",
        FILLING: f"volume {volume.name} is a copy that its guest has not filled",
        MIRRORING: f"volume {volume.name} is being moved to another pool under its guest",
        SWITCHING: f"volume {volume.name} is being moved to another pool under its guest, which switches",
    }.get(volume.made, "")


def closes(old: Volume, new: Volume) -> bool:
    """Whether nobody may have a volume open that gets the word `new.made`. The words of a move under a guest are for
    volumes that their guest has: nobody else gets them."""
    live = (MIRRORING, SWITCHING)
    return bool(closed(new)) and new.made not in live and (not closed(old) or old.made in live)


def relabelled(old: Volume, new: Volume) -> Volume:
    """A volume with what a relabel changes of it."""
    return replace(old, kind=new.kind, made=new.made, origin=new.origin, checksum=new.checksum)


@dataclass(frozen=True, slots=True)
class Existing:
    """Bytes of a host that are no volume yet: a file, or a logical volume."""

    place: Line
    """The file's path; VG/LV, or a path of the logical volume's device."""
    format: Word = ""
    """What its guest takes it for; empty: what it says itself."""
    in_guest: bool = False
    """A guest has it as its disk: what is in it is the guest's, also a part of an array or a group of its own."""
    processes: list[Count] = field(default_factory=list)
    """The guest's own, which may have it open."""


@dataclass(frozen=True, slots=True)
class Adoptable:
    """What existing bytes would be as a volume."""

    place: Line
    name: Words
    """What they are called where they lie."""
    size: Size
    format: Word
    moved: bool
    """Whether they would get another place; otherwise they lie in the pool already."""


@dataclass(frozen=True, slots=True)
class Damaged:
    """A volume that is there and cannot be trusted: its metadata or its file are not as storkit left them.

    It keeps its name taken. Every command that needs it is refused; others go on.
    """

    name: Words
    pool: PoolName
    host: HostName
    message: Words
    hint: Words = ""


@dataclass(frozen=True, slots=True)
class PoolContent:
    """What a pool holds, each in the order of the names."""

    volumes: list[Volume]
    damaged: list[Damaged] = field(default_factory=list)


@dataclass(frozen=True, slots=True)
class Usage:
    """How full a pool is, in bytes."""

    pool: PoolName
    host: HostName
    total: Count
    free: Count
    provisioned: Count
    """The sum of the sizes that volumes could grow to."""
    allocated: Count
    warnings: list[Words] = field(default_factory=list)
    held: dict[VolumeName, VolumeHold] = field(default_factory=dict)
    """The volumes on which guests sleep."""
    metadata: Count | None = None
    """How full a thin pool's metadata is, in percent; None: the pool has none."""
    used: dict[VolumeName, Count] = field(default_factory=dict)
    """The bytes that each volume takes by itself, where they were asked for."""


@dataclass(frozen=True, slots=True)
class Credential:
    """What a client host shows to the server to be let in."""

    method: Literal["psk", "x509", "chap"]
    user: Line = ""
    secret: SecretLine | None = None
    files: dict[Word, Secret] = field(default_factory=dict)
    """x509: file name (ca-cert.pem, client-cert.pem, client-key.pem) to its content."""


@dataclass(frozen=True, slots=True)
class Client:
    """A host that a volume is exported to."""

    name: ClientName
    same_machine: bool
    """True: it reaches the server's Unix sockets; False: it comes over the network."""
    address: MaybeAddress = ""
    """Where it comes from, as the inventory has it: a name or an address of the storage network."""
    told: MaybeAddress = ""
    """The IP address that it says it comes from when it connects to the server's host; empty: it was not asked."""


@dataclass(frozen=True, slots=True)
class Offer:
    """What a client host must know to attach a volume exported to it: where, the name on the wire, the identity."""

    volume: VolumeName
    uuid: Uuid
    size: Size
    client: ClientName
    transport: Word
    name: Line
    """The name on the wire: NBD export name, IQN/LUN, path."""
    identity: Line
    """What the server says of the volume on the wire; attach refuses anything else."""
    writable: bool
    socket: MaybePath = ""
    server: MaybeAddress = ""
    port: Port = 0
    portals: list[Portal] = field(default_factory=list)
    """iSCSI: ADDRESS:PORT of each way to the target."""
    path: MaybePath = ""
    """To a client on the server's own machine: where the bytes lie."""
    options: dict[Word, Line] = field(default_factory=dict)
    """What else this transport's client must know."""
    credential: Credential | None = None


@dataclass(frozen=True, slots=True)
class Export:
    """A volume offered to one client host, as the server has it now."""

    volume: VolumeName
    uuid: Uuid
    client: ClientName
    writable: bool
    transport: Word
    live: bool
    """False: granted, but the server that should offer it does not run."""
    endpoint: Line = ""
    """For people: the socket, portal or path."""
    generation: Count = 0
    """The volume's: a larger number each time that a right to write it is given, nothing when one is taken."""
    others: Words = ""
    """Who else on its home host can write the volume, past the server, and how to see them; empty: nobody that was
    seen, or nobody looked (Transport.look_exports does)."""


@dataclass(frozen=True, slots=True)
class DiskSource:
    """Where a guest's disk comes from on one host. Templates know these three kinds and never a backend."""

    kind: Literal["block", "file", "network"]
    path: MaybePath = ""
    """block: the device; file: the file."""
    format: Word = "raw"
    protocol: Word = ""
    """network: nbd, rbd, iscsi."""
    export: Line = ""
    """network: the name on the wire."""
    socket: MaybePath = ""
    server: MaybeAddress = ""
    port: Port = 0
    tls: Literal["", "psk", "x509"] = ""
    tls_dir: MaybePath = ""
    """A 0700 directory with the credential's files, as QEMU's tls-creds objects take it."""
    tls_user: Word = ""

    @property
    def uri(self) -> str:
        """The NBD URI (github.com/NetworkBlockDevice/nbd/blob/master/doc/uri.md), or the path."""
        if self.kind != "network":
            return self.path
        scheme = self.protocol + ("s" if self.tls else "")
        if self.socket:
            return f"{scheme}+unix:///{self.export}?socket={self.socket}"
        host = f"[{self.server}]" if ":" in self.server else self.server
        return f"{scheme}://{host}:{self.port}/{self.export}"


IMPORTING = "importing"
"""`made` of a volume whose content is not yet, or not wholly, in it: nothing uses it."""
MOVING = "moving"
"""`made` of a volume that has been copied to another pool, while it is made sure that the copy is the same: nothing
uses it, and it is the disk until the copy is open."""
MIRRORING = "mirroring"
"""`made` of a volume that is copied to another pool by the guest that writes it: it is the disk."""
SWITCHING = "switching"
"""`made` of a volume whose guest writes it and its copy, until it is told to use the copy alone: the host where the
guest runs knows whether it does so by now (HypervisorVerbs.mirrored), and nobody else."""
MIRRORED = frozenset((MIRRORING, SWITCHING))
LEAVING = MIRRORED | {MOVING}
"""`made` of a volume that another pool has a copy of, which is not open."""
MOVED = "moved"
"""`made` of a volume that has come from another pool."""
FILLING = "filling"
"""`made` of a copy that one guest fills, whose host alone may write it (`fills` of TransportVerbs.set_writers)."""
ATTACHED = "attached"


WORKING = "working"
"""The state of a path by which a disk is used."""


@dataclass(frozen=True, slots=True)
class AttachmentPath:
    """One of several ways on which an attachment reaches its server."""

    portal: Line
    """Where the server is reached."""
    state: Words = WORKING
    """`working`, or why not, as this host's kernel says without asking the server."""


@dataclass(frozen=True, slots=True)
class Attachment:
    """An export on one host, at its stable path."""

    volume: VolumeName
    uuid: Uuid
    host: HostName
    transport: Word
    path: MaybePath
    """The stable path: the same name on every host."""
    source: DiskSource
    size: Size
    writable: bool
    """What this host asked for; what the server grants is in its exports."""
    state: Words = ATTACHED
    """`attached`, or `broken: ` and why, as this host's kernel says without asking the disk."""
    paths: list[AttachmentPath] = field(default_factory=list)
    """Where there are several, each with its state; one that works is enough."""

    @property
    def lost(self) -> list[AttachmentPath]:
        """The paths that do not work."""
        return [path for path in self.paths if path.state != WORKING]

    @property
    def broken(self) -> str:
        """Why it does not work; empty if it does, as far as the kernel knows."""
        return "" if self.state == ATTACHED else self.state.removeprefix("broken: ")


@dataclass(frozen=True, slots=True)
class Evidence:
    """What one host sees of one volume, measured at the far end of the wire."""

    volume: VolumeName
    host: HostName
    identity: Line
    """The identity as the server states it, including the instance of the server that answered."""
    size: Size
    blocks: dict[Decimal, Hex]
    """Byte offset of a 4 KiB block to the SHA-256 of its content."""
    key: Hex = ""
    """The reservation key that this host has registered at the logical unit, in hexadecimal; empty: none."""
    keys: list[Hex] | None = None
    """The keys of all hosts that are registered there, as this host reads them; None: it cannot read any."""


@dataclass(frozen=True, slots=True)
class Switched:
    """What was measured of a guest that went on with the copy of its disk."""

    stall_ms: Count
    """For how many milliseconds it stood still."""


MirrorState = Literal["none", "copying", "switched"]
"""copying: a guest writes a volume, and fills its copy. switched: it uses the copy alone, or did so when it ended."""

GuestStatus = Literal["stopped", "running", "paused", "incoming", "arrived", "migrated", "starting", "unknown"]
"""starting: a command is just starting it, or ending it. arrived: whole, and waiting for `resume`; it has never run
here. migrated: the rest of a guest that has moved away. unknown: it does not answer, so it may still run."""


@dataclass(frozen=True, slots=True)
class Original:
    """A guest as its hypervisor keeps it, without storkit."""

    name: GuestName
    document: Words
    """In the hypervisor's own language, with names in the place of its passwords; empty: it runs, and its hypervisor
    keeps no document of it."""
    status: GuestStatus
    secrets: dict[Word, Secret] = field(default_factory=dict)
    """The passwords, by these names."""
    processes: list[Count] = field(default_factory=list)
    """Those that have its disks open, if it runs."""
    before: Words = ""
    """Of a guest of storkit's that somebody has changed: what the hypervisor had made of what storkit gave it, in the
    form of `document` (Hypervisor.edited)."""
    pinned: Words = ""
    """Why one that runs could not leave its host before its next stop; empty: it could."""
    uuid: MaybeUuid = ""
    """Of one without a document: what it runs with."""
    places: dict[Word, Words] = field(default_factory=dict)
    """Of one without a document: where it has its disks, by what it calls them."""


ALIVE: frozenset[GuestStatus] = frozenset(("running", "paused"))
"""Of a guest that a host has, whether or not it stands still: it writes there, or may at any moment."""


@dataclass(frozen=True, slots=True)
class GuestState:
    """What a hypervisor says of one guest on one host."""

    name: GuestName
    uuid: Uuid
    host: HostName
    hypervisor: Word
    status: GuestStatus
    pid: Count = 0
    migration: Line = ""
    """The hypervisor's own word for a migration under way or ended (QEMU: query-migrate's status)."""
    machine: Word = ""
    """The versioned machine type it runs with: the destination must use the same."""
    volumes: dict[Uuid, VolumeName] = field(default_factory=dict)
    """Volume UUID to name, as attached to the guest."""
    reason: Words = ""
    """Why it is paused, where that was nobody's wish: a disk without room, a disk that fails. Of one that runs: what
    moves it away, where the destination may run it by now."""
    edited: bool = False
    """Somebody has changed its configuration there since storkit wrote it (Hypervisor.edited)."""
    pinned: Words = ""
    """Why it cannot leave the host before its next stop; empty: it can."""


@dataclass(frozen=True, slots=True)
class Saved:
    """What the memory of a sleeping guest says of itself: whose it is, and of which bytes of its disks."""

    guest: Uuid
    name: GuestName
    hold: Uuid
    """The id of the holds on its disks."""
    generations: dict[Uuid, Count]
    """Volume to its generation, of the disks that the guest writes."""
    hypervisor: Word
    fingerprint: dict[Words, Words]
    """What the host that wakes it must have alike (Hypervisor.fingerprint)."""
    machine: Word = ""
    paused: bool = False
    """It stood still before it was saved, and will do so afterwards."""
    since: Line = ""
    version: Line = ""
    """The hypervisor's, where it was saved."""
    file: MaybePath = ""
    """Where it was saved."""
    size: Count = 0
    """Of the hypervisor's own part of the file, in bytes."""
    used: bool = False
    """The guest has woken up by it: it has run since, and its disks are others."""


@dataclass(frozen=True, slots=True)
class MigrationResult:
    """What the hypervisor measured of a finished migration, in milliseconds and bytes."""

    total_ms: Count
    downtime_ms: Count | None
    """None: the hypervisor does not say."""
    setup_ms: Count = 0
    transferred: Count = 0


@dataclass(frozen=True, slots=True)
class Finding:
    """What keeps a host from doing its part, and the command, or the next thing to do, that mends it."""

    message: Words
    hint: Words = ""
    warning: bool = False
    """Whether the host is ready all the same: what may go wrong some other day."""


@dataclass(frozen=True, slots=True)
class Exported:
    """The exports of a host by one transport, and what keeps others from being told: a damaged record."""

    exports: list[Export]
    damaged: list[Finding] = field(default_factory=list)


@dataclass(frozen=True, slots=True)
class AttachedHere:
    """The attachments of a host by one transport, and what keeps others from being told."""

    attachments: list[Attachment]
    damaged: list[Finding] = field(default_factory=list)
