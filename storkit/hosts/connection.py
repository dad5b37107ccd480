"""A host as the coordinator sees it: verbs are called on it, names are locked on it."""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Callable
from typing import TYPE_CHECKING, Any, TypeVar

from storkit.core.calls import Targets
from storkit.core.contracts import RIGHTS
from storkit.core.deadlines import QUESTIONS
from storkit.core.errors import HostUnreachable
from storkit.core.inventory import HostConfig, Inventory
from storkit.hosts import rights
from storkit.hosts.guard import Claim, Guard, changes

if TYPE_CHECKING:
    from storkit.core.model import Listening
    from storkit.hosts.doors import Doors

T = TypeVar("T")
_ASKING = QUESTIONS | {"inspect", "evidence"}
"""Verbs that change nothing, whatever becomes of them."""
Progress = Callable[[float, str], None]
Titles = dict[str, str] | None


class Connection(Targets):
    """One host for the length of one command."""

    def __init__(self, config: HostConfig) -> None:
        self.config = config
        self.plan = ""
        """The plan that calls are made for now."""
        self.epoch = 0
        """By which the host tells this command's changes of rights from an earlier one's: drawn with its lock."""
        self.acted = False
        """Whether a verb was called that may change something there."""

    @property
    def asked(self) -> str:
        """Who asks for what is called, for the host's log."""
        return rights.asker() + (f", plan {self.plan}" if self.plan else "")

    def about_to(self, verb: str) -> None:
        """Note what is called, before it is."""
        self.acted = self.acted or verb not in _ASKING

    @property
    def silent(self) -> HostUnreachable | None:
        """Why nothing more is asked of this host; None: it answers."""
        return None

    @abstractmethod
    def call(self, target: str, verb: str, args: dict[str, Any], progress: Progress | None = None) -> Any:
        """Carry out a verb there (hosts.site.Performer.perform); safe to call from several threads at once.

        Raises what the verb raises; HostUnreachable if the connection is lost or no answer comes (core.deadlines):
        nothing is known then of what the verb did, or may yet do.
        """

    @abstractmethod
    def lock(
        self, claims: list[Claim], holder: str, plan: str = "", over_marks: bool = False, titles: Titles = None
    ) -> list[str]:
        """As Guard.lock, the plans given up; held until `unlock`, or until this process dies."""

    @abstractmethod
    def unlock(self) -> None:
        """Let go of every lock."""

    @abstractmethod
    def mark(self, plan: str, names: list[str], title: str, coordinator: str) -> None:
        """As Guard.mark."""

    @abstractmethod
    def marked(self, plan: str) -> bool:
        """As Guard.marked."""

    @abstractmethod
    def unmark(self, plan: str) -> None:
        """As Guard.unmark."""

    @abstractmethod
    def facts(self) -> dict[str, Any]:
        """What the machine is: versions, clock, tools that its backends miss. For `host check`."""

    @abstractmethod
    def listen(self, target: str) -> Listening:
        """Have the host listen for a moment where a transport's servers would, for others to try to reach it."""

    @abstractmethod
    def unlisten(self) -> None:
        """End that; the end of the connection does, too."""

    @abstractmethod
    def reach(self, address: str, port: int) -> str:
        """Why the host cannot connect to a port; empty: it can."""

    def end(self) -> None:
        """Say that nothing more will be asked; does not wait."""

    @abstractmethod
    def source(self, towards: str) -> str:
        """The IP address that the host's connections to an address come from; empty: there is no way to it."""

    @abstractmethod
    def close(self) -> None:
        """End the connection. Does not wait for a host that is silent."""


class LocalConnection(Connection):
    """This machine, or a directory of it that stands for a host: verbs run in this process."""

    def __init__(self, config: HostConfig, inventory: Inventory) -> None:
        super().__init__(config)
        from storkit.hosts.setup import LOCAL, remember, setup
        from storkit.hosts.site import Performer, site

        given = setup(inventory, config)
        place = site(given)
        remember(given, place, LOCAL)
        self._performer = Performer(given, place)
        self._guard = Guard(self._performer.site)
        self._held: list[Any] = []
        self._doors: Doors | None = None

    def call(self, target: str, verb: str, args: dict[str, Any], progress: Progress | None = None) -> Any:
        self.about_to(verb)
        self._performer.asked = self.asked
        epoch = self.epoch or self._guard.epoch() if verb in RIGHTS else 0
        return self._performer.perform(target, verb, args, progress, epoch)

    def lock(
        self, claims: list[Claim], holder: str, plan: str = "", over_marks: bool = False, titles: Titles = None
    ) -> list[str]:
        taken, given_up = self._guard.lock(claims, holder, plan, over_marks, titles)
        self._held += taken
        self.epoch = self._guard.epoch() if changes(claims) else 0
        return given_up

    def unlock(self) -> None:
        self.epoch = 0
        while self._held:
            self._held.pop().release(remove=True)

    def mark(self, plan: str, names: list[str], title: str, coordinator: str) -> None:
        self._guard.mark(plan, names, title, coordinator)

    def marked(self, plan: str) -> bool:
        return self._guard.marked(plan)

    def unmark(self, plan: str) -> None:
        self._guard.unmark(plan)

    def facts(self) -> dict[str, Any]:
        from storkit.hosts.facts import gather

        return gather(self._performer)

    def source(self, towards: str) -> str:
        from storkit.system.sourcefilter import source_towards

        return source_towards(towards)

    def listen(self, target: str) -> Listening:
        from storkit.hosts.doors import Doors

        self._doors = self._doors or Doors()
        return self._doors.listen(self._performer, target)

    def unlisten(self) -> None:
        if self._doors:
            self._doors.close()

    def reach(self, address: str, port: int) -> str:
        from storkit.hosts.doors import reach

        return reach(address, port)

    def close(self) -> None:
        self.unlisten()
        self.unlock()
