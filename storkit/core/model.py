"""The words of storkit as records: volume, offer, export, attachment, disk source, guest state.

Every record is plain data with a JSON form (storkit.core.codec). Sizes are bytes, times are ISO 8601 in UTC.
"""

from __future__ import annotations

import re
from dataclasses import dataclass, field
from typing import Literal

from storkit.core.errors import UsageError

NAME_MAX = 63
_NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]*", re.ASCII)


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


def check_name(what: str, name: str) -> str:
    """`name`, if it can name a volume, guest, host, pool or fleet on every backend; UsageError otherwise.

    The common ground of LVM names (lvm(8)), NBD export names, IQN parts, Xen domain names and file names.
    """
    hint = f"use 1 to {NAME_MAX} of the letters A-Z a-z, digits, '.', '_' and '-', starting with a letter or digit"
    shown = repr(name if len(name) <= 80 else name[:77] + "...")
    if not name:
        raise UsageError(f"a {what} needs a name", hint)
    if len(name) > NAME_MAX:
        raise UsageError(f"{what} name {shown} is {len(name)} characters long, {NAME_MAX} at most", hint)
    if not _NAME.fullmatch(name):
        raise UsageError(f"{shown} cannot name a {what}", hint)
    if ".." in name:
        raise UsageError(f"{shown} cannot name a {what}: '..' is not allowed", hint)
    return name


VolumeKind = Literal["disk", "image", "snapshot", "tree"]
"""disk: a guest writes it. image: golden, never written, cloned. snapshot: one moment of a disk, never written.
tree: a directory, a guest's root file system; the guest itself mounts it over the network."""

_GUEST = "guest:"


def guest_client(name: str) -> str:
    """The name that a guest has as the client of an export, as hosts have theirs: no host can be named so."""
    return _GUEST + name


def guest_of(client: str) -> str:
    """The guest that a client is; empty: it is a host."""
    return client.removeprefix(_GUEST) if client.startswith(_GUEST) else ""


@dataclass(frozen=True, slots=True)
class Volume:
    """One disk, named, with a UUID that is its identity on every wire."""

    name: str
    uuid: str
    size: int
    pool: str = ""
    host: str = ""
    """The home host: where the pool is and where the volume's locks are held."""
    kind: VolumeKind = "disk"
    format: str = ""
    """How the bytes lie at home (raw, qcow2, ...); on every wire a volume is raw."""
    path: str = ""
    """Where the bytes lie on the home host."""
    origin: str = ""
    """The UUID of the volume this one was cloned or snapshotted from."""
    made: str = ""
    """How it came to be: created, imported, reflink, overlay, copy."""
    created: str = ""


@dataclass(frozen=True, slots=True)
class Damaged:
    """A volume that is there and cannot be trusted: its metadata or its file are not as storkit left them.

    It keeps its name taken. Every command that needs it is refused; others go on.
    """

    name: str
    pool: str
    host: str
    message: str
    hint: str = ""


@dataclass(frozen=True, slots=True)
class Found:
    """What a pool holds, each in the order of the names."""

    volumes: list[Volume]
    damaged: list[Damaged] = field(default_factory=list)


@dataclass(frozen=True, slots=True)
class Usage:
    """How full a pool is, in bytes."""

    pool: str
    host: str
    total: int
    free: int
    provisioned: int
    """The sum of the sizes that volumes could grow to."""
    allocated: int
    warnings: list[str] = field(default_factory=list)


@dataclass(frozen=True, slots=True)
class Credential:
    """What a client host shows to the server to be let in."""

    method: Literal["psk", "x509", "chap"]
    user: str = ""
    secret: Secret | None = None
    files: dict[str, Secret] = field(default_factory=dict)
    """x509: file name (ca-cert.pem, client-cert.pem, client-key.pem) to its content."""


@dataclass(frozen=True, slots=True)
class Offer:
    """What a client host must know to attach a volume exported to it: where, the name on the wire, the identity."""

    volume: str
    uuid: str
    size: int
    client: str
    transport: str
    name: str
    """The name on the wire: NBD export name, IQN/LUN, path."""
    identity: str
    """What the server says of the volume on the wire; attach refuses anything else."""
    writable: bool
    socket: str = ""
    server: str = ""
    port: int = 0
    portals: list[str] = field(default_factory=list)
    """iSCSI: ADDRESS:PORT of each way to the target."""
    path: str = ""
    """To a client on the server's own machine: where the bytes lie."""
    options: dict[str, str] = field(default_factory=dict)
    """What else this transport's client must know."""
    credential: Credential | None = None


@dataclass(frozen=True, slots=True)
class Export:
    """A volume offered to one client host, as the server has it now."""

    volume: str
    uuid: str
    client: str
    writable: bool
    transport: str
    live: bool
    """False: granted, but the server that should offer it does not run."""
    endpoint: str = ""
    """For people: the socket, portal or path."""


@dataclass(frozen=True, slots=True)
class DiskSource:
    """Where a guest's disk comes from on one host. Templates know these three kinds and never a backend."""

    kind: Literal["block", "file", "network"]
    path: str = ""
    """block: the device; file: the file."""
    format: str = "raw"
    protocol: str = ""
    """network: nbd, rbd, iscsi."""
    export: str = ""
    """network: the name on the wire."""
    socket: str = ""
    server: str = ""
    port: int = 0
    tls: Literal["", "psk", "x509"] = ""
    tls_dir: str = ""
    """A 0700 directory with the credential's files, as QEMU's tls-creds objects take it."""
    tls_user: str = ""

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


@dataclass(frozen=True, slots=True)
class Attachment:
    """An export on one host, at its stable path."""

    volume: str
    uuid: str
    host: str
    transport: str
    path: str
    """The stable path: the same name on every host."""
    source: DiskSource
    size: int
    writable: bool
    """What this host asked for; what the server grants is in its exports."""


@dataclass(frozen=True, slots=True)
class Evidence:
    """What one host sees of one volume, measured at the far end of the wire."""

    volume: str
    host: str
    identity: str
    """The identity as the server states it, including the instance of the server that answered."""
    size: int
    blocks: dict[str, str]
    """Byte offset of a 4 KiB block to the SHA-256 of its content."""
    key: str = ""
    """The reservation key that this host has registered at the logical unit, in hexadecimal; empty: none."""
    keys: list[str] | None = None
    """The keys of all hosts that are registered there, as this host reads them; None: it cannot read any."""


GuestStatus = Literal["stopped", "running", "paused", "incoming", "arrived", "migrated", "unknown"]
"""arrived: whole, and waiting for `resume`; it has never run here. migrated: the rest of a guest that has moved away.
unknown: it does not answer, so it may still run."""


@dataclass(frozen=True, slots=True)
class GuestState:
    """What a hypervisor says of one guest on one host."""

    name: str
    uuid: str
    host: str
    hypervisor: str
    status: GuestStatus
    pid: int = 0
    migration: str = ""
    """The hypervisor's own word for a migration under way or ended (QEMU: query-migrate's status)."""
    machine: str = ""
    """The versioned machine type it runs with: the destination must use the same."""
    volumes: dict[str, str] = field(default_factory=dict)
    """Volume UUID to name, as attached to the guest."""


@dataclass(frozen=True, slots=True)
class MigrationResult:
    """What the hypervisor measured of a finished migration, in milliseconds and bytes."""

    total_ms: int
    downtime_ms: int
    setup_ms: int = 0
    transferred: int = 0
