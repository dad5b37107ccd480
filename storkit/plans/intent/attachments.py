"""Volumes on hosts: attached, detached, and seen to be one disk."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

from storkit.core import codec
from storkit.core.errors import Conflict, NotFound, StorkitError, quoted, raise_problems
from storkit.core.identities import several
from storkit.core.inventory import PoolConfig
from storkit.core.model import Attachment, Export, Volume, guest_of
from storkit.plans import planner
from storkit.plans.intent.coordinator import Coordinator
from storkit.plans.intent.making import hosts_of
from storkit.plans.plan import Plan
from storkit.plans.proof import Proof

Find = Callable[[], list[Volume]]


@dataclass(frozen=True, slots=True)
class Attached:
    """What was attached, and what there is to be said of how full its pools are."""

    attachments: list[Attachment]
    warnings: list[str]


class AttachmentActs:
    """Give volumes to hosts, take them away, and prove that hosts see one disk."""

    def __init__(self, coordinator: Coordinator) -> None:
        self._coordinator = coordinator
        self._survey = coordinator.survey

    def attach(self, volume: str, host: str, write: bool = True) -> Attached:
        """Attach a volume on a host: as its only writer, or for reading alone."""
        attached = self._attach(lambda: [self._survey.volume(volume)], host, write)
        for each in attached.attachments:
            if write and not each.writable:
                self._coordinator.warn(f"nobody writes volume {each.volume}: it is attached for reading only")
        return attached

    def attach_pool(self, pool: str, host: str, write: bool = True) -> Attached:
        """Attach all volumes of a pool on a host, but trees."""
        config = self._coordinator.inventory.pool(pool)
        return self._attach(lambda: self._all_of(config), host, write)

    def detach(self, volume: str, client: str) -> str:
        """Detach a volume from a host, or end its export to a client that nobody can ask; the client's whole name."""
        return self._detach(lambda: [self._survey.volume(volume)], client)

    def detach_pool(self, pool: str, client: str) -> str:
        """Detach all volumes of a pool, as `detach`."""
        config = self._coordinator.inventory.pool(pool)
        return self._detach(lambda: self._all_of(config), client)

    def verify(self, volume: str, hosts: Sequence[str] = ()) -> list[Proof]:
        """Prove that hosts see one disk: these, or all that have it attached. Raises Unsafe: they do not."""
        named = several(hosts)

        def build() -> Plan:
            found = self._survey.volume(volume)
            wanted = [self._coordinator.host(name) for name in named]
            if not wanted:
                attached = self._survey.attachments(hosts_of(self._survey.exports([found])), [found])
                wanted = [host for host, there in attached.items() if there]
            if not wanted:
                raise NotFound(
                    f"volume {found.name} is attached nowhere", f"storkit attach {found.name} --on HOST, on two hosts"
                )
            return planner.verify(found, wanted, self._coordinator.inventory)

        ran = self._coordinator.change(build)
        return codec.load(list[Proof], ran.of("prove"), strict=False)

    def _attach(self, find: Find, host: str, write: bool) -> Attached:
        name, inventory = self._coordinator.host(host, given=True), self._coordinator.inventory
        volumes = list[Volume]()

        def build() -> Plan:
            volumes[:] = find()  # also under the lock: what the host is offered must be as large as the volume is then
            return planner.attach(volumes, name, self._survey.exports(volumes), write, inventory)

        ran = self._coordinator.change(build)
        attachments = codec.load(list[Attachment], ran.of("attach"), name, strict=False)
        for each in attachments:
            for path in each.lost:
                said = f"volume {each.volume} is attached on {name} without its path {path.portal}: {path.state}"
                self._coordinator.warn(quoted(said, self._survey.speaker(name)))
        pools = dict.fromkeys(inventory.pool(volume.pool) for volume in volumes)
        return Attached(attachments, self._coordinator.fullness(pools))

    def _all_of(self, pool: PoolConfig) -> list[Volume]:
        # A tree is its guest's to mount, and no host's.
        volumes = [volume for volume in self._survey.volumes(pools=[pool]) if volume.kind != "tree"]
        if error := self._survey.silence(pool):
            raise error
        if pool.name in self._survey.failed:
            raise self._survey.failed[pool.name]
        self._survey.refuse_damaged(name for where, name in self._survey.damaged if where == pool.name)
        if not volumes:
            raise NotFound(f"pool {pool.name} has no volumes", f"storkit volume create NAME SIZE --pool {pool.name}")
        return volumes

    def _detach(self, find: Find, client: str) -> str:
        name, asked = (client, False) if guest_of(client) else self._coordinator.client(client)
        lost, volumes, hypervisors = list[Volume](), list[Volume](), list[str]()

        def build() -> Plan:
            volumes[:] = volumes or find()
            exports = self._survey.exports(volumes)
            if not asked:
                lost[:] = [volume for volume in volumes if name in planner.writers_of(exports, volume)]
                return self._cut_off(volumes, [export for export in exports if export.client == name], name)
            exported = {export.uuid for export in exports if export.client == name}
            if taken := [volume for volume in volumes if volume.uuid in exported]:
                hypervisors[:] = hypervisors or self._hypervisors(taken)
                self._refuse_from_under_a_guest(taken, name, hypervisors)
            return planner.detach(volumes, name, self._coordinator.inventory)

        self._coordinator.change(build)
        if lost and not guest_of(name):
            self._coordinator.warn(
                f"{name}, which is not in the inventory and was not asked, could write {planner.names_of(lost)} "
                "until now: a guest that still runs there has lost its disk"
            )
        return name

    def _cut_off(self, volumes: list[Volume], ended: list[Export], client: str) -> Plan:
        """Take volumes from a guest, whose root they are, or from a host that is not in the inventory: as fence does
        with a host's disks, at the servers alone, for one that nobody can ask."""
        inventory = self._coordinator.inventory
        if not ended:
            if inventory.lacks(client):
                inventory.host(client)  # no grant names it either: a slip of the pen, most likely
            names = planner.names_of(volumes)
            raise NotFound(f"volume {names} is not exported to {client}", f"storkit volume show {volumes[0].name}")
        by_uuid = {volume.uuid: volume for volume in volumes}
        return planner.cut_off([(by_uuid[export.uuid], export) for export in ended], inventory)

    def _hypervisors(self, volumes: list[Volume]) -> list[str]:
        """The hypervisors that guests with these volumes may be of, those without files here as well."""
        pools = [self._coordinator.inventory.pool(name) for name in dict.fromkeys(volume.pool for volume in volumes)]
        return self._coordinator.hypervisors(guest for _, guest in self._survey.kept(pools))

    def _refuse_from_under_a_guest(self, volumes: list[Volume], host: str, hypervisors: list[str]) -> None:
        """Raise Conflict if a guest on the host has one for its disk: to cut off the host itself, there is fence."""
        names = {volume.uuid: volume.name for volume in volumes}
        problems: list[StorkitError] = []
        for hypervisor in hypervisors:
            for states in self._survey.guests([host], f"hypervisor:{hypervisor}").values():
                for state in states:
                    if state.status in ("stopped", "migrated"):
                        continue
                    problems += [
                        Conflict(
                            f"guest {state.name} is {state.status} on {host}, and volume {names[uuid]} is its disk",
                            f"storkit guest stop {state.name}, or storkit migrate cleanup {state.name}",
                        )
                        for uuid in state.volumes
                        if uuid in names
                    ]
        raise_problems(problems)
