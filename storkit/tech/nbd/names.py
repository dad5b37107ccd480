"""What hosts were granted: one 0600 JSON file per volume, from which its servers can be started again at any time.

Grants say what should be; what is, the servers are asked. The names on the wire are decided here as well.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import ClassVar

from storkit.core.identities import ClientName, Port, Word
from storkit.core.model import Volume
from storkit.tech.grants import host_slug


@dataclass(slots=True)
class NbdClientGrant:
    """One client's grant."""

    same_machine: bool
    port: Port = 0
    """The TCP port of the client's front, kept so that the front comes back where the client looks for it."""
    nonce: Word = ""
    """Part of the export's name: a guest that was cut off and tries to reconnect, with old data in its memory, is never
    let in by a later grant, nor by another volume of the same name."""
    sources: list[str] = field(default_factory=list)
    """The IP addresses that a client on another machine comes from: the kernel lets no other reach its port. Empty:
    any, where the client's address was not known."""


@dataclass(slots=True)
class NbdGrant:
    """Who may use a volume, and who may write it."""

    transport: ClassVar[str] = "nbd"
    title: ClassVar[str] = "NBD"

    volume: Volume
    clients: dict[ClientName, NbdClientGrant] = field(default_factory=dict)
    writers: list[ClientName] = field(default_factory=list)
    epoch: int = 0
    generation: int = 0
    """That of the last command that changed it (storkit.tech.grants)."""

    def export_name(self, client: str) -> str:
        """The NBD export name of this grant's client."""
        return export_name(self.volume.name, client, self.clients[client].nonce)

    def rights(self) -> dict[str, bool]:
        """Client to whether it may write."""
        return {client: client in self.writers for client in self.clients}


def export_name(volume: str, client: str, nonce: str = "") -> str:
    """The NBD export name of a volume for one client: each client has an export of its own, new with each grant."""
    return f"{volume}@{host_slug(client)}" + (f"+{nonce}" if nonce else "")
