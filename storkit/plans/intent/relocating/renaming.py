"""Other names for volumes and guests. What a name stood for is known by its UUID, which stays."""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import replace

from storkit.core.errors import Conflict, NotFound, StorkitError, UsageError, in_a_line, raise_problems
from storkit.core.guest import Disk, Guest
from storkit.core.holds import held
from storkit.core.model import Volume, check_name, closed
from storkit.guests import document, files
from storkit.guests.files import Texts
from storkit.guests.fleets import record as fleets
from storkit.plans import planner
from storkit.plans.intent import views
from storkit.plans.intent.coordinator import Coordinator
from storkit.plans.intent.disks import readable
from storkit.plans.intent.golden import versions
from storkit.plans.intent.kept import keeping, sources
from storkit.plans.intent.kept.keeping import NewGeneration
from storkit.plans.intent.making import must_be_free
from storkit.plans.lookup import parts
from storkit.plans.plan import Plan, Stages
from storkit.plans.verb import step
from storkit.plans.verbs.volumes import RenameVolumes


def rename_volume(coordinator: Coordinator, name: str, new: str) -> Volume:
    """Give a volume another name (VolumeActs.rename). Called again after a kill it does what is left: the files of its
    guests here are written last."""
    check_name("volume", new)
    old = parts(name)[1]
    found: list[Volume] = []
    kept: list[NewGeneration] = []
    guests: list[Guest] = []

    def build() -> Plan:
        volume, done = _which(coordinator, name, new)
        found[:] = [volume]
        guests[:] = _having(coordinator, volume)
        kept[:] = [each for guest in guests if (each := _kept_anew(coordinator, guest, volume, old, new))]
        if done:
            return planner.finish_plan(f"rename {old} to {new}", Stages(), [], coordinator.inventory)
        exports = coordinator.survey.exports([volume])
        problems = [*held(volume, "renamed"), *planner.exported([volume], exports, coordinator.inventory)]
        problems += _against(coordinator, volume, new)
        raise_problems(problems)
        must_be_free(coordinator, [new])
        stages = Stages()
        title = f"rename {volume.name} to {new}"
        stages.then(step(RenameVolumes([volume], [new]), volume.host, f"pool:{volume.pool}", title))
        stages.then(*keeping.steps(kept))
        homes = {each.volume.uuid: each.volume for each in kept} | {volume.uuid: volume}
        return planner.finish_plan(title, stages, planner.locks_of(list(homes.values())), coordinator.inventory)

    coordinator.change(build)
    coordinator.survey.hints.drop(old)
    (now,) = coordinator.survey.find_all([f"{found[0].pool}/{new}"], {new: found[0].uuid})
    coordinator.survey.hints.put([now])
    generations = {each.guest.guest: each.guest.generation for each in kept}
    for guest in guests:
        if guest.name in files.names(coordinator.guests):
            _rewrite(coordinator, guest, now, old, generations.get(guest.uuid, 0))
    return now


def _which(coordinator: Coordinator, name: str, new: str) -> tuple[Volume, bool]:
    """The volume that gets the new name, and whether it has it already and its guests alone do not say so."""
    try:
        return coordinator.survey.volume(name), False
    except NotFound:
        pool, old = parts(name)
        there = coordinator.survey.present([f"{pool}/{new}" if pool else new])
        if there and any(disk.volume == old for guest in _having(coordinator, there[0]) for disk in guest.disks):
            return there[0], True
        raise


def _against(coordinator: Coordinator, volume: Volume, new: str) -> list[StorkitError]:
    """Why a volume cannot have another name."""
    problems: list[StorkitError] = []
    if why := closed(volume):
        problems.append(Conflict(why, "storkit plan list"))
    if versions.is_version(volume):
        there = coordinator.survey.volumes(None, [coordinator.inventory.pool(volume.pool)])
        image, number = versions.split(volume.name)
        if number > 1 or len(versions.among(there, image)) > 1:
            message = f"volume {volume.name} is a version of image {image}, which its name says"
            problems.append(Conflict(message, f"storkit volume clone {volume.name} {new}"))
        elif versions.split(new)[1] > 1:
            problems.append(UsageError(f"{new} is the name of a version of an image", "choose another name"))
    return problems + _of_fleets(coordinator, volume.name, volume.uuid)


def _of_fleets(coordinator: Coordinator, name: str, uuid: str) -> list[StorkitError]:
    """The fleets of this machine that know something by its name."""
    directory = coordinator.inventory.directory / "fleets"
    problems: list[StorkitError] = []
    for fleet in [fleets.load(directory, each) for each in fleets.names(directory)]:
        members = [member for member, made in fleet.made.items() if uuid in (made.guest, made.disk, made.seed)]
        if members or uuid == fleet.base:
            message = f"{name} belongs to fleet {fleet.name}, which knows it by its name"
            problems.append(Conflict(message, f"storkit fleet show {fleet.name}"))
    return problems


def _having(coordinator: Coordinator, volume: Volume) -> list[Guest]:
    """The guests that have a volume, by its UUID."""
    problems: list[StorkitError] = []
    guests = readable(coordinator, coordinator.inventory.pools, problems)
    for problem in problems:
        coordinator.warn(f"whether it has {volume.name} is not known: {in_a_line(problem)}")
    return [
        guest
        for guest in guests
        if any(disk.uuid == volume.uuid for disk in guest.disks) or (guest.root and guest.root.uuid == volume.uuid)
    ]


def _kept_anew(coordinator: Coordinator, guest: Guest, volume: Volume, old: str, new: str) -> NewGeneration | None:
    """A generation of a guest that names its disk anew; None: nothing keeps it, or it says so already."""
    first = sources.home(guest)
    if first is None:
        return None
    mine = first.uuid == volume.uuid
    homes = [volume] if mine else coordinator.survey.present([first.volume], views.uuids([first]))
    there = sources.with_volume(coordinator, homes[0]) if homes else None
    if there is None or there.gone or there.guest != guest.uuid:
        return None
    pool = coordinator.inventory.pool(homes[0].pool)
    whole = sources.whole(coordinator, pool, there)
    kept = sources.parse(coordinator, pool, whole)
    if not any(disk.volume == old for disk in _named(kept, volume)):
        return None
    text = _record(whole.record, kept, volume.uuid, old, new)
    home = new if mine else homes[0].name
    return NewGeneration(homes[0], replace(whole, volume=home, generation=there.generation + 1, record=text))


def _named(guest: Guest, volume: Volume) -> list[Disk]:
    root = [Disk(guest.root.volume, uuid=guest.root.uuid)] if guest.root else []
    return [disk for disk in [*guest.disks, *root] if disk.uuid == volume.uuid]


def _renamed(guest: Guest, uuid: str, new: str) -> Guest:
    """A guest whose volume of this UUID has another name."""
    disks = [replace(disk, volume=new) if disk.uuid == uuid else disk for disk in guest.disks]
    root = replace(guest.root, volume=new) if guest.root and guest.root.uuid == uuid else guest.root
    return replace(guest, disks=disks, root=root)


def _record(text: str, guest: Guest, uuid: str, old: str, new: str) -> str:
    """A record's text with the new name of a volume: comments and order stay, where that one word is all there is."""
    wanted = _renamed(guest, uuid, new)
    return _says(_with(text, "volume", old, new), wanted)


def _with(text: str, key: str, old: str, new: str) -> str:
    """A text of TOML in which a key that says `old` says `new`."""
    return re.sub(rf"(\b{key}[ \t]*=[ \t]*)([\"']){re.escape(old)}\2", rf"\g<1>\g<2>{new}\g<2>", text)


def _says(text: str, guest: Guest) -> str:
    """The text, if it says just this guest; otherwise one that does."""
    try:
        if files.parse(text, guest.name, guest.name, own=guest.document) == guest:
            return text
    except StorkitError:
        pass
    return files.dumps(guest)


def _rewrite(coordinator: Coordinator, guest: Guest, volume: Volume, old: str, generation: int) -> None:
    """Write a guest's files with the new name of its volume. `generation`: which it is then, if they were as kept."""
    said = files.texts(coordinator.guests, guest.name)
    text = _record(said.record, guest, volume.uuid, old, volume.name)
    mine = generation if generation and said.generation == generation - 1 else said.generation
    files.write(coordinator.guests, guest.name, Texts(text, said.document, mine), guest.hypervisor)


def rename_guest(coordinator: Coordinator, name: str, new: str) -> Guest:
    """Give a guest another name (GuestActs.rename). Called again after a kill it does what is left."""
    check_name("guest", new)
    here = files.names(coordinator.guests)
    guest = sources.load(coordinator, name)
    views.refuse_unless_stopped(coordinator, guest, "its name stays")
    problems = [*_taken(coordinator, guest, new), *_of_fleets(coordinator, name, guest.uuid)]
    raise_problems([*problems, *_defined(coordinator, guest)])
    text = document.language(guest.hypervisor).renamed(guest.document, new) if guest.document else ""
    wanted = replace(guest, name=new, document=text)
    if coordinator.planning:
        return wanted
    own = files.texts(coordinator.guests, name) if name in here else None
    before = own.generation if own else _generation(coordinator, guest)
    suffix = document.SUFFIXES.get(guest.hypervisor, "")
    record = _with(own.record, "name", name, new) if own else ""
    record = _says(_with(record, "document", name + suffix, new + suffix), wanted)
    said = Texts(record, text, before)

    def check() -> None:
        views.refuse_unless_stopped(coordinator, guest, "its name stays")
        raise_problems(_taken(coordinator, guest, new))

    (generation,) = keeping.keep(coordinator, [(wanted, said)], check)
    if own:
        files.write(coordinator.guests, new, replace(said, generation=generation), wanted.hypervisor)
        files.delete(coordinator.guests, name)
    return wanted


def _generation(coordinator: Coordinator, guest: Guest) -> int:
    found = sources.find(coordinator, guest.name)
    return found[1].generation if found else 0


def _taken(coordinator: Coordinator, guest: Guest, new: str) -> Sequence[StorkitError]:
    """Another guest has the name already; this one has it where a kill came before its old file went."""
    if new not in sources.names(coordinator) or sources.load(coordinator, new).uuid == guest.uuid:
        return []
    return [Conflict(f"guest {new} exists already", f"storkit guest show {new}")]


def _defined(coordinator: Coordinator, guest: Guest) -> list[StorkitError]:
    """Hosts whose hypervisor keeps a guest under its old name."""
    _, states = coordinator.survey.where(guest, [disk.uuid for disk in guest.disks], coordinator.inventory.hosts)
    hint = f"storkit guest release {guest.name}; rename it there, and adopt it again"
    return [Conflict(f"{guest.hypervisor} on {host} keeps guest {guest.name} under that name", hint) for host in states]
