"""From intent and what was observed to a plan: pure functions, which ask nobody and change nothing."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from typing import Any

from storkit.core import codec
from storkit.core.errors import Conflict, StorkitError, raise_problems
from storkit.core.holds import all_held, held
from storkit.core.inventory import Inventory
from storkit.core.model import IMPORTING, Existing, Export, Volume
from storkit.core.units import format_size
from storkit.plans.journal import new_id
from storkit.plans.plan import Hold, Plan, Stages
from storkit.plans.survey import by_host, by_server
from storkit.plans.verb import step
from storkit.plans.verbs.attachments import AttachVolumes, DetachVolumes, Prove
from storkit.plans.verbs.exports import CutOff, ExportVolumes, SetWriters, UnexportVolumes
from storkit.plans.verbs.fences import (
    BarManager,
    DeclareOff,
    FenceHost,
    Reattach,
    TakeOver,
    UnbarManager,
    UnfenceHost,
    WithdrawOff,
)
from storkit.plans.verbs.volumes import (
    AdoptVolumes,
    CloneVolume,
    CreateVolumes,
    DeleteVolumes,
    DisownVolumes,
    ExportImage,
    FillVolume,
    FlattenVolumes,
    ImportTree,
    RelabelVolumes,
    ResizeVolumes,
)


def names_of(volumes: Iterable[Volume]) -> str:
    """Volumes for a title: the first few names, and how many there are."""
    names = [volume.name for volume in volumes]
    return ", ".join(names) if len(names) <= 3 else f"{names[0]} ... {names[-1]} ({len(names)} volumes)"


def locks_of(volumes: list[Volume], shared: bool = False) -> list[Hold]:
    """Locks on volumes at their home hosts."""
    return [
        Hold(home, [v.uuid for v in group], shared, {v.uuid: f"volume {v.name}" for v in group})
        for home, group in by_host(volumes).items()
    ]


def finish_plan(title: str, stages: Stages, wanted: list[Hold], inventory: Inventory) -> Plan:
    """The plan of these stages; hosts that a person gave by URL are noted in it."""
    plan = Plan(new_id(), title, stages.stages, wanted)
    used = {host for each in plan.steps for host in (each.host, each.peer) if host}
    extra = {host: inventory.hosts[host].url for host in sorted(used) if ":" in host and host in inventory.hosts}
    return Plan(plan.id, title, stages.stages, wanted, extra)


# Volumes


def create(volumes: list[Volume], inventory: Inventory) -> Plan:
    """Make empty volumes of one pool."""
    pool = volumes[0].pool
    stages = Stages()
    title = f"create {names_of(volumes)} in pool {pool}"
    stages.then(step(CreateVolumes(volumes), volumes[0].host, f"pool:{pool}", title))
    return finish_plan(title, stages, [], inventory)


def adopt(volume: Volume, existing: Existing, inventory: Inventory) -> Plan:
    """Make a volume of what is there."""
    stages, title = Stages(), f"adopt {existing.place} as {volume.name}"
    stages.then(step(AdoptVolumes([volume], [existing]), volume.host, f"pool:{volume.pool}", title))
    return finish_plan(title, stages, locks_of([volume]), inventory)


def release(volumes: list[Volume], exports: list[Export], inventory: Inventory) -> Plan:
    """Give volumes back that no host has."""
    raise_problems([*all_held(volumes, "given back"), *exported(volumes, exports, inventory)])
    stages = Stages()
    stages.then(
        *(step(DisownVolumes(group), group[0].host, f"pool:{pool}", f"release {names_of(group)}")
          for pool, group in by_pool(volumes))
    )  # fmt: skip
    return finish_plan(f"release {names_of(volumes)}", stages, locks_of(volumes), inventory)


def import_image(volume: Volume, source: dict[str, Any], kind: str, inventory: Inventory) -> Plan:
    """Make a volume, fill it from an image, and only then give it its kind."""
    target, stages = f"pool:{volume.pool}", Stages()
    empty = with_changed(volume, kind="disk", made=IMPORTING)
    stages.then(
        step(CreateVolumes([empty]), volume.host, target, f"allocate {format_size(volume.size)} for {volume.name}")
    )
    stages.then(step(FillVolume(empty, **source), volume.host, "images", f"copy {source['source']} into {volume.name}"))
    final = with_changed(volume, kind=kind, made="imported")
    what = "seal" if kind == "image" else "publish"
    stages.then(step(RelabelVolumes([final]), volume.host, target, f"{what} {volume.name}"))
    return finish_plan(f"import {source['source']} as {volume.name}", stages, [], inventory)


def import_tree(volume: Volume, source: str, inventory: Inventory) -> Plan:
    """Make a volume of kind `tree` from a tar or a directory, whole or not at all."""
    title, stages = f"import {source} as {volume.name}", Stages()
    stages.then(step(ImportTree([volume], source), volume.host, f"pool:{volume.pool}", title))
    return finish_plan(title, stages, [], inventory)


def export_image(volume: Volume, file: str, format: str, compress: bool, inventory: Inventory) -> Plan:
    """Write a volume to an image file on its host."""
    stages = Stages()
    title = f"write {volume.name} to {file}"
    stages.then(step(ExportImage(volume, file, format, compress), volume.host, "images", title))
    return finish_plan(title, stages, locks_of([volume]), inventory)


def clone(copies: list[tuple[Volume, list[Volume]]], inventory: Inventory) -> Plan:
    """Make clones of volumes, each in its source's own pool."""
    stages = Stages()
    titles = [f"clone {source.name} to {names_of(volumes)}" for source, volumes in copies]
    stages.then(
        *(
            step(CloneVolume(volumes, source), source.host, f"pool:{source.pool}", title)
            for title, (source, volumes) in zip(titles, copies, strict=True)
        )
    )
    return finish_plan("; ".join(titles), stages, locks_of([source for source, _ in copies], shared=True), inventory)


def refuse_written(volume: Volume, exports: list[Export], what: str) -> None:
    """Raise Conflict if anyone may write the volume: also while its server is down, and the guest waits for it."""
    if hosts := sorted(writers_of(exports, volume)):
        raise Conflict(
            f"volume {volume.name} is written by {', '.join(hosts)}, and cannot be {what}",
            f"stop its guest, or storkit detach {volume.name} --on {hosts[0]}",
        )


def resize(volume: Volume, size: int, shrink: bool, exports: list[Export], inventory: Inventory) -> Plan:
    """Give a volume that no host may write another size."""
    refuse_written(volume, exports, "resized")
    raise_problems(held(volume, "resized"))
    stages = Stages()
    title = f"resize {volume.name} from {format_size(volume.size)} to {format_size(size)}"
    resized = with_changed(volume, size=size)
    stages.then(step(ResizeVolumes([resized], shrink), volume.host, f"pool:{volume.pool}", title))
    return finish_plan(title, stages, locks_of([volume]), inventory)


def flatten(volumes: list[Volume], exports: list[Export], inventory: Inventory) -> Plan:
    """Let volumes that no host has stand on no other one."""
    raise_problems(exported(volumes, exports, inventory))
    stages = Stages()
    stages.then(
        *(step(FlattenVolumes(group), group[0].host, f"pool:{pool}", f"flatten {names_of(group)}")
          for pool, group in by_pool(volumes))
    )  # fmt: skip
    return finish_plan(f"flatten {names_of(volumes)}", stages, locks_of(volumes), inventory)


def delete(volumes: list[Volume], exports: list[Export], inventory: Inventory) -> Plan:
    """Delete volumes that no host has any more."""
    raise_problems([*all_held(volumes, "deleted"), *exported(volumes, exports, inventory)])
    stages = Stages()
    steps = [
        step(DeleteVolumes(group), group[0].host, f"pool:{pool}", f"delete {names_of(group)}")
        for pool, group in by_pool(volumes)
    ]
    stages.then(*steps)
    return finish_plan(f"delete {names_of(volumes)}", stages, locks_of(volumes), inventory)


def exported(volumes: list[Volume], exports: list[Export], inventory: Inventory) -> list[StorkitError]:
    """A Conflict for each volume that somebody has."""
    problems: list[StorkitError] = []
    for volume in volumes:
        clients = sorted(export.client for export in exports if export.uuid == volume.uuid)
        if clients:
            problems.append(
                Conflict(
                    f"volume {volume.name} is exported to {', '.join(map(inventory.shown, clients))}",
                    next((f"storkit fence {name}" for name in clients if inventory.lacks(name)), "")
                    or f"storkit detach {volume.name} --on {clients[0]}, or stop the guest that uses it",
                )
            )
    return problems


# Attachments


def attach(volumes: list[Volume], host: str, exports: list[Export], write: bool, inventory: Inventory) -> Plan:
    """Attach volumes on a host: with `write` as the only writer of those that are disks."""
    disks = [volume for volume in volumes if write and volume.kind == "disk"]
    problems = all_held(disks, f"written by {host}")
    if not write:
        problems += [
            Conflict(
                f"host {host} may write volume {volume.name}: it would keep that right",
                f"storkit detach {volume.name} --on {host}, then storkit attach {volume.name} --on {host} --read-only",
            )
            for volume in volumes
            if host in writers_of(exports, volume)
        ]
    for volume in disks:
        if others := sorted(writers_of(exports, volume) - {host}):
            problems.append(
                Conflict(
                    f"volume {volume.name} is written by {', '.join(others)}",
                    f"storkit detach {volume.name} --on {others[0]}, or attach it with --read-only",
                )
            )
    raise_problems(problems)
    stages = Stages()
    add_attach(stages, volumes, host, {host} if disks else None, inventory, written=disks)
    return finish_plan(f"attach {names_of(volumes)} on {host}", stages, locks_of(volumes), inventory)


def cut_off(ended: list[tuple[Volume, Export]], inventory: Inventory) -> Plan:
    """End exports at their servers alone: to guests, for whose roots they are, and to hosts that nobody can ask."""
    stages, volumes = Stages(), [volume for volume, _ in ended]
    ends = [
        step(
            CutOff([volume], [export.client]),
            volume.host,
            inventory.transport(volume.pool),
            f"end the export of {volume.name} to {export.client}",
        )
        for volume, export in ended
    ]
    stages.then(*ends)
    clients = ", ".join(dict.fromkeys(export.client for _, export in ended))
    title = ends[0].title if len(ends) == 1 else f"end the exports of {names_of(volumes)} to {clients}"
    return finish_plan(title, stages, locks_of(volumes), inventory)


def detach(volumes: list[Volume], host: str, inventory: Inventory) -> Plan:
    """Detach volumes from a host and take its rights away."""
    stages = Stages()
    add_detach(stages, volumes, [host], inventory)
    return finish_plan(f"detach {names_of(volumes)} from {host}", stages, locks_of(volumes), inventory)


def verify(volume: Volume, hosts: list[str], inventory: Inventory) -> Plan:
    """Compare what hosts see of a volume."""
    stages = Stages()
    title = f"prove that {' and '.join(hosts)} see one disk"
    add_proof(stages, [volume], hosts, volume.host, title, inventory)
    return finish_plan(title, stages, locks_of([volume], shared=True), inventory)


@dataclass(frozen=True, slots=True)
class Confirmed:
    """A person's word that a host is off: whose it is, and the hosts that answer and are to keep it."""

    by: str
    keepers: list[str]
    acting: dict[str, str] = field(default_factory=dict)
    """Of the pools that the host is a manager of: the manager that acts for each."""


def fence(host: str, inventory: Inventory, confirmed: Confirmed | None = None) -> Plan:
    """Cut a host off everything that every other host serves. Raises Conflict: none does.

    `confirmed`: a person has seen that it is off. That is kept, and storage hosts that are silent are passed over.
    """
    others = _servers_but(host, inventory)
    stages = Stages()
    title = f"cut off {host}"
    steps = [
        step(FenceHost(host), home, target, f"fence {host} at {home} ({target.partition(':')[2]})")
        for home, target in others
        if confirmed is None or home in confirmed.keepers
    ]
    if confirmed is not None:
        by, keepers = confirmed.by, confirmed.keepers
        # First: what has to be repeated is repeated with the person's word.
        steps[:0] = [
            step(DeclareOff(host, by, keepers), keeper, "host", f"keep at {keeper} that {host} is off")
            for keeper in keepers
        ]
        steps += [
            step(BarManager(host), manager, f"pool:{pool}", f"let {host} serve nothing of pool {pool}")
            for pool, manager in confirmed.acting.items()
        ]
    elif not others:
        raise Conflict(
            f"every pool is on {host} itself: nobody else can cut it off",
            f"storkit fence {host} --confirmed-off, once you have taken its power away",
        )
    stages.then(*steps)
    return finish_plan(title, stages, [], inventory)


def take_over(manager: str, volumes: list[Volume], clients: Mapping[str, list[Volume]], inventory: Inventory) -> Plan:
    """Serve volumes that a manager which is off has served, each by the host that it is said to have, and lead their
    clients there: those of the hosts that answer and have them attached."""
    stages = Stages()
    servers = by_server(volumes, inventory)
    stages.then(
        *(step(TakeOver(group, manager), home, target, f"serve {names_of(group)} from {home}")
          for home, target, group in servers)
    )  # fmt: skip
    taken = {each.host + each.target: each.id for each in (stages.stages[0] if servers else [])}
    _add_leads(stages, manager, servers, clients, taken)
    return finish_plan(f"take over what {manager} served", stages, locks_of(volumes), inventory)


def lead(manager: str, volumes: list[Volume], clients: Mapping[str, list[Volume]], inventory: Inventory) -> Plan:
    """Lead clients to those that have taken volumes over, where a plan of `take_over` did not come to it."""
    stages = Stages()
    _add_leads(stages, manager, by_server(volumes, inventory), clients, {})
    return finish_plan(f"lead clients away from {manager}", stages, locks_of(volumes), inventory)


def _add_leads(
    stages: Stages, manager: str, servers: list[tuple[str, str, list[Volume]]],
    clients: Mapping[str, list[Volume]], taken: Mapping[str, str],
) -> None:  # fmt: skip
    stages.then(
        *(step(Reattach(mine, taken.get(home + target, ""), manager), host, target, f"lead {host} to {home}", peer=home)
          for home, target, group in servers for host, attached in clients.items()
          if (mine := [volume for volume in group if volume.uuid in {each.uuid for each in attached}]))
    )  # fmt: skip


def unfence(host: str, keepers: list[str], inventory: Inventory, acting: Mapping[str, str] | None = None) -> Plan:
    """Let a host in again. `keepers`: the hosts that may keep a person's word that it is off. `acting`: as in
    Confirmed."""
    stages = Stages()
    own = sorted({inventory.transport(pool) for pool in acting or {}} if host in keepers else ())
    stages.then(
        *(step(UnfenceHost(host), host, target, f"let {host} end what it served before ({target.partition(':')[2]})")
          for target in own),
    )  # fmt: skip
    stages.then(
        *(step(UnfenceHost(host), home, target, f"unfence {host} at {home} ({target.partition(':')[2]})")
          for home, target in _servers_but(host, inventory)),
        *(step(WithdrawOff(host), keeper, "host", f"forget at {keeper} that {host} was off")
          for keeper in keepers),
        *(step(UnbarManager(host), manager, f"pool:{pool}", f"let {host} act for pool {pool} again")
          for pool, manager in (acting or {}).items()),
    )  # fmt: skip
    return finish_plan(f"let {host} in again", stages, [], inventory)


def _servers_but(host: str, inventory: Inventory) -> list[tuple[str, str]]:
    """Home host and transport of everything that is served by other hosts."""
    served = sorted(
        {(each, inventory.transport(pool.name)) for pool in inventory.pools.values() for each in pool.hosts}
    )
    return [(home, target) for home, target in served if home != host]


def add_attach(
    stages: Stages,
    volumes: list[Volume],
    host: str,
    rights: set[str] | None,
    inventory: Inventory,
    written: list[Volume] | None = None,
) -> None:
    """Export volumes to a host, say who writes (None: leave it), and attach them there."""
    servers = by_server(volumes, inventory)
    stages.then(
        *(step(ExportVolumes(group, [host]), home, target, f"export {names_of(group)} to {host}")
          for home, target, group in servers)
    )  # fmt: skip
    if rights is not None:
        title = f"let {' and '.join(sorted(rights))} write"
        places = [(home, target) for home, target, _ in servers]
        steps = stages.stages[-1] if servers else []
        exported = {place: each.id for place, each in zip(places, steps, strict=True)}
        set_writers(stages, volumes if written is None else written, rights, title, inventory, exported)
    stages.then(
        *(step(AttachVolumes(group), host, target, f"attach {names_of(group)} on {host}", peer=home)
          for home, target, group in servers)
    )  # fmt: skip


def add_detach(stages: Stages, volumes: list[Volume], hosts: list[str], inventory: Inventory) -> None:
    """Detach volumes from hosts, then end their exports, and with them their rights."""
    servers = by_server(volumes, inventory)
    stages.then(
        *(step(DetachVolumes(group), host, target, f"detach {names_of(group)} from {host}", peer=home)
          for host in hosts for home, target, group in servers)
    )  # fmt: skip
    stages.then(
        *(step(UnexportVolumes(group, hosts), home, target, f"end the export to {', '.join(hosts)}")
          for home, target, group in servers)
    )  # fmt: skip


def set_writers(
    stages: Stages,
    volumes: list[Volume],
    hosts: set[str],
    title: str,
    inventory: Inventory,
    exported: Mapping[tuple[str, str], str] | None = None,
) -> None:
    """Exactly `hosts` write these volumes from then on. `exported`: the step that exports those of a home host and
    transport just before, to be attached afterwards."""
    stages.then(
        *(step(SetWriters(group, sorted(hosts), (exported or {}).get((home, target), "")), home, target,
               f"{title} {names_of(group)}")
          for home, target, group in by_server(volumes, inventory))
    )  # fmt: skip


def add_proof(
    stages: Stages, volumes: list[Volume], hosts: list[str], host: str, title: str, inventory: Inventory
) -> None:
    """Compare what hosts see of volumes; `host` is where the step is said to run."""
    groups: dict[str, list[Volume]] = {}
    for volume in volumes:
        groups.setdefault(inventory.transport(volume.pool), []).append(volume)
    stages.then(*(step(Prove(group, hosts), host, target, title) for target, group in groups.items()))


def writers_of(exports: list[Export], volume: Volume) -> set[str]:
    """The hosts that may write a volume now."""
    return {export.client for export in exports if export.uuid == volume.uuid and export.writable}


def by_pool(volumes: list[Volume]) -> list[tuple[str, list[Volume]]]:
    """Volumes by pool, and by the host that acts for them: managers of one pool may each have some."""
    groups: dict[tuple[str, str], list[Volume]] = {}
    for volume in volumes:
        groups.setdefault((volume.pool, volume.host), []).append(volume)
    return [(pool, group) for (pool, _), group in groups.items()]


def with_changed(volume: Volume, **changes: Any) -> Volume:
    return codec.load(Volume, {**codec.dump(volume), **changes})
