"""Plans: what will be done, as data, before anything is done.

A plan is stages in order; the steps of a stage run at the same time. It is plain JSON: printed by `-n`, kept in the
journal, resumed and rolled back from there.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any


@dataclass(frozen=True, slots=True)
class Step:
    """One verb on one host. Its `find`, act and `undo` are in storkit.plans.verbs."""

    id: str
    verb: str
    host: str
    target: str
    """`pool:NAME`, `transport:NAME`, `hypervisor:NAME`, `images` or `host`."""
    title: str
    """What it does, for people."""
    args: dict[str, Any] = field(default_factory=dict)
    """The verb's arguments as JSON values (storkit.plans.verb.step); never a secret."""
    peer: str = ""
    """A second host that the step depends on: who offers (attach), who sends or receives (receive, send)."""


@dataclass(frozen=True, slots=True)
class Hold:
    """Names that the plan must have for itself on a host while it runs (core.host.Claim)."""

    host: str
    names: list[str]
    shared: bool = False
    titles: dict[str, str] = field(default_factory=dict)
    """What people call those of the names that they do not know: `volume web` for its UUID."""


@dataclass(frozen=True, slots=True)
class Plan:
    """What a command will do."""

    id: str
    title: str
    stages: list[list[Step]]
    holds: list[Hold] = field(default_factory=list)
    hosts: dict[str, str] = field(default_factory=dict)
    """Hosts that are not in the inventory: name to URL, so that resume and rollback find them."""

    @property
    def steps(self) -> list[Step]:
        return [step for stage in self.stages for step in stage]


class Stages:
    """Collects steps into stages, giving each step its id (`3.1`: first step of stage three)."""

    def __init__(self) -> None:
        self.stages: list[list[Step]] = []

    def then(self, *steps: Step | None) -> Step | None:
        """One more stage of these steps, leaving out None; the last of them as it stands in the plan."""
        from dataclasses import replace

        number = len(self.stages) + 1
        wanted = [step for step in steps if step is not None]
        stage = [replace(step, id=f"{number}.{place}") for place, step in enumerate(wanted, 1)]
        if stage:
            self.stages.append(stage)
        return stage[-1] if stage else None
