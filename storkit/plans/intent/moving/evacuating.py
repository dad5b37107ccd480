"""A host that has died: cut off at the storage, its guests are started on others.

The storage refuses the host from then on, so nobody waits to be sure that it is dead: one that was wrongly taken for
dead writes nothing any more.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from contextlib import suppress
from dataclasses import dataclass, field
from fnmatch import fnmatchcase

from storkit.core.errors import Conflict, StorkitError, collected, raise_problems, together
from storkit.core.guest import Guest
from storkit.core.identities import several
from storkit.core.model import Export
from storkit.plans.intent import views
from storkit.plans.intent.coordinator import Coordinator, Planned
from storkit.plans.intent.fences import FenceActs
from storkit.plans.intent.journals import PlanActs
from storkit.plans.intent.kept import sources
from storkit.plans.intent.moving import unfinished
from storkit.plans.intent.moving.choosing import Leaving, Shares, destinations, in_order
from storkit.plans.intent.moving.migrations import MigrationActs
from storkit.plans.intent.running import starting
from storkit.plans.migration import GuestView
from storkit.plans.plan import Stages
from storkit.plans.planner import finish_plan
from storkit.tech.grants import host_slug


@dataclass(frozen=True, slots=True)
class EvacuationWish:
    """How the guests of a host that has died are started elsewhere."""

    to: Sequence[str] = ()
    """Where they may go; none: to any other host of the inventory."""
    first: Sequence[str] = ()
    """Guests, or patterns of them, that are started before the others, in this order: each group when the one before it
    runs. The others follow together."""
    confirmed_off: bool = False
    """Whether a person has seen that the host is off."""


@dataclass(frozen=True, slots=True)
class NotStarted:
    """A guest that the host had, and that runs nowhere now; and why."""

    guest: str
    error: StorkitError


@dataclass(frozen=True, slots=True)
class Evacuated:
    """A host that is cut off, and what has become of its guests."""

    host: str
    lost: list[Export]
    """The exports that it had until now."""
    started: dict[str, str] = field(default_factory=dict)
    """Guest to the host that it was started on, or that it was found to run on."""
    left: list[NotStarted] = field(default_factory=list)
    problems: list[StorkitError] = field(default_factory=list)
    """Where it could not be cut off, and why."""


def evacuate(coordinator: Coordinator, host: str, wish: EvacuationWish) -> Evacuated:
    """Cut a silent host off every disk, and start its guests on others. Called again it goes on.

    Raises Conflict: the host answers; what FenceActs.fence raises where nothing could be cut off.
    """
    source = coordinator.host(host)
    if coordinator.survey.answering([source]):
        message = f"host {source} answers: what it runs can be moved away live"
        raise Conflict(message, f"storkit host drain {source}; if it is sick: storkit fence {source}")
    hosts = destinations(coordinator, source, wish.to)
    records = unfinished.records(coordinator.state)
    fences = FenceActs(coordinator)
    volumes = {export.uuid for export in _writable(coordinator, source)}
    volumes |= {tree.uuid for tree, _ in fences.roots(source)[0]}
    known, problems = records.find([host_slug(source)])
    raise_problems(problems)
    volumes |= {uuid for record in known.values() for uuid in record.volumes}
    guests = _guests_of(coordinator, source, volumes)
    if coordinator.planning:
        _plan(coordinator, source, wish, guests, hosts)
    if volumes:
        records.save({host_slug(source): unfinished.Unfinished(source, sorted(volumes))})
    lost: list[Export] = []
    with collected(problems):
        lost += fences.fence(source, wish.confirmed_off).lost
    done = Evacuated(source, lost, problems=problems)
    if problems and not known and volumes == {export.uuid for export in _writable(coordinator, source)}:
        records.forget([host_slug(source)])  # it was cut off nowhere, and has all that it had
        raise together(problems)
    if not (volumes or lost):
        coordinator.warn(
            f"{source} had no disk any more: what it lost by an earlier fence is not known here, and such guests are"
            f" started by name: storkit guest start NAME --on HOST"
        )
    guests = _guests_of(coordinator, source, volumes | {export.uuid for export in lost})
    _start_all(coordinator, guests, hosts, wish.first, done)
    # What has been started is not to be started again when the command is repeated, and somebody has stopped it since.
    left = {each.guest for each in done.left}
    still = {uuid for guest in sources.everybody(coordinator, []) if guest.name in left for uuid in _disks(guest)}
    if still:
        records.save({host_slug(source): unfinished.Unfinished(source, sorted(still))})
    else:
        records.forget([host_slug(source)])
    return done


def _writable(coordinator: Coordinator, source: str) -> list[Export]:
    """What a host may write, as the storage hosts that answer say."""
    exports = coordinator.survey.all_exports(partial=True)
    return [each for group in exports.values() for each in group if each.client == source and each.writable]


def _guests_of(coordinator: Coordinator, source: str, volumes: set[str]) -> list[Leaving]:
    """The guests that write these volumes, or whose root's export was among them."""
    problems: list[StorkitError] = []
    found = [
        Leaving(guest.name, source, guest.memory)
        for guest in sources.everybody(coordinator, problems)
        if volumes & _disks(guest)
    ]
    for problem in problems:
        coordinator.warn(problem.message)
    return found


def _disks(guest: Guest) -> set[str]:
    roots = {guest.root.uuid} if guest.root else set()
    return {disk.uuid for disk in guest.disks if not disk.readonly} | roots


def _start_all(
    coordinator: Coordinator, guests: Iterable[Leaving], hosts: Sequence[str], first: Sequence[str], done: Evacuated
) -> None:
    waiting: list[Leaving] = []
    cut = _cut_short(coordinator)
    for one in in_order(guests, first):
        try:
            view = _settled(coordinator, one.name, cut)
        except StorkitError as error:
            done.left.append(NotStarted(one.name, error))
            continue
        if view.running:  # it had moved, or somebody has started it since
            done.started[one.name] = view.running[0]
        else:
            waiting.append(one)
    shares = Shares(coordinator, hosts)
    for group in _groups(waiting, first):
        chosen = [(one, shares.take(one)) for one in group]
        for one in (one for one, host in chosen if not host):
            done.left.append(NotStarted(one.name, together(shares.why_not(one))))
        chosen = [(one, host) for one, host in chosen if host]
        try:
            done.started.update(starting.start(coordinator, {one.name: host for one, host in chosen}))
        except StorkitError:
            # One of them cannot be started there: the others need not wait for it.
            for one, host in chosen:
                _start_one(coordinator, one, shares, host, done)


def _start_one(coordinator: Coordinator, one: Leaving, shares: Shares, host: str, done: Evacuated) -> None:
    """Start a guest on the first host that can run it, beginning with `host`."""
    problems: list[StorkitError] = []
    tried: set[str] = set()
    while host:
        tried.add(host)
        try:
            done.started.update(starting.start(coordinator, {one.name: host}))
        except StorkitError as error:
            shares.drop(one, host)
            problems += [each for each in error.each if str(each) not in map(str, problems)]
            host = shares.take(one, tried)
        else:
            return
    with suppress(StorkitError):
        if (view := views.guest_view(coordinator, one.name)).running:  # somebody else was quicker
            done.started[one.name] = view.running[0]
            return
    done.left.append(NotStarted(one.name, together([*problems, *shares.why_not(one, tried)])))


def _groups(guests: Iterable[Leaving], first: Sequence[str]) -> list[list[Leaving]]:
    """Those that are started together, one group after the other."""
    left, groups = list(guests), list[list[Leaving]]()
    for pattern in several(first):
        groups.append([one for one in left if fnmatchcase(one.name, pattern)])
        left = [one for one in left if one not in groups[-1]]
    return [group for group in [*groups, left] if group]


def _cut_short(coordinator: Coordinator) -> set[str]:
    """The guests that plans of this machine speak of which were cut short."""
    found: set[str] = set()
    for entry in PlanActs(coordinator).listing():
        record = entry.record
        if record and not (record.end or record.running) and record.started:
            found |= {str(step.args["name"]) for step in record.plan.steps if "name" in step.args}
    return found


def _settled(coordinator: Coordinator, name: str, cut: set[str]) -> GuestView:
    """A guest, with nothing left of what the host's death, or the end of this command, has cut short: by the truth, it
    runs somewhere, or it has no writer."""
    view = views.guest_view(coordinator, name)
    if name not in cut and (view.running or not any(export.writable for export in view.exports)):
        return view
    return MigrationActs(coordinator).cleanup(name)


def _plan(
    coordinator: Coordinator, source: str, wish: EvacuationWish, guests: Sequence[Leaving], hosts: Sequence[str]
) -> None:
    """Raise Planned: the fence, then a line for each guest, whose plan is made only when the host is cut off."""
    stages = Stages()
    try:
        FenceActs(coordinator).fence(source, wish.confirmed_off)
    except Planned as planned:
        for stage in planned.plan.stages:
            stages.then(*stage)
    shares = Shares(coordinator, hosts)
    for one in in_order(guests, wish.first):
        coordinator.warn(f"then guest {one.name} would be started on {shares.take(one) or 'no host'}")
    raise Planned(finish_plan(f"evacuate {source}", stages, [], coordinator.inventory))
