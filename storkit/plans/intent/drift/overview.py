"""All that hosts serve and have, as far as they say (`status`)."""

from __future__ import annotations

from collections.abc import Collection, Sequence
from dataclasses import dataclass

from storkit.core.errors import StorkitError, Unsupported, quoted
from storkit.core.guest import Guest
from storkit.core.host import Drained
from storkit.core.model import ALIVE, Attachment, Export, GuestState, VolumeHold, guest_of
from storkit.plans.intent.coordinator import Coordinator
from storkit.plans.intent.journals import PlanActs, PlanEntry
from storkit.plans.intent.kept import sources


@dataclass(frozen=True, slots=True)
class Holding:
    """A volume that a client may have: by which right, and what is there. Both are words for people."""

    volume: str
    home: str
    client: str
    right: str
    there: str


@dataclass(frozen=True, slots=True)
class Asleep:
    """A volume that is held for a guest that sleeps."""

    volume: str
    pool: str
    hold: VolumeHold


@dataclass(frozen=True, slots=True)
class Overview:
    """All that hosts serve and have, as far as they say."""

    exports: dict[str, list[Export]]
    """By home host; silent ones are missing."""
    attachments: dict[str, list[Attachment]]
    """By host; silent ones are missing."""
    holdings: list[Holding]
    others: list[str]
    """Volumes that others than their servers can write, a line each: by which programs."""
    paused: list[GuestState]
    """Guests that stand still though nobody wanted it."""
    asleep: list[Asleep]
    plans: list[PlanEntry]
    """Those that have not ended."""
    warnings: list[str]
    """What there is to be said of how full the pools are."""
    drained: dict[str, Drained]
    """The hosts that take no guests, and whose word says so."""
    doubled: list[str]
    """Guests that run on several hosts, a line each."""
    guests: list[GuestState]
    """What every host says of the guests that it knows."""
    records: list[Guest]
    """All guests that are known, running or not."""


def look(coordinator: Coordinator) -> Overview:
    """Ask every host once; those that are silent are left out."""
    survey = coordinator.survey
    # A host without a pool that has no volume has little to tell.
    homes = coordinator.inventory.homes
    exports = survey.all_exports(partial=True, needed=homes)
    clients = {export.client for group in exports.values() for export in group if not guest_of(export.client)}
    everyone = dict.fromkeys([*coordinator.inventory.hosts, *sorted(clients)])
    attachments = survey.attachments(everyone, partial=True, needed=homes | clients)
    if survey.silent:
        survey.declared_off()
    plans = [plan for plan in PlanActs(coordinator).listing() if plan.open]
    held = _held(coordinator, exports, attachments)
    records, states = _guests(coordinator, homes | clients)
    paused = [state for state in states if state.reason]
    usages = survey.usage()
    asleep = [Asleep(name, usage.pool, hold) for usage in usages for name, hold in usage.held.items()]
    others = _others(coordinator, exports)
    warnings, drained = coordinator.said_of(usages), survey.drained(everyone, homes | clients)
    doubled = _doubled(states)
    return Overview(
        exports, attachments, held, others, paused, asleep, plans, warnings, drained, doubled, states, records
    )


def _held(
    coordinator: Coordinator, exports: dict[str, list[Export]], attachments: dict[str, list[Attachment]]
) -> list[Holding]:
    found: list[Holding] = []
    for home, group in exports.items():
        for export in group:
            right = ("writes" if export.writable else "reads") + ("" if export.live else ", server down")
            there = _there(coordinator, export, attachments)
            found.append(Holding(export.volume, home, export.client, right, there))
    # Who holds what a silent or unreadable home would tell of is not passed over.
    told = {(export.uuid, export.client) for group in exports.values() for export in group}
    right = "unknown" if coordinator.survey.unknown or coordinator.survey.unread else "not exported"
    return found + [
        Holding(attachment.volume, "unknown", host, right, attachment.state)
        for host, attached in attachments.items()
        for attachment in attached
        if (attachment.uuid, host) not in told
    ]


def _others(coordinator: Coordinator, exports: dict[str, list[Export]]) -> list[str]:
    speaker = coordinator.survey.speaker
    found = {
        export.uuid: quoted(f"volume {export.volume} is open for writing on {home}: by {export.others}", speaker(home))
        for home, group in exports.items()
        for export in group
        if export.others
    }
    return list(found.values())


def _there(coordinator: Coordinator, export: Export, attachments: dict[str, list[Attachment]]) -> str:
    """What a client has of its export."""
    if guest_of(export.client):
        return "itself"
    if export.client not in attachments:
        known = coordinator.connections.find(export.client)
        return "unknown" if known else "unknown (not in the inventory)"
    states = [a.state for a in attachments[export.client] if a.uuid == export.uuid]
    unread = (export.client, f"transport:{export.transport}") in coordinator.survey.unread
    return states[0] if states else "unknown" if unread else "not attached"


def _guests(coordinator: Coordinator, needed: Collection[str]) -> tuple[list[Guest], list[GuestState]]:
    """All guests, and what the hosts say of them, and of others that have volumes: also one whose name is unknown here
    by now."""
    problems = list[StorkitError]()
    guests = sources.everybody(coordinator, problems, needed)
    for problem in problems:
        coordinator.warn(problem.message)
    found: list[GuestState] = []
    names = {guest.name for guest in guests}
    for hypervisor in sorted({guest.hypervisor for guest in guests}):
        try:
            hosts = coordinator.inventory.hosts
            states = coordinator.survey.guests(hosts, f"hypervisor:{hypervisor}", partial=True, needed=needed)
        except Unsupported:  # the list of guests says so
            continue
        found += [state for there in states.values() for state in there if state.name in names or state.volumes]
    return guests, found


def _doubled(states: Sequence[GuestState]) -> list[str]:
    alive: dict[tuple[str, str], list[str]] = {}
    for state in states:
        if state.status in ALIVE:
            alive.setdefault((state.name, state.uuid), []).append(state.host)
    return [f"guest {name} runs on {' and '.join(hosts)}" for (name, _), hosts in alive.items() if len(hosts) > 1]
