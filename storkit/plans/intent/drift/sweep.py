"""Storkit's own orphans are removed (`sweep`): exports that nobody has attached, attachments without a right, volumes
whose content never came."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from storkit.core.errors import StorkitError, UsageError
from storkit.plans.intent.attachments import AttachmentActs
from storkit.plans.intent.coordinator import Coordinator
from storkit.plans.intent.drift.audit import Drift, audit
from storkit.plans.intent.volumes import VolumeActs


@dataclass(frozen=True, slots=True)
class Swept:
    """An orphan, and why it is still there; None: it is gone."""

    orphan: Drift
    error: StorkitError | None = None


def sweep(coordinator: Coordinator, orphans: Sequence[Drift]) -> list[Swept]:
    """Remove these orphans, each by a plan of its own, as far as they still are orphans: one that is held keeps no
    other."""
    if coordinator.planning:
        raise UsageError("each orphan has a plan of its own", "see: storkit audit")
    still = [each for each in audit(coordinator) if each.orphan]
    return [_remove(coordinator, each) for each in orphans if each in still]


def _remove(coordinator: Coordinator, orphan: Drift) -> Swept:
    one = coordinator.another()
    try:
        if orphan.kind == "volume":
            VolumeActs(one).delete([orphan.mend.split()[-1]])
        else:
            AttachmentActs(one).detach(orphan.name, orphan.client)
    except StorkitError as error:
        return Swept(orphan, error)
    return Swept(orphan)
