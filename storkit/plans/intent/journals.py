"""The plans of this coordinator: listed, looked at, resumed and rolled back."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from storkit.core.errors import StorkitError
from storkit.plans import verbs
from storkit.plans.intent.coordinator import Coordinator, Planned
from storkit.plans.journal import Record
from storkit.plans.plan import Step


@dataclass(frozen=True, slots=True)
class PlanEntry:
    """A plan and how far it came. `error`: why its journal cannot be read."""

    id: str
    record: Record | None
    error: StorkitError | None = None

    @property
    def status(self) -> str:
        return self.record.status if self.record else "damaged"

    @property
    def title(self) -> str:
        return self.record.plan.title if self.record else ""

    @property
    def open(self) -> bool:
        """Whether it has not ended, or nobody knows."""
        return self.record is None or not self.record.end

    @property
    def steps(self) -> int:
        return len(self.record.plan.steps) if self.record else 0

    @property
    def done(self) -> int:
        """How many steps are carried out, and not taken back."""
        return len(self.record.standing) if self.record else 0


class PlanActs:
    """Look at plans, and end those that a kill or an error has cut short."""

    def __init__(self, coordinator: Coordinator) -> None:
        self._coordinator = coordinator

    def listing(self) -> list[PlanEntry]:
        """The plans of this machine, oldest first."""
        return [self._entry(plan) for plan in self._coordinator.journals.ids()]

    def show(self, plan: str) -> Record:
        """A plan, and what its journal says of each step. Raises NotFound."""
        return self._coordinator.journals.read(plan)

    def resume(self, plan: str) -> dict[str, Any]:
        """Carry out the steps that are not done; each step's result, as JSON values."""
        self._only_planned(plan)
        return self._coordinator.engine.resume(plan)

    def rollback(self, plan: str) -> list[str]:
        """Undo the steps that are done, the last one first; their titles."""
        self._only_planned(plan)
        return self._coordinator.engine.rollback(plan)

    def is_final(self, step: Step) -> bool:
        """Whether a step cannot be taken back: nothing undoes it, nor does another command."""
        return not (verbs.VERBS[step.verb].undoable or verbs.of(step).again(step))

    def _only_planned(self, plan: str) -> None:
        if self._coordinator.planning:
            raise Planned(self.show(plan).plan)

    def _entry(self, plan: str) -> PlanEntry:
        try:
            return PlanEntry(plan, self._coordinator.journals.read(plan))
        except StorkitError as error:
            return PlanEntry(plan, None, error)
