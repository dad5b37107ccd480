"""A host cut off everything that others serve, and let in again."""

from __future__ import annotations

import getpass
import socket
from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from typing import Any

from storkit.core import codec
from storkit.core.errors import Conflict, StepFailed, StorkitError, Unsafe, collected, in_a_line, raise_problems
from storkit.core.guest import Guest
from storkit.core.inventory import PoolConfig
from storkit.core.model import ALIVE, Attachment, Export, Volume, check_name, guest_client
from storkit.plans import planner
from storkit.plans.intent.coordinator import Coordinator, Planned, Ran
from storkit.plans.intent.kept import sources
from storkit.plans.intent.moving import unfinished
from storkit.plans.plan import Plan, Step
from storkit.tech.grants import host_slug


@dataclass(frozen=True, slots=True)
class Fenced:
    """A host that is cut off, and the exports that it, or guests that ran there, had until then."""

    host: str
    lost: list[Export]


class FenceActs:
    """Cut a host off every disk, and let it in again."""

    def __init__(self, coordinator: Coordinator) -> None:
        self._coordinator = coordinator
        self._survey = coordinator.survey

    def fence(self, host: str, confirmed_off: bool = False) -> Fenced:
        """Cut a host off wherever that can be done, whatever fails elsewhere. `confirmed_off`: a person has seen that
        it is off.

        Raises StepFailed: not everywhere; Unsafe, with the host's disks taken: a guest there may still write its root
        on NFS.
        """
        coordinator = self._coordinator
        name, _ = coordinator.client(host)
        if coordinator.inventory.lacks(name):
            self._must_be_granted(name)
        problems: list[StorkitError] = []

        def build() -> Plan:
            return planner.fence(name, coordinator.inventory, self._confirmed(name) if confirmed_off else None)

        try:
            done = self._as_far_as_it_goes(build, problems)
        except Planned:
            for _, export in self.roots(name)[0]:
                coordinator.warn(f"then {export.client} would lose its root {export.volume}")
            raise
        if not done and not confirmed_off:
            word = f"storkit fence {name} --confirmed-off"
            for error in problems:
                error.hint += f"; where no storage can, once you have seen that it is off: {word}"
        lost = [export for step, result in done if step.verb == "fence" for export in result]
        # Afterwards: hosts that do not answer take their time, and the disks should not wait for it.
        if confirmed_off:
            with collected(problems):
                lost += self._take_over(name, problems)
        elif coordinator.inventory.managed_by(name):
            pools = ", ".join(pool.name for pool in coordinator.inventory.managed_by(name))
            word = f"once it is off: storkit fence {name} --confirmed-off"
            coordinator.warn(f"{name} goes on serving what it serves of pool {pools}; {word}")
        roots, kept = self.roots(name)
        if roots:
            with collected(problems):
                self._cut_off(roots)
                lost += codec.dump([export for _, export in roots])
        exports = codec.load(list[Export], lost, name, strict=False)
        if problems and exports:
            coordinator.warn(f"{name} has lost {', '.join(sorted({export.volume for export in exports}))}")
        raise_problems(problems + kept)
        return Fenced(name, exports)

    def unfence(self, host: str) -> str:
        """Let a host be given disks again; its whole name. Raises StepFailed: not everywhere."""
        coordinator = self._coordinator
        name, _ = coordinator.client(host)
        if coordinator.inventory.lacks(name):
            coordinator.warn(f"host {check_name('host', name)} is not in the inventory")
        answering = self._survey.answering(coordinator.inventory.hosts)
        said = self._survey.declared_off().get(name)
        keepers = sorted({*answering, *(said.keepers if said else ())})
        problems: list[StorkitError] = []

        def build() -> Plan:
            return planner.unfence(name, keepers, coordinator.inventory, self._acting(name, also=True))

        self._as_far_as_it_goes(build, problems)
        raise_problems(problems)
        if not coordinator.planning:
            unfinished.records(coordinator.state).forget([host_slug(name)])
        return name

    def _must_be_granted(self, host: str) -> None:
        """Raise NotFound if a host that is not in the inventory is in no grant either; a silent server may have one."""
        homes = self._coordinator.inventory.homes
        exports = self._survey.all_exports(sorted(homes))
        granted = any(export.client == host for group in exports.values() for export in group)
        if not granted and exports.keys() == homes:
            self._coordinator.inventory.host(host)

    def _confirmed(self, host: str) -> planner.Confirmed:
        """A person's word that a host is off. Raises Unsafe: it answers; Conflict: nobody is there to keep the word."""
        hosts = self._survey.answering(dict.fromkeys([host, *self._coordinator.inventory.hosts]))
        if host in hosts:
            raise Unsafe(f"host {host} answers: it is not off", f"storkit fence {host}")
        if not hosts:
            raise Conflict(f"no host answers that could keep the word that {host} is off", "storkit host check")
        by = f"{getpass.getuser()}@{socket.gethostname()}"
        return planner.Confirmed(by, hosts, self._acting(host))

    def _acting(self, manager: str, also: bool = False) -> dict[str, str]:
        """Of the pools that a host is a manager of: who acts for each. `also`: perhaps one that is barred, where there
        is no other. A pool for which nobody does is left out, and told of."""
        found: dict[str, str] = {}
        for pool in self._coordinator.inventory.managed_by(manager):
            answering = self._survey.answering(pool.managers)
            try:
                found[pool.name] = self._survey.acting(pool).host
            except StorkitError as error:
                if also and answering:
                    found[pool.name] = answering[0]
                elif len(pool.managers) > 1 or not also:
                    why = "answers" if not answering else f"sees it ({in_a_line(error)})"
                    message = f"no other manager of pool {pool.name} {why}: {manager} stays as it was there"
                    self._coordinator.warn(message)
        return found

    def _take_over(self, manager: str, problems: list[StorkitError]) -> list[Any]:
        """Have another manager serve what this one, which is off and barred, served last; lead the clients there, also
        those that an earlier command did not come to. The exports that the one that is off had itself, as records."""
        coordinator, survey = self._coordinator, self._survey
        shared = {pool.name: pool for pool in coordinator.inventory.managed_by(manager)}
        if not shared:
            return []
        hosts = [host for host in coordinator.inventory.hosts if host != manager]
        waits: list[str] = []

        def build() -> Plan:
            volumes = [
                replace(volume, host=survey.acting(shared[volume.pool]).host)
                for volume in survey.volumes(pools=shared.values())
                if volume.manager == manager
            ]
            attached = survey.attachments(hosts, volumes, partial=True) if volumes else {}
            waits[:] = [_waits(each, manager) for there in attached.values() for each in there if _by_itself(each)]
            return planner.take_over(manager, volumes, _clients(volumes, attached), coordinator.inventory)

        seen = survey.volumes(pools=shared.values())
        problems += [survey.failed[name] for name in shared if name in survey.failed]
        problems += [survey.of_damaged(each) for (pool, _), each in sorted(survey.damaged.items()) if pool in shared]
        done: list[tuple[Step, Any]] = []
        if any(volume.manager == manager for volume in seen):
            done = self._as_far_as_it_goes(build, problems, over_marks=True)
        led = {
            (step.host, each["uuid"]) for step, _ in done if step.verb == "reattach" for each in step.args["volumes"]
        }
        self._lead(manager, list(shared.values()), hosts, led, waits, problems)
        for each in waits:
            coordinator.warn(each)
        taken = [export for step, result in done if step.verb == "take_over" for export in result]
        return [export for export in taken if export["client"] == manager and not export.get("endpoint")]

    def _lead(
        self, manager: str, shared: list[PoolConfig], hosts: list[str], led: set[tuple[str, str]], waits: list[str],
        problems: list[StorkitError],
    ) -> None:  # fmt: skip
        """Lead those clients to the servers of these pools' volumes that are not led there, but for those of `led`."""
        coordinator, survey = self._coordinator, self._survey
        others = set(survey.answering([host for pool in shared for host in pool.managers if host != manager]))
        volumes = [volume for volume in survey.volumes(pools=shared) if volume.manager in others]
        known = {volume.uuid: volume for volume in volumes}
        astray: dict[str, list[Attachment]] = {}
        for host, there in (survey.attachments(hosts, volumes, partial=True) if volumes else {}).items():
            left = [each for each in there if each.uuid in known and (host, each.uuid) not in led]
            if found := [each for each in left if not self._leads_there(each, known[each.uuid])]:
                astray[host] = found
        if not astray:
            return
        waits += [_waits(each, manager) for there in astray.values() for each in there if _by_itself(each)]
        clients = _clients(volumes, astray)
        wanted = [volume for volume in volumes if any(volume in there for there in clients.values())]
        self._as_far_as_it_goes(
            lambda: planner.lead(manager, wanted, clients, coordinator.inventory), problems, over_marks=True
        )

    def _leads_there(self, attachment: Attachment, volume: Volume) -> bool:
        """Whether an attachment leads to who has the volume. Where a block device or a socket leads is not seen from
        here: it is led there again, which changes nothing where it was."""
        source = attachment.source
        if not source.server:
            return False
        try:
            target = self._coordinator.inventory.transport(volume.pool)
            server = self._survey.connections.to(volume.host).transport(target)
            (offer,) = server.offers([volume], attachment.host)
        except StorkitError:
            return True  # it is granted nothing there
        return (offer.server, offer.port) == (source.server, source.port)

    def _as_far_as_it_goes(
        self, build: Callable[[], Plan], problems: list[StorkitError], over_marks: bool = False
    ) -> list[tuple[Step, Any]]:
        """Run a plan whose steps stay done when others fail: what is done, and its results."""
        try:
            ran = self._coordinator.change(build, over_marks=over_marks)
        except StepFailed as error:
            problems.append(error)
            record = self._coordinator.journals.read(error.plan)
            ran = Ran(record.plan, record.done)
        return ran.done

    def _cut_off(self, roots: list[tuple[Volume, Export]]) -> None:
        try:
            self._coordinator.change(lambda: planner.cut_off(roots, self._coordinator.inventory), over_marks=True)
        except StorkitError as error:
            error.left = ""  # the fence itself has changed something
            raise

    def roots(self, host: str) -> tuple[list[tuple[Volume, Export]], list[StorkitError]]:
        """The roots, and their exports, of guests that may run on a host: their server knows them by their addresses
        alone. And what keeps a guest's root from being among them: where another silent host may run it as well, it
        may be well.
        """
        found: list[tuple[Volume, Export]] = []
        problems: list[StorkitError] = []
        with collected(problems):
            guests = sources.everybody(self._coordinator, problems)
            rooted = {guest_client(guest.name): guest for guest in guests if guest.root}
            roots = {guest.root.volume: guest.root.uuid for guest in guests if guest.root}
            trees = {tree.uuid: tree for tree in self._survey.present(roots, roots) if tree.host != host}
            exports = [export for export in self._survey.exports(list(trees.values())) if export.client in rooted]
            places = self._places([rooted[export.client] for export in exports], host)
            for export in exports:
                guest = rooted[export.client].name
                may, others = may_run(places[guest], host)
                if may and not others:
                    found.append((trees[export.uuid], export))
                elif may:
                    message = f"guest {guest} may run on {host}, or on {', '.join(others)}, and has kept its root"
                    problems.append(Unsafe(message, f"storkit detach {export.volume} --on {export.client}"))
        return found, problems

    def _places(self, guests: list[Guest], host: str) -> dict[str, dict[str, str]]:
        """Where each guest is not known to be stopped: host to status, `unknown` where the host is silent."""
        places: dict[str, dict[str, str]] = {guest.name: {} for guest in guests}
        hosts = list(dict.fromkeys([*self._coordinator.inventory.hosts, host])) if guests else []
        off: set[str] | None = None
        for hypervisor in sorted({guest.hypervisor for guest in guests}):
            names = [guest.name for guest in guests if guest.hypervisor == hypervisor]
            states = self._survey.guests(hosts, f"hypervisor:{hypervisor}", names)
            if off is None:
                off = set(self._survey.declared_off()) - {host} if set(hosts) - states.keys() else set()
            for each in hosts:
                if each not in states and each in off:
                    continue
                known = {state.name: state.status for state in states.get(each, [])}
                for name in names:
                    status = known.get(name, "stopped") if each in states else "unknown"
                    if status != "stopped":
                        places[name][each] = status
        return places


def _clients(volumes: list[Volume], attached: Mapping[str, list[Attachment]]) -> dict[str, list[Volume]]:
    """The volumes that each host has attached."""
    uuids = {host: {each.uuid for each in there} for host, there in attached.items()}
    return {host: [volume for volume in volumes if volume.uuid in has] for host, has in uuids.items() if has}


def _by_itself(attachment: Attachment) -> bool:
    """Whether whoever has it open is the client of a server on the network itself."""
    return attachment.source.kind == "network" and bool(attachment.source.server)


def _waits(attachment: Attachment, manager: str) -> str:
    return (
        f"what has {attachment.volume} open on {attachment.host} waits for {manager} for ever: QEMU itself is its"
        f" client there; stop its guest with --force, and start it"
    )


def may_run(places: dict[str, str], host: str) -> tuple[bool, list[str]]:
    """Whether a guest that is in these places may run on a host, and the silent hosts that it may run on instead."""
    there = places.get(host, "")
    elsewhere = {name: status for name, status in places.items() if name != host}
    if there != "unknown":
        return bool(there), []
    return not set(elsewhere.values()) & ALIVE, [*elsewhere]
