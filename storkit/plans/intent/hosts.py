"""Hosts: examined, brought back after a reboot, and all that they serve and have attached."""

from __future__ import annotations

from collections.abc import Collection, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from storkit.core import codec
from storkit.core.errors import (
    HostUnreachable,
    StorkitError,
    Unsupported,
    UsageError,
    collected,
    quoted,
    raise_problems,
)
from storkit.core.host import Drained
from storkit.core.identities import several
from storkit.core.model import ALIVE, Attachment, Export, GuestState, Usage, VolumeHold, guest_of
from storkit.plans.intent.coordinator import Coordinator

if TYPE_CHECKING:
    from storkit.plans.checkup import Report
    from storkit.plans.intent import accepting
    from storkit.plans.intent.journals import PlanEntry
    from storkit.plans.intent.moving.draining import DrainWish, Emptied
    from storkit.plans.intent.moving.evacuating import Evacuated, EvacuationWish


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


@dataclass(frozen=True, slots=True)
class PoolUsage:
    """How full a pool is; or why that is not known."""

    pool: str
    host: str
    type: str
    usage: Usage | None
    error: StorkitError | None


class HostActs:
    """Look at hosts, and bring back what a reboot has ended."""

    def __init__(self, coordinator: Coordinator) -> None:
        self._coordinator = coordinator
        self._survey = coordinator.survey

    def check(self, hosts: Sequence[str] = ()) -> dict[str, Report]:
        """Whether hosts, or all, can do their part; by the names that were given."""
        from storkit.plans.checkup import Checkup

        coordinator = self._coordinator
        names = {coordinator.host(name): name for name in several(hosts) or coordinator.inventory.hosts}
        checkup = Checkup(coordinator.connections, coordinator.hypervisors())
        reports = checkup.examine(list(names))
        self._survey.silent.update(checkup.silent)
        return {names[report.host]: report for report in reports}

    def restore(self, hosts: Sequence[str] = ()) -> list[Export]:
        """Start the servers of exports again, with the rights they had, and make attachments again, wherever one has
        ended; what is back. Hosts that are silent stay as they are."""
        self._refuse_to_plan()
        coordinator, back, problems = self._coordinator, list[Export](), list[StorkitError]()
        inventory = coordinator.inventory
        homes = {pool.host for pool in inventory.pools.values()}
        asked = {name: coordinator.host(name) for name in several(hosts) or inventory.hosts}
        coordinator.connections.reach(asked.values())
        # Servers before their clients.
        for name in sorted(asked, key=lambda name: name not in homes):
            for target in inventory.served_by:
                try:
                    back += coordinator.connections.to(asked[name]).transport(target).restore()
                except HostUnreachable as error:
                    self._survey.silent[name] = error
                    break
                except StorkitError as error:
                    problems.append(error)
        raise_problems(problems)
        return back

    def restore_at_boot(self, file: Path | None = None, state: Path | None = None) -> list[Export]:
        """As `restore`, for this machine alone, by what it was last told: at its boot no coordinator is there. `file`
        says what it accepts, instead of its own; `state` is where it keeps what it was told."""
        from storkit.hosts import accept
        from storkit.hosts.setup import LOCAL, remembered, teller
        from storkit.hosts.site import Performer, site

        self._refuse_to_plan()
        back, problems = list[Export](), list[StorkitError]()
        own = accept.load(file or accept.default_file())
        place = state or (Path(own.state) if own and own.state else self._coordinator.state)
        if given := remembered(place):
            # What this machine's own command told, root has said.
            limits = None if (who := teller(place)) == LOCAL else accept.limits(who, file)
            given = limits.setup(given) if limits else given
            performer = Performer(given, site(given), limits)
            self._coordinator.acted = True
            for target in given.served_by:
                with collected(problems):
                    back += codec.load(list[Export], performer.perform(target, "restore", {}))
        raise_problems(problems)
        return back

    def accept(self, wanted: accepting.AcceptWish) -> accepting.Acceptance:
        """What this machine accepts of coordinators, and what it was asked for and does not accept. With anything to
        accept or to remove, the file that says so is written first."""
        from storkit.plans.intent import accepting

        return accepting.accept(self._coordinator, wanted)

    def pools(self) -> list[PoolUsage]:
        """How full the pools are; those last that cannot say."""
        inventory = self._coordinator.inventory
        usages = self._survey.usage()
        found = [PoolUsage(u.pool, u.host, inventory.pools[u.pool].type, u, None) for u in usages]
        errors: dict[str, StorkitError | None] = {
            pool.name: self._survey.silent.get(pool.host) for pool in inventory.pools.values()
        }
        for name, error in (errors | self._survey.failed).items():
            if error:
                found.append(PoolUsage(name, inventory.pools[name].host, inventory.pools[name].type, None, error))
        for usage in usages:
            for warning in usage.warnings:
                self._coordinator.warn(warning)
        return found

    def status(self) -> Overview:
        """All exports and attachments, guests that stand still, and plans that have not ended."""
        from storkit.plans.intent.journals import PlanActs

        coordinator, survey = self._coordinator, self._survey
        # A host without a pool that has no volume has little to tell.
        homes = {pool.host for pool in coordinator.inventory.pools.values()}
        exports = survey.all_exports(partial=True, needed=homes)
        clients = {export.client for group in exports.values() for export in group if not guest_of(export.client)}
        everyone = dict.fromkeys([*coordinator.inventory.hosts, *sorted(clients)])
        attachments = survey.attachments(everyone, partial=True, needed=homes | clients)
        if survey.silent:
            survey.declared_off()
        plans = [plan for plan in PlanActs(coordinator).listing() if plan.open]
        held = self._held(exports, attachments)
        states = self._states(homes | clients)
        paused = [state for state in states if state.reason]
        usages = survey.usage()
        asleep = [Asleep(name, usage.pool, hold) for usage in usages for name, hold in usage.held.items()]
        others = self._others(exports)
        warnings, drained = coordinator.said_of(usages), survey.drained(everyone, homes | clients)
        doubled = _doubled(states)
        return Overview(exports, attachments, held, others, paused, asleep, plans, warnings, drained, doubled)

    def drain(self, host: str, wish: DrainWish | None = None) -> Emptied:
        """Keep new guests off a host, and move those away that it runs, each by a plan of its own. Called again it goes
        on."""
        from storkit.plans.intent.moving import draining

        return draining.drain(self._coordinator, host, wish or draining.DrainWish())

    def evacuate(self, host: str, wish: EvacuationWish | None = None) -> Evacuated:
        """Cut a host that has died off every disk, and start its guests on others. Called again it goes on."""
        from storkit.plans.intent.moving import evacuating

        return evacuating.evacuate(self._coordinator, host, wish or evacuating.EvacuationWish())

    def undrain(self, host: str) -> str:
        """Let a host take guests again; its whole name."""
        from storkit.plans.intent.moving import draining

        return draining.undrain(self._coordinator, host)

    def _refuse_to_plan(self) -> None:
        if self._coordinator.planning:
            raise UsageError("each host itself knows what it has to bring back", "see: storkit status")

    def _held(self, exports: dict[str, list[Export]], attachments: dict[str, list[Attachment]]) -> list[Holding]:
        found: list[Holding] = []
        for home, group in exports.items():
            for export in group:
                right = ("writes" if export.writable else "reads") + ("" if export.live else ", server down")
                there = self._there(export, attachments)
                found.append(Holding(export.volume, home, export.client, right, there))
        # Who holds what a silent or unreadable home would tell of is not passed over.
        told = {(export.uuid, export.client) for group in exports.values() for export in group}
        right = "unknown" if self._survey.unknown or self._survey.unread else "not exported"
        return found + [
            Holding(attachment.volume, "unknown", host, right, attachment.state)
            for host, attached in attachments.items()
            for attachment in attached
            if (attachment.uuid, host) not in told
        ]

    def _others(self, exports: dict[str, list[Export]]) -> list[str]:
        found = {
            export.uuid: quoted(
                f"volume {export.volume} is open for writing on {home}: by {export.others}", self._survey.speaker(home)
            )
            for home, group in exports.items()
            for export in group
            if export.others
        }
        return list(found.values())

    def _there(self, export: Export, attachments: dict[str, list[Attachment]]) -> str:
        """What a client has of its export."""
        if guest_of(export.client):
            return "itself"
        if export.client not in attachments:
            known = self._coordinator.connections.find(export.client)
            return "unknown" if known else "unknown (not in the inventory)"
        states = [a.state for a in attachments[export.client] if a.uuid == export.uuid]
        unread = (export.client, f"transport:{export.transport}") in self._survey.unread
        return states[0] if states else "unknown" if unread else "not attached"

    def _states(self, needed: Collection[str]) -> list[GuestState]:
        """What the hosts say of guests."""
        from storkit.plans.intent.kept import sources

        problems = list[StorkitError]()
        guests = sources.everybody(self._coordinator, problems, needed)
        for problem in problems:
            self._coordinator.warn(problem.message)
        found: list[GuestState] = []
        for hypervisor in sorted({guest.hypervisor for guest in guests}):
            names = [guest.name for guest in guests if guest.hypervisor == hypervisor]
            try:
                hosts = self._coordinator.inventory.hosts
                states = self._survey.guests(hosts, f"hypervisor:{hypervisor}", names, partial=True, needed=needed)
            except Unsupported:  # the list of guests says so
                continue
            found += [state for there in states.values() for state in there]
        return found


def _doubled(states: Sequence[GuestState]) -> list[str]:
    alive: dict[tuple[str, str], list[str]] = {}
    for state in states:
        if state.status in ALIVE:
            alive.setdefault((state.name, state.uuid), []).append(state.host)
    return [f"guest {name} runs on {' and '.join(hosts)}" for (name, _), hosts in alive.items() if len(hosts) > 1]
