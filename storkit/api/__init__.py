"""storkit for Python programs: what the command line does, and the command line does it through this.

    import storkit.api

    with storkit.api.open("inventory.toml") as site:
        site.volumes.create("web", "8GiB")
        print(site.attachments.attach("web", "xen1").attachments[0].path)

Everything returns records, and raises the errors of `storkit.api.errors`. To import it costs nothing: what is needed
is imported when it is used.
"""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path

    from storkit.api.site import Storkit as Storkit
    from storkit.core import codec as codec
    from storkit.core import errors as errors
    from storkit.core.guest import Guest as Guest
    from storkit.core.inventory import Inventory as Inventory
    from storkit.core.model import Attachment as Attachment
    from storkit.core.model import Export as Export
    from storkit.core.model import Volume as Volume
    from storkit.core.units import format_size as format_size
    from storkit.core.units import parse_size as parse_size
    from storkit.hooks.admission import Admission as Admission
    from storkit.hooks.admission import AdmitWish as AdmitWish
    from storkit.hooks.install import Installed as Installed
    from storkit.hooks.install import InstallWish as InstallWish
    from storkit.plans.checkup import Report as Report
    from storkit.plans.intent.accepting import Acceptance as Acceptance
    from storkit.plans.intent.accepting import AcceptWish as AcceptWish
    from storkit.plans.intent.adopting.guests import AdoptionWish as AdoptionWish
    from storkit.plans.intent.adopting.volumes import Released as Released
    from storkit.plans.intent.attachments import Attached as Attached
    from storkit.plans.intent.definitions import GuestWish as GuestWish
    from storkit.plans.intent.drift.audit import Drift as Drift
    from storkit.plans.intent.drift.overview import Overview as Overview
    from storkit.plans.intent.drift.sweep import Swept as Swept
    from storkit.plans.intent.fences import Fenced as Fenced
    from storkit.plans.intent.fleets.acts import FleetMember as FleetMember
    from storkit.plans.intent.fleets.acts import FleetView as FleetView
    from storkit.plans.intent.fleets.entering import Entrance as Entrance
    from storkit.plans.intent.fleets.entering import Said as Said
    from storkit.plans.intent.fleets.making import FleetWish as FleetWish
    from storkit.plans.intent.golden.acts import Verified as Verified
    from storkit.plans.intent.golden.building import BuildWish as BuildWish
    from storkit.plans.intent.golden.building import Built as Built
    from storkit.plans.intent.golden.versions import ImageVersion as ImageVersion
    from storkit.plans.intent.guests import GuestEntry as GuestEntry
    from storkit.plans.intent.moving.draining import DrainWish as DrainWish
    from storkit.plans.intent.moving.draining import Emptied as Emptied
    from storkit.plans.intent.moving.evacuating import Evacuated as Evacuated
    from storkit.plans.intent.moving.evacuating import EvacuationWish as EvacuationWish
    from storkit.plans.intent.moving.migrations import GuestRights as GuestRights
    from storkit.plans.intent.moving.outcomes import Migrated as Migrated
    from storkit.plans.intent.moving.outcomes import Move as Move
    from storkit.plans.intent.running.entering import ConsoleDoor as ConsoleDoor
    from storkit.plans.intent.running.entering import GuestAddress as GuestAddress
    from storkit.plans.intent.running.executing import GuestOutput as GuestOutput
    from storkit.plans.intent.running.sleeping import Slept as Slept
    from storkit.plans.intent.running.sleeping import Woken as Woken
    from storkit.plans.intent.volumes import Listing as Listing
    from storkit.plans.intent.volumes import VolumeView as VolumeView
    from storkit.plans.migration import GuestView as GuestView
    from storkit.plans.plan import Plan as Plan
    from storkit.plans.plan import Step as Step
    from storkit.plans.proof import Proof as Proof
    from storkit.plans.steprun import Reporter as Reporter

_PLACES = {
    "InstallWish": "storkit.hooks.install",
    "Installed": "storkit.hooks.install",
    "AdmitWish": "storkit.hooks.admission",
    "Admission": "storkit.hooks.admission",
    "codec": "storkit.core.codec",
    "errors": "storkit.core.errors",
    "Guest": "storkit.core.guest",
    "Inventory": "storkit.core.inventory",
    "Attachment": "storkit.core.model",
    "Export": "storkit.core.model",
    "Volume": "storkit.core.model",
    "format_size": "storkit.core.units",
    "parse_size": "storkit.core.units",
    "Report": "storkit.plans.checkup",
    "Reporter": "storkit.plans.steprun",
    "Acceptance": "storkit.plans.intent.accepting",
    "AcceptWish": "storkit.plans.intent.accepting",
    "Released": "storkit.plans.intent.adopting.volumes",
    "Attached": "storkit.plans.intent.attachments",
    "Proof": "storkit.plans.proof",
    "GuestWish": "storkit.plans.intent.definitions",
    "AdoptionWish": "storkit.plans.intent.adopting.guests",
    "Fenced": "storkit.plans.intent.fences",
    "FleetWish": "storkit.plans.intent.fleets.making",
    "FleetView": "storkit.plans.intent.fleets.acts",
    "FleetMember": "storkit.plans.intent.fleets.acts",
    "Entrance": "storkit.plans.intent.fleets.entering",
    "Said": "storkit.plans.intent.fleets.entering",
    "ImageVersion": "storkit.plans.intent.golden.versions",
    "Verified": "storkit.plans.intent.golden.acts",
    "BuildWish": "storkit.plans.intent.golden.building",
    "Built": "storkit.plans.intent.golden.building",
    "Joined": "storkit.plans.intent.estate.joining",
    "JoinWish": "storkit.plans.intent.estate.joining",
    "Upgraded": "storkit.plans.intent.estate.joining",
    "Drift": "storkit.plans.intent.drift.audit",
    "Swept": "storkit.plans.intent.drift.sweep",
    "GuestEntry": "storkit.plans.intent.guests",
    "Overview": "storkit.plans.intent.drift.overview",
    "DrainWish": "storkit.plans.intent.moving.draining",
    "Emptied": "storkit.plans.intent.moving.draining",
    "Evacuated": "storkit.plans.intent.moving.evacuating",
    "EvacuationWish": "storkit.plans.intent.moving.evacuating",
    "Move": "storkit.plans.intent.moving.outcomes",
    "GuestRights": "storkit.plans.intent.moving.migrations",
    "Migrated": "storkit.plans.intent.moving.outcomes",
    "Slept": "storkit.plans.intent.running.sleeping",
    "Woken": "storkit.plans.intent.running.sleeping",
    "Listing": "storkit.plans.intent.volumes",
    "VolumeView": "storkit.plans.intent.volumes",
    "ConsoleDoor": "storkit.plans.intent.running.entering",
    "GuestAddress": "storkit.plans.intent.running.entering",
    "GuestOutput": "storkit.plans.intent.running.executing",
    "GuestView": "storkit.plans.migration",
    "Plan": "storkit.plans.plan",
    "Step": "storkit.plans.plan",
    "Storkit": "storkit.api.site",
}
"""Where each name comes from when it is first used."""

__all__ = ["open", *_PLACES]


def open(
    inventory: str | Path | None = None,
    state: str | Path | None = None,
    *,
    warn: Callable[[str], None] | None = None,
    reporter: Reporter | None = None,
) -> Storkit:
    """The hosts of an inventory, to work with; to be closed, as by `with`.

    Args:
        inventory: its file. None: /etc/storkit/inventory.toml; without it, this machine alone.
        state: where plans are kept. None: /var/lib/storkit, or below the home of a user who is not root.
        warn: told of what does not stop anything, a line at a time. None: the logger `storkit`.
        reporter: told how far plans are.

    Raises:
        UsageError: the inventory is wrong.
    """
    from pathlib import Path

    from storkit.api.site import Storkit

    return Storkit(
        Path(inventory) if inventory else None, Path(state).absolute() if state else None, warn=warn, reporter=reporter
    )


def __getattr__(name: str) -> Any:
    if name not in _PLACES:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    place = importlib.import_module(_PLACES[name])
    return place if name == _PLACES[name].rpartition(".")[2] else getattr(place, name)
