"""The verbs that cut hosts off, and let them in again: a person decides either."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

from storkit.core.host import Declared
from storkit.core.identities import ClientName, HostName, Line
from storkit.core.model import Export
from storkit.plans.plan import Step
from storkit.plans.verb import BlindVerb, Run


@dataclass(frozen=True)
class _Decided(BlindVerb):
    """Nothing but the other command undoes what is done, least of all a storage host that failed: a host that was
    fenced could be about to write."""

    undoable = False
    this: ClassVar[str]
    """The command that does it, without the host's name, which stands for {}."""
    other: ClassVar[str]
    """The command that undoes it."""
    client: ClientName

    def needs(self, step: Step) -> set[str]:
        return set()  # one storage host that is silent keeps none of the others from cutting a host off

    def by_hand(self, step: Step) -> str:
        return f"storkit {self.other.format(self.client)}"

    def again(self, step: Step) -> str:
        return f"storkit {self.this.format(self.client)}"


@dataclass(frozen=True)
class FenceHost(_Decided):
    """Cut a host off what one other host serves."""

    verb: ClassVar[str] = "fence"
    this, other = "fence {}", "unfence {}"

    def act(self, run: Run, step: Step) -> list[Export]:
        return run.on(step.host).transport(step.target).fence(self.client)


@dataclass(frozen=True)
class UnfenceHost(_Decided):
    """Let a host in again at one other host."""

    verb: ClassVar[str] = "unfence"
    this, other = "unfence {}", "fence {}"

    def act(self, run: Run, step: Step) -> None:
        run.on(step.host).transport(step.target).unfence(self.client)


@dataclass(frozen=True)
class DeclareOff(_Decided):
    """Have a host that answers keep a person's word that another one is off (hosts/declared.py)."""

    verb: ClassVar[str] = "declare_off"
    this, other = "fence {} --confirmed-off", "unfence {}"
    by: Line
    keepers: list[HostName]

    def act(self, run: Run, step: Step) -> Declared:
        return run.on(step.host).word.declare_off(self.client, self.by, self.keepers)


@dataclass(frozen=True)
class WithdrawOff(_Decided):
    """Have a host forget that word."""

    verb: ClassVar[str] = "withdraw_off"
    this, other = "unfence {}", "fence {} --confirmed-off"

    def act(self, run: Run, step: Step) -> None:
        run.on(step.host).word.withdraw_off(self.client)
