"""A host as the coordinator sees it: verbs are called on it, names are locked on it."""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Callable
from typing import Any

from storkit.core.calls import Targets
from storkit.core.contracts.hosts import AgentVerbs
from storkit.core.contracts.transports import RIGHTS
from storkit.core.deadlines import QUESTIONS
from storkit.core.errors import HostUnreachable
from storkit.core.host import Claim
from storkit.core.inventory import HostConfig, Inventory
from storkit.hosts import rights
from storkit.hosts.requests import HostRequests

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
        self.locked = False
        """Whether names were asked to be locked there, and not yet let go."""

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

    @property
    def awaited(self) -> bool:
        """Whether an answer is still to come."""
        return False

    @abstractmethod
    def call(self, target: str, verb: str, args: dict[str, Any], progress: Progress | None = None) -> Any:
        """Carry out a verb there (hosts.site.Performer.perform); safe to call from several threads at once.

        Raises what the verb raises; HostUnreachable if the connection is lost or no answer comes (core.deadlines):
        nothing is known then of what the verb did, or may yet do.
        """

    @property
    @abstractmethod
    def itself(self) -> AgentVerbs:
        """What the host is asked itself: marks, facts, doors."""

    def lock(
        self, claims: list[Claim], holder: str, plan: str = "", over_marks: bool = False, titles: Titles = None
    ) -> list[str]:
        """As AgentVerbs.lock, the plans given up; the epoch is kept for the calls that follow."""
        self.locked = True
        locked = self.itself.lock(claims, holder, plan, over_marks, titles or {})
        self.epoch = locked.epoch
        return locked.given_up

    def unlock(self) -> None:
        """Let go of every lock."""
        if self.locked:
            self.epoch, self.locked = 0, False
            self.itself.unlock()

    def end(self) -> None:
        """Say that nothing more will be asked; does not wait."""

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
        self._requests = HostRequests(self._performer)

    @property
    def itself(self) -> AgentVerbs:
        return self._requests

    def call(self, target: str, verb: str, args: dict[str, Any], progress: Progress | None = None) -> Any:
        self.about_to(verb)
        self._performer.asked = self.asked
        epoch = self.epoch or self._requests.epoch() if verb in RIGHTS else 0
        with self._requests.acting():
            return self._performer.perform(target, verb, args, progress, epoch)

    def close(self) -> None:
        self._requests.unlisten()
        self.unlock()
