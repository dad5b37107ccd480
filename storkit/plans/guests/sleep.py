"""Plans for guests that sleep: saved to a file, woken up by it on any host that reaches their disks, or given up.

**save**, in this order, so that a kill at each moment leaves something that can be gone on with:

1. *hold* the disks that the guest writes, at their homes. The host where it runs keeps its right; nobody gains one.
2. *save*: the guest stands still, and its memory is on the disk, whole or not at all.
3. *sleep*: the guest ends. Until here all is taken back by letting it go on; from here on the file is the guest, and a
   barrier keeps the file and the holds from being taken back.
4. its disks are taken from its host, and with them the right to write. A host that is silent meanwhile still has it,
   and nobody else: the guest is not woken elsewhere before it answers or is fenced.

**restore**:

1. what a save or a restore that was cut short has left on other hosts goes.
2. the disks are attached at the host, for reading, and it proves that it sees them.
3. *wake*: the right to write, given by the home for the id of the hold, which still stands: nobody else gains it.
4. *load*: the memory is read. The guest stands still, and may be taken away again: it still sleeps.
5. *release*: the holds end. From here on the guest in the host's memory is the guest, and the file is its past. Before
   the guest runs, since a guest that has run, and has ended with the hold standing, would be woken up a second time.
6. *awake*: the guest runs; a barrier.
7. *spend*: the file says that it was used, or goes.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable
from dataclasses import replace
from functools import partial
from typing import Any

from storkit.core import codec
from storkit.core.errors import Conflict, NotFound, StorkitError, Unsafe, Unsupported, raise_problems
from storkit.core.holds import held as refused
from storkit.core.inventory import Inventory
from storkit.core.model import Saved, Volume, VolumeHold
from storkit.plans import migration
from storkit.plans.migration import GuestView
from storkit.plans.plan import Plan, Stages
from storkit.plans.planner import add_attach, add_proof, by_pool, finish_plan, names_of, writers_of
from storkit.plans.survey import by_server
from storkit.plans.verb import Verb, step
from storkit.plans.verbs.moves import RetireGuest
from storkit.plans.verbs.sleeping import (
    AwakeGuest,
    EndSaved,
    GiveUpHolds,
    HoldVolumes,
    LoadGuest,
    ReleaseVolumes,
    SaveGuest,
    SpendMemory,
    WakeWriters,
)


def sleep_of(subject: GuestView, *, one: bool = True) -> VolumeHold:
    """The guest's hold on its disks. Raises NotFound: it does not sleep; Conflict: another one does, or, unless it need
    not be `one`, its disks wait for different memories. One that need not be `one` may be of a lost record as well."""
    found = [(volume, volume.hold) for volume in subject.written if volume.hold]
    raise_problems(
        [
            problem
            for volume, hold in found
            if hold.guest != subject.guest.uuid and (one or hold.name != subject.name)
            for problem in _of_another(subject, volume, hold)
        ]
    )
    holds = [hold for _, hold in found]
    if not holds:
        raise NotFound(f"guest {subject.name} does not sleep", f"storkit guest show {subject.name}")
    if one and len({(hold.id, hold.host, hold.file) for hold in holds}) > 1:
        message = f"the disks of guest {subject.name} are held for different memories"
        raise Conflict(message, f"storkit volume list; or: storkit guest discard {subject.name} --force")
    return holds[0]


def _of_another(subject: GuestView, volume: Volume, hold: VolumeHold) -> list[StorkitError]:
    """Why a guest may not have a volume that another one sleeps on."""
    if hold.name != subject.name:
        return refused(volume, f"given to guest {subject.name}")
    message = f"a guest {hold.name} of another record sleeps on volume {volume.name}: UUID {hold.guest}"
    hint = (
        f'write uuid = "{hold.guest}" into the record of {hold.name}, then: storkit guest restore {hold.name}; or give'
    )
    return [Conflict(message, f"{hint} its memory up: storkit guest discard {hold.name} --force")]


def asked(subject: GuestView, hold: VolumeHold, fingerprint: dict[str, str]) -> Saved:
    """What the memory of a guest that is about to be saved will say of itself."""
    paused = subject.places[hold.host] == "paused"
    return Saved(
        subject.guest.uuid, subject.name, hold.id, _generations(subject), subject.guest.hypervisor, fingerprint,
        subject.machine, paused, hold.since,
    )  # fmt: skip


def record(subject: GuestView) -> str:
    """A digest of the guest's record, which must be the same when it wakes up: the memory knows these devices."""
    return hashlib.sha256(json.dumps(codec.dump(replace(subject.guest, machine=""))).encode()).hexdigest()[:16]


def runs_on(subject: GuestView) -> str:
    """The host where a guest runs that is to be saved. Raises what keeps it from being saved."""
    subject.known()
    subject.awake("held a second time")
    subject.stays()
    if len(subject.running) != 1:
        raise migration.running_problem(subject)
    here = subject.running[0]
    problems: list[StorkitError] = []
    if subject.root is not None:
        message = f"guest {subject.name} has its root on {subject.root.name}: its server would forget it in its sleep"
        problems.append(Unsupported(message, f"storkit guest stop {subject.name}"))
    elif not subject.written:
        message = f"guest {subject.name} writes no volume that could be held while it sleeps"
        problems.append(Unsupported(message, f"storkit guest stop {subject.name}"))
    for volume in subject.written:
        having = writers_of(subject.exports, volume)
        if here not in having:
            problems.append(migration.from_before(subject, here, volume))
        elif having != {here}:
            message = f"volume {volume.name} is written by {', '.join(sorted(having - {here}))} too"
            problems.append(Conflict(message, f"storkit migrate cleanup {subject.name}"))
    raise_problems(problems)
    return here


def save(subject: GuestView, hold: VolumeHold, saved: Saved, inventory: Inventory) -> Plan:
    """Save a guest to a file of the host where it runs (`hold.host`, `hold.file`)."""
    name, here, target = subject.name, hold.host, subject.target
    stages = Stages()
    numbers = _generations(subject)
    volumes = [replace(v, hold=replace(hold, generation=numbers[v.uuid])) for v in subject.written]
    _at_pools(stages, HoldVolumes, volumes, f"hold for {name}:")
    stages.then(step(SaveGuest(name, saved, hold.file), here, target, f"save {name}'s memory on {here}"))
    stages.then(step(EndSaved(name), here, target, f"end {name} on {here}"))
    migration.leave(stages, subject, migration.others(subject))
    return finish_plan(f"save {name} on {here}", stages, migration.guest_holds(subject), inventory)


def refuse_restore(subject: GuestView, hold: VolumeHold, saved: Saved, ours: dict[str, str], here: str) -> None:
    """Raise everything that keeps a memory from being the guest's. `ours`: the fingerprint of the host `here`."""
    name, problems = subject.name, list[StorkitError]()
    show = f"storkit guest show {name}"
    if saved.guest != subject.guest.uuid or saved.name != name:
        problems.append(Conflict(f"{saved.file} is the memory of guest {saved.name} ({saved.guest})", show))
    elif saved.used:
        problems.append(Conflict(f"guest {name} has run since it was saved in {saved.file}", show))
    elif saved.hold != hold.id:
        message = f"{saved.file} is of another sleep of guest {name} than the one since {hold.since}"
        problems.append(Conflict(message, show))
    for volume in subject.written if not problems else ():
        if volume.hold is None:
            message = f"a restore of guest {name} has not ended: volume {volume.name} is held no more"
            problems.append(Conflict(message, "storkit plan list; then resume it, or roll it back"))
        elif saved.generations.get(volume.uuid) != volume.hold.generation:
            message = f"volume {volume.name} is of generation {volume.hold.generation}, {saved.file} of"
            problems.append(Unsafe(f"{message} {saved.generations.get(volume.uuid, 'none')}: it is another disk", show))
    if saved.hypervisor != subject.guest.hypervisor:
        message = f"guest {name} was saved by {saved.hypervisor}, and its record says {subject.guest.hypervisor}"
        problems.append(Conflict(message, show))
    for key in sorted(saved.fingerprint.keys() | ours.keys()) if not problems else ():
        was, now = saved.fingerprint.get(key, "none"), ours.get(key, "none")
        if was != now:
            message = f"{key} differs: {was} when {name} was saved, {now} on {here}"
            problems.append(Conflict(message, f"storkit guest restore {name} --on a host that has the same"))
    raise_problems(problems)


def refuse_elsewhere(subject: GuestView) -> None:
    """Raise Conflict if a guest that sleeps is somewhere all the same: what saved it has not ended."""
    subject.known()
    if subject.running:
        raise Conflict(
            f"guest {subject.name} is {subject.shown}: its save has not ended",
            f"storkit plan list; or give its saved memory up: storkit guest discard {subject.name} --force",
        )


def restore(
    subject: GuestView, here: str, hold: VolumeHold, saved: Saved, file: str, keeps: bool, inventory: Inventory
) -> Plan:
    """Wake a guest on the host `here` by the memory in its `file` there. `keeps`: the host where it was saved is
    another one, and answers."""
    name, target = subject.name, subject.target
    refuse_elsewhere(subject)
    stages = Stages()
    if here in subject.places:
        stages.then(step(RetireGuest(name), here, target, f"retire {name} on {here}"))
    migration.leave(stages, subject, [host for host in migration.others(subject) if host != here])
    add_attach(stages, subject.volumes, here, None, inventory)
    add_proof(stages, subject.volumes, [here], here, f"prove that {here} sees {name}'s disks", inventory)
    stages.then(
        *(step(WakeWriters(group, [here], hold=hold.id), home, server, f"let {here} alone write {names_of(group)}")
          for home, server, group in by_server(subject.written, inventory))
    )  # fmt: skip
    stages.then(migration.define(replace(subject, machine=saved.machine), here))
    stages.then(step(LoadGuest(name, hold.id, file), here, target, f"read {name}'s memory on {here}"))
    _at_pools(stages, lambda group: ReleaseVolumes(group, hold.id), subject.written, f"end {name}'s hold on")
    stages.then(step(AwakeGuest(name, not saved.paused), here, target, f"let {name} go on on {here}"))
    stages.then(
        step(SpendMemory(name, subject.guest.uuid, file), here, target, f"mark {name}'s memory on {here} as used")
    )
    if keeps:
        title = f"mark {name}'s memory on {hold.host} as used"
        stages.then(step(SpendMemory(name, subject.guest.uuid, hold.file), hold.host, target, title))
    return finish_plan(f"restore {name} on {here}", stages, migration.guest_holds(subject), inventory)


def discard(subject: GuestView, hold: VolumeHold, keeps: bool, inventory: Inventory) -> Plan:
    """Give a guest's saved memory up: its disks are as after a power cut. `keeps`: the host that has it answers."""
    subject.known()
    stages = Stages()
    if not subject.running:
        migration.leave(stages, subject, migration.others(subject))
    held = [volume for volume in subject.written if volume.hold]
    for each in sorted({volume.hold.id for volume in held if volume.hold}):
        of_it = [volume for volume in held if volume.hold and volume.hold.id == each]
        _at_pools(stages, partial(GiveUpHolds, hold=each), of_it, f"end {subject.name}'s hold on")
    if keeps:
        title = f"mark {subject.name}'s memory on {hold.host} as used"
        spent = SpendMemory(subject.name, hold.guest, hold.file)
        stages.then(step(spent, hold.host, subject.target, title))
    return finish_plan(f"discard the memory of {subject.name}", stages, migration.guest_holds(subject), inventory)


def _generations(subject: GuestView) -> dict[str, int]:
    """The generation of each volume that the guest writes."""
    return {
        volume.uuid: max([volume.generation, *(e.generation for e in subject.exports if e.uuid == volume.uuid)])
        for volume in subject.written
    }


def _at_pools(stages: Stages, verb: Callable[[list[Volume]], Verb[Any]], volumes: list[Volume], title: str) -> None:
    """One step at each of these volumes' pools."""
    stages.then(
        *(step(verb(group), group[0].host, f"pool:{pool}", f"{title} {names_of(group)}")
          for pool, group in by_pool(volumes))
    )  # fmt: skip
