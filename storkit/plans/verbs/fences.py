"""The verbs that cut hosts off, and let them in again: a person decides either."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

from storkit.core import codec
from storkit.core.host import Declared
from storkit.core.identities import ClientName, HostName, Line
from storkit.core.model import Attachment, Export, Volume
from storkit.plans.plan import Step
from storkit.plans.verb import BlindVerb, Run
from storkit.plans.verbs.attachments import offered
from storkit.plans.verbs.exports import client


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
class BarManager(_Decided):
    """Have a pool's directory say that one of its managers is off: it serves nothing of it any more."""

    verb: ClassVar[str] = "bar"
    this, other = "fence {} --confirmed-off", "unfence {}"

    def act(self, run: Run, step: Step) -> None:
        run.on(step.host).pool(step.target).bar(self.client)


@dataclass(frozen=True)
class UnbarManager(_Decided):
    """Let that manager act again."""

    verb: ClassVar[str] = "unbar"
    this, other = "unfence {}", "fence {} --confirmed-off"

    def act(self, run: Run, step: Step) -> None:
        run.on(step.host).pool(step.target).unbar(self.client)


@dataclass(frozen=True)
class TakeOver(BlindVerb):
    """Serve what a manager that is off has served, from another one. The first may have come back by then, barred: it
    is never put back by itself."""

    verb: ClassVar[str] = "take_over"
    undoable = False
    volumes: list[Volume]
    manager: HostName

    def act(self, run: Run, step: Step) -> list[Export]:
        return run.on(step.host).transport(step.target).take_over(self.volumes)

    def again(self, step: Step) -> str:
        return f"storkit fence {self.manager} --confirmed-off"


@dataclass(frozen=True)
class Reattach(BlindVerb):
    """Lead a client, under whoever has its volumes open, to the manager that has taken them over (the step's peer).
    Those that it was not exported are left as they are."""

    verb: ClassVar[str] = "reattach"
    undoable = False
    volumes: list[Volume]
    taken: str
    """The step that took them over; empty: an earlier plan's."""
    manager: HostName

    def act(self, run: Run, step: Step) -> list[Attachment]:
        if self.taken:
            exports = codec.load(list[Export], run.result(self.taken), "what was taken over", strict=False)
        else:
            exports = run.on(step.peer).transport(step.target).find_exports([each.uuid for each in self.volumes])
        # What has no endpoint was of a client that is fenced, and has gone.
        mine = {export.uuid for export in exports if export.client == step.host and export.endpoint}
        if not (wanted := [volume for volume in self.volumes if volume.uuid in mine]):
            return []
        # Whether the two are one machine may be another answer than with the manager before.
        run.on(step.peer).transport(step.target).export(wanted, [client(run, step.peer, step.host, {})])
        return run.on(step.host).transport(step.target).attach(offered(run, step.peer, step.host, step.target, wanted))

    def again(self, step: Step) -> str:
        return "; ".join(f"storkit attach {volume.name} --on {step.host}" for volume in self.volumes)


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
