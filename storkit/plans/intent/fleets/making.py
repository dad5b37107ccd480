"""Members of a fleet made: a clone of the image for each, and who it is written into it before anybody starts it."""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass, replace
from datetime import UTC, datetime, timedelta
from pathlib import Path
from uuid import uuid4

from storkit.core import codec
from storkit.core.errors import Conflict, StorkitError, Unsafe, Unsupported, UsageError, collected, raise_problems
from storkit.core.guest import Boot, Disk, Guest, KeptGuest, Nic
from storkit.core.identities import check_name
from storkit.core.imagefiles import Inside, Laid
from storkit.core.model import Volume
from storkit.guests import clone as clones
from storkit.guests import files
from storkit.guests.fleets import identity, keys, record, seed
from storkit.guests.fleets.record import LONGEST_NAME, MOST, Fleet
from storkit.plans import migration, planner
from storkit.plans.intent import definitions, views
from storkit.plans.intent.coordinator import Coordinator, Ran
from storkit.plans.intent.fleets import unmaking
from storkit.plans.intent.kept import checkout, sources
from storkit.plans.intent.making import Bytes, clone_format, in_bytes, must_be_free, new_volume
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


def create(coordinator: Coordinator, directory: Path, name: str, wish: FleetWish) -> Fleet:
    """Make a fleet, or what is missing of it; its record."""
    _check(name, wish)
    image = coordinator.survey.volume(wish.image)
    if image.kind != "image":
        raise Conflict(
            f"volume {image.name} is a {image.kind}, and no golden image: its clones would be of what it is by then",
            f"storkit volume import --golden FILE NAME, or storkit volume clone {image.name} NEW for one guest",
        )
    old = record.load(directory, name) if name in record.names(directory) else None
    fleet = _wanted(coordinator, name, wish, image, old)
    if old:
        record.refuse_change(old, fleet)
        if fleet.count < old.count:
            hint = f"storkit fleet destroy {name}, then create"
            raise Conflict(f"fleet {name} has {old.count} members already", hint)
    if not coordinator.planning:
        record.save(directory, fleet)
    return complete(coordinator, directory, fleet)


def complete(coordinator: Coordinator, directory: Path, fleet: Fleet) -> Fleet:
    """Make the members that are missing; the fleet's record, which is written."""
    found = _look(coordinator, fleet)
    if not coordinator.planning:
        _tidy(coordinator, fleet, found)
    if not found.missing:
        return fleet
    guests = _records(coordinator, fleet, found.missing)
    # A plan that is only shown says nothing of keys.
    if not coordinator.planning:
        keys.make(coordinator.state, fleet.uuid, [guest.uuid for guest in guests])
    made: list[Clone] = []

    def build() -> Plan:
        image, base = _sources(coordinator, fleet)
        if not made:
            pool = coordinator.inventory.pool(image.pool)
            must_be_free(coordinator, [name for guest in guests for name in _volumes(fleet, guest.name)], pool)
            made.extend(_clones(coordinator, fleet, image, guests))
        return _plan(coordinator, fleet, image, base, made)

    ran = coordinator.change(build)
    fleet = _with_laid(fleet, ran)
    disks = {clone.who.name: clone for clone in made}
    bound = [_bound(guest, disks[guest.name]) for guest in guests]
    record.save(directory, fleet)
    definitions.write(coordinator, bound)
    return fleet


def reset(coordinator: Coordinator, fleet: Fleet, members: Sequence[str]) -> list[str]:
    """Give members new clones; those that ran, which are stopped."""
    guests = [sources.load(coordinator, member) for member in members]
    old: list[Volume] = []
    made: list[Clone] = []
    ran: list[str] = []

    def build() -> Plan:
        subjects = [views.remains(coordinator, guest) for guest in guests]
        problems: list[StorkitError] = []
        for subject in subjects:
            with collected(problems):
                subject.known()
                subject.awake("set back")
        raise_problems(problems)
        ran[:] = [subject.name for subject in subjects if subject.running]
        image, base = _sources(coordinator, fleet)
        if not made:
            made.extend(_clones(coordinator, fleet, image, guests, seeds=False))
        old[:] = coordinator.survey.present([guest.name for guest in guests])
        stages = Stages()
        migration.add_stop(stages, subjects, True, 0.0)
        _add_delete(stages, old)
        _add_clones(coordinator, stages, fleet, image, base, made)
        title = f"set {migration.titled(subjects)} back to {fleet.image}"
        holds = migration.guest_holds(*subjects) + planner.locks_of([base or image], shared=True)
        return planner.finish_plan(title, stages, holds, coordinator.inventory)

    coordinator.change(build, over_marks=True)
    disks = {clone.who.name: clone for clone in made}
    definitions.write(coordinator, [_bound(guest, disks[guest.name]) for guest in guests], change=True)
    return ran


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
    kernel, initrd = (str(Path(path).absolute()) if path else "" for path in (wish.kernel, wish.initrd))
    boot = Boot(kernel, initrd, wish.cmdline)
    fleet = Fleet(
        name, str(uuid4()), image.name, image.uuid, wish.count, max(2, len(str(wish.count))), in_bytes(wish.memory),
        wish.vcpus, wish.hypervisor or coordinator.inventory.defaults.hypervisor, hosts, boot, wish.bridge,
        list(wish.settings), created=datetime.now(UTC).isoformat(timespec="seconds"),
    )  # fmt: skip
    if old is not None:
        if fleet.width > old.width:
            message = f"fleet {name} has numbers of {old.width} digits, which {wish.count} members do not fit"
            raise Conflict(message, "make another fleet beside it")
        kept = {key: getattr(old, key) for key in ("uuid", "width", "base", "inside", "laid", "created")}
        return replace(fleet, **kept, expires=expires(wish.ttl) or old.expires)
    inside = Inside("") if wish.identity == "none" else coordinator.connections.to(image.host).images.look_inside(image)
    if wish.identity == "cloud-init" and not inside.cloud_init:
        inside = replace(inside, has=[*inside.has, "cloud-init"])
    lays = inside.filesystem and not inside.problem
    base = str(uuid4()) if lays else ""
    return replace(fleet, inside=inside, base=base, expires=expires(wish.ttl))


def _volumes(fleet: Fleet, member: str) -> list[str]:
    return [member, *([f"{member}-seed"] if fleet.seeded else [])]


@dataclass(frozen=True, slots=True)
class _State:
    """What there is of a fleet's members."""

    missing: list[str]
    """Those that are not there, or have lost their disks."""
    unwritten: list[str]
    """Those that their pool keeps, and that have no file here: a kill came before it, or somebody has removed it."""
    lost: list[str]
    """Of the missing, those that have a file and no disk."""
    leftovers: list[Volume]
    """Volumes that were made for members that never were guests: a kill came before that."""


def _look(coordinator: Coordinator, fleet: Fleet) -> _State:
    """What there is of a fleet's members. Raises Conflict: what has one of their names is somebody's."""
    names = [name for member in fleet.members for name in _volumes(fleet, member)]
    there = {volume.name: volume for volume in coordinator.survey.present([*names, fleet.base_name])}
    files_here = set(files.names(coordinator.guests))
    strange = [there[name] for name in fleet.members if name in there and name not in files_here]
    kept = _kept(coordinator, strange)
    problems: list[StorkitError] = []
    found = _State([], [], [], [])
    for member in fleet.members:
        disks = [there.get(name) for name in _volumes(fleet, member)]
        if member not in files_here and disks[0] and (known := kept.get(disks[0].uuid)):
            found.unwritten.append(member)
            if known.gone or known.name != member:
                problems.append(_somebodys(disks[0]))
            continue
        guest = files.load(coordinator.guests, member) if member in files_here else None
        if guest and [disk.uuid for disk in guest.disks] == [volume.uuid if volume else "" for volume in disks]:
            continue
        found.missing.append(member)
        if guest and disks[0]:
            message = f"the disk of guest {member} is another than its record says"
            problems.append(Conflict(message, f"storkit fleet replace {fleet.name} {member}"))
        elif guest:
            found.lost.append(member)
        else:
            found.leftovers.extend(volume for volume in disks if volume)
    made_of = {fleet.base, fleet.image_uuid} - {""}
    problems += [_somebodys(volume) for volume in found.leftovers if volume.origin not in made_of]
    raise_problems(problems)
    return found


def _somebodys(volume: Volume) -> StorkitError:
    message = f"volume {volume.name} is there, and may have what somebody wants to keep"
    return Conflict(message, f"storkit volume delete {volume.name}, if not")


def _kept(coordinator: Coordinator, volumes: list[Volume]) -> dict[str, KeptGuest]:
    """What their pools keep with volumes, by their UUIDs, also of guests that were deleted."""
    found: dict[str, KeptGuest] = {}
    for pool, group in planner.by_pool(volumes).items():
        try:
            there = coordinator.connections.to(group[0].host).pool(f"pool:{pool}").kept([v.uuid for v in group])
        except (UsageError, Unsupported):  # it keeps no guests
            continue
        found.update((kept.uuid, kept) for kept in there.guests)
    return found


def _tidy(coordinator: Coordinator, fleet: Fleet, found: _State) -> None:
    """Write the files of those that their pools keep, and remove what is left of those that are to be made."""
    if found.unwritten:

        def build() -> Plan:
            there = coordinator.survey.find_all(found.unwritten)
            return planner.finish_plan("take up members", Stages(), planner.locks_of(there), coordinator.inventory)

        # The plan that was to keep them has done so.
        coordinator.change(build, over_marks=True)
        for member in found.unwritten:
            checkout.checkout(coordinator, member, force=False, generation=0)
    if found.lost:
        unmaking.remove(coordinator, fleet, found.lost)
    if found.leftovers:
        _delete(coordinator, found.leftovers)


def _delete(coordinator: Coordinator, volumes: list[Volume]) -> None:
    def build() -> Plan:
        there = coordinator.survey.present([volume.name for volume in volumes])
        return planner.delete(there, coordinator.survey.exports(there), coordinator.inventory)

    coordinator.change(build, over_marks=True)


def _records(coordinator: Coordinator, fleet: Fleet, members: Sequence[str]) -> list[Guest]:
    """New guests' records. Raises all that speaks against them, before anything is made."""
    disks = [Disk("base"), *([Disk("seed", readonly=True)] if fleet.seeded else [])]
    nics = [Nic(fleet.bridge)] if fleet.bridge else [Nic(kind="user"), Nic(kind="group", group=fleet.group)]
    example = Guest(
        fleet.name, fleet.uuid, fleet.memory, fleet.vcpus, fleet.hypervisor, boot=fleet.boot, disks=disks, nics=nics
    )
    problems: list[StorkitError] = []
    guests: list[Guest] = []
    taken = set(sources.names(coordinator))
    for member in members:
        if member in taken:
            problems.append(Conflict(f"guest {member} exists already", f"storkit guest show {member}"))
        with collected(problems):
            names = {"base": member, "seed": f"{member}-seed"}
            guests.append(clones.clone(example, member, fleet.settings, names))
        if problems:
            break  # what is wrong with one is wrong with all
    raise_problems([*problems, *clones.met(guests, sources.everybody(coordinator, []))])
    return guests


def _bound(guest: Guest, clone: Clone) -> Guest:
    """A guest with the UUIDs of its new volumes; those of others it keeps."""
    uuids = {volume.name: volume.uuid for volume in (clone.disk, clone.seed) if volume}
    return replace(guest, disks=[replace(disk, uuid=uuids.get(disk.volume, disk.uuid)) for disk in guest.disks])


def _sources(coordinator: Coordinator, fleet: Fleet) -> tuple[Volume, Volume | None]:
    """The image, and what its members are cloned from if that is there. Raises Unsafe: the image is another one."""
    (image,) = coordinator.survey.find_all([fleet.image], {fleet.image: fleet.image_uuid})
    if image.uuid != fleet.image_uuid:
        raise Unsafe(f"volume {image.name} is not the image of fleet {fleet.name} any more", "make another fleet of it")
    there = coordinator.survey.present([fleet.base_name]) if fleet.base else []
    for volume in there:
        if volume.uuid != fleet.base:
            hint = f"storkit volume delete {volume.name}, if nobody needs it"
            raise Conflict(f"volume {volume.name} is there, and is no fleet's", hint)
    return image, there[0] if there else None


def _clones(
    coordinator: Coordinator, fleet: Fleet, image: Volume, guests: Sequence[Guest], seeds: bool = True
) -> list[Clone]:
    """Volumes that are to be made for guests."""
    pool = coordinator.inventory.pool(image.pool)
    format = clone_format(coordinator, pool)
    found = []
    for guest in guests:
        disk = new_volume(pool, guest.name, image.size, origin=fleet.base or image.uuid, format=format)
        of = image.uuid
        own = new_volume(pool, f"{guest.name}-seed", seed.SIZE, origin=of) if fleet.seeded and seeds else None
        found.append(Clone(identity.identity(fleet, guest), disk, own))
    return found


def _base(coordinator: Coordinator, fleet: Fleet, image: Volume) -> Volume:
    """What members are to be cloned from."""
    pool = coordinator.inventory.pool(image.pool)
    format = clone_format(coordinator, pool)
    made = new_volume(pool, fleet.base_name, image.size, origin=image.uuid, format=format)
    return replace(made, uuid=fleet.base)


def _plan(coordinator: Coordinator, fleet: Fleet, image: Volume, base: Volume | None, made: list[Clone]) -> Plan:
    stages = Stages()
    _add_clones(coordinator, stages, fleet, image, base, made)
    title = f"make {len(made)} members of fleet {fleet.name}"
    return planner.finish_plan(title, stages, planner.locks_of([image], shared=True), coordinator.inventory)


def _add_clones(
    coordinator: Coordinator, stages: Stages, fleet: Fleet, image: Volume, base: Volume | None, made: list[Clone]
) -> None:
    """What members are cloned from, where it is not there or not whole, the clones, and who each is."""
    target, host, laid = f"pool:{image.pool}", image.host, ""
    origin = image
    if fleet.base:
        origin = base or _base(coordinator, fleet, image)
        if base is None:
            stages.then(step(CloneVolume([origin], image), host, target, f"clone {image.name} to {origin.name}"))
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
          for pool, group in planner.by_pool(volumes).items())
    )  # fmt: skip


def _id(made: Step | None) -> str:
    assert made is not None
    return made.id


def _with_laid(fleet: Fleet, ran: Ran) -> Fleet:
    for each, result in ran.done:
        if each.verb == LayFiles.verb:
            return replace(fleet, laid=codec.load(list[Laid], result, strict=False))
    return fleet
