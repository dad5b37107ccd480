"""A volume that gets another pool while its guest writes it: the guest's own hypervisor copies it, or the kernel of its
host where the disk is a block device there, and switches.

    the old one     the new one
    open            filling       it begins, or was called off; the old one is the disk
    mirroring       filling       the guest writes the old one and fills the new one; the old one is the disk
    switching       filling       both were the same, and the guest is told to use the new one: its host knows
    switching       open          the new one is the disk
    deleted         open

While its guest runs, its hypervisor is asked which of the two it uses. Where that has ended, its host has kept what it
used (HypervisorVerbs.mirrored). Nobody else uses either meanwhile: both hosts refuse it.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field, replace

from storkit.core import registry
from storkit.core.errors import Conflict, HostUnreachable, StorkitError, Unsafe, Unsupported, UsageError
from storkit.core.inventory import PoolConfig
from storkit.core.model import (
    ALIVE,
    FILLING,
    MIRRORED,
    MIRRORING,
    MOVED,
    SWITCHING,
    Export,
    GuestState,
    MirrorState,
    Volume,
    guest_of,
)
from storkit.core.units import format_size
from storkit.plans.intent import disks, views
from storkit.plans.intent.coordinator import Coordinator
from storkit.plans.migration import GuestView
from storkit.plans.plan import Hold, Plan, Stages
from storkit.plans.planner import add_detach, finish_plan, locks_of
from storkit.plans.verb import step
from storkit.plans.verbs.attachments import AttachVolumes
from storkit.plans.verbs.exports import UnexportVolumes
from storkit.plans.verbs.guests import DefineGuest
from storkit.plans.verbs.mirroring import (
    CallOffMirror,
    CompareCopy,
    LetFill,
    LetGoOfOld,
    MirrorDisk,
    SettleMirror,
    SwitchDisk,
)
from storkit.plans.verbs.relocating import CarryGuests, DropCopy, OpenCopy, PlaceCopy
from storkit.plans.verbs.volumes import DeleteVolumes, RelabelVolumes


@dataclass(frozen=True, slots=True)
class UnderGuest:
    """Who has a volume that is to be moved, and its copy, and what is true of the guest that writes it."""

    exports: list[Export] = field(default_factory=list)
    """Of the disk."""
    filling: list[Export] = field(default_factory=list)
    """Of its copy, where there is one."""
    host: str = ""
    """Where the guest is, or was, that writes it; empty: nobody does."""
    guest: str = ""
    hypervisor: str = ""
    status: str = "stopped"
    said: MirrorState = "none"
    """Which of the two that guest uses."""
    keep: tuple[str, ...] = ()
    """Hypervisors of that host which may have kept something of the copy."""
    fixed: str = ""
    """Why that guest's disks stay where they are as long as it runs; empty: they need not."""

    @property
    def alive(self) -> bool:
        return self.status in ALIVE

    @property
    def keepers(self) -> list[str]:
        """The hypervisors that are told what has become of the copy: that of the guest, if it is known."""
        known = self.hypervisor if self.alive or self.said != "none" else ""
        return [f"hypervisor:{each}" for each in ([known] if known else self.keep or [self.hypervisor]) if each]

    @property
    def target(self) -> str:
        return f"hypervisor:{self.hypervisor}"

    @property
    def holders(self) -> list[str]:
        """The clients of the disk."""
        return sorted({export.client for export in self.exports})


def look(coordinator: Coordinator, volume: Volume, twin: Volume | None) -> UnderGuest:
    """Ask who has a volume and its copy. Raises HostUnreachable: the host of its guest, which alone knows what it does,
    is silent; Unsafe: nobody can say which of two is the disk."""
    survey = coordinator.survey
    exports = [each for each in survey.exports([volume]) if each.uuid == volume.uuid]
    filling = [each for each in survey.exports([twin]) if each.uuid == volume.uuid] if twin else []
    seen = UnderGuest(exports, filling)
    hosts = {each.client for each in [*exports, *filling] if each.writable and not guest_of(each.client)}
    if not hosts and volume.made == SWITCHING:
        message = f"the guest of volume {volume.name} was switching to its copy, and no host has either any more"
        raise Unsafe(message, f"storkit volume show {volume.name}; compare both before you use one")
    if volume.was and not exports:
        hosts = {volume.host}  # a guest that was adopted while it ran may have it open there, beside any server
    if len(hosts) != 1:
        return seen
    (host,) = hosts
    seen = replace(seen, host=host)
    if coordinator.connections.find(host) is None and volume.made not in MIRRORED:
        return seen
    unclear = volume.made in MIRRORED or twin is not None
    for hypervisor in coordinator.hypervisors():
        there = coordinator.connections.to(host).hypervisor(f"hypervisor:{hypervisor}")
        known = registry.hypervisor(hypervisor)
        if unclear and known.mirrors:
            said = there.mirrored(volume.uuid)
            if said != "none" or not seen.hypervisor:
                seen = replace(seen, hypervisor=hypervisor, said=said)
            seen = replace(seen, keep=(*seen.keep, hypervisor))
        for state in _having(coordinator, host, hypervisor, volume):
            seen = replace(seen, guest=state.name, hypervisor=hypervisor, status=state.status, fixed=state.fixed)
    if volume.made in MIRRORED and not seen.alive and seen.status != "stopped":
        message = f"guest {seen.guest} of volume {volume.name} is {seen.status} on {host}, and says nothing"
        raise Unsafe(message, f"storkit guest show {seen.guest}")
    return seen


def _having(coordinator: Coordinator, host: str, hypervisor: str, volume: Volume) -> list[GuestState]:
    """The guest of a host that has a volume and is not stopped."""
    states = coordinator.survey.guests([host], f"hypervisor:{hypervisor}", partial=True).get(host, [])
    return [each for each in states if volume.uuid in each.volumes and each.status != "stopped"]


def refused(
    coordinator: Coordinator, volume: Volume, pool: PoolConfig, seen: UnderGuest, rate: int
) -> list[StorkitError]:
    """Why a volume is not moved under the guest that runs with it."""
    guest, inventory = seen.guest, coordinator.inventory
    stop = f"storkit guest stop {guest}, then: storkit volume move {volume.name} --to {pool.name}"
    if seen.fixed:
        message = f"guest {guest} runs on {seen.host}, and its disks stay where they are: {seen.fixed}"
        return [Unsupported(message, stop)]
    problems: list[StorkitError] = []
    if not any(each.client == seen.host and each.writable for each in seen.exports):
        message = f"guest {guest} runs on {seen.host}, which was cut off from volume {volume.name}"
        problems.append(Conflict(message, f"storkit guest stop {guest} --force"))
    if others := [each for each in seen.holders if each != seen.host]:
        message = f"volume {volume.name} is exported to {', '.join(map(inventory.shown, others))} as well"
        problems.append(Conflict(message, f"storkit detach {volume.name} --on {others[0]}, or {stop}"))
    if not registry.hypervisor(seen.hypervisor).mirrors:
        message = f"guest {guest} runs on {seen.host}, and {seen.hypervisor} does not move a disk under its guest"
        problems.append(Conflict(message, stop))
    own, new = inventory.transport(volume.pool), inventory.transport(pool.name)
    attached = coordinator.survey.attachments([seen.host], [volume]).get(seen.host, [])
    # Of a guest that has switched, the old disk may be attached no more.
    nodes = seen.said != "none" and _by_nodes(coordinator, volume, pool.name)
    nodes = all(each.source.kind == "block" for each in attached) if attached else nodes
    unable = [each for each in (own, new) if not registry.transport(each.partition(":")[2]).opened_by_qemu]
    if nodes:
        problems += _not_by_nodes(coordinator, volume, pool, seen, rate)
    elif unable or own != new or any(each.source.kind != "network" for each in attached):
        message = f"guest {guest} runs on {seen.host}, and its QEMU does not open {volume.name} at its server by itself"
        problems.append(Conflict(message, stop))
    if not nodes and disks.whose_variables(coordinator, volume):
        message = f"volume {volume.name} is the UEFI variables of guest {guest}, which QEMU does not copy while it runs"
        problems.append(Conflict(message, stop))
    if volume.host == pool.host:
        message = f"guest {guest} runs on {seen.host}, and volume {volume.name} stays on host {volume.host}"
        problems.append(Conflict(f"{message}: between two pools of one host it is not moved under its guest", stop))
    return problems or _too_old(coordinator, volume, pool, seen)


def _too_old(coordinator: Coordinator, volume: Volume, pool: PoolConfig, seen: UnderGuest) -> list[StorkitError]:
    """The hosts whose storkit knows nothing of this. One that keeps a volume would give it to anybody meanwhile."""
    homes = {
        where: coordinator.inventory.transport(of) for where, of in ((volume.host, volume.pool), (pool.host, pool.name))
    }
    problems: list[StorkitError] = []
    for host in dict.fromkeys((seen.host, *homes)):
        there = coordinator.connections.to(host)
        try:
            if host == seen.host:
                there.hypervisor(seen.target).mirrored(volume.uuid)
            if host in homes:
                there.transport(homes[host]).digests(volume, seen.host, 0, 0, 1)
        except (Unsupported, UsageError) as error:
            message = f"host {host} does not move volume {volume.name} under its guest: {error.message}"
            problems.append(Unsupported(message, f"upgrade storkit on {host}"))
        except HostUnreachable:
            raise
        except StorkitError:
            pass  # it exports that volume to nobody yet, perhaps, and knows what is asked
    return problems


def _not_by_nodes(
    coordinator: Coordinator, volume: Volume, pool: PoolConfig, seen: UnderGuest, rate: int
) -> list[StorkitError]:
    """Why the kernel of a guest's host, which has its disk as a block device, does not copy that one."""
    inventory, guest = coordinator.inventory, seen.guest
    own, new = inventory.transport(volume.pool), inventory.transport(pool.name)
    stop = f"storkit guest stop {guest}, then: storkit volume move {volume.name} --to {pool.name}"
    problems: list[StorkitError] = []
    for target, where in ((own, volume.pool), (new, pool.name)):
        name = target.partition(":")[2]
        if not registry.transport(name).fills_nodes(inventory.transports.get(name, {})):
            message = (
                f"guest {guest} runs on {seen.host} with its disk as a block device, and {name} of pool {where} is"
            )
            problems.append(Conflict(f"{message} no transport by which such a disk is moved under it", stop))
    if own == new and (seen.host not in (volume.host, pool.host) or not _at_home(own)):
        how = own.partition(":")[2]
        message = f"guest {guest} has volume {volume.name} by {how}, and would have its copy by it as well"
        problems.append(Conflict(f"{message}: under it, it is moved to another transport, or to its own host", stop))
    if rate:
        message = f"the disk of guest {guest} is a block device, which its host's kernel copies as fast as it can"
        problems.append(Unsupported(message, f"leave --rate away, or {stop}"))
    return problems


def _at_home(transport: str) -> bool:
    """Whether a host has its own volumes past the servers of their transport."""
    return not registry.transport(transport.partition(":")[2]).opened_by_qemu


def _by_nodes(coordinator: Coordinator, volume: Volume, copy: str) -> bool:
    """Whether the kernel copies a volume to this pool, rather than its guest's QEMU."""
    own, new = coordinator.inventory.transport(volume.pool), coordinator.inventory.transport(copy)
    return own != new or _at_home(own)


def plan(
    coordinator: Coordinator, volume: Volume, pool: PoolConfig, twin: Volume | None, seen: UnderGuest, rate: int
) -> Plan:
    """The whole way, from wherever one that was cut short has come to, with the guest that runs."""
    view = views.guest_view(coordinator, seen.guest)
    view.known()
    inventory, stages = coordinator.inventory, Stages()
    here, there, target = f"pool:{volume.pool}", f"pool:{pool.name}", inventory.transport(pool.name)
    copy = replace(
        volume,
        pool=pool.name,
        host=pool.host,
        path="",
        format="",
        made=FILLING,
        kind="disk",
        was="",
        manager="",
        term=0,
    )
    name, host = volume.name, seen.host
    if not (volume.made == SWITCHING and seen.said == "switched"):
        if twin and seen.said != "copying":
            drop(stages, coordinator, volume, twin, seen)
        title = f"allocate {format_size(volume.size)} for {name} in pool {pool.name}"
        stages.then(step(PlaceCopy(copy), pool.host, there, title))
        stages.then(step(LetFill(copy, host), pool.host, target, f"let {host} fill {name} in pool {pool.name}"))
        title = f"keep {name} in pool {volume.pool} for guest {seen.guest} alone"
        stages.then(step(RelabelVolumes([replace(volume, made=MIRRORING)]), volume.host, here, title))
        title = f"copy {name} from pool {volume.pool} to pool {pool.name} under guest {seen.guest}"
        nodes = _by_nodes(coordinator, volume, pool.name)
        mirror = MirrorDisk(seen.guest, copy, transport=target, rate=rate, nodes=nodes)
        stages.then(step(mirror, host, seen.target, title, peer=pool.host))
        title = f"compare {name} with its copy"
        compare = CompareCopy(volume, copy, host, inventory.transport(volume.pool) if nodes else "")
        stages.then(step(compare, volume.host, target, title, peer=pool.host))
        title = f"keep what is kept with {name} in pool {pool.name}"
        stages.then(step(CarryGuests(copy, here), pool.host, there, title, peer=volume.host))
        title = f"close {name} in pool {volume.pool}"
        stages.then(step(RelabelVolumes([replace(volume, made=SWITCHING)]), volume.host, here, title))
    title = f"switch guest {seen.guest} to {name} in pool {pool.name}"
    stages.then(step(SwitchDisk(seen.guest, copy, target), host, seen.target, title, peer=pool.host))
    _open(stages, volume, copy)
    _rest(stages, coordinator, volume, copy, seen, view)
    title = f"move {name} from pool {volume.pool} to pool {pool.name} under guest {seen.guest}"
    return finish_plan(title, stages, _holds([volume, copy]), inventory)


def switched(coordinator: Coordinator, volume: Volume, twin: Volume, seen: UnderGuest) -> Plan:
    """The rest of a move whose guest has ended after it had switched to the copy."""
    stages = Stages()
    copy = replace(twin, kind=volume.kind)
    _open(stages, volume, copy)
    _rest(stages, coordinator, volume, copy, seen, None)
    return finish_plan(f"end the move of {volume.name}", stages, _holds([volume, copy]), coordinator.inventory)


def opened(coordinator: Coordinator, volume: Volume, left: Volume) -> Plan:
    """The rest of a move whose copy is open, and the disk: `left` is what it was."""
    stages = Stages()
    seen = look(coordinator, volume, left)
    seen = replace(seen, exports=seen.filling, filling=seen.exports)
    view = views.guest_view(coordinator, seen.guest) if seen.alive else None
    _rest(stages, coordinator, left, volume, seen, view)
    return finish_plan(f"end the move of {volume.name}", stages, _holds([volume, left]), coordinator.inventory)


def reopen(stages: Stages, coordinator: Coordinator, volume: Volume, twin: Volume | None, seen: UnderGuest) -> Volume:
    """Have a volume be what it was before it was copied under its guest, which goes on with it, if it runs."""
    for target in seen.keepers if seen.host else ():
        guest = seen.guest or volume.name
        title, peer = f"call off the copy of {volume.name} on {seen.host}", twin.host if twin else ""
        verb = CallOffMirror(guest, twin or volume, coordinator.inventory.transport(twin.pool) if twin else "")
        stages.then(step(verb, seen.host, target, title, peer=peer))
    if not seen.alive and seen.holders:
        # Its guest is gone, and cannot have taken its disk with it.
        add_detach(stages, [volume], seen.holders, coordinator.inventory)
    if twin:
        drop(stages, coordinator, volume, twin, seen)
    now = replace(volume, made=MOVED)
    title = f"open {volume.name} in pool {volume.pool}"
    stages.then(step(RelabelVolumes([now]), volume.host, f"pool:{volume.pool}", title))
    return now


def called_off(coordinator: Coordinator, volume: Volume, others: Sequence[Volume], seen: UnderGuest) -> Plan:
    """A volume that is to stay where it is."""
    twin = next(iter(others), None)
    if volume.made == SWITCHING and seen.said == "switched":
        to = twin.pool if twin else volume.pool
        message = f"guest {seen.guest or 'of it'} uses volume {volume.name} in pool {to} by now"
        raise Conflict(message, f"storkit volume move {volume.name} --to {to}; then move it back")
    stages = Stages()
    reopen(stages, coordinator, volume, twin, seen)
    return finish_plan(f"call off the move of {volume.name}", stages, _holds([volume, *others]), coordinator.inventory)


def drop(stages: Stages, coordinator: Coordinator, volume: Volume, twin: Volume, seen: UnderGuest) -> None:
    """Delete what was copied before."""
    clients = sorted({each.client for each in seen.filling})
    target = coordinator.inventory.transport(twin.pool)
    if clients and _by_nodes(coordinator, volume, twin.pool):
        title = f"take the copy of {twin.name} in pool {twin.pool} from {', '.join(clients)}"
        stages.then(step(LetGoOfOld(twin, clients, attached=True), twin.host, target, title))
    elif clients:
        title = f"end the export to {', '.join(clients)}"
        stages.then(step(UnexportVolumes([twin], clients), twin.host, target, title))
    title = f"delete what was copied to pool {twin.pool} before"
    stages.then(step(DropCopy(twin), twin.host, f"pool:{twin.pool}", title))


def _open(stages: Stages, volume: Volume, copy: Volume) -> None:
    disk = replace(copy, kind=volume.kind, made=MOVED)
    title = f"open {volume.name} in pool {copy.pool}"
    stages.then(step(OpenCopy([disk], source=volume), copy.host, f"pool:{copy.pool}", title, peer=volume.host))


def _rest(
    stages: Stages, coordinator: Coordinator, volume: Volume, copy: Volume, seen: UnderGuest, view: GuestView | None
) -> None:
    """The copy is the disk: its guest's host has it at its stable path, and the old one goes."""
    inventory = coordinator.inventory
    own, new = inventory.transport(volume.pool), inventory.transport(copy.pool)
    disk, nodes = replace(copy, made=MOVED), _by_nodes(coordinator, volume, copy.pool)
    if view:
        title = f"attach {volume.name} of pool {copy.pool} on {seen.host}"
        stages.then(step(AttachVolumes([disk]), seen.host, new, title, peer=copy.host))
        if nodes and seen.exports:  # both are the host's attachments until then
            _let_go(stages, volume, own, seen, nodes)
        volumes = [disk if each.uuid == volume.uuid else each for each in view.volumes]
        transports = [inventory.transport(each.pool) for each in volumes]
        verb = DefineGuest(view.guest, volumes, transports, view.machine)
        stages.then(step(verb, seen.host, view.target, f"render {view.name}'s configuration on {seen.host}"))
    elif seen.filling:
        clients = sorted({each.client for each in seen.filling})
        add_detach(stages, [disk], clients, inventory)
    if seen.exports and not (view and nodes):
        _let_go(stages, volume, own, seen, nodes)
    for target in seen.keepers if seen.host else ():
        title = f"forget on {seen.host} which one was the disk"
        stages.then(step(SettleMirror(seen.guest or volume.name, volume), seen.host, target, title))
    title = f"delete {volume.name} in pool {volume.pool}"
    stages.then(step(DeleteVolumes([volume]), volume.host, f"pool:{volume.pool}", title))


def _let_go(stages: Stages, volume: Volume, own: str, seen: UnderGuest, nodes: bool) -> None:
    title = f"end the export of {volume.name} in pool {volume.pool} to {', '.join(seen.holders)}"
    stages.then(step(LetGoOfOld(volume, seen.holders, attached=nodes), volume.host, own, title))


def _holds(volumes: Sequence[Volume]) -> list[Hold]:
    return locks_of(list({volume.host: volume for volume in volumes}.values()))
