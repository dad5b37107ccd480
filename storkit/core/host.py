"""The words about a host itself, as records: what it is, and what a command claims on it for itself; and where its
directories are if nobody names others."""

from __future__ import annotations

import os
from dataclasses import dataclass, field
from pathlib import Path
from typing import Literal

from storkit.core.identities import ClientName, Count, HostName, Line, Mac, MaybeAddress, Port, Words
from storkit.core.model import Finding

SYSTEM_STATE = Path("/var/lib/storkit")
"""Where the state of a host is when root runs storkit; sockets and stable paths are then in /run and /dev."""


@dataclass(frozen=True, slots=True)
class Missing:
    """What a backend needs of a host, and the host does not have."""

    backend: Words
    needs: Words
    """A program, or `kernel module NAME`."""
    package: Words
    """The Debian package that has it; empty: none."""


@dataclass(frozen=True, slots=True)
class Refusal:
    """What a host does not accept of what it was told: an error's JSON (core.errors)."""

    message: Words
    hint: Words = ""
    kind: Words = ""


@dataclass(frozen=True, slots=True)
class Facts:
    """What a machine is, for `host check`."""

    version: Words
    """Of storkit."""
    kernel: Words
    clock: float
    """Seconds since 1970."""
    missing: list[Missing]
    python: Words = ""
    root: bool = False
    """Whether the agent runs as root."""
    state: Words = ""
    """The state directory."""
    refused: list[Refusal] = field(default_factory=list)
    findings: list[Finding] = field(default_factory=list)
    """What is wrong with the directories that storkit keeps its own records in."""


@dataclass(frozen=True, slots=True)
class Claim:
    """What a command wants for itself on one host."""

    names: list[Line]
    """Lock names: volume UUIDs, `guest:NAME`."""
    shared: bool = False
    """True: only keep others from changing it, as for the source of a clone."""


def changes(claims: list[Claim]) -> bool:
    """Whether a command with these claims changes anything."""
    return not all(claim.shared for claim in claims)


@dataclass(frozen=True, slots=True)
class Locked:
    """What a command has got."""

    given_up: list[Line]
    """The plans whose marks were taken away."""
    epoch: Count
    """By which the host tells this command's changes of rights from an earlier one's; 0: it changes nothing, or its
    host's protocol has none."""


@dataclass(frozen=True, slots=True)
class Door:
    """Where a transport's servers listen for hosts on other machines: an address and its ports."""

    address: MaybeAddress
    port: Port
    last: Port
    """The last port of the range that they take one from; `port` where there is only that one."""


@dataclass(frozen=True, slots=True)
class Listening:
    """What a host listens on for a moment, so that others can try to reach it, and what it cannot listen on."""

    doors: list[Door]
    """With the very port of each."""
    findings: list[Finding]


@dataclass(frozen=True, slots=True)
class Declared:
    """A person's word that a host is off."""

    host: ClientName
    by: Line
    """Who said so, and from where."""
    since: Line
    """When, in UTC, by the clock of the host that keeps it."""
    keepers: list[HostName] = field(default_factory=list)
    """The hosts that keep it."""


@dataclass(frozen=True, slots=True)
class Drained:
    """A person's word that a host takes no guests."""

    by: Line
    """Who said so, and from where."""
    since: Line
    """When, in UTC, by the clock of the host."""


@dataclass(frozen=True, slots=True)
class Neighbour:
    """An IP address that a host has seen a network card with."""

    mac: Mac
    address: MaybeAddress
    seen: Literal["neighbour", "lease"]
    """In the kernel's neighbour table, or as a lease of a DHCP server of the host's."""


def config_directory() -> Path:
    """Where the inventory and the guests are by default: /etc/storkit for root, else below $XDG_CONFIG_HOME."""
    if os.geteuid() == 0 and "XDG_CONFIG_HOME" not in os.environ:
        return Path("/etc/storkit")
    return Path(os.environ.get("XDG_CONFIG_HOME") or Path.home() / ".config") / "storkit"


def state_directory() -> Path:
    """Where this host's state is by default: /var/lib/storkit for root, else below $XDG_STATE_HOME."""
    if os.geteuid() == 0 and "XDG_STATE_HOME" not in os.environ:
        return SYSTEM_STATE
    return Path(os.environ.get("XDG_STATE_HOME") or Path.home() / ".local/state") / "storkit"
