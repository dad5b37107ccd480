"""Hosts: examined, brought back after a reboot, and all that they serve and have attached."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from storkit.core import codec
from storkit.core.errors import (
    HostUnreachable,
    StorkitError,
    UsageError,
    collected,
    raise_problems,
)
from storkit.core.identities import several
from storkit.core.model import Export, Usage
from storkit.plans.intent.coordinator import Coordinator

if TYPE_CHECKING:
    from storkit.plans.checkup import Report
    from storkit.plans.intent import accepting
    from storkit.plans.intent.drift.audit import Drift
    from storkit.plans.intent.drift.overview import Overview
    from storkit.plans.intent.drift.sweep import Swept
    from storkit.plans.intent.estate.joining import Joined, JoinWish, Upgraded
    from storkit.plans.intent.moving.draining import DrainWish, Emptied
    from storkit.plans.intent.moving.evacuating import Evacuated, EvacuationWish


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
        homes = inventory.homes
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
            pool.name: self._survey.silence(pool) for pool in inventory.pools.values()
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
        from storkit.plans.intent.drift.overview import look

        return look(self._coordinator)

    def audit(self) -> list[Drift]:
        """Where hosts, volumes, guests and plans differ from each other, each with what mends it."""
        from storkit.plans.intent.drift.audit import audit

        return audit(self._coordinator)

    def sweep(self, orphans: Sequence[Drift]) -> list[Swept]:
        """Remove orphans that `audit` has found, as far as they still are; each, and why it could not be removed."""
        from storkit.plans.intent.drift.sweep import sweep

        return sweep(self._coordinator, orphans)

    def add(self, name: str, url: str, wish: JoinWish | None = None) -> Joined:
        """Copy storkit to a machine, and write it into the inventory as a host. Called again it goes on."""
        from storkit.plans.intent.estate import joining

        return joining.add(self._coordinator, name, url, wish or joining.JoinWish())

    def upgrade(self, hosts: Sequence[str] = (), file: str = "", program: str = "") -> list[Upgraded]:
        """Copy storkit to hosts, or to all that ssh reaches, one after another; their guests go on running."""
        from storkit.plans.intent.estate import joining

        return joining.upgrade(self._coordinator, hosts, file, program or joining.PROGRAM)

    def remove(self, host: str) -> Path:
        """Take a host that has nothing any more out of the inventory; the inventory's file."""
        from storkit.plans.intent.estate import joining

        return joining.remove(self._coordinator, host)

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
