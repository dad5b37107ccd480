"""The verbs that keep guests off a host, and let them come again: a person decides either."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

from storkit.core.host import Drained
from storkit.core.identities import Line
from storkit.plans.plan import Step
from storkit.plans.verb import BlindVerb, Run


@dataclass(frozen=True)
class DrainHost(BlindVerb):
    """Have a host keep a person's word that it takes no guests (hosts/declared.py)."""

    verb: ClassVar[str] = "drain"
    undoable = False
    by: Line

    def act(self, run: Run, step: Step) -> Drained:
        return run.on(step.host).word.drain(self.by)

    def by_hand(self, step: Step) -> str:
        return f"storkit host undrain {step.host}"

    def again(self, step: Step) -> str:
        return f"storkit host drain {step.host}"


@dataclass(frozen=True)
class UndrainHost(BlindVerb):
    """Have a host forget that word."""

    verb: ClassVar[str] = "undrain"
    undoable = False

    def act(self, run: Run, step: Step) -> None:
        run.on(step.host).word.undrain()

    def by_hand(self, step: Step) -> str:
        return f"storkit host drain {step.host}"

    def again(self, step: Step) -> str:
        return f"storkit host undrain {step.host}"
