"""One step of a plan while it is carried out: who watches it, and what its verb gets to work with."""

from __future__ import annotations

from collections.abc import Iterable
from contextlib import suppress
from pathlib import Path
from typing import TYPE_CHECKING, Any, Protocol

from storkit.core.calls import Targets
from storkit.core.errors import StorkitError
from storkit.core.guest import Guest
from storkit.core.host import Door
from storkit.core.model import Secret
from storkit.hosts.connection import Connection
from storkit.hosts.connections import Connections
from storkit.plans.journal import Journal
from storkit.plans.plan import Plan, Step

if TYPE_CHECKING:
    from storkit.guests.fleets.keys import FleetKeys


class Reporter(Protocol):
    """Who watches a plan run. Called from several threads."""

    def begin(self, plan: Plan) -> None: ...
    def step(self, step: Step, event: str, text: str = "") -> None:
        """`event` is start, done, failed, undo, undone or skipped."""

    def progress(self, step: Step, fraction: float, text: str) -> None: ...
    def end(self) -> None: ...


class Silent:
    """A reporter that says nothing."""

    def begin(self, plan: Plan) -> None:
        pass

    def step(self, step: Step, event: str, text: str = "") -> None:
        pass

    def progress(self, step: Step, fraction: float, text: str) -> None:
        pass

    def end(self) -> None:
        pass


class _Reported(Targets):
    """The targets of a host, whose progress is a step's."""

    def __init__(self, connection: Connection, reporter: Reporter, step: Step) -> None:
        self._connection, self._reporter, self._step = connection, reporter, step

    def call(self, target: str, verb: str, args: dict[str, Any]) -> Any:
        return self._connection.call(target, verb, args, self._progress)

    def _progress(self, fraction: float, text: str) -> None:
        self._reporter.progress(self._step, fraction, text)


class StepRun:
    """What a verb gets to work with (storkit.plans.verb.Run)."""

    def __init__(self, connections: Connections, reporter: Reporter, journal: Journal, step: Step, state: Path) -> None:
        self._connections = connections
        self._state = state
        self._reporter = reporter
        self._journal = journal
        self._step = step

    def on(self, host: str) -> Targets:
        connection = self._connections.to(host)
        connection.plan = self._journal.record.plan.id
        return _Reported(connection, self._reporter, self._step)

    def result(self, step: str) -> Any:
        return self._journal.record.done[step]

    def before(self, step: str) -> Any:
        return self._journal.record.started[step]

    def same_machine(self, one: str, other: str) -> bool:
        return self._connections.same_machine(one, other)

    def address(self, host: str) -> str:
        return self._connections.address(host)

    def doors(self, host: str, target: str) -> list[Door]:
        return self._connections.doors(host, target)

    def secrets(self, guest: Guest) -> dict[str, Secret]:
        if not guest.document:
            return {}
        from storkit.guests import secrets

        return secrets.load(self._state, guest)

    def fleet_keys(self, fleet: str, guests: Iterable[str]) -> FleetKeys:
        from storkit.guests.fleets import keys

        return keys.load(self._state, fleet, guests)

    def source(self, host: str, towards: str) -> str:
        address = self.address(towards)
        # One that is silent, or too old to know the question, is known by its address in the inventory alone.
        with suppress(StorkitError):
            return self._connections.to(host).itself.source(address) if address else ""
        return ""
