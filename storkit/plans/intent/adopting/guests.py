"""Guests that a hypervisor has already, with their disks as they are: adopted, each in its own configuration, and given
back."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Literal
from uuid import uuid4

from storkit.core import registry
from storkit.core.backend import Hypervisor
from storkit.core.errors import (
    NOTHING_CHANGED,
    PUT_BACK,
    CommandFailed,
    Conflict,
    NotFound,
    Problems,
    StorkitError,
    Unsupported,
    UsageError,
    collected,
    raise_problems,
)
from storkit.core.guest import Guest
from storkit.core.identities import check_name, several
from storkit.core.inventory import PoolConfig
from storkit.core.model import Adoptable, Existing, Secret, Volume
from storkit.guests import document, files, parse, secrets
from storkit.guests.check import check
from storkit.guests.documents.edits import DocumentDisk
from storkit.guests.draft import path_source
from storkit.plans.guests import adopting
from storkit.plans.guests.adopting import AdoptedDisk, AdoptedGuest
from storkit.plans.intent import disks, views
from storkit.plans.intent.adopting.volumes import Candidate, candidates, choose_all
from storkit.plans.intent.coordinator import Coordinator
from storkit.plans.intent.disks import refuse_to_share
from storkit.plans.intent.kept import keeping, refreshing, sources
from storkit.plans.intent.making import must_be_free, new_volume, pool_of
from storkit.plans.plan import Plan


@dataclass(frozen=True, slots=True)
class AdoptionWish:
    """What is said of guests that are to be adopted (GuestActs.adopt)."""

    host: str = ""
    every: bool = False
    """All that storkit does not know there."""
    disks: Mapping[str, str] = field(default_factory=dict)
    """A disk's target, or its place, to the name that its volume gets."""
    local: Sequence[str] = ()
    """What else they open, of which each host has its own."""
    config: str | Path | None = None
    """The guest's configuration, of a hypervisor that keeps none."""
    process: int = 0
    """The one that runs the guest, where it cannot be found by its name; 0: it can."""


@dataclass(frozen=True, slots=True)
class _Found:
    """A guest as it was found."""

    name: str
    kind: str
    text: str
    where: str
    """What messages call its configuration."""
    secrets: Mapping[str, Secret]
    processes: Sequence[int] = ()
    """Its own, which have its disks open, if it runs."""
    pinned: str = ""
    """Why it could not leave its host before its next stop."""
    uuid: str = ""
    """What one runs with whose configuration need not say it."""


class _NewVolumes:
    """The volumes that a command makes: each has its UUID from the first look on."""

    def __init__(self) -> None:
        self._known: dict[tuple[str, str], Volume] = {}

    def of(self, guest: str, target: str, fresh: Volume) -> Volume:
        known = self._known.setdefault((guest, target), fresh)
        return replace(known, size=fresh.size, pool=fresh.pool, host=fresh.host, name=fresh.name)


def adopt(coordinator: Coordinator, names: Sequence[str], wish: AdoptionWish) -> list[Guest]:
    """Adopt guests with all their disks, in one plan; their records."""
    names = several(names)
    _refuse_contradictions(names, wish)
    where = coordinator.host(wish.host) if wish.host else pool_of(coordinator, "").host
    volumes, guests, apart = _NewVolumes(), list[Guest](), list[str]()
    warnings: list[str] = []

    def build() -> Plan:
        found = _look(coordinator, where, names, wish)
        problems: list[StorkitError] = []
        adopted: list[AdoptedGuest] = []
        known = sources.everybody(coordinator, [], needed=())
        taken = {*files.names(coordinator.guests), *(guest.name for guest in known)}
        looked = _looked(coordinator, found, where, wish)
        for each in found:
            with collected(problems):
                if each.name in taken:
                    raise Conflict(f"guest {each.name} exists already", f"storkit guest show {each.name}")
                adopted.append(_read(coordinator, each, wish, volumes, looked))
        problems += _same(adopted, known)
        problems += _twice(adopted)
        raise_problems(problems)
        if not guests:
            must_be_free(coordinator, [disk.volume.name for each in adopted for disk in each.disks])
        guests[:] = [each.guest for each in adopted]
        warnings[:] = filter(None, map(_warning, adopted, found))
        refuse_to_share(coordinator, *guests)
        if coordinator.planning:
            _warn(coordinator, warnings)
        else:
            for guest, one in zip(guests, found, strict=True):
                secrets.keep(coordinator.state, guest.uuid, one.secrets)
            apart[:] = [guest.uuid for guest, one in zip(guests, found, strict=True) if one.secrets]
        keep = keeping.steps([keeping.first(each.guest, each.first.volume) for each in adopted])
        return adopting.adopt(adopted, where, keep, coordinator.inventory)

    try:
        coordinator.change(build)
    except StorkitError as error:
        if error.left in (NOTHING_CHANGED, PUT_BACK):
            for uuid in apart:
                secrets.forget(coordinator.state, uuid)
        raise
    _warn(coordinator, warnings)
    for guest in guests:
        files.save(coordinator.guests, guest, generation=1)
    return guests


def release(coordinator: Coordinator, name: str) -> Guest:
    """Give a guest that does not run back, with its disks."""
    guest = sources.load(coordinator, name)

    def build() -> Plan:
        views.refuse_unless_stopped(coordinator, guest, "it is not given back")
        what = views.wherever(coordinator, name)
        refreshing.refuse(what, what.edited, "that would be lost")
        problems: list[StorkitError] = [
            Unsupported(
                f"volume {volume.name} of guest {name} was made by storkit, and has no place to go back to",
                f"storkit guest delete {name}; its volumes stay",
            )
            for volume in what.volumes
            if not volume.was
        ]
        if len({volume.host for volume in what.volumes}) > 1:
            message = f"guest {name} has disks of several hosts, and would be given back to one"
            problems.append(Unsupported(message, f"storkit guest delete {name}; its volumes stay"))
        if not what.guest.document:
            problems.append(
                Unsupported(f"guest {name} has no configuration of its own", f"storkit guest delete {name}")
            )
        with collected(problems):
            disks.refuse_to_lose(coordinator, what.volumes, "release", but=[name])
        raise_problems(problems)
        sources.refuse_old(coordinator, guest, what.volumes)
        first = sources.home(guest)
        forget = [
            each
            for volume in what.volumes
            if first and volume.uuid == first.uuid
            for each in keeping.forgetting(coordinator, guest, volume)
        ]
        keeps = registry.hypervisor(guest.hypervisor).keeps
        return adopting.release(what, keeps, forget, coordinator.inventory)

    coordinator.change(build)
    files.delete(coordinator.guests, name)
    secrets.forget(coordinator.state, guest.uuid)
    return guest


def _refuse_contradictions(names: Sequence[str], wish: AdoptionWish) -> None:
    problems: list[StorkitError] = []
    for name in names:
        with collected(problems):
            check_name("guest", name)
    if wish.every and (names or wish.config):
        problems.append(
            UsageError("--all is of all that the host has, and no name or file goes with it", "leave it out")
        )
    if not names and not wish.every and not wish.config:
        problems.append(UsageError("no guest is named", "storkit guest adopt NAME, or --all"))
    if wish.process and (len(names) != 1 or wish.config or wish.every):
        problems.append(UsageError("--pid is the process of one guest that runs", "storkit guest adopt NAME --pid PID"))
    if wish.config and len(names) > 1:
        problems.append(UsageError("a configuration is that of one guest", "name one"))
    if wish.disks and (wish.every or len(names) > 1):
        problems.append(UsageError("--disk names a disk of one guest", "adopt that one by itself"))
    raise_problems(problems)


def _look(coordinator: Coordinator, where: str, names: Sequence[str], wish: AdoptionWish) -> list[_Found]:
    """The guests as their hypervisor keeps them, or as the file says."""
    if wish.config:
        return [_running(coordinator, where, _from_file(Path(wish.config), names))]
    found: list[_Found] = []
    problems: list[StorkitError] = []
    to = coordinator.connections.to(where)
    known = {kind: registry.hypervisor(kind) for kind in registry.names(Hypervisor)}  # type: ignore[type-abstract]
    keeping = sorted(kind for kind, each in known.items() if each.keeps and not wish.process)
    running = sorted(kind for kind, each in known.items() if each.takes_running and not wish.every)
    if wish.every:
        for kind in keeping:
            with collected(problems):
                if strangers := to.hypervisor(f"hypervisor:{kind}").strangers():
                    found += _ask(coordinator, where, kind, strangers)
    else:
        with collected(problems):
            found = _of_names(coordinator, where, names, [*keeping, *running], wish.process)
    raise_problems(problems)
    if not found:
        raise NotFound(f"host {where} has no guest that storkit does not know", "storkit guest list")
    return found


def _of_names(
    coordinator: Coordinator, where: str, names: Sequence[str], kinds: Sequence[str], process: int
) -> list[_Found]:
    """Guests as the first of these hypervisors has them that knows them all; each by itself if none does. Raises what
    the first says of those that none knows."""
    unknown: list[StorkitError] = []
    for kind in kinds:
        try:
            return _ask(coordinator, where, kind, names, process)
        except (NotFound, Unsupported, CommandFailed, Problems) as error:  # it need not be there, or be started
            if not all(isinstance(each, NotFound | Unsupported | CommandFailed) for each in error.each):
                raise
            unknown.append(error)
    if len(names) == 1:  # that a hypervisor is not installed says nothing of its guests
        raise next((each for each in unknown if not isinstance(each, Unsupported)), unknown[0])
    problems: list[StorkitError] = []
    found: list[_Found] = []
    for name in names:
        with collected(problems):
            found += _of_names(coordinator, where, [name], kinds, process)
    raise_problems(problems)
    return found


def _ask(coordinator: Coordinator, where: str, kind: str, names: Sequence[str], process: int = 0) -> list[_Found]:
    """Guests as a hypervisor has them, all at once."""
    hypervisor = coordinator.connections.to(where).hypervisor(f"hypervisor:{kind}")
    wanted = [check_name("guest", name) for name in names]
    found: list[_Found] = []
    for seen in hypervisor.originals(wanted, process):
        place = f"{seen.name} on {where}"
        if not seen.document:
            message = f"{place} runs, and its hypervisor keeps no configuration of it"
            raise Conflict(message, f"name its own: storkit guest adopt {seen.name} --config FILE --on {where}")
        _refuse_large(seen.document, place)
        found.append(_Found(seen.name, kind, seen.document, place, seen.secrets, seen.processes, seen.pinned))
    return found


def _warn(coordinator: Coordinator, warnings: Sequence[str]) -> None:
    for warning in warnings:
        coordinator.warn(warning)


def _warning(adopted: AdoptedGuest, found: _Found) -> str:
    """What storkit does not have in its hands as long as a guest's own process runs."""
    names = ", ".join(disk.volume.name for disk in adopted.disks)
    if adopted.alone:
        why = f"its own process alone may have {names} open until then"
        return f"guest {found.name} cannot move before its next stop: {why}"
    if found.pinned:
        return f"guest {found.name} cannot move before its next stop: {found.pinned}"
    until = "until it has moved or stopped, nothing keeps that process from writing them"
    return f"guest {found.name} goes on with {names} as its process has them open: {until}" if adopted.runs else ""


def _from_file(file: Path, names: Sequence[str]) -> _Found:
    try:
        with file.open(encoding="utf-8", newline="") as opened:
            text = opened.read(document.LARGEST + 1)
    except (OSError, UnicodeDecodeError) as error:
        raise UsageError(f"{file} cannot be read: {error}", "name the configuration file") from None
    _refuse_large(text, str(file))
    kind = parse.sniff(text)
    document.language(kind)
    text, passwords = document.apart(kind, text)
    said = document.read(kind, text, str(file))
    for name in names:
        if name != said.name:
            raise UsageError(f"{file} is the configuration of {said.name!r}, and not of {name!r}", "name the right one")
    return _Found(check_name("guest", said.name), kind, text, str(file), passwords)


def _running(coordinator: Coordinator, where: str, found: _Found) -> _Found:
    """A guest of a file with what its hypervisor says of it, if it runs there with nothing but this file for a
    configuration. Raises what it has otherwise than the file says."""
    if registry.hypervisor(found.kind).tells:
        return found
    try:
        (seen,) = coordinator.connections.to(where).hypervisor(f"hypervisor:{found.kind}").originals([found.name])
    except (NotFound, Unsupported, CommandFailed):
        return found
    problems: list[StorkitError] = []
    said = document.read(found.kind, found.text, found.where).uuid.lower()
    if said not in ("", seen.uuid):
        message = f"{found.name} runs on {where} with UUID {seen.uuid}, and {found.where} says {said}"
        problems.append(Conflict(message, "name the configuration that it was started with"))
    disks = {each.target: each.place for each in document.find_disks(found.kind, found.text) if each.place}
    for target in sorted({*disks, *seen.places}):
        if (here := seen.places.get(target, "nothing")) != (there := disks.get(target, "nothing")):
            message = f"{found.name} runs on {where} with {here} as {target}, and {found.where} says {there}"
            problems.append(Conflict(message, "name the configuration that it was started with, or change it"))
    raise_problems(problems)
    return replace(found, processes=seen.processes, pinned=seen.pinned, uuid=seen.uuid)


def _refuse_large(text: str, where: str) -> None:
    if len(text) > document.LARGEST:
        raise UsageError(f"{where} is too large for a guest's document", "make it shorter")


def _existing(found: _Found, wish: AdoptionWish) -> dict[str, tuple[DocumentDisk, Existing]]:
    """The disks of a guest that are to become volumes, by their targets; its UEFI variables, which are raw, are one."""
    disks: dict[str, tuple[DocumentDisk, Existing]] = {}
    for each in document.find_disks(found.kind, found.text):
        variables = each.kind == "nvram" and each.place.startswith("/")
        source = path_source(each.place, "raw") if variables else each.source
        if each.mapped and source and source.path and not {each.target, each.place} & set(wish.local):
            processes = list(found.processes)
            disks[each.target] = each, Existing(source.path, source.format, in_guest=True, processes=processes)
    return disks


def _looked(coordinator: Coordinator, found: Sequence[_Found], where: str, wish: AdoptionWish) -> dict[str, Candidate]:
    """What the pools of the host say of all disks of these guests, by their places."""
    wanted: list[Existing] = []
    for each in found:
        with suppress(StorkitError):  # which is said of the guest by itself
            wanted += [existing for _, existing in _existing(each, wish).values()]
    return choose_all(coordinator, wanted, candidates(coordinator, where, ""))


def _read(
    coordinator: Coordinator, found: _Found, wish: AdoptionWish, volumes: _NewVolumes, looked: Mapping[str, Candidate]
) -> AdoptedGuest:
    """A guest with its disks, each at the pool that takes it. Raises all that speaks against it."""
    said = document.read(found.kind, found.text, found.where)
    disks = _existing(found, wish)
    places = {target: each for target, (each, _) in disks.items()}
    names = {target: _name(found.name, target, each.place, len(places), wish) for target, each in places.items()}
    problems: list[StorkitError] = []
    kept: list[str] = []
    order: list[str] = []
    with collected(problems):
        bound, kept = document.adopted(found.kind, found.text, names, wish.local, found.where)
        order = [disk.target for disk in bound]
    made: list[AdoptedDisk] = []
    alone = False
    for target in order or places:
        existing = disks[target][1]
        with collected(problems):
            check_name("volume", names[target])
            config, seen = looked[existing.place].chosen()
            if found.processes and not _beside(coordinator, config, found, target, seen):
                alone = True
            volume = volumes.of(found.name, target, new_volume(config, names[target], seen.size))
            made.append(AdoptedDisk(volume, existing, places[target].readonly))
    raise_problems(problems)
    uuids = {disk.volume.name: disk.volume.uuid for disk in made}
    records = [replace(disk, uuid=uuids[disk.volume]) for disk in bound]
    uuid = found.uuid or said.uuid.lower() or str(uuid4())
    guest = Guest(found.name, uuid, 0, hypervisor=found.kind, document=found.text, local=kept, disks=records)
    guest = document.with_facts(guest)
    problems += [*check(guest, found.where), *document.problems(guest, found.where)]
    if all(disk.readonly for disk in made):
        hint = "storkit guest import its configuration, each disk as a volume: --disk TARGET=VOLUME"
        problems.append(Unsupported(f"guest {found.name} has no disk that it writes", hint))
    raise_problems(problems)
    return AdoptedGuest(guest, made, bool(found.processes), alone)


def _beside(coordinator: Coordinator, config: PoolConfig, found: _Found, target: str, seen: Adoptable) -> bool:
    """Whether a disk can be served as long as its guest's own process has it open. Raises Conflict: it cannot, and the
    guest's hypervisor keeps a definition that would be wrong until then."""
    transport = coordinator.inventory.transport(config.name).partition(":")[2]
    kind: Literal["device", "file"] = "device" if registry.pool(config.type).devices else "file"
    if seen.format == "raw" and kind in registry.transport(transport).beside:
        return True
    if not registry.hypervisor(found.kind).keeps:
        return False
    what = f"{transport} cannot serve it beside that" if seen.format == "raw" else f"its format is {seen.format}"
    message = f"guest {found.name} runs, its own process has its disk {target} open, and {what}"
    raise Conflict(message, f"virsh shutdown {found.name}, then again")


def _same(adopted: Sequence[AdoptedGuest], known: Sequence[Guest]) -> list[StorkitError]:
    """A Conflict for each that has the UUID of a guest of storkit's."""
    uuids = {guest.uuid: guest.name for guest in known}
    return [
        Conflict(f"guest {guest.name} has the UUID of guest {other}, {guest.uuid}", f"storkit guest show {other}")
        for guest in (each.guest for each in adopted)
        if (other := uuids.get(guest.uuid))
    ]


def _name(guest: str, target: str, place: str, count: int, wish: AdoptionWish) -> str:
    """What a disk's volume is called."""
    wanted = wish.disks.get(target) or wish.disks.get(place)
    return wanted or (guest if count == 1 else f"{guest}-{target}")


def _twice(adopted: Sequence[AdoptedGuest]) -> list[StorkitError]:
    """What two of the guests would both have."""
    seen: dict[str, str] = {}
    problems: list[StorkitError] = []
    for each in adopted:
        for disk in each.disks:
            for key, what in ((disk.existing.place, "disk"), (disk.volume.name, "name of a volume")):
                if seen.setdefault(f"{what} {key}", each.guest.name) != each.guest.name:
                    message = f"guests {seen[f'{what} {key}']} and {each.guest.name} both have the {what} {key}"
                    problems.append(Conflict(message, "adopt one of them"))
    return problems
