"""What has become of guests that were to move."""

from __future__ import annotations

from dataclasses import dataclass

from storkit.core.errors import StorkitError
from storkit.core.model import MigrationResult
from storkit.plans.proof import Proof


@dataclass(frozen=True, slots=True)
class Migrated:
    """A guest that was moved, or may be moved now (`moved` is None)."""

    guest: str
    to: str
    plan: str
    proofs: list[Proof]
    moved: MigrationResult | None
    warnings: list[str]
    """What there is to be said of how full the pools of its volumes are."""


@dataclass(frozen=True, slots=True)
class Move:
    """What has become of a guest that was to move: it has, or why it has not. Neither: it was there already."""

    guest: str
    done: Migrated | None = None
    error: StorkitError | None = None
