"""Volumes that a sleeping guest holds: what they refuse, in the same words everywhere."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from dataclasses import replace

from storkit.core.errors import Conflict, StorkitError, UsageError, collected, raise_problems
from storkit.core.model import Volume


def held(volume: Volume, what: str) -> list[StorkitError]:
    """A Conflict if a guest sleeps on this volume, which therefore cannot be `what`."""
    hold = volume.hold
    if hold is None:
        return []
    message = f"guest {hold.name} sleeps on volume {volume.name} since {hold.since}: it cannot be {what}"
    return [Conflict(message, wake(hold.name))]


def all_held(volumes: Iterable[Volume], what: str) -> list[StorkitError]:
    """As `held`, for each of these volumes."""
    return [problem for volume in volumes for problem in held(volume, what)]


def relabelled(pairs: Iterable[tuple[Volume, Volume]]) -> list[Volume]:
    """The volumes, as they are, that would get another label: of pairs of what is wanted and what is. An import, too,
    begins with one, and goes on to write."""
    return [old for new, old in pairs if (new.kind, new.made) != (old.kind, old.made)]


def begun(old: Volume, new: Volume) -> Volume:
    """A volume as it is once the hold of `new` has begun. Raises Conflict: another sleep has it."""
    if new.hold is None:
        raise UsageError(f"no hold is given for volume {old.name}")
    if old.hold is not None and old.hold.id != new.hold.id:
        raise_problems(held(old, f"held for guest {new.hold.name} as well"))
    return replace(old, hold=new.hold, generation=max(old.generation, new.hold.generation))


def over(old: Volume, sleep: str) -> Volume:
    """A volume as it is once the hold of this id has ended. Raises Conflict: another sleep has it."""
    if old.hold is not None and old.hold.id != sleep:
        raise_problems(held(old, "released from another sleep than this one"))
    return replace(old, hold=None)


Change = Callable[[Volume, Volume], Volume]


def changed(known: Sequence[Volume], wanted: Sequence[Volume], change: Change) -> list[Volume]:
    """The known volumes, each changed by what is wanted of it; everything that refuses it at once."""
    found: list[Volume] = []
    problems: list[StorkitError] = []
    for old, new in zip(known, wanted, strict=True):
        with collected(problems):
            found.append(change(old, new))
    raise_problems(problems)
    return found


def ended(volume: Volume, sleep: str) -> list[StorkitError]:
    """A Conflict unless the volume is held by the sleep of this id."""
    if volume.hold is not None and volume.hold.id == sleep:
        return []
    message = f"the sleep that the memory image is of has ended: volume {volume.name} is not held by it any more"
    return [Conflict(message, f"storkit volume show {volume.name}")]


def wake(guest: str) -> str:
    """The commands that end a guest's sleep."""
    return f"storkit guest restore {guest}; or give its memory up: storkit guest discard {guest} --force"
