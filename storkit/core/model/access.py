"""What a host is given of a volume and what it has: exports, offers, attachments, and how a guest opens them."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Literal

from storkit.core.identities import (
    ClientName,
    Count,
    Decimal,
    Hex,
    HostName,
    Line,
    MaybeAddress,
    MaybePath,
    Port,
    Portal,
    Size,
    Uuid,
    VolumeName,
    Word,
    Words,
)
from storkit.core.model.secret import Secret, SecretLine


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
