"""Guests whose file systems stand still while their disks are kept. Pure functions, as planner's."""

from __future__ import annotations

from collections.abc import Sequence

from storkit.core import registry
from storkit.core.backend import Hypervisor
from storkit.core.inventory import Inventory
from storkit.core.model import Volume
from storkit.plans.migration import GuestView
from storkit.plans.plan import Plan, Stages
from storkit.plans.planner import finish_plan, locks_of
from storkit.plans.verb import step
from storkit.plans.verbs.freezing import FreezeGuest, ThawGuest
from storkit.plans.verbs.volumes import SnapshotVolume


def asked(subject: GuestView) -> str:
    """The host where the agent of a guest can be asked; empty: it does not run, or has no way to one."""
    running = [host for host in subject.running if subject.places[host] == "running"]
    channel = subject.guest.agent or subject.guest.document
    able = registry.hypervisor(subject.guest.hypervisor).freeze is not Hypervisor.freeze
    return running[0] if len(running) == 1 and channel and able else ""


def snapshot(source: Volume, kept: Volume, guests: Sequence[GuestView], inventory: Inventory) -> Plan:
    """Keep a volume as it is now, under another name; the file systems of these guests stand still meanwhile."""
    stages = Stages()
    title = f"snapshot {source.name} as {kept.name}"
    freeze(stages, guests)
    stages.then(step(SnapshotVolume([kept], source), source.host, f"pool:{source.pool}", title))
    thaw(stages, guests)
    return finish_plan(title, stages, locks_of([source]), inventory)


def freeze(stages: Stages, subjects: Sequence[GuestView]) -> None:
    stages.then(
        *(step(FreezeGuest(one.name), host, one.target, f"have the file systems of {one.name} stand still, if they can")
          for one in subjects if (host := asked(one)))
    )  # fmt: skip


def thaw(stages: Stages, subjects: Sequence[GuestView]) -> None:
    stages.then(
        *(step(ThawGuest(one.name), host, one.target, f"let the file systems of {one.name} go on")
          for one in subjects if (host := asked(one)))
    )  # fmt: skip
