"""Which guests leave a host first, and which hosts may take them."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from fnmatch import fnmatchcase

from storkit.core.errors import Conflict, StorkitError, UsageError, collected, raise_problems
from storkit.core.identities import several
from storkit.plans.intent.coordinator import Coordinator


@dataclass(frozen=True, slots=True)
class Leaving:
    """A guest that is to move, or to be started elsewhere. `memory` in bytes."""

    name: str
    source: str
    memory: int


def destinations(coordinator: Coordinator, source: str, to: Sequence[str]) -> list[str]:
    """The hosts that may take the guests of another: those that were named, or all of the inventory, as far as they
    answer and take guests. Raises all that is wrong with those that were named; Conflict: there is none."""
    problems: list[StorkitError] = []
    named: list[str] = []
    for each in several(to):
        with collected(problems):
            named.append(coordinator.host(each, given=True))
            if named[-1] == source:
                problems.append(UsageError(f"guests cannot leave {source} for {source}", "name other hosts with --to"))
    raise_problems(problems)
    wanted = [name for name in dict.fromkeys(named or coordinator.inventory.hosts) if name != source]
    answering = coordinator.survey.answering(wanted)
    closed = coordinator.survey.drained(answering)
    ready = [name for name in answering if name not in closed]
    for name in named:
        if name not in ready:
            coordinator.warn(f"{name} takes no guests: it {'is drained' if name in closed else 'does not answer'}")
    if not ready:
        raise Conflict(f"there is no other host that could take the guests of {source}", "storkit host check")
    return ready


def in_order(guests: Iterable[Leaving], first: Sequence[str]) -> list[Leaving]:
    """Guests in the order in which they leave: those that match `first` (names, or patterns) in its order, then the
    others by their memory, the largest before the others, since they are the hardest to place."""
    patterns = several(first)

    def rank(one: Leaving) -> tuple[int, int, str]:
        place = next((n for n, each in enumerate(patterns) if fnmatchcase(one.name, each)), len(patterns))
        return place, -one.memory, one.name

    return sorted(guests, key=rank)
