"""The verbs of file systems inside guests that stand still for a moment, by the guests' agents."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

from storkit.core.errors import NotAllowed, Unsupported
from storkit.core.guest import Frozen
from storkit.core.identities import GuestName
from storkit.plans.plan import Step
from storkit.plans.verb import BlindVerb, Run


@dataclass(frozen=True)
class _OfGuest(BlindVerb):
    name: GuestName

    def _thaw(self, run: Run, step: Step) -> Frozen:
        try:
            return run.on(step.host).hypervisor(step.target).thaw(self.name)
        except (Unsupported, NotAllowed) as error:  # its host has an older storkit; the key is for volumes alone
            return Frozen(self.name, 0, error.message)


@dataclass(frozen=True)
class FreezeGuest(_OfGuest):
    """File systems stand still where an agent can have it so; where none can, the plan goes on. Undone by `thaw`.

    Killed in between, the guest's host lets them go on by itself: what a plan that is resumed then makes is no worse
    than without, and `thaw` says so.
    """

    verb: ClassVar[str] = "freeze"

    def act(self, run: Run, step: Step) -> Frozen:
        try:
            return run.on(step.host).hypervisor(step.target).freeze(self.name)
        except (Unsupported, NotAllowed) as error:
            return Frozen(self.name, 0, error.message)

    def undo(self, run: Run, step: Step, before: None) -> None:
        self._thaw(run, step)


@dataclass(frozen=True)
class ThawGuest(_OfGuest):
    """They go on; the result says whether they stood still until now."""

    verb: ClassVar[str] = "thaw"

    def act(self, run: Run, step: Step) -> Frozen:
        return self._thaw(run, step)
