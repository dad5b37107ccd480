"""Members of a fleet made: a clone of the image for each, and who it is written into it before anybody starts it."""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass, replace
from datetime import UTC, datetime, timedelta
from pathlib import Path
from uuid import uuid4

from storkit.core import codec, registry
from storkit.core.errors import (
    NOTHING_CHANGED,
    PUT_BACK,
    Conflict,
    StorkitError,
    Unsafe,
    UsageError,
    collected,
    raise_problems,
)
from storkit.core.guest import Boot, Disk, Guest
from storkit.core.identities import check_name
from storkit.core.imagefiles import Inside, Laid
from storkit.core.model import Volume
from storkit.guests import clone as clones
from storkit.guests.fleets import identity, keys, record, seed
from storkit.guests.fleets.record import LONGEST_NAME, MOST, Build, Fleet, Made
from storkit.guests.limits import card_problems
from storkit.plans import migration, planner
from storkit.plans.guests import running
from storkit.plans.intent import definitions, views
from storkit.plans.intent.coordinator import Coordinator, Ran
from storkit.plans.intent.disks import refuse_to_lose
from storkit.plans.intent.fleets import members as present
from storkit.plans.intent.fleets import unmaking
from storkit.plans.intent.fleets.members import Found
from storkit.plans.intent.golden import versions
from storkit.plans.intent.kept import checkout, sources
from storkit.plans.intent.making import Bytes, clone_format, in_bytes, must_be_free, new_volume, refuse_several
from storkit.plans.plan import Plan, Stages, Step
from storkit.plans.verb import step
from storkit.plans.verbs.fleets import Clone, LayFiles, Personalise
from storkit.plans.verbs.volumes import CloneVolume, CreateVolumes, DeleteVolumes, RelabelVolumes

IDENTITIES = ("auto", "cloud-init", "none")
_TTL = re.compile(r"([0-9]{1,6})([mhd])", re.ASCII)


@dataclass(frozen=True, slots=True)
class FleetWish:
    """What a fleet is to be."""

    image: str
    count: int
    hosts: Sequence[str] = ()
    """Over which its members are spread; none: the image's home."""
    memory: Bytes = definitions.MEMORY
    vcpus: int = 1
    hypervisor: str = ""
    """Empty: the inventory's."""
    kernel: str = ""
    initrd: str = ""
    cmdline: str = ""
    bridge: str = ""
    settings: Sequence[str] = ()
    identity: str = "auto"
    """How each clone is made a machine of its own. auto: as what is found in the image allows; cloud-init: it is there,
    though it was not found; none: not at all."""
    ttl: str = ""
    """How long the fleet lives: 30m, 2h, 1d; empty: until it is destroyed."""
    build: Build | None = None
    """The version of an image that its member is to become."""
    cloud_config: str = ""
    """What cloud-init is to do in each beside making it itself; the image has it."""


def create(coordinator: Coordinator, directory: Path, name: str, wish: FleetWish) -> Fleet:
    """Make a fleet, or what is missing of it; its record."""
    _check(name, wish)
    old = record.load(directory, name) if name in record.names(directory) else None
    # A fleet that is there stays with the version that it was made of.
    image = versions.source(coordinator, wish.image, old.image if old else "")
    if image.kind != "image":
        raise Conflict(
            f"volume {image.name} is a {image.kind}, and no golden image: its clones would be of what it is by then",
            f"storkit volume import --golden FILE NAME, or storkit volume clone {image.name} NEW for one guest",
        )
    refuse_several(coordinator, image.pool, "fleets are not made")
    fleet = _wanted(coordinator, name, wish, image, old)
    if old:
        record.refuse_change(old, fleet)
        if fleet.count < old.count:
            hint = f"storkit fleet destroy {name}, then create"
            raise Conflict(f"fleet {name} has {old.count} members already", hint)
    if not wish.cloud_config or old or coordinator.planning:
        return complete(coordinator, directory, fleet, old)
    keys.configure(coordinator.state, fleet.uuid, wish.cloud_config)
    try:
        return complete(coordinator, directory, fleet, old)
    except StorkitError:
        if name not in record.names(directory):
            keys.forget(coordinator.state, fleet.uuid)
        raise


def complete(coordinator: Coordinator, directory: Path, fleet: Fleet, old: Fleet | None) -> Fleet:
    """Make the members that are missing; the fleet's record, which is written. `old`: as it was written before."""
    image, base = _sources(coordinator, fleet)
    found = present.look(coordinator, fleet)
    _refuse_without_keys(coordinator, fleet, base, [])
    _tidy(coordinator, fleet, found)
    if not found.missing:
        if not coordinator.planning and fleet != old:
            record.save(directory, fleet)
        return fleet
    guests = _records(coordinator, fleet, found)
    fleet = replace(fleet, made={**fleet.made, **{guest.name: _new(fleet, guest) for guest in guests}})
    must_be_free(coordinator, [name for guest in guests for name in present.volume_names(fleet, guest.name)])
    if not coordinator.planning:  # a plan that is only shown says nothing of keys
        # Before anything of it is there: what a kill leaves is known by its UUID.
        record.save(directory, fleet)
        try:
            keys.make(coordinator.state, fleet.uuid, [guest.uuid for guest in guests])
        except StorkitError:
            _put_back(coordinator, directory, fleet, old, guests)
            raise
    clones_of = _clones(coordinator, fleet, base or image, guests)

    def build() -> Plan:
        image, base = _sources(coordinator, fleet)
        stages = Stages()
        _add_clones(coordinator, stages, fleet, image, base, clones_of)
        title = f"make {len(clones_of)} members of fleet {fleet.name}"
        holds = planner.locks_of([base or _there(image)], shared=True)
        return planner.finish_plan(title, stages, holds, coordinator.inventory)

    try:
        ran = coordinator.change(build)
    except StorkitError as error:
        if error.left in (NOTHING_CHANGED, PUT_BACK):
            _put_back(coordinator, directory, fleet, old, guests)
        raise
    fleet = _with_laid(fleet, ran)
    record.save(directory, fleet)
    disks = {clone.who.name: clone for clone in clones_of}
    definitions.write(coordinator, [_bound(guest, disks[guest.name]) for guest in guests])
    return fleet


def reset(coordinator: Coordinator, directory: Path, fleet: Fleet, members: Sequence[str]) -> list[str]:
    """Give members new clones; those that ran, which are stopped."""
    guests = present.of(coordinator, fleet, members)
    image, base = _sources(coordinator, fleet)
    _refuse_without_keys(coordinator, fleet, base, [guest.uuid for guest in guests])
    before, there = fleet, present.volumes(coordinator, fleet, members)
    made = {member: _anew(fleet.made[member], there.get(member)) for member in members}
    fleet = replace(fleet, made={**fleet.made, **made})
    clones_of = _clones(coordinator, fleet, base or image, guests, seeds=False)
    ran: list[str] = []

    def build() -> Plan:
        subjects = [views.remains(coordinator, guest) for guest in guests]
        image, base = _sources(coordinator, fleet)
        there = present.volumes(coordinator, fleet, members)
        old: list[Volume] = []
        problems: list[StorkitError] = []
        for subject in subjects:
            with collected(problems):
                subject.known()
                subject.awake("set back")
            if volume := there.get(subject.name):
                old.append(volume)
                if not present.is_own(fleet, subject.name, volume):
                    message = f"volume {volume.name} is not the one that was made for {subject.name}"
                    problems.append(Conflict(message, f"storkit volume show {volume.name}"))
        with collected(problems):
            refuse_to_lose(coordinator, old, "delete", but=members)
        raise_problems(problems)
        ran[:] = [subject.name for subject in subjects if subject.running]
        stages = Stages()
        running.add_stop(stages, subjects, True, 0.0)
        _add_delete(stages, old)
        _add_clones(coordinator, stages, fleet, image, base, clones_of)
        title = f"set {running.titled(subjects)} back to {fleet.image}"
        holds = migration.guest_holds(*subjects) + planner.locks_of([base or _there(image)], shared=True)
        if not coordinator.planning:
            record.save(directory, fleet)
        return planner.finish_plan(title, stages, holds, coordinator.inventory)

    try:
        done = coordinator.change(build, over_marks=True)
    except StorkitError as error:
        if error.left in (NOTHING_CHANGED, PUT_BACK) and not coordinator.planning:
            record.save(directory, before)
        raise
    record.save(directory, _with_laid(fleet, done))
    disks = {clone.who.name: clone for clone in clones_of}
    definitions.write(coordinator, [_bound(guest, disks[guest.name]) for guest in guests], change=True)
    return ran


def remove(coordinator: Coordinator, directory: Path, fleet: Fleet, members: Sequence[str]) -> Fleet:
    """Remove members that are to be made anew, once it is known that they can be; the fleet's record."""
    _, base = _sources(coordinator, fleet)
    _refuse_without_keys(coordinator, fleet, base, [])
    unmaking.remove(coordinator, fleet, members)
    fleet = replace(fleet, made={name: made for name, made in fleet.made.items() if name not in members})
    record.save(directory, fleet)
    return fleet


def expires(ttl: str, now: datetime | None = None) -> str:
    """When a fleet of this life ends; empty: never. Raises UsageError."""
    if not ttl:
        return ""
    match = _TTL.fullmatch(ttl)
    if match is None or int(match[1]) == 0:
        raise UsageError(f"{ttl!r} is no time to live", "write 30m, 2h or 1d")
    unit = {"m": "minutes", "h": "hours", "d": "days"}[match[2]]
    end = (now or datetime.now(UTC)) + timedelta(**{unit: int(match[1])})
    return end.isoformat(timespec="seconds")


def _check(name: str, wish: FleetWish) -> None:
    problems: list[StorkitError] = []
    with collected(problems):
        check_name("fleet", name)
    if len(name) > LONGEST_NAME:
        problems.append(UsageError(f"fleet name {name!r} is longer than {LONGEST_NAME} characters", "shorten it"))
    if not re.fullmatch(r"[A-Za-z0-9]([A-Za-z0-9-]*[A-Za-z0-9])?", name, re.ASCII):
        problems.append(UsageError(f"{name!r} cannot begin host names", "use letters, digits and '-'"))
    if not 1 <= wish.count <= MOST:
        problems.append(UsageError(f"a fleet has 1 to {MOST} members, not {wish.count}", "--count 20"))
    if wish.identity not in IDENTITIES:
        message = f"{wish.identity!r} is no way to tell clones apart"
        problems.append(UsageError(message, f"one of {', '.join(IDENTITIES)}"))
    with collected(problems):
        in_bytes(wish.memory)
    with collected(problems):
        expires(wish.ttl)
    for setting in wish.settings:
        if setting.startswith(("disks.", "nics.", "root.")):
            message = f"{setting!r}: a fleet's members have their disks and cards from it"
            problems.append(UsageError(message, "leave it out"))
    raise_problems(problems)


def _wanted(coordinator: Coordinator, name: str, wish: FleetWish, image: Volume, old: Fleet | None) -> Fleet:
    """The record of what is wished for; what only storkit knows is as it was."""
    hosts = [coordinator.host(host, given=True) for host in wish.hosts] or [image.host]
    registry.hypervisor(wish.hypervisor or coordinator.inventory.defaults.hypervisor)
    kernel, initrd = (str(Path(path).absolute()) if path else "" for path in (wish.kernel, wish.initrd))
    boot = Boot(kernel, initrd, wish.cmdline)
    fleet = Fleet(
        name, str(uuid4()), image.name, image.uuid, image.pool, wish.count, max(2, len(str(wish.count))),
        in_bytes(wish.memory), wish.vcpus, wish.hypervisor or coordinator.inventory.defaults.hypervisor, hosts, boot,
        wish.bridge,
        list(wish.settings), build=wish.build, created=datetime.now(UTC).isoformat(timespec="seconds"),
    )  # fmt: skip
    if old is not None:
        if fleet.width > old.width:
            message = f"fleet {name} has numbers of {old.width} digits, which {wish.count} members do not fit"
            raise Conflict(message, "make another fleet beside it")
        kept = {key: getattr(old, key) for key in ("uuid", "width", "base", "inside", "laid", "made", "created")}
        return replace(fleet, **kept, expires=expires(wish.ttl) or old.expires)
    inside = Inside("") if wish.identity == "none" else coordinator.connections.to(image.host).images.look_inside(image)
    if wish.identity == "cloud-init" and not inside.cloud_init:
        inside = replace(inside, has=[*inside.has, "cloud-init"])
    lays = inside.filesystem and not inside.problem
    base = str(uuid4()) if lays else ""
    return replace(fleet, inside=inside, base=base, expires=expires(wish.ttl))


def _new(fleet: Fleet, guest: Guest) -> Made:
    return Made(guest.uuid, str(uuid4()), str(uuid4()) if fleet.seeded else "")


def _anew(made: Made, there: Volume | None) -> Made:
    """What is a member's while another disk is put in the place of the one that is there, if that is its own."""
    own = there is not None and there.uuid in (made.disk, made.was)
    return replace(made, disk=str(uuid4()), was=there.uuid if there and own else "")


def _put_back(
    coordinator: Coordinator, directory: Path, fleet: Fleet, old: Fleet | None, guests: Sequence[Guest]
) -> None:
    """The record and the keys as they were before a command that has made nothing."""
    if old:
        record.save(directory, old)
        keys.drop(coordinator.state, fleet.uuid, [guest.uuid for guest in guests])
    else:
        record.delete(directory, fleet.name)
        keys.forget(coordinator.state, fleet.uuid)


def _refuse_without_keys(coordinator: Coordinator, fleet: Fleet, base: Volume | None, guests: Sequence[str]) -> None:
    """Raise Conflict if this machine does not have the keys that members are to let in, or are to have again."""
    if guests or (base and base.kind == "image"):
        keys.load(coordinator.state, fleet.uuid, guests)


def _tidy(coordinator: Coordinator, fleet: Fleet, found: Found) -> None:
    """Write the files of those that their pools keep, and remove what is left of those that are to be made."""
    if found.unwritten:

        def build() -> Plan:
            there = list(present.volumes(coordinator, fleet, found.unwritten).values())
            return planner.finish_plan("take up members", Stages(), planner.locks_of(there), coordinator.inventory)

        # The plan that was to keep them has done so.
        coordinator.change(build, over_marks=True)
        for member in found.unwritten:
            checkout.checkout(coordinator, member, force=False, generation=0)
    if found.lost:
        guests = present.guests(coordinator, fleet, found.lost)
        for name, guest in guests.items():
            views.refuse_unless_stopped(coordinator, guest, f"{name} has lost its disk, and cannot be made anew")
        unmaking.remove(coordinator, fleet, found.lost)
    if found.leftovers:
        _delete(coordinator, fleet, found.leftovers)


def _delete(coordinator: Coordinator, fleet: Fleet, leftovers: list[Volume]) -> None:
    wanted = {volume.name: volume.uuid for volume in leftovers}

    def build() -> Plan:
        there = [v for v in present.volumes(coordinator, fleet, wanted).values() if wanted[v.name] == v.uuid]
        refuse_to_lose(coordinator, there, "delete")
        return planner.delete(there, coordinator.survey.exports(there), coordinator.inventory)

    coordinator.change(build, over_marks=True)


def _records(coordinator: Coordinator, fleet: Fleet, found: Found) -> list[Guest]:
    """New guests' records. Raises all that speaks against them, before anything is made."""
    disks = [Disk("base"), *([Disk("seed", readonly=True)] if fleet.seeded else [])]
    example = Guest(
        fleet.name, fleet.uuid, fleet.memory, fleet.vcpus, fleet.hypervisor, boot=fleet.boot, disks=disks,
        nics=fleet.nics, agent=True,
    )  # fmt: skip
    problems: list[StorkitError] = []
    guests: list[Guest] = []
    taken = set(sources.names(coordinator))
    for member in found.missing:
        if member in taken:
            problems.append(Conflict(f"guest {member} exists already", f"storkit guest show {member}"))
        with collected(problems):
            names = {"base": member, "seed": f"{member}-seed"}
            guests.append(clones.clone(example, member, fleet.settings, names))
            problems += card_problems(guests[-1], fleet.hypervisor)
        if problems:
            break  # what is wrong with one is wrong with all
    raise_problems([*problems, *clones.met(guests, sources.everybody(coordinator, []))])
    return guests


def _bound(guest: Guest, clone: Clone) -> Guest:
    """A guest with the UUIDs of its new volumes; those of others it keeps."""
    uuids = {volume.name: volume.uuid for volume in (clone.disk, clone.seed) if volume}
    return replace(guest, disks=[replace(disk, uuid=uuids.get(disk.volume, disk.uuid)) for disk in guest.disks])


def _sources(coordinator: Coordinator, fleet: Fleet) -> tuple[Volume | None, Volume | None]:
    """The image, which may be gone once the other is there: what its members are cloned from. Raises Conflict: what has
    their names is something else."""
    there = present.volumes(coordinator, fleet, [fleet.image, fleet.base_name] if fleet.base else [fleet.image])
    image, base = there.get(fleet.image), there.get(fleet.base_name)
    if base and base.uuid != fleet.base:
        hint = f"storkit volume delete {base.name}, if nobody needs it"
        raise Conflict(f"volume {base.name} is there, and is not this fleet's", hint)
    if image and image.uuid != fleet.image_uuid:
        image = None
    if not image and not (base and base.kind == "image"):
        message = f"volume {fleet.image} is not the image of fleet {fleet.name} any more"
        raise Unsafe(message, "bring it back, or make another fleet of another one")
    return image, base


def _there(image: Volume | None) -> Volume:
    assert image is not None  # _sources
    return image


def _clones(
    coordinator: Coordinator, fleet: Fleet, like: Volume | None, guests: Sequence[Guest], seeds: bool = True
) -> list[Clone]:
    """Volumes that are to be made for guests."""
    size = _there(like).size
    pool = coordinator.inventory.pool(fleet.pool)
    format = clone_format(coordinator, pool)
    found = []
    for guest in guests:
        made, origin = fleet.made[guest.name], fleet.base or fleet.image_uuid
        disk = replace(new_volume(pool, guest.name, size, origin=origin, format=format), uuid=made.disk)
        own = None
        if fleet.seeded and seeds:
            own = replace(new_volume(pool, f"{guest.name}-seed", seed.SIZE, origin=fleet.image_uuid), uuid=made.seed)
        found.append(Clone(identity.identity(fleet, guest), disk, own))
    return found


def _base(coordinator: Coordinator, fleet: Fleet, image: Volume) -> Volume:
    """What members are to be cloned from."""
    pool = coordinator.inventory.pool(fleet.pool)
    format = clone_format(coordinator, pool)
    made = new_volume(pool, fleet.base_name, image.size, origin=image.uuid, format=format)
    return replace(made, uuid=fleet.base)


def _add_clones(
    coordinator: Coordinator, stages: Stages, fleet: Fleet, image: Volume | None, base: Volume | None, made: list[Clone]
) -> None:
    """What members are cloned from, where it is not there, the clones, and who each is."""
    origin = base or _there(image)
    target, host, laid = f"pool:{fleet.pool}", origin.host, ""
    if fleet.base:
        if base is None:
            origin = _base(coordinator, fleet, _there(image))
            title = f"clone {fleet.image} to {origin.name}"
            stages.then(step(CloneVolume([origin], _there(image)), host, target, title))
        if base is None or not fleet.laid:
            laying = step(LayFiles(origin, fleet), host, "images", f"lay what differs between members in {origin.name}")
            laid = _id(stages.then(laying))
        if origin.kind != "image":
            origin = replace(origin, kind="image", made="prepared")
            stages.then(step(RelabelVolumes([origin]), host, target, f"seal {origin.name}"))
    disks, seeds = [clone.disk for clone in made], [clone.seed for clone in made if clone.seed]
    title = f"clone {origin.name} to {planner.names_of(disks)}"
    stages.then(
        step(CloneVolume(disks, origin), host, target, title),
        step(CreateVolumes(seeds), host, target, f"create {planner.names_of(seeds)}") if seeds else None,
    )
    if fleet.base or seeds:
        title = f"let {planner.names_of(disks)} each be its own machine"
        stages.then(step(Personalise(fleet, made, laid), host, "images", title))


def _add_delete(stages: Stages, volumes: list[Volume]) -> None:
    stages.then(
        *(step(DeleteVolumes(group), group[0].host, f"pool:{pool}", f"delete {planner.names_of(group)}")
          for pool, group in planner.by_pool(volumes))
    )  # fmt: skip


def _id(made: Step | None) -> str:
    assert made is not None
    return made.id


def _with_laid(fleet: Fleet, ran: Ran) -> Fleet:
    for each, result in ran.done:
        if each.verb == LayFiles.verb:
            return replace(fleet, laid=codec.load(list[Laid], result, strict=False))
    return fleet
