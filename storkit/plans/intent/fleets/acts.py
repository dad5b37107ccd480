"""Fleets: guests of one image, made, started, set back, replaced and destroyed in one plan each."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from datetime import UTC, datetime
from pathlib import Path

from storkit.core.errors import NotFound, StorkitError, UsageError, collected, raise_problems
from storkit.core.identities import several
from storkit.core.model import ALIVE
from storkit.guests import files
from storkit.guests.fleets import identity, keys, record
from storkit.guests.fleets.record import Fleet
from storkit.plans.intent.coordinator import Coordinator
from storkit.plans.intent.fleets import entering, making, unmaking
from storkit.plans.intent.fleets import members as present
from storkit.plans.intent.fleets.entering import Entrance, Said
from storkit.plans.intent.fleets.making import FleetWish
from storkit.plans.intent.running import starting
from storkit.system import locks
from storkit.system.files import make_private


@dataclass(frozen=True, slots=True)
class FleetMember:
    """A member, and what it is doing."""

    name: str
    host: str
    """Where it is to run."""
    status: str
    """Its hypervisor's word; `stopped`, `unknown` (its host is silent), or `missing`: it has no record, or no disk."""
    address: str = ""
    """In the fleet's own network."""


@dataclass(frozen=True, slots=True)
class FleetView:
    """A fleet and its members."""

    fleet: Fleet
    members: list[FleetMember]
    unset: list[str] = field(default_factory=list)
    """What its members have in common, since it could not be set in the image."""

    @property
    def running(self) -> int:
        return sum(member.status in ALIVE for member in self.members)


class FleetActs:
    """Make, start, set back and destroy fleets."""

    def __init__(self, coordinator: Coordinator) -> None:
        self._coordinator = coordinator

    @property
    def directory(self) -> Path:
        """Where fleets' files are."""
        return self._coordinator.inventory.directory / "fleets"

    def create(self, name: str, wish: FleetWish, start: bool = False) -> FleetView:
        """Make a fleet, or what is missing of one that is there: a clone of the image for each member, made a machine
        of its own. `start`: and start them all."""
        with self._locked(name):
            fleet = making.create(self._coordinator, self.directory, name, wish)
        if start:
            self.start(name)
        return self._view(fleet)

    def names(self) -> list[str]:
        """The fleets that have files here, in the order of their names."""
        return record.names(self.directory)

    def load(self, name: str) -> Fleet:
        """A fleet as its file has it, with nobody asked."""
        return record.load(self.directory, name)

    def listing(self) -> list[FleetView]:
        """All fleets; what is wrong with one is warned of."""
        found = []
        for name in self.names():
            try:
                found.append(self.show(name))
            except StorkitError as error:
                self._coordinator.warn(f"fleet {name}: {error.message}")
        return found

    def show(self, name: str) -> FleetView:
        """A fleet, and what each of its members is doing."""
        return self._view(self.load(name))

    def start(self, name: str, members: Sequence[str] = ()) -> list[str]:
        """Start members that do not run, all by default, each on its host; the names of those that run then."""
        fleet = self.load(name)
        wanted = self._members(fleet, members)
        present.of(self._coordinator, fleet, wanted)
        running = {each.name for each in self._view(fleet).members if each.status in ALIVE}
        self._start(fleet, [member for member in wanted if member not in running])
        return wanted

    def stop(self, name: str, members: Sequence[str] = (), force: bool = False, timeout: float = 60.0) -> list[str]:
        """Stop members, all that there are by default; their names. `force` and `timeout` as for a guest."""
        fleet = self.load(name)
        wanted = self._members(fleet, members)
        there = present.guests(self._coordinator, fleet, wanted)
        if members:
            present.of(self._coordinator, fleet, wanted)
        if there:
            starting.stop(self._coordinator, list(there), "", force, timeout)
        return list(there)

    def reset(self, name: str, members: Sequence[str]) -> list[str]:
        """Give members new clones of the image, and let them be who they were. What they wrote is lost; those that ran
        run again. Their names."""
        with self._locked(name):
            fleet = self.load(name)
            wanted = self._members(fleet, members)
            ran = making.reset(self._coordinator, self.directory, fleet, wanted)
            self._start(fleet, ran)
        return wanted

    def replace(self, name: str, members: Sequence[str], start: bool = False) -> list[str]:
        """Put new machines in the place of members: new clones, with new names' keys and addresses of hardware."""
        with self._locked(name):
            fleet = self.load(name)
            wanted = self._members(fleet, members)
            fleet = making.remove(self._coordinator, self.directory, fleet, wanted)
            making.complete(self._coordinator, self.directory, fleet, fleet)
            if start:
                self._start(fleet, wanted)
        return wanted

    def destroy(self, name: str) -> str:
        """End a fleet: its members, by force, their disks and keys, and its file; its name."""
        with self._locked(name):
            self._destroy(self.load(name))
        return name

    def sweep(self) -> list[str]:
        """Destroy the fleets whose time is over; their names."""
        now = datetime.now(UTC)
        problems: list[StorkitError] = []
        gone = []
        for name in self.names():
            with collected(problems):
                fleet = self.load(name)
                if record.over(fleet, now):
                    self.destroy(name)
                    gone.append(name)
        raise_problems(problems)
        return gone

    def doors(self, name: str, members: Sequence[str] = ()) -> list[Entrance]:
        """How ssh gets into members that run, all by default. Raises Conflict for those that do not."""
        fleet = self.load(name)
        wanted = self._members(fleet, members)
        where = {each.name: each.host for each in self._view(fleet).members if each.status in ALIVE}
        return entering.entrances(self._coordinator, fleet, wanted, where)

    def run(self, name: str, command: Sequence[str], members: Sequence[str] = (), timeout: float = 600.0) -> list[Said]:
        """Run a command in members, all by default, at the same time; what each said, in their order."""
        self._refuse_to_plan("a command in members")
        return entering.run(self.doors(name, members), command, timeout)

    def wait(self, name: str, members: Sequence[str] = (), timeout: float = 300.0) -> list[str]:
        """Wait until members, all by default, let ssh in; their names. Raises TimedOut with those that do not."""
        doors = self.doors(name, members)
        entering.wait(doors, timeout)
        return [door.member for door in doors]

    def enter(self, member: str) -> Entrance:
        """How ssh gets into a member, of whatever fleet. Raises NotFound, Conflict: it does not run."""
        self._refuse_to_plan("a shell in a member")
        return self.doors(self._fleet_of(member), [member])[0]

    def member(self, name: str) -> str:
        """The guest that is this member, of whatever fleet. Raises NotFound."""
        self._fleet_of(name)
        return name

    def _fleet_of(self, member: str) -> str:
        fleet = next((name for name in self.names() if member in self.load(name).members), "")
        if not fleet:
            raise NotFound(f"no fleet has a member {member!r}", "storkit fleet list")
        return fleet

    def _refuse_to_plan(self, what: str) -> None:
        if self._coordinator.planning:
            raise UsageError(f"{what} is no plan that could be shown", "leave --dry-run out")

    def _start(self, fleet: Fleet, members: Sequence[str]) -> None:
        if members:
            starting.start(self._coordinator, {member: fleet.host(member) for member in members})

    def _destroy(self, fleet: Fleet) -> None:
        unmaking.remove(self._coordinator, fleet, fleet.members, whole=True)
        if self._coordinator.planning:
            return
        keys.forget(self._coordinator.state, fleet.uuid)
        record.delete(self.directory, fleet.name)

    def _members(self, fleet: Fleet, members: Sequence[str]) -> list[str]:
        """The members of these names, or all. Raises NotFound."""
        if not members:
            return fleet.members
        problems: list[StorkitError] = []
        for member in several(members):
            with collected(problems):
                fleet.number(member)
        raise_problems(problems)
        return list(dict.fromkeys(members))

    def _view(self, fleet: Fleet) -> FleetView:
        states = self._states(fleet)
        members = []
        for member in fleet.members:
            address = "" if fleet.bridge else str(fleet.address(member).ip)
            status, host = states[member]
            members.append(FleetMember(member, host or fleet.host(member), status, address))
        return FleetView(fleet, members, identity.unset(fleet))

    def _states(self, fleet: Fleet) -> dict[str, tuple[str, str]]:
        """What each member is doing, and where it runs: each host, and the pool, is asked once for all."""
        coordinator = self._coordinator
        there = set(files.names(coordinator.guests)) & set(fleet.members)
        pools = [coordinator.inventory.pools[fleet.pool]] if fleet.pool in coordinator.inventory.pools else []
        volumes = {volume.uuid for volume in coordinator.survey.volumes(sorted(there), pools)} if there else set()
        found: dict[str, tuple[str, str]] = dict.fromkeys(fleet.members, ("missing", ""))
        for member in there:
            with suppress(StorkitError):
                guest = files.load(coordinator.guests, member)
                mine = (made := fleet.made.get(member)) is not None and guest.uuid == made.guest
                if mine and any(disk.uuid in volumes for disk in guest.disks):
                    found[member] = ("stopped", "")
        target, own = f"hypervisor:{fleet.hypervisor}", {made.guest for made in fleet.made.values()}
        hosts = list(coordinator.inventory.hosts)
        answers = coordinator.survey.guests(hosts, target, fleet.members, partial=True, needed=fleet.hosts)
        for host, states in answers.items():
            for state in states:
                if state.status != "stopped" and state.uuid in own and found[state.name][0] != "running":
                    found[state.name] = (state.status, host)
        for member in fleet.members:
            if fleet.host(member) not in answers and found[member][0] == "stopped":
                found[member] = ("unknown", "")
        return found

    @contextmanager
    def _locked(self, name: str) -> Iterator[None]:
        """One command at a time makes or ends a fleet."""
        if self._coordinator.planning:
            yield
            return
        record.path(self.directory, name)
        directory = make_private(self._coordinator.state / "fleets")
        lock = locks.acquire(directory / f"{name}.lock", f"fleet {name}", holder="another storkit fleet command")
        try:
            yield
        finally:
            lock.release(remove=True)
