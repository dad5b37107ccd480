"""The requests of one coordinator to a host itself: locks, marks, facts, doors.

A local host carries them out in the coordinator's own process, `storkit agent` on its machine.
"""

from __future__ import annotations

import threading
from collections.abc import Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING

from storkit.core.contracts.hosts import AgentVerbs
from storkit.core.host import Claim, Facts, Listening, Locked, Neighbour, changes
from storkit.hosts.guard import Guard

if TYPE_CHECKING:
    from storkit.hosts.doors import Doors
    from storkit.hosts.site import Performer
    from storkit.system import locks


class HostRequests(AgentVerbs):
    """One connection's requests, and what it holds of the host."""

    def __init__(self, performer: Performer) -> None:
        self._performer = performer
        self._guard = Guard(performer.site)
        self._doors: Doors | None = None
        self._held: list[locks.Lock] = []
        self._acting = 0
        self._letting_go = False
        self._counting = threading.Lock()
        """For all of these: an agent carries out at the same time what it is asked at the same time."""

    @contextmanager
    def acting(self) -> Iterator[None]:
        """While a verb is carried out: the locks stay."""
        with self._counting:
            self._acting += 1
        try:
            yield
        finally:
            with self._counting:
                self._acting -= 1
            self._let_go()

    def lock(
        self,
        claims: list[Claim],
        holder: str,
        plan: str = "",
        over_marks: bool = False,
        titles: dict[str, str] | None = None,
    ) -> Locked:
        taken, given_up = self._guard.lock(claims, holder, plan, over_marks, titles)
        with self._counting:
            self._held += taken
            self._letting_go = False
        return Locked(given_up, self._guard.epoch() if changes(claims) else 0)

    def unlock(self) -> None:
        with self._counting:
            self._letting_go = True
        self._let_go()

    def _let_go(self) -> None:
        with self._counting:
            while self._letting_go and not self._acting and self._held:
                self._held.pop().release(remove=True)

    def epoch(self) -> int:
        return self._guard.epoch()

    def mark(self, plan: str, names: list[str], title: str, coordinator: str) -> None:
        self._guard.mark(plan, names, title, coordinator)

    def marked(self, plan: str) -> bool:
        return self._guard.marked(plan)

    def unmark(self, plan: str) -> None:
        self._guard.unmark(plan)

    def facts(self) -> Facts:
        from storkit.hosts.facts import gather

        return gather(self._performer)

    def source(self, towards: str) -> str:
        from storkit.system.sourcefilter import source_towards

        return source_towards(towards)

    def neighbours(self, macs: list[str]) -> list[Neighbour]:
        from storkit.hosts.neighbours import seen

        return seen(macs)

    def listen(self, target: str) -> Listening:
        from storkit.hosts.doors import Doors

        with self._counting:
            self._doors = self._doors or Doors()
        return self._doors.listen(self._performer, target)

    def unlisten(self) -> None:
        if self._doors:
            self._doors.close()

    def reach(self, address: str, port: int) -> str:
        from storkit.hosts.doors import reach

        return reach(address, port)
