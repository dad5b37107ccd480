"""Why Xen adds or removes a guest's disk, and what follows for this host's right to it: the table of decisions.

xl says to its script only `add` or `remove`. Why, follows from the domain's name, from how it ended, and from the
words of the xl that runs the script (docs/xen.md). What is not known never gives a right away.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Literal

from storkit.hypervisors._xl.processes import XlProcess
from storkit.hypervisors._xl.toolstack import AWAY, INCOMING, XenDomain


@dataclass(frozen=True, slots=True)
class Enter:
    """Ask to be let in, and attach."""

    why: Literal["start", "arrive", "wake"]
    ask: bool = False
    """Whether the manager is asked also where the disk is attached: between `migrate prepare` and `finish` a guest may
    be started at the destination, by mistake, while it runs at the source. For one that arrives, each question would
    be downtime."""


@dataclass(frozen=True, slots=True)
class Leave:
    """Detach, and give this host's right up."""

    why: Literal["moved", "ended", "failed"]


@dataclass(frozen=True, slots=True)
class PutToSleep:
    """The guest sleeps, its memory is in `file`: keep the volume for it, and detach."""

    file: str


@dataclass(frozen=True, slots=True)
class Keep:
    """Leave everything as it is."""

    reason: str


Act = Enter | Leave | PutToSleep | Keep


@dataclass(frozen=True, slots=True)
class XenEvent:
    """One call of the script."""

    kind: Literal["add", "remove"]
    name: str
    """The domain's, as xl has it at this moment."""
    xl: XlProcess | None
    """The xl that runs the script; None: something else does, or it has ended."""
    domain: XenDomain | None = None
    """What `xl list` says of it; None: it does not. Asked for a `remove` only."""
    policies: Mapping[str, str] | None = None
    """`on_reboot` and the like of its xl.cfg, but for those that are `destroy`; None: not known."""
    connected: bool = True
    """Of a `remove`: whether its `add` came to a good end."""
    cut_short: str = ""
    """Of a `remove`: why its `add` entered, if that was killed at its work."""

    @property
    def guest(self) -> str:
        """The name that it has when it does not move."""
        return self.name.removesuffix(INCOMING).removesuffix(AWAY)


_POLICY = {"-": "on_poweroff", "r": "on_reboot", "c": "on_crash", "w": "on_watchdog", "S": "on_soft_reset"}
"""How a domain ended to the key of xl.cfg(5) that says what follows."""
_FINAL = ("destroy", "coredump_destroy")


def decide(event: XenEvent) -> Act:
    """What follows from an event."""
    return _added(event) if event.kind == "add" else _removed(event)


def _added(event: XenEvent) -> Enter:
    if event.name.endswith(INCOMING):
        return Enter("arrive")
    # The xl that has built a guest builds it anew when that reboots, with the same words: its disk is there.
    # One that storkit has started does what a plan of storkit's wants, which has the volume under its lock.
    if event.xl and (event.xl.watches or event.xl.guest):
        return Enter("start")
    return Enter("wake" if event.xl and event.xl.verb == "restore" else "start", ask=True)


def _removed(event: XenEvent) -> Act:
    if not event.connected and not event.cut_short:
        return Keep("it was never connected")
    if not event.connected:
        return PutToSleep(event.xl.file) if event.xl and event.cut_short == "wake" else Leave("failed")
    if event.name.endswith(INCOMING):
        return Leave("failed")
    if event.name.endswith(AWAY):
        return Leave("moved")
    verb = event.xl.verb if event.xl else ""
    if verb in ("destroy", "block-detach"):
        return Leave("ended")
    if verb == "save":
        suspended = event.domain is None or event.domain.ended == "s"
        return PutToSleep(event.xl.file) if event.xl and suspended else Keep("it was not saved")
    if verb in ("create", "restore", "migrate-receive") and event.xl:
        return _ended(event, event.xl)
    return Keep("it is not known why")


def _ended(event: XenEvent, xl: XlProcess) -> Act:
    """A domain that is taken apart by the xl that has built it, and has watched over it since."""
    domain = event.domain
    if domain is None:
        return Keep("xl list does not tell how it ended")
    key = _POLICY.get(domain.ended)
    if key and event.policies is not None:
        action = event.policies.get(key, "destroy")
        return Leave("ended") if action in _FINAL else Keep(f"{key} is {action}")
    if domain.ended or domain.seconds:
        return Keep("it is not known whether it comes back")
    # It has never run: what it was to wake up by is as good as before.
    return PutToSleep(xl.file) if xl.verb == "restore" else Leave("failed")
