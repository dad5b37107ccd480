"""What a verb of a plan is: how it looks before it acts (`find`), acts, and takes itself back (`undo`).

Idempotence, resume, rollback and dry run are the engine's, written once; a verb only says what it saw and how to
restore that. `find` may change nothing. `undo` restores what `find` saw, and is itself idempotent.
"""

from __future__ import annotations

from typing import Any, ClassVar, Protocol

from storkit.core.model import Door
from storkit.plans.plan import Step


class Run(Protocol):
    """What a verb may use of the engine."""

    def call(self, host: str, target: str, verb: str, **args: Any) -> Any:
        """Carry out a backend's verb on a host (JSON values in and out)."""

    def result(self, step: str) -> Any:
        """The result of an earlier step of the plan."""

    def same_machine(self, one: str, other: str) -> bool:
        """Whether two hosts share Unix sockets."""

    def address(self, host: str) -> str:
        """Where a host comes from, as the inventory has it; empty: it says nothing."""

    def doors(self, host: str, target: str) -> list[Door]:
        """Where a transport's servers of a host are, as the inventory has it; none: they are not of this host."""

    def source(self, host: str, towards: str) -> str:
        """The IP address that `host` says it comes from when it connects to the host `towards`; empty: it is silent."""


class Verb:
    """The default: call the backend's verb of the same name with the step's arguments."""

    undoable: ClassVar[bool] = True
    """False: said in the plan before anything runs."""
    question: ClassVar[bool] = False
    """True: it changes nothing. A plan of questions leaves nothing behind, whatever becomes of it."""
    barrier: ClassVar[bool] = False
    """True: if the undo fails, nothing before it is undone, since that would break what still stands on it."""

    def needs(self, step: Step) -> set[str]:
        """The hosts that must answer, or the plan is not begun."""
        return {host for host in (step.host, step.peer) if host}

    def find(self, run: Run, step: Step) -> Any:
        """What is there before the step acts, as much as `undo` needs."""
        return None

    def act(self, run: Run, step: Step) -> Any:
        return run.call(step.host, step.target, step.verb, **step.args)

    def undo(self, run: Run, step: Step, before: Any) -> None:
        """Restore `before`."""

    def by_hand(self, step: Step) -> str:
        """The command to type if the undo fails."""
        return ""

    def again(self, step: Step) -> str:
        """The command that goes on with what this verb's plan could not do everywhere. What it did is never put back
        by itself; empty: it is put back, or resumed."""
        return ""


def names(step: Step) -> list[str]:
    return [volume["name"] for volume in step.args["volumes"]]


def uuids(step: Step) -> list[str]:
    return [volume["uuid"] for volume in step.args["volumes"]]
