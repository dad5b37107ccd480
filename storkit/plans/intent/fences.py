"""A host cut off everything that others serve, and let in again."""

from __future__ import annotations

import getpass
import socket
from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Any

from storkit.core import codec
from storkit.core.errors import Conflict, StepFailed, StorkitError, Unsafe, collected, raise_problems
from storkit.core.guest import Guest
from storkit.core.model import ALIVE, Export, Volume, check_name, guest_client
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
                self._take_over(name)
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
        """Of the pools that a host is a manager of: who acts for each. `also`: perhaps the host itself, where no other
        manager answers. A pool for which nobody does is left out, and told of."""
        found: dict[str, str] = {}
        for pool in self._coordinator.inventory.managed_by(manager):
            answering = self._survey.answering(pool.managers)
            others = [name for name in answering if name != manager]
            if others or (also and answering):
                found[pool.name] = (others or answering)[0]
            elif len(pool.managers) > 1 or not also:
                self._coordinator.warn(f"no other manager of pool {pool.name} answers: {manager} stays as it was there")
        return found

    def _take_over(self, manager: str) -> None:
        """Have another manager serve what this one, which is off and barred, served last; lead the clients there."""
        coordinator, survey = self._coordinator, self._survey
        shared = coordinator.inventory.managed_by(manager)
        if not shared:
            return
        acting: dict[str, str] = {}
        waits: list[str] = []

        def build() -> Plan:
            seen = [volume for volume in survey.volumes(pools=shared) if volume.manager == manager]
            acting.update({pool.name: pool.host for pool in map(survey.acting, shared)} if seen else {})
            volumes = [replace(volume, host=acting[volume.pool]) for volume in seen]
            hosts = [host for host in coordinator.inventory.hosts if host != manager]
            attached = survey.attachments(hosts, volumes, partial=True) if volumes else {}
            uuids = {host: {each.uuid for each in there} for host, there in attached.items()}
            clients = {host: [volume for volume in volumes if volume.uuid in has] for host, has in uuids.items() if has}
            waits[:] = [
                f"what has {each.volume} open on {each.host} waits for {manager} for ever: QEMU itself is its client"
                f" there; stop its guest with --force, and start it"
                for there in attached.values()
                for each in there
                if each.source.kind == "network" and each.source.server
            ]
            return planner.take_over(manager, volumes, clients, coordinator.inventory)

        if any(volume.manager == manager for volume in survey.volumes(pools=shared)):
            coordinator.change(build, over_marks=True)
            for each in waits:
                coordinator.warn(each)

    def _as_far_as_it_goes(self, build: Callable[[], Plan], problems: list[StorkitError]) -> list[tuple[Step, Any]]:
        """Run a plan whose steps stay done when others fail: what is done, and its results."""
        try:
            ran = self._coordinator.change(build)
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


def may_run(places: dict[str, str], host: str) -> tuple[bool, list[str]]:
    """Whether a guest that is in these places may run on a host, and the silent hosts that it may run on instead."""
    there = places.get(host, "")
    elsewhere = {name: status for name, status in places.items() if name != host}
    if there != "unknown":
        return bool(there), []
    return not set(elsewhere.values()) & ALIVE, [*elsewhere]
