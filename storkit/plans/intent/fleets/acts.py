"""Fleets: guests of one image, made, started, set back, replaced and destroyed in one plan each."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from datetime import UTC, datetime
from pathlib import Path

from storkit.core.errors import StorkitError, collected, raise_problems
from storkit.core.identities import several
from storkit.core.model import ALIVE
from storkit.guests import files
from storkit.guests.fleets import identity, keys, record
from storkit.guests.fleets.record import Fleet
from storkit.plans.intent.coordinator import Coordinator
from storkit.plans.intent.fleets import entering, making, unmaking
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
                starting.start(self._coordinator, {member: fleet.host(member) for member in fleet.members})
        return self._view(fleet, looked=not start)

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
        """Start members, all by default, each on its host; their names."""
        fleet = self.load(name)
        wanted = self._members(fleet, members)
        starting.start(self._coordinator, {member: fleet.host(member) for member in wanted})
        return wanted

    def stop(self, name: str, members: Sequence[str] = (), force: bool = False, timeout: float = 60.0) -> list[str]:
        """Stop members, all by default; their names. `force` and `timeout` as for a guest."""
        wanted = self._members(self.load(name), members)
        starting.stop(self._coordinator, wanted, "", force, timeout)
        return wanted

    def reset(self, name: str, members: Sequence[str]) -> list[str]:
        """Give members new clones of the image, and let them be who they were. What they wrote is lost; those that ran
        run again. Their names."""
        with self._locked(name):
            fleet = self.load(name)
            wanted = self._members(fleet, members)
            ran = making.reset(self._coordinator, fleet, wanted)
            if ran:
                starting.start(self._coordinator, {member: fleet.host(member) for member in ran})
        return wanted

    def replace(self, name: str, members: Sequence[str], start: bool = False) -> list[str]:
        """Put new machines in the place of members: new clones, with new names' keys and addresses of hardware."""
        with self._locked(name):
            fleet = self.load(name)
            wanted = self._members(fleet, members)
            unmaking.remove(self._coordinator, fleet, wanted)
            making.complete(self._coordinator, self.directory, fleet)
            if start:
                starting.start(self._coordinator, {member: fleet.host(member) for member in wanted})
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
                if fleet.expires and datetime.fromisoformat(fleet.expires) <= now:
                    self.destroy(name)
                    gone.append(name)
        raise_problems(problems)
        return gone

    def doors(self, name: str, members: Sequence[str] = ()) -> list[Entrance]:
        """How ssh gets into members that run, all by default. Raises Conflict for those that do not."""
        fleet = self.load(name)
        return entering.entrances(self._coordinator, fleet, self._members(fleet, members))

    def run(self, name: str, command: Sequence[str], members: Sequence[str] = (), timeout: float = 600.0) -> list[Said]:
        """Run a command in members, all by default, at the same time; what each said, in their order."""
        return entering.run(self.doors(name, members), command, timeout)

    def wait(self, name: str, members: Sequence[str] = (), timeout: float = 300.0) -> list[str]:
        """Wait until members, all by default, let ssh in; their names. Raises TimedOut with those that do not."""
        doors = self.doors(name, members)
        entering.wait(doors, timeout)
        return [door.member for door in doors]

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

    def _view(self, fleet: Fleet, looked: bool = False) -> FleetView:
        """`looked`: it has just been made, and nothing of it runs."""
        states = self._states(fleet)
        members = []
        for member in fleet.members:
            address = "" if fleet.bridge else str(fleet.address(member).ip)
            members.append(FleetMember(member, fleet.host(member), states[member], address))
        return FleetView(fleet, members, identity.unset(fleet))

    def _states(self, fleet: Fleet) -> dict[str, str]:
        """What each member is doing: each host, and each pool, is asked once for all."""
        coordinator = self._coordinator
        there = set(files.names(coordinator.guests)) & set(fleet.members)
        volumes = {volume.name for volume in coordinator.survey.present(sorted(there))}
        found = {member: "stopped" if member in there & volumes else "missing" for member in fleet.members}
        answers = coordinator.survey.guests(
            list(dict.fromkeys(fleet.hosts)), f"hypervisor:{fleet.hypervisor}", fleet.members, partial=True
        )
        for states in answers.values():
            found.update({state.name: state.status for state in states if state.status != "stopped"})
        for member in fleet.members:
            if fleet.host(member) not in answers and found[member] == "stopped":
                found[member] = "unknown"
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
