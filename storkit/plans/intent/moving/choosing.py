"""Which guests leave a host first, and which hosts may take them."""

from __future__ import annotations

from collections.abc import Collection, Iterable, Sequence
from contextlib import suppress
from dataclasses import dataclass
from fnmatch import fnmatchcase

from storkit.core.errors import Conflict, StorkitError, Unsupported, UsageError, collected, raise_problems
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


class Shares:
    """What each of some hosts is given of many guests: each guest goes where the least memory has gone so far, and
    not to where another one is that matches the same pattern of the inventory's `apart`."""

    def __init__(self, coordinator: Coordinator, hosts: Sequence[str]) -> None:
        self._given = dict.fromkeys(hosts, 0)
        self._patterns = coordinator.inventory.defaults.apart
        self._there: dict[str, set[str]] = {host: set() for host in hosts}
        for hypervisor in coordinator.hypervisors() if self._patterns else ():
            with suppress(Unsupported):
                states = coordinator.survey.guests(hosts, f"hypervisor:{hypervisor}")
                for host, guests in states.items():
                    self._there[host] |= {each.name for each in guests if each.status != "stopped"}

    def take(self, one: Leaving, tried: Collection[str] = ()) -> str:
        """The host for a guest, which counts as given it; empty: there is none but those that were tried."""
        left = [host for host in self._given if host not in tried and host != one.source]
        left = [host for host in left if not self._met(one.name, host)]
        host = min(left, key=self._given.__getitem__, default="")
        if host:
            self._given[host] += one.memory
            self._there[host].add(one.name)
        return host

    def drop(self, one: Leaving, host: str) -> None:
        """A guest has not gone to the host that was given it."""
        self._given[host] -= one.memory
        self._there[host].discard(one.name)

    def why_not(self, one: Leaving, tried: Collection[str] = ()) -> list[StorkitError]:
        """Why a guest cannot go to any host but those that were tried."""
        found: list[StorkitError] = []
        for host in self._given:
            if host not in tried and host != one.source and (other := self._met(one.name, host)):
                message = f"{host}: guest {one.name} stays apart from {other}, which is there"
                found.append(Conflict(message, "name another host with --to, or move one of them yourself"))
        if not found and not tried:
            found.append(Conflict(f"there is no host that guest {one.name} could go to", "storkit host check"))
        return found

    def _met(self, guest: str, host: str) -> str:
        """A guest of a host that this one is to stay apart from; empty: none."""
        patterns = [each for each in self._patterns if fnmatchcase(guest, each)]
        others = sorted(self._there[host] - {guest})
        return next((other for other in others for each in patterns if fnmatchcase(other, each)), "")
