"""A host that is to be worked on: it takes no guests any more, and those that it runs are moved away."""

from __future__ import annotations

import getpass
import socket
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, field
from functools import partial

from storkit.core import codec
from storkit.core.errors import (
    Conflict,
    HostUnreachable,
    NotFound,
    ServiceUnreachable,
    StepFailed,
    StorkitError,
    TimedOut,
    Unsupported,
    in_a_line,
    together,
)
from storkit.core.identities import check_at_once, check_seconds
from storkit.core.model import ALIVE, GuestState, MigrationResult
from storkit.plans.intent.coordinator import Coordinator, Planned
from storkit.plans.intent.journals import PlanActs
from storkit.plans.intent.kept import sources
from storkit.plans.intent.moving.choosing import Leaving, destinations, in_order
from storkit.plans.intent.moving.migrations import MigrationActs, run_one
from storkit.plans.intent.moving.outcomes import Migrated
from storkit.plans.intent.moving.several import AT_ONCE, move
from storkit.plans.intent.running import starting
from storkit.plans.plan import Plan, Stages
from storkit.plans.planner import finish_plan
from storkit.plans.verb import step
from storkit.plans.verbs.draining import DrainHost, UndrainHost

_LOOKS = 3
"""How often a host is looked at: a guest may have been about to start when it was told to take none."""


@dataclass(frozen=True, slots=True)
class DrainWish:
    """How a host is to be emptied."""

    to: Sequence[str] = ()
    """Where the guests may go; none: to any other host of the inventory."""
    first: Sequence[str] = ()
    """Guests, or patterns of them, that move before the others, in this order. The others follow by size, the largest
    first: they are the hardest to place."""
    at_once: int = AT_ONCE
    """How many guests move at the same time."""
    shutdown_rest: bool = False
    """Whether guests that cannot move are shut down."""
    timeout: float = 60.0
    """The seconds that each of these has for it."""


@dataclass(frozen=True, slots=True)
class Stays:
    """A guest that is still on the host, and why."""

    guest: str
    error: StorkitError


@dataclass(frozen=True, slots=True)
class Emptied:
    """A host that takes no guests, and what has become of those that it ran."""

    host: str
    moved: list[Migrated] = field(default_factory=list)
    shut_down: list[str] = field(default_factory=list)
    left: list[Stays] = field(default_factory=list)


def drain(coordinator: Coordinator, host: str, wish: DrainWish) -> Emptied:
    """Keep new guests off a host, and move those away that it runs. Called again it goes on.

    Raises what speaks against it before anything is changed; what keeps single guests there is in the result.
    """
    source = coordinator.host(host)
    check_seconds(wish.timeout)
    check_at_once(wish.at_once)
    try:
        coordinator.connections.to(source)
    except HostUnreachable as error:  # nothing can be moved from it
        error.hint = f"if it has died: storkit host evacuate {source}"
        raise
    hosts = destinations(coordinator, source, wish.to)
    by = f"{getpass.getuser()}@{socket.gethostname()}"
    planned = Stages()

    def build() -> Plan:
        stages = Stages()
        stages.then(step(DrainHost(by), source, "host", f"keep new guests off {source}"))
        return finish_plan(f"drain {source}", stages, [], coordinator.inventory)

    _in_turn(planned, lambda: coordinator.change(build))
    emptied = Emptied(source)
    if not coordinator.planning:
        _go_on(coordinator, source, hosts, emptied)
    for _ in range(1 if coordinator.planning else _LOOKS):
        leaving = _in_order(coordinator, _running(coordinator, source, emptied), wish, emptied)
        if not leaving:
            break
        _in_turn(planned, partial(_move, coordinator, leaving, hosts, wish, emptied))
    if coordinator.planning:
        raise Planned(finish_plan(f"drain {source}", planned, [], coordinator.inventory))
    if wish.shutdown_rest:
        _shut_down(coordinator, source, wish.timeout, emptied)
    return emptied


def undrain(coordinator: Coordinator, host: str) -> str:
    """Let a host take guests again; its whole name."""
    name = coordinator.host(host)

    def build() -> Plan:
        stages = Stages()
        stages.then(step(UndrainHost(), name, "host", f"let {name} take guests again"))
        return finish_plan(f"undrain {name}", stages, [], coordinator.inventory)

    coordinator.change(build)
    return name


def _running(coordinator: Coordinator, host: str, emptied: Emptied) -> list[GuestState]:
    """The guests of storkit's that a host runs. What is neither running nor gone is added to what is left there."""
    found: list[GuestState] = []
    for hypervisor in coordinator.hypervisors():
        target = f"hypervisor:{hypervisor}"
        try:
            states = coordinator.survey.guests([host], target, None)[host]
        except Unsupported:
            continue
        strangers = coordinator.connections.to(host).hypervisor(target).strangers()
        if strangers:
            coordinator.warn(f"{host} has guests that storkit does not know: {', '.join(strangers)}")
        for state in states:
            if state.status in ALIVE:
                found.append(state)
            elif state.status not in ("stopped", "migrated"):
                message = f"guest {state.name} is {state.status} on {host}"
                error = Conflict(message, f"storkit migrate status {state.name}")
                _stays(emptied, state.name, error)
    return found


def _in_order(
    coordinator: Coordinator, guests: Iterable[GuestState], wish: DrainWish, emptied: Emptied
) -> list[Leaving]:
    leaving: list[Leaving] = []
    for state in guests:
        if state.name in {each.guest for each in emptied.left}:
            continue
        try:
            memory = sources.load(coordinator, state.name).memory
        except StorkitError as error:
            _stays(emptied, state.name, error)
        else:
            leaving.append(Leaving(state.name, state.host, memory))
    return in_order(leaving, wish.first)


def _move(
    coordinator: Coordinator, guests: Sequence[Leaving], hosts: Sequence[str], wish: DrainWish, emptied: Emptied
) -> None:
    for each in move(coordinator, guests, hosts, wish.at_once, f"drain {emptied.host}", run_one):
        if each.done:
            emptied.moved.append(each.done)
        elif each.error:
            _stays(emptied, each.guest, each.error)


def _go_on(coordinator: Coordinator, source: str, hosts: Sequence[str], emptied: Emptied) -> None:
    """End the moves from a host that were cut short before, here: those to a host that may take guests by going on, the
    others by what is true of the guest. What cannot be ended now is warned of."""
    plans = PlanActs(coordinator)
    for entry in plans.listing():
        record = entry.record
        if not record or record.end or record.running or not record.started:
            continue
        for each in record.plan.steps:
            if each.verb != "send" or each.host != source:
                continue
            guest = str(each.args["name"])
            try:
                if each.peer in hosts:
                    moved = codec.load(MigrationResult, plans.resume(entry.id)[each.id], guest, strict=False)
                    emptied.moved.append(Migrated(guest, each.peer, entry.id, [], moved, []))
                else:
                    MigrationActs(coordinator).cleanup(guest)
            except StorkitError as error:
                coordinator.warn(f"plan {entry.id} ({record.plan.title}): {in_a_line(error)}")
            finally:
                coordinator.connections.unlock()


def _shut_down(coordinator: Coordinator, host: str, timeout: float, emptied: Emptied) -> None:
    for each in list(emptied.left):
        if any(isinstance(one, (HostUnreachable, ServiceUnreachable, TimedOut, StepFailed)) for one in each.error.each):
            continue  # it could move, but for a fault that may pass
        try:
            starting.stop(coordinator, [each.guest], host, False, timeout)
        except NotFound:
            continue
        except StorkitError as error:
            emptied.left[emptied.left.index(each)] = Stays(each.guest, together([each.error, error]))
        else:
            emptied.left.remove(each)
            emptied.shut_down.append(each.guest)


def _stays(emptied: Emptied, guest: str, error: StorkitError) -> None:
    if guest not in {each.guest for each in emptied.left}:
        emptied.left.append(Stays(guest, error))


def _in_turn(planned: Stages, act: Callable[[], object]) -> None:
    """Do something; where it only plans, add its plan to what is planned."""
    try:
        act()
    except Planned as each:
        for stage in each.plan.stages:
            planned.then(*stage)
