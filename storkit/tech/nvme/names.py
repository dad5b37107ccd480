"""What hosts were granted over NVMe/TCP: one 0600 JSON file per volume, and the names on the wire."""

from __future__ import annotations

import base64
import os
import re
import uuid as uuids
import zlib
from dataclasses import dataclass, field
from typing import ClassVar

from storkit.core.backend import WORD, word_setting
from storkit.core.errors import UsageError, raise_problems
from storkit.core.identities import ClientName, Line, Word
from storkit.core.model import Secret, Volume
from storkit.tech import portals
from storkit.tech.grants import host_slug

TRANSPORT = "nvme"
PREFIX = "nqn.2026-11.org.storkit"
PORT = 4420
HOST = "host"
"""The option of an offer that is the NQN of its client."""
NAMESPACE = 1
"""The namespace of every subsystem that is a volume."""
TRUSTED = "unencrypted and unauthenticated"
"""What an inventory has to say of a network on which nobody proves who they are."""


@dataclass(frozen=True)
class NvmeSettings:
    """What the inventory may set for the transport `nvme`."""

    portals: list[str] = field(default_factory=list, metadata=WORD)
    """Where the home host listens: ADDRESS, ADDRESS:PORT or [IPV6]:PORT; several for several paths. None: the host's
    own address, port 4420."""
    trusted_network: str = word_setting()
    """No authentication, for networks that are separate and trusted, and kernels that have none: only if this says what
    it is, word for word."""

    def __post_init__(self) -> None:
        problems = portals.problems(self.portals, PORT, TRANSPORT)
        if self.trusted_network not in ("", TRUSTED):
            message = f"nvme: trusted_network does not say what it does: {self.trusted_network!r}"
            problems.append(UsageError(message, f'if you mean it, write exactly: trusted_network = "{TRUSTED}"'))
        raise_problems(problems)


def portal(text: str) -> tuple[str, int]:
    """As tech.portals.parse."""
    return portals.parse(text, PORT, TRANSPORT)


def subsystem_nqn(uuid: str, client: str) -> str:
    """The name of the subsystem that shows a volume to one client (NVM Express Base Specification, 4.5)."""
    return f"{PREFIX}:{uuid}:{host_slug(client)}"


def host_nqn(uuid: str, client: str, instance: str) -> str:
    """The name by which a client asks for one volume. The kernel's target keeps a key for each name of a host, so each
    volume has a key of its own; and no two exports share one, so that a host which was cut off, and still holds writes
    of then, never finds its way to what it was given later."""
    return f"{PREFIX}:host.{host_slug(client)}:{uuid}:{instance}"


def is_host(nqn: str, uuid: str, client: str) -> bool:
    """Whether a client asks for that volume by this name, in any export of it."""
    return re.fullmatch(re.escape(host_nqn(uuid, client, "")) + "[0-9a-f]{8}", nqn) is not None


def host_id(nqn: str) -> str:
    """The host identifier that belongs to a host's name: the kernel wants the two always together."""
    return str(uuids.uuid5(uuids.NAMESPACE_URL, nqn))


def serial(uuid: str) -> str:
    """The serial number of a volume's subsystems: 20 characters are all that there is room for."""
    return uuid.replace("-", "")[:20]


def stated(uuid: str, nguid: str) -> str:
    """The identity that a namespace states by its identification descriptors: its UUID and NGUID."""
    return f"uuid.{uuid} nguid.{nguid}"


def identity(uuid: str) -> str:
    """What the namespace of this volume has to state."""
    return stated(uuid, uuid.replace("-", ""))


def new_key() -> Secret:
    """A key of DH-HMAC-CHAP as the kernel takes it (TP 8006: DHHC-1, no transformation, the key with its CRC-32)."""
    key = os.urandom(32)
    text = base64.b64encode(key + zlib.crc32(key).to_bytes(4, "little")).decode()
    return Secret(f"DHHC-1:00:{text}:")


@dataclass(frozen=True, slots=True)
class Keys:
    """The keys of one client and one volume: both sides prove that they know theirs."""

    host: Secret = field(default_factory=new_key)
    controller: Secret = field(default_factory=new_key)


@dataclass(slots=True)
class NvmeClientGrant:
    """One client's grant."""

    same_machine: bool
    instance: Word = ""
    """Of this export, in the name of its host; empty for the home host itself, which comes through no controller."""
    attached: bool = False
    """The home host's own attachment, which it has to have again after a reboot."""
    keys: Keys | None = None
    """None for the home host itself, and on a trusted network."""


@dataclass(slots=True)
class NvmeGrant:
    """Who may use a volume, and who may write it."""

    transport: ClassVar[str] = TRANSPORT
    title: ClassVar[str] = "NVMe/TCP"

    volume: Volume
    clients: dict[ClientName, NvmeClientGrant] = field(default_factory=dict)
    writers: list[ClientName] = field(default_factory=list)
    portals: list[Line] = field(default_factory=list)
    """Where clients reach the home host, by number."""
    epoch: int = 0
    generation: int = 0

    def host(self, client: str) -> str:
        """The NQN of a client of this volume."""
        return host_nqn(self.volume.uuid, client, self.clients[client].instance)

    def remote(self) -> list[str]:
        """The clients that come over the network."""
        return [client for client, granted in self.clients.items() if not granted.same_machine]
