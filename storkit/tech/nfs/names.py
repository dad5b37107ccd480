"""What hosts were granted over NFS: one 0600 JSON file per volume, and what the inventory may set.

Grants say what should be, and are written before the server is changed: a kill never gives back a right that was taken.
What is, the server's export table says (server.py).
"""

from __future__ import annotations

import ipaddress
import re
from dataclasses import dataclass, field
from pathlib import Path
from typing import ClassVar, Literal, get_args

from storkit.core.backend import program_setting
from storkit.core.errors import StorkitError, UsageError, raise_problems
from storkit.core.identities import ClientName, MaybeAddress, Word
from storkit.core.model import Volume

Version = Literal["3", "4.0", "4.1", "4.2"]
Security = Literal["sys", "krb5", "krb5i", "krb5p"]

# What storkit sets itself, or what would let a write fail silently, a path be answered from a stale cache, or a
# server's files be more than data.
_RESERVED = re.compile(
    r"(nfs)?vers=.*|minorversion=.*|sec=.*|soft|softerr|hard|(no)?sharecache|ro|rw|remount|bg"
    r"|(no)?(suid|dev|exec)|defaults|users?|owner|group"
)


@dataclass(frozen=True)
class NfsSettings:
    """What the inventory may set for the transport `nfs`."""

    version: Version = "4.2"
    """The protocol's version. 3 has no state that could be taken from a client: see `v3_writers`."""
    sec: Security = "sys"
    """sys trusts the client's address; krb5, krb5i, krb5p: Kerberos, with integrity, with privacy (exports(5))."""
    options: str = program_setting()
    """More mount options, separated by commas (nfs(5)): `nconnect=4`, `timeo=600`."""
    uid: int = 65534
    """Whom the server takes every client's user for: the owner of the volumes' files while they are exported."""
    gid: int = 65534
    enforce: Literal["server", "locks"] = "server"
    """Who keeps hosts that may not write from writing. `locks`: nobody but QEMU's image locks, which is all that there
    is where the server is not storkit's to manage."""
    v3_writers: bool = False
    """Let hosts write over NFS 3 all the same."""

    def __post_init__(self) -> None:
        problems: list[StorkitError] = []
        for key, values in (("version", Version), ("sec", Security)):
            if getattr(self, key) not in get_args(values):
                message = f"nfs: {key} = {getattr(self, key)!r}"
                problems.append(UsageError(message, f"one of {', '.join(get_args(values))}"))
        for option in filter(None, self.options.split(",")):
            if _RESERVED.fullmatch(option.strip()) or not option.isprintable() or " " in option:
                problems.append(UsageError(f"nfs: options: {option!r} is not for the inventory to set", "leave it out"))
        for key in ("uid", "gid"):
            if not 0 < getattr(self, key) < 2**32 - 1:
                problems.append(UsageError(f"nfs: {key} = {getattr(self, key)}: an unprivileged user is wanted"))
        raise_problems(problems)


@dataclass(slots=True)
class NfsClientGrant:
    """One client's grant."""

    addresses: list[MaybeAddress]
    """Where the server sees the client come from."""
    nonce: Word
    """A UUID, part of the name of what is exported and of every file handle: new with each grant, so that a client that
    was cut off, and still has writes to send, is never let in by a later grant."""
    same_machine: bool = False


@dataclass(slots=True)
class NfsGrant:
    """Who may use a volume, and who may write it."""

    transport: ClassVar[str] = "nfs"
    title: ClassVar[str] = "NFS"

    volume: Volume
    instance: Word = ""
    """Part of the volume's identity on the wire: drawn when it is first exported."""
    clients: dict[ClientName, NfsClientGrant] = field(default_factory=dict)
    writers: list[ClientName] = field(default_factory=list)
    epoch: int = 0
    generation: int = 0
    """That of the last command that changed it (storkit.tech.grants)."""

    @property
    def pool(self) -> Path:
        """The pool's directory."""
        return pool_of(self.volume)

    def path(self, client: str) -> Path:
        """What is exported to a client: a directory of its own, or the tree."""
        if self.volume.kind == "tree":
            return Path(self.volume.path)
        return export_path(self.pool, self.volume.uuid, self.clients[client].nonce)


EXPORTS = ".exports"
"""The directory of a pool in which each export has its own."""


def pool_of(volume: Volume) -> Path:
    """The directory of a volume's pool: its file lies in it, a tree's `NAME.tree/root` below."""
    directory = Path(volume.path).parent
    return directory.parent if volume.kind == "tree" else directory


def export_path(pool: Path, uuid: str, nonce: str) -> Path:
    return pool / EXPORTS / f"{uuid}+{nonce}"


def resolve(client: str, address: str) -> list[str]:
    """The IP addresses of a client host's address, which may be a name. Raises UsageError: nobody knows it."""
    import socket

    try:
        found = {str(entry[4][0]).partition("%")[0] for entry in socket.getaddrinfo(address, None)}
    except OSError as error:
        message = f"the address {address!r} of host {client} is not known here: {error.strerror}"
        raise UsageError(message, f"give host {client} an address in the inventory that this host knows") from None
    return sorted(found, key=lambda text: (":" in text, ipaddress.ip_address(text)))
