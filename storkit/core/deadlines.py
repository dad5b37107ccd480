"""How long a host may be silent before it counts as one that is down, for each verb of the contracts.

A verb is waited for as long as it moves: each sign of that (bytes copied, a program that has ended, one of several
things done) starts its time anew. One that is stuck in the kernel gives no sign, however long it lives.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

HELLO = 20.0
"""Seconds from the start of ssh to the agent's first line: the connection, the login, the start of the agent."""

QUESTION = 40.0
"""Seconds that a verb which changes nothing may go without a sign. Giving it up leaves nothing behind."""

CHANGE = 120.0
"""The same for all others: more than the longest wait inside a verb, which then says itself what it waited for."""

QUESTIONS = frozenset(
    {"find", "look", "find_exports", "find_attachments", "find_off", "capacity", "check", "fingerprint", "messages"}
    | {"may_leave", "adoptable", "strangers", "originals", "edited", "cards"}
    | {"look_exports", "look_attachments", "ready", "doors", "saved"}
)

LONG: Mapping[str, float] = {
    "attach": 240.0,  # a mount gives up after 150 seconds, a login after 90
    "take_over": 300.0,  # the storage finds out that a host is gone
    "start": 300.0,
    "define": 180.0,
    "take": 180.0,
    "send": 300.0,  # QEMU's own stall_timeout should end it first
    "cancel": 180.0,
    "save": 300.0,
    "load": 300.0,
    "unsave": 300.0,
    # They end domains, for which xl gets 180 seconds.
    "stop": 240.0,
    "receive": 240.0,
    "retire": 240.0,
    "restore": 300.0,
    # One request to the kernel or to a file system, for a whole disk.
    "clone": 900.0,
    "create": 900.0,
    "snapshot": 900.0,
    "resize": 900.0,
    "delete": 900.0,
    # They say how far they are, but not while the file system writes what is left to the disk.
    "fill": 1800.0,
    "refill": 1800.0,
    "pull": 1800.0,
    "digest": 1800.0,
    "flatten": 1800.0,
    "export_image": 1800.0,
    "examine": 1800.0,
    "import_tree": 1800.0,
}

SPARE = 60.0
"""What a verb gets beyond a time that a person has set for it."""

UNSAID = 5.0
"""A change by an agent that gives no signs but progress (protocol 1) gets so many times as long."""


def quiet(verb: str, args: Mapping[str, Any], settings: Mapping[str, Any]) -> float:
    """Seconds that a verb may go without a sign that it moves; `settings` are those of its backend."""
    if verb in QUESTIONS:
        return QUESTION
    usual = LONG.get(verb, CHANGE)
    said = {
        "stop": args.get("timeout", 60.0),
        "execute": args.get("timeout", 600.0),
        "send": settings.get("stall_timeout"),
        "pull": _hundredth([args.get("volume")], args.get("rate")),
        "refill": _hundredth(args.get("volumes"), args.get("rate")),
    }.get(verb)
    return max(usual, float(said) + SPARE) if isinstance(said, int | float) else usual


def _hundredth(volumes: Any, rate: Any) -> float | None:
    """Seconds for a hundredth of a disk at so many bytes a second, as often as qemu-img says how far it is."""
    return 3 * volumes[0]["size"] / 100 / rate if rate and volumes and volumes[0] else None
