"""What a verb of a plan is: how it looks before it acts (`find`), acts, and takes itself back (`undo`).

Idempotence, resume, rollback and dry run are the engine's, written once; a verb only says what it saw and how to
restore that. A verb is a dataclass: its fields are the arguments of the step, which keeps them as JSON (`step`), as the
journal does; `of` makes the verb from them again. What `find` returns is kept in the journal as well, and read again by
the type that it is declared to return.
"""

from __future__ import annotations

import typing
from abc import ABC, abstractmethod
from collections.abc import Iterable
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, ClassVar, Generic, Protocol, TypeVar

from storkit.core import codec
from storkit.core.calls import Targets
from storkit.core.guest import Guest
from storkit.core.host import Door
from storkit.core.model import Secret, Volume
from storkit.plans.plan import Step

if TYPE_CHECKING:
    from storkit.core.guest import KeptGuest
    from storkit.guests.fleets.keys import FleetKeys

B = TypeVar("B")
"""What a verb saw before it acted."""


class Run(Protocol):
    """What a verb may use of the engine."""

    def on(self, host: str) -> Targets:
        """The pools, transports and hypervisors of a host, which are asked in the name of the plan."""

    def result(self, step: str) -> Any:
        """The result of an earlier step of the plan, as JSON."""

    def before(self, step: str) -> Any:
        """What an earlier step of the plan found, as JSON."""

    def same_machine(self, one: str, other: str) -> bool:
        """Whether two hosts share Unix sockets."""

    def address(self, host: str) -> str:
        """Where a host comes from, as the inventory has it; empty: it says nothing."""

    def doors(self, host: str, target: str) -> list[Door]:
        """Where a transport's servers of a host are, as the inventory has it; none: they are not of this host."""

    def secrets(self, guest: Guest) -> dict[str, Secret]:
        """The passwords that a guest's document needs, which no plan and no journal has."""

    def fleet_keys(self, fleet: str, guests: Iterable[str]) -> FleetKeys:
        """The keys of the fleet of a UUID and of members, by their guests' UUIDs, which no plan and no journal has."""

    def source(self, host: str, towards: str) -> str:
        """The IP address that `host` says it comes from when it connects to the host `towards`; empty: it is silent."""


@dataclass(frozen=True)
class Verb(ABC, Generic[B]):
    """One verb with its arguments. `step` says on which host, at which target, and with which peer."""

    verb: ClassVar[str]
    undoable: ClassVar[bool] = True
    """False: said in the plan before anything runs."""
    repeated: ClassVar[bool] = False
    """True: what it did stands, and its command does the rest when it is given again. Of a plan that fails among such
    steps nothing is left to resume."""
    question: ClassVar[bool] = False
    """True: it changes nothing. A plan of questions leaves nothing behind, whatever becomes of it."""
    barrier: ClassVar[bool] = False
    """True: if the undo fails, nothing before it is undone, since that would break what still stands on it."""

    def needs(self, step: Step) -> set[str]:
        """The hosts that must answer, or the plan is not begun."""
        return {host for host in (step.host, step.peer) if host}

    @abstractmethod
    def find(self, run: Run, step: Step) -> B:
        """What is there before the verb acts, as much as `undo` needs. It changes nothing."""

    def guest_hosts(self, step: Step) -> set[str]:
        """Those of its hosts that a guest runs on, or comes to: if one has died, its guests are gone with it."""
        return {step.host} if step.target.startswith("hypervisor:") else set()

    @abstractmethod
    def act(self, run: Run, step: Step) -> Any:
        """Do it; the result has a JSON form, and no secret."""

    def undo(self, run: Run, step: Step, before: B) -> None:
        """Restore `before`; idempotent."""

    def by_hand(self, step: Step) -> str:
        """The command to type if the undo fails."""
        return ""

    def again(self, step: Step) -> str:
        """The command that goes on with what this verb's plan could not do everywhere. What it did is never put back
        by itself; empty: it is put back, or resumed."""
        return ""


@dataclass(frozen=True)
class BlindVerb(Verb[None]):
    """A verb that need not see anything before it acts."""

    def find(self, run: Run, step: Step) -> None:
        pass


def seen(verb: Verb[B], before: Any) -> B:
    """What the `find` of a verb saw, from its JSON in the journal."""
    wanted = typing.get_type_hints(type(verb).find, include_extras=True)["return"]
    return typing.cast(B, codec.load(wanted, before, f"what {verb.verb} found"))


def step(verb: Verb[Any], host: str, target: str, title: str, *, peer: str = "") -> Step:
    """A step that `Stages.then` will number."""
    return Step("", verb.verb, host, target, title, codec.dump(verb), peer)


def names(volumes: Iterable[Volume]) -> list[str]:
    return [volume.name for volume in volumes]


def uuids(volumes: Iterable[Volume | KeptGuest]) -> list[str]:
    return [volume.uuid for volume in volumes]
