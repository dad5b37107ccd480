"""Guests that sleep: saved to a file, woken up by it, or their memory given up."""

from __future__ import annotations

import shlex
from dataclasses import dataclass, replace
from datetime import UTC, datetime
from pathlib import Path
from uuid import uuid4

from storkit.core import codec
from storkit.core.errors import Conflict, HostUnreachable, NotAllowed, NotFound, Unsafe, UsageError, raise_problems
from storkit.core.guest import Guest
from storkit.core.model import Saved, VolumeHold
from storkit.plans import migration
from storkit.plans.guests import sleep
from storkit.plans.intent.coordinator import Coordinator, Ran
from storkit.plans.intent.kept import refreshing, sources
from storkit.plans.intent.moving.keptoff import refuse_drained
from storkit.plans.intent.views import wherever
from storkit.plans.migration import GuestView
from storkit.plans.plan import Plan


@dataclass(frozen=True, slots=True)
class Slept:
    """A guest that was saved: the host and the file with its memory, and the id of the holds on its disks."""

    guest: str
    host: str
    file: str
    hold: str


@dataclass(frozen=True, slots=True)
class Woken:
    """A guest that goes on on a host. `paused`: it stands still there, as it did before it was saved."""

    guest: str
    host: str
    paused: bool


class SleepActs:
    """Save guests to files, and wake them up."""

    def __init__(self, coordinator: Coordinator) -> None:
        self._coordinator = coordinator

    def save(self, guest: str, file: str = "") -> Slept:
        """Put a running guest to sleep: its memory goes into a new file of its host, without `file` in that host's own
        place, and nobody writes its disks until it wakes up."""
        coordinator = self._coordinator
        new = VolumeHold("", guest, str(uuid4()), 0, f"{datetime.now(UTC):%Y-%m-%dT%H:%M:%SZ}", "", "")

        def build() -> Plan:
            what = wherever(self._coordinator, guest)
            migration.refuse_to_leave(what, f"and later: storkit guest start {what.name}")
            here = sleep.runs_on(what)
            refreshing.refuse(what, what.edited, "that would end with it")
            hold = replace(new, guest=what.guest.uuid, host=here, file=self._file(here, file))
            self._refuse_file(what, hold)
            said = self._fingerprint(what, here)
            if said["definition"] != "as recorded":
                raise Conflict(
                    f"the record of guest {what.name} is not what it runs by: {said['definition']}",
                    f"put it back as it was, or: storkit guest stop {what.name}",
                )
            return sleep.save(what, hold, sleep.asked(what, hold, said), coordinator.inventory)

        ran = coordinator.change(build)
        ((host, told),) = [(step.host, result) for step, result in ran.done if step.verb == "save"]
        return Slept(guest, host, codec.load(Saved, told, strict=False).file, new.id)

    def restore(self, guest: str, file: str = "", host: str = "") -> Woken:
        """Wake a sleeping guest up, on the host where it was saved if none is named, by the file there. Its plans that
        have not ended are given up."""
        coordinator = self._coordinator
        found: list[Woken] = []

        def build() -> Plan:
            what = wherever(self._coordinator, guest, *([coordinator.host(host)] if host else []))
            hold = sleep.sleep_of(what)
            if not host and coordinator.connections.find(hold.host) is None:
                # The volume's home says so: a host that nobody here has named is shown, and never connected to.
                message = f"guest {guest} was saved on {hold.host}, which is not in the inventory"
                raise Unsafe(message, f"storkit guest restore {guest} --on HOST")
            here = coordinator.host(host, given=True) if host else hold.host
            sleep.refuse_elsewhere(what)
            there = self._file(here, file or hold.file)
            saved = self._saved(what, hold, here, there)
            found.append(Woken(guest, here, saved.paused))
            what = replace(what, machine=saved.machine)
            refuse_drained(coordinator, here, what.guest)
            sources.refuse_unseen(coordinator, what.guest, what.all_volumes, here)
            hypervisor = coordinator.connections.to(here).hypervisor(what.target)
            unfit = coordinator.once((here, "check", _guest(what)), lambda: hypervisor.check(_guest(what)))
            raise_problems([Conflict(f"{here}: {problem}", f"storkit host check {here}") for problem in unfit])
            sleep.refuse_restore(what, hold, saved, self._fingerprint(what, here), here)
            keeps = here != hold.host and self._keeps(hold)
            return sleep.restore(what, here, hold, saved, there, keeps, coordinator.inventory)

        self._tell_unspent(coordinator.change(build, over_marks=True))
        return found[-1]

    def discard(self, guest: str, force: bool = False) -> list[str]:
        """Give a sleeping guest's memory up; the volumes that were held, which are as after a power cut. Its plans
        that have not ended are given up. Raises Conflict without `force`."""
        coordinator = self._coordinator
        names: list[str] = []

        def build() -> Plan:
            what = wherever(self._coordinator, guest)
            hold = sleep.sleep_of(what, one=False)
            names[:] = [volume.name for volume in what.written if volume.hold]
            if not force:
                raise Conflict(
                    f"all that guest {guest} had in its memory would be lost, as by a power cut",
                    f"storkit guest restore {guest}; or, if you mean it: storkit guest discard {guest} --force",
                )
            return sleep.discard(what, hold, self._keeps(hold), coordinator.inventory)

        self._tell_unspent(coordinator.change(build, over_marks=True))
        return names

    def _tell_unspent(self, ran: Ran) -> None:
        """Warn of a file that does not say that it was used; it wakes nobody all the same."""
        for step, result in ran.done:
            if step.verb == "spend" and result:
                self._coordinator.warn(f"the memory on {step.host} is not marked as used: {result}")

    def _keeps(self, hold: VolumeHold) -> bool:
        """Whether the host where a guest was saved is one of the inventory, and answers."""
        return hold.host in self._coordinator.inventory.hosts and bool(self._coordinator.survey.answering([hold.host]))

    def _file(self, host: str, file: str) -> str:
        """A file of a host, as the host is told of it."""
        if not file:
            return ""
        if self._coordinator.inventory.host(host).machine == "local":
            return str(Path(file).absolute())
        if not file.startswith("/"):
            raise UsageError(f"{file} is a file of host {host}, and no absolute path", "name it from / on")
        return file

    def _fingerprint(self, what: GuestView, host: str) -> dict[str, str]:
        """What the guest needs of a host, and the record that it is by."""
        hypervisor = self._coordinator.connections.to(host).hypervisor(what.target)
        found = self._coordinator.once(
            (host, "fingerprint", _guest(what)), lambda: hypervisor.fingerprint(_guest(what))
        )
        return {**found, "record": sleep.record(what)}

    def _refuse_file(self, what: GuestView, hold: VolumeHold) -> None:
        """Raise Conflict if a file has the name already, and Unsupported if its hypervisor does not save guests. In the
        host's own place there may be an earlier memory."""
        try:
            self._coordinator.connections.to(hold.host).hypervisor(what.target).saved(what.name, hold.file)
        except (NotFound, NotAllowed):  # who may not read it there may still write it
            return
        except Unsafe:
            pass
        if hold.file:
            raise Conflict(f"{hold.file} exists already on {hold.host}", "choose another name, or remove it there")

    def _saved(self, what: GuestView, hold: VolumeHold, host: str, file: str) -> Saved:
        """What the memory says of itself. Raises NotFound: this host cannot read it, and how to bring it there."""

        def asked(of: str, file: str) -> Saved:
            return self._coordinator.connections.to(of).hypervisor(what.target).saved(what.name, file)

        try:
            return asked(host, file)
        except NotFound as error:
            if host == hold.host:
                raise
            try:
                there = asked(hold.host, hold.file).file
            except (NotFound, HostUnreachable):
                raise error from None
            copy = f"/var/tmp/{what.name}.memory"
            source = shlex.quote(f"{hold.host}:{there}")
            raise NotFound(
                f"{host} has no {file or 'memory of guest ' + what.name}: it was saved on {hold.host} in {there}",
                f"scp {source} {host}:{copy}; storkit guest restore {what.name} {copy} --on {host}",
            ) from None


def _guest(what: GuestView) -> Guest:
    """The guest's record with the machine type that it runs with."""
    return replace(what.guest, machine=what.machine)
