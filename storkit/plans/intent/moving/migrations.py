"""Live migration: the window opened, the guest moved, the window closed; and what is left of one set right."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace

from storkit.core import codec, registry
from storkit.core.errors import Conflict, StorkitError, Unsupported, in_a_line, raise_problems
from storkit.core.identities import check_at_once, several
from storkit.core.inventory import Inventory
from storkit.core.model import ALIVE, MigrationResult
from storkit.guests import document
from storkit.plans import migration
from storkit.plans.intent.coordinator import Coordinator
from storkit.plans.intent.kept import refreshing, sources
from storkit.plans.intent.moving.choosing import Leaving
from storkit.plans.intent.moving.keptoff import refuse_drained
from storkit.plans.intent.moving.outcomes import Migrated, Move
from storkit.plans.intent.views import guest_view, wherever
from storkit.plans.migration import GuestView
from storkit.plans.plan import Plan
from storkit.plans.proof import Proof


@dataclass(frozen=True, slots=True)
class GuestRights:
    """A guest, and the clients that may write its disks or its root. `error`: why that is not known."""

    name: str
    view: GuestView | None = None
    error: StorkitError | None = None

    @property
    def writers(self) -> list[str]:
        exports = [*self.view.exports, *self.view.root_exports] if self.view else []
        return sorted({export.client for export in exports if export.writable})

    @property
    def window(self) -> bool:
        """Whether two hosts may write a disk of it: a migration is under way."""
        return self.view is not None and len({e.client for e in self.view.exports if e.writable}) > 1


class MigrationActs:
    """Move a running guest, with its disks' right to write."""

    def __init__(self, coordinator: Coordinator) -> None:
        self._coordinator = coordinator

    def run(self, guest: str, to: str, coming: int = 0) -> Migrated:
        """Move a guest to a host: prepare, run and finish in one plan. `coming`: the bytes of memory that others which
        are on their way will take there."""
        return self._migrate(guest, to, {"prepare", "run", "finish"}, coming)

    def run_all(self, guests: Sequence[str], to: str, at_once: int = 2) -> list[Move]:
        """Move guests to a host, each by a plan of its own, `at_once` of them at the same time; what has
        become of each, in this order."""
        from storkit.plans.intent.moving import several as moving

        coordinator = self._coordinator
        check_at_once(at_once)
        destination = coordinator.host(to, given=True)
        records = {name: sources.load(coordinator, name) for name in several(guests)}
        there: set[str] = set()
        for hypervisor in {guest.hypervisor for guest in records.values()}:
            states = coordinator.survey.guests([destination], f"hypervisor:{hypervisor}", list(records))
            there |= {state.name for state in states.get(destination, []) if state.status in ALIVE}
        leaving = [Leaving(name, "", guest.memory) for name, guest in records.items() if name not in there]
        title = f"migrate to {destination}"
        moved = moving.move(coordinator, leaving, [destination], at_once, title, run_one) if leaving else []
        found = {each.guest: each for each in moved}
        return [found.get(name, Move(name)) for name in records]

    def prepare(self, guest: str, to: str) -> Migrated:
        """Give a host the guest's disks, prove that it sees them, and let it write beside the guest's own host."""
        return self._migrate(guest, to, {"prepare"})

    def finish(self, guest: str) -> GuestView:
        """Give the right to write, and the disks, to the host alone that the guest runs on; where it is then.

        That ends a migration which was prepared, whether the guest has moved or not.
        """
        return self._settle(guest, migration.finish)

    def cleanup(self, guest: str) -> GuestView:
        """Make rights and attachments match where the guest runs, from the truth alone; plans that are open for it are
        given up."""
        return self._settle(guest, migration.cleanup, over_marks=True)

    def status(self, guest: str = "") -> list[GuestRights]:
        """Where a guest is, and who may write its disks; without a name, of all guests, as far as that is known."""
        names = [guest] if guest else sources.names(self._coordinator)
        found: list[GuestRights] = []
        for name in names:
            try:
                found.append(GuestRights(name, wherever(self._coordinator, name)))
            except StorkitError as error:
                if guest:
                    raise
                self._coordinator.warn(f"guest {name}: {in_a_line(error)}")
                found.append(GuestRights(name, error=error))
        return found

    def _migrate(self, guest: str, to: str, parts: set[str], coming: int = 0) -> Migrated:
        coordinator = self._coordinator
        destination = coordinator.host(to, given=True)
        pools: dict[str, None] = {}

        def build() -> Plan:
            what = guest_view(coordinator, guest, destination)
            migration.refuse_to_leave(what, f"then: storkit guest start {what.name} --on {destination}")
            pools.update(dict.fromkeys(volume.pool for volume in what.all_volumes))
            plan = migration.migrate(what, destination, parts, coordinator.inventory)
            if what.places.get(destination) not in (None, "incoming"):
                raise Conflict(
                    f"guest {what.name} is {what.places[destination]} on {destination}",
                    f"storkit migrate cleanup {what.name}",
                )
            refuse_drained(coordinator, destination, what.guest)
            refreshing.refuse(what, what.edited, "that would not move with it")
            sources.refuse_unseen(coordinator, what.guest, what.all_volumes, destination)
            sources.refuse_old(coordinator, what.guest, what.all_volumes)
            raise_problems(differences(coordinator, what, destination, coming))
            return plan

        ran = coordinator.change(build)
        moved = next((result for step, result in ran.done if step.verb == "send"), None)
        return Migrated(
            guest,
            destination,
            ran.plan.id,
            codec.load(list[Proof], ran.of("prove"), strict=False),
            codec.load(MigrationResult, moved, destination, strict=False) if moved else None,
            coordinator.fullness(coordinator.inventory.pool(name) for name in pools),
        )

    def _settle(
        self, guest: str, planner: Callable[[GuestView, Inventory], Plan], over_marks: bool = False
    ) -> GuestView:
        coordinator = self._coordinator

        def build() -> Plan:
            what = wherever(coordinator, guest)
            refreshing.warn(coordinator, what, [host for host in what.edited if host not in what.running])
            return planner(what, coordinator.inventory)

        coordinator.change(build, over_marks=over_marks)
        return guest_view(coordinator, guest)


def run_one(coordinator: Coordinator, guest: str, to: str, coming: int) -> Migrated:
    """As MigrationActs.run, for moving.several."""
    return MigrationActs(coordinator).run(guest, to, coming)


def differences(coordinator: Coordinator, what: GuestView, destination: str, coming: int = 0) -> list[StorkitError]:
    """Everything that would keep the guest from running at the destination, and what the two hosts differ in.
    `coming`: the memory there that others will take, in bytes."""
    connections, inventory = coordinator.connections, coordinator.inventory
    source = what.running[0]
    guest = replace(what.guest, machine=what.machine)
    here, there = (connections.to(host).hypervisor(what.target) for host in (source, destination))
    arrives = not connections.same_machine(source, destination)
    wanted = replace(guest, memory=guest.memory + coming)
    unfit = coordinator.once((destination, "check", wanted), lambda: there.check(wanted, arrives))
    problems: list[StorkitError] = [
        Conflict(f"{destination}: {problem}", f"storkit host check {destination}") for problem in unfit
    ]
    problems += document.stays(what.guest)
    home = {volume.host for volume in what.volumes}
    for name in sorted(home - {destination, source}):
        connections.to(name)
    for transport in sorted({inventory.transport(volume.pool).partition(":")[2] for volume in what.written}):
        if not registry.transport(transport).window:
            problems.append(
                Unsupported(f"{transport} cannot give two hosts the right to write", "choose another transport")
            )
    ours = coordinator.once((source, "fingerprint", guest), lambda: here.fingerprint(guest))
    theirs = coordinator.once((destination, "fingerprint", guest), lambda: there.fingerprint(guest))
    for key in sorted(ours.keys() | theirs.keys()):
        if ours.get(key) != theirs.get(key):
            problems.append(
                Conflict(
                    f"{key} differs: {ours.get(key, 'none')} on {source}, {theirs.get(key, 'none')} on {destination}",
                    "make them the same on both hosts, or stop the guest and start it there",
                )
            )
    return problems
