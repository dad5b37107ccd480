"""What hosts were granted over iSCSI: one 0600 JSON file per volume, and the names on the wire.

Grants say what should be, and are written before the kernel is changed; what is, the kernel is asked (target.py). The
save file that the distribution restores targets from at boot is made of grants as well (savefile.py), so that nothing
ever gives a host more than its grant.
"""

from __future__ import annotations

import os
import re
from dataclasses import dataclass, field
from typing import ClassVar, Literal

from storkit.core.backend import WORD, word_setting
from storkit.core.errors import StorkitError, UsageError, raise_problems
from storkit.core.identities import ClientName, Line
from storkit.core.model import Secret, Volume
from storkit.tech import portals
from storkit.tech.grants import short_digest

PREFIX = "iqn.2026-11.org.storkit"
PORT = 3260
PATH_LOST = 5
"""Seconds until a lost path of several is given up. With the time in which the loss is noticed, 10 in all."""
_PREFIX = re.compile(r"iqn\.[0-9]{4}-(0[1-9]|1[0-2])(\.[a-z0-9-]+){2,}(:[a-z0-9.:-]*[a-z0-9])?")

Chap = Literal["mutual", "one-way", "none"]


@dataclass(frozen=True)
class IscsiSettings:
    """What the inventory may set for the transport `iscsi`."""

    prefix: str = word_setting(PREFIX)
    """What the names of all targets and initiators begin with (RFC 3720, 3.2.6.3.1): the same on all hosts."""
    portals: list[str] = field(default_factory=list, metadata=WORD)
    """Where the home host's targets listen: ADDRESS, ADDRESS:PORT or [IPV6]:PORT; several for several paths. None: the
    host's own address, port 3260."""
    chap: Chap = "mutual"
    """Who proves that it knows its secret: both sides, the client only, or nobody."""
    login_timeout: int = 15
    """Seconds that a client tries one portal before it is called unreachable."""
    replacement_timeout: int = -1
    """Seconds that a client's I/O waits for a target that is away, before it fails; -1: as long as it takes. With
    several portals, seconds that it waits for one of them."""

    def __post_init__(self) -> None:
        problems: list[StorkitError] = []
        if not _PREFIX.fullmatch(self.prefix) or len(self.prefix) > 120:
            hint = f"lower-case, a date and a domain of two parts or more: {PREFIX}"
            problems.append(UsageError(f"iscsi: prefix {self.prefix!r} cannot begin an IQN", hint))
        problems += portals.problems(self.portals, PORT, "iscsi")
        if self.login_timeout < 1:
            problems.append(UsageError(f"iscsi: login_timeout = {self.login_timeout} is no number of seconds"))
        if self.replacement_timeout < -1 or self.replacement_timeout == 0:
            hint = "-1 waits as long as it takes"
            problems.append(UsageError(f"iscsi: replacement_timeout = {self.replacement_timeout}", hint))
        raise_problems(problems)

    @property
    def queues(self) -> bool:
        """Whether I/O waits for as long as it takes."""
        return self.replacement_timeout < 0

    @property
    def path_given_up(self) -> int:
        """Seconds that I/O waits for a lost path of several, before it goes by another. If the inventory says how long
        a target may be away, that is meant; otherwise what no path takes waits above them."""
        return PATH_LOST if self.queues else self.replacement_timeout


def portal(text: str) -> tuple[str, int]:
    """As tech.portals.parse."""
    return portals.parse(text, PORT, "iscsi")


def target_iqn(prefix: str, uuid: str) -> str:
    """The IQN of a volume's target. It has one LUN, 0."""
    return f"{prefix}:{uuid.lower()}"


def is_target(name: str, uuid: str) -> bool:
    """Whether this is the IQN of that volume's target, whatever it begins with. It is part of file names."""
    prefix, colon, end = name.rpartition(":")
    return bool(colon) and end == uuid.lower() and _PREFIX.fullmatch(prefix) is not None


def initiator_iqn(prefix: str, host: str) -> str:
    """The IQN that a client host logs in with: from its name alone, so that server and client need not agree on it.

    IQNs are lower-case, with letters, digits, '.', '-' and ':' (RFC 3722). A name that has to be changed gets ':' and a
    hash of itself; ':' is in no unchanged name, so no two hosts get the same one.
    """
    clean = re.sub(r"[^a-z0-9.-]+", "-", host.lower()).strip("-.")[:60]
    return f"{prefix}:host.{host if clean == host else f'{clean}:{short_digest(host)}'}"


def path_iqn(initiator: str, number: int) -> str:
    """The IQN that a client logs in with at the target's portal of this number, from 0. Each path has a name, and so an
    access list, of its own: of several sessions by one name, the kernel's target shows no more than one, and whether
    the others have ended is not to be seen. The end is like that of no host's name: a hash has no `p`."""
    return f"{initiator}:path{number + 1}" if number else initiator


def is_path_of(name: str, initiator: str) -> bool:
    """Whether this is the IQN of one of a client's paths."""
    return re.fullmatch(re.escape(initiator) + r"(:path[0-9]+)?", name) is not None


def unit_serial(uuid: str) -> str:
    """The unit serial number (VPD page 0x80) of a volume's logical unit: its UUID."""
    return uuid.lower()


def naa(uuid: str) -> str:
    """The NAA identifier (VPD page 0x83) that LIO makes of that serial, as udev and `scsi_id` show it.

    spc_gen_naa_6h_vendor_specific(): 6, the IEEE company id 001405, then the serial's hex digits, 25 of them.
    """
    return "6001405" + uuid.lower().replace("-", "")[:25]


def stated(naa_id: str, serial: str) -> str:
    """The identity that a logical unit states by INQUIRY: the identifiers of VPD pages 0x83 and 0x80."""
    return f"naa.{naa_id.lower()} serial.{serial.lower()}"


def identity(uuid: str) -> str:
    """What the logical unit of this volume has to state."""
    return stated(naa(uuid), unit_serial(uuid))


@dataclass(frozen=True, slots=True)
class Chapped:
    """The secrets of one client and one volume (CHAP, RFC 1994). The two must differ: open-iscsi and LIO both refuse to
    be shown their own answer."""

    user: str = ""
    secret: Secret = field(default_factory=lambda: Secret(os.urandom(16).hex()))
    mutual_user: str = ""
    mutual_secret: Secret = field(default_factory=lambda: Secret(os.urandom(16).hex()))


@dataclass(slots=True)
class IscsiClientGrant:
    """One client's grant."""

    same_machine: bool
    attached: bool = False
    """The home host's own attachment, which it has to have again after a reboot."""
    chap: Chapped | None = None
    """None for the home host itself, which comes through no target, and where CHAP is off."""


@dataclass(slots=True)
class IscsiGrant:
    """Who may use a volume, and who may write it."""

    transport: ClassVar[str] = "iscsi"
    title: ClassVar[str] = "iSCSI"

    volume: Volume
    clients: dict[ClientName, IscsiClientGrant] = field(default_factory=dict)
    writers: list[ClientName] = field(default_factory=list)
    iqn: Line = ""
    """The target's name, kept: a prefix that was changed later does not rename what clients are logged in to."""
    prefix: Line = ""
    """What the initiators' names begin with, kept for the same reason."""
    portals: list[str] = field(default_factory=list)
    """Where clients reach the target."""
    listens: list[Line] = field(default_factory=list)
    """What it listens on, as LIO names it: the portals, or all addresses, if another target does already."""
    chap: Chap = "mutual"
    epoch: int = 0
    generation: int = 0
    """That of the last command that changed it (storkit.tech.grants)."""

    def remote(self) -> dict[str, bool]:
        """The clients that come over the network, by initiator name, and whether each may write."""
        return {
            initiator_iqn(self.prefix, client): client in self.writers
            for client, granted in self.clients.items()
            if not granted.same_machine
        }

    def initiators(self, client: str) -> list[str]:
        """The initiator names of a client: one for each path."""
        initiator = initiator_iqn(self.prefix, client)
        return [path_iqn(initiator, number) for number in range(max(1, len(self.portals)))]
