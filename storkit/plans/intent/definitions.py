"""Guests' records: written anew or changed, bound to the UUIDs of their disks, never to a disk that another writes."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Literal
from uuid import uuid4

from storkit.core.errors import Conflict, NotAllowed, StorkitError, UsageError, collected, raise_problems
from storkit.core.guest import Boot, Disk, Guest, Nic, Root
from storkit.core.identities import several
from storkit.core.model import check_name
from storkit.core.units import parse_size
from storkit.guests import document, files, secrets
from storkit.guests.check import check
from storkit.guests.files import Texts
from storkit.plans.intent.coordinator import Coordinator
from storkit.plans.intent.disks import refuse_to_share
from storkit.plans.intent.kept import keeping, sources
from storkit.plans.intent.making import Bytes, in_bytes
from storkit.plans.intent.views import refuse_unless_stopped, tree, uuids
from storkit.plans.lookup import parts

MEMORY = "512MiB"
FLASH: Literal["flash"] = "flash"
_OPTIONS = {"disks": "--disk", "nics": "--bridge"}
"""What the command line calls parts of a guest that it does not call as its record does."""


@dataclass(frozen=True, slots=True)
class GuestWish:
    """What is said of a guest (GuestActs.define). None: nothing; what it has, or its default, stays."""

    memory: Bytes | None = None
    vcpus: int | None = None
    hypervisor: str | None = None
    machine: str | None = None
    console: str | None = None
    kernel: str | None = None
    initrd: str | None = None
    cmdline: str | None = None
    firmware: str | None = None
    nvram: str | None = None
    disks: Sequence[str] | None = None
    bridges: Sequence[str] | None = None
    root: str | None = None
    address: str | None = None
    gateway: str | None = None
    without: Sequence[str] = ()
    agent: bool | None = None
    """A channel for a guest agent. None: a new guest has it."""


def define(coordinator: Coordinator, name: str, wanted: GuestWish, change: bool) -> Guest:
    """Write the record of a new guest; with `change`, what is to be different of one that may be there."""
    problems: list[StorkitError] = []
    memory: int | None = None
    with collected(problems):
        check_name("guest", name)
    with collected(problems):
        memory = None if wanted.memory is None else in_bytes(wanted.memory)
    for names in (wanted.disks or (), wanted.bridges or (), wanted.without):
        with collected(problems):
            several(names)
    raise_problems(problems)
    problems += _contradictions(wanted, change)
    raise_problems(problems)
    here = name in files.names(coordinator.guests)
    if change and not here and sources.find(coordinator, name):
        raise Conflict(f"guest {name} has no files here to be changed", f"storkit guest checkout {name}")
    old = files.load(coordinator.guests, name) if change and here else None
    if old and old.document:
        record = files.path(coordinator.guests, name)
        file = record.with_name(name + document.SUFFIXES[old.hypervisor])
        raise UsageError(
            f"the document of guest {name} says what it is",
            f"change it there: {file}; which volumes its disks are says {record}",
        )
    hypervisor = coordinator.inventory.defaults.hypervisor
    start = old or Guest(name, str(uuid4()), parse_size(MEMORY), hypervisor=hypervisor, agent=True)
    start = _without(start, wanted.without)
    said = {"memory": memory, "vcpus": wanted.vcpus, "hypervisor": wanted.hypervisor, "machine": wanted.machine,
            "console": _absolute(wanted.console), "agent": wanted.agent}  # fmt: skip
    guest = replace(start, **_given(said))
    boot = {"kernel": _absolute(wanted.kernel), "initrd": _absolute(wanted.initrd), "cmdline": wanted.cmdline}
    boot["firmware"] = wanted.firmware
    guest = replace(guest, boot=replace(guest.boot, **_given(boot)), root=_root(coordinator, wanted, guest.root))
    if wanted.disks is not None or wanted.nvram is not None:
        guest = replace(guest, disks=bind(coordinator, _disks(wanted, guest.disks)))
    if wanted.bridges is not None:
        guest = replace(guest, nics=_nics(wanted.bridges, guest.nics))
    return save(coordinator, guest, change)


def import_file(
    coordinator: Coordinator, file: Path, volumes: Mapping[str, str], local: Sequence[str], name: str
) -> Guest:
    """Write a record from a configuration (GuestActs.import_): its own document, in a language that storkit changes
    documents in; or else what can be kept of it in a record."""
    from storkit.guests import parse

    try:
        with file.open(encoding="utf-8", newline="") as opened:
            text = opened.read(document.LARGEST + 1)
    except (OSError, UnicodeDecodeError) as error:
        raise UsageError(f"{file} cannot be read: {error}", "name the configuration file") from None
    kind = parse.sniff(text)
    if kind in document.SUFFIXES and parse.root_of(text, str(file), kind) is None:
        return _import_document(coordinator, kind, text, file, volumes, local, name)
    if local:
        raise UsageError(f"nothing of {file} stays local: no document of {kind}'s is kept", "leave out --local")
    found = parse.parse(text, str(file), name=name, kind=kind)
    guest = found.guest
    disks: list[Disk] = []
    problems: list[StorkitError] = []
    for disk, source in zip(guest.disks, found.sources, strict=True):
        place = source.path or source.export
        if place in volumes:
            disks.append(replace(disk, volume=volumes[place]))
        else:
            hint = f"import it, then: --disk {place}=VOLUME"
            problems.append(UsageError(f"disk {place} has no volume yet", hint))
    root = guest.root
    if root:
        place = f"{root.server}:{root.path}"
        if place in volumes:
            known = tree(coordinator, volumes[place])
            root = replace(root, volume=known.name, uuid=known.uuid, server="", path="")
        else:
            hint = f"storkit volume import --tree {root.path} {root.volume}; then: --disk {place}={root.volume}"
            problems.append(UsageError(f"root {place} has no volume yet", hint))
    raise_problems(problems)
    for warning in found.warnings:
        coordinator.warn(f"{file}: {warning}")
    return save(coordinator, replace(guest, root=root, disks=bind(coordinator, disks)))


def _import_document(
    coordinator: Coordinator,
    kind: str,
    text: str,
    file: Path,
    volumes: Mapping[str, str],
    local: Sequence[str],
    name: str,
) -> Guest:
    """Write the record of a guest that keeps its document."""
    if len(text) > document.LARGEST:
        raise UsageError(f"{file} is too large for a guest's document", "name the configuration file")
    text, passwords = document.apart(kind, text)
    draft = document.read(kind, text, str(file))
    problems: list[StorkitError] = []
    with collected(problems):
        check_name("guest", name or draft.name)
    disks: list[Disk] = []
    kept: list[str] = []
    with collected(problems):
        disks, kept = document.adopted(kind, text, volumes, local, str(file))
    raise_problems(problems)
    if name and name != draft.name:
        text = document.language(kind).renamed(text, name)
    guest = Guest(name or draft.name, draft.uuid.lower() or str(uuid4()), 0, hypervisor=kind, document=text, local=kept)
    guest = document.with_facts(replace(guest, disks=bind(coordinator, disks)))
    raise_problems([*check(guest, str(file)), *document.problems(guest, str(file))])
    for warning in document.warnings(guest):
        coordinator.warn(f"{file}: {warning}")
    if passwords and not coordinator.planning:
        secrets.keep(coordinator.state, guest.uuid, passwords)
        coordinator.warn(f"{file}: its passwords are kept apart: {len(passwords)}")
    return save(coordinator, guest)


def save(coordinator: Coordinator, guest: Guest, change: bool = False) -> Guest:
    """Keep a guest with its first volume and write its files, unless this coordinator only plans; the guest as it is
    written."""
    refuse_to_share(coordinator, guest)
    if coordinator.planning:
        return guest
    there = guest.name in files.names(coordinator.guests)
    before = 0
    if change and there:
        old = files.load(coordinator.guests, guest.name)
        refuse_unless_stopped(coordinator, old, "its description stays as it is")
        guest = replace(guest, uuid=old.uuid)
        before = files.texts(coordinator.guests, guest.name).generation
    write(coordinator, [guest], change, before)
    return guest


def write(coordinator: Coordinator, guests: Sequence[Guest], change: bool = False, before: int = 0) -> None:
    """Keep guests with their first volumes, in one plan, and write their files. `before`: the generation that is
    changed, with `change`."""
    said: list[tuple[Guest, Texts]] = []
    for guest in guests:
        files.check_room(coordinator.guests, guest, change)
        same = files.says(coordinator.guests, guest)
        texts = files.texts(coordinator.guests, guest.name) if same else None
        said.append((guest, texts or Texts(files.dumps(guest), guest.document, before)))
    try:
        generations = keeping.keep(coordinator, said)
    except NotAllowed as error:  # by a key for volumes alone
        coordinator.warn(f"{', '.join(guest.name for guest in guests)}: in {coordinator.guests} alone: {error.message}")
        generations = [0] * len(guests)
    for guest, generation in zip(guests, generations, strict=True):
        files.save(coordinator.guests, guest, change, generation)


def bind(coordinator: Coordinator, disks: list[Disk]) -> list[Disk]:
    """Disks with the UUIDs of their volumes: the record then names the disk itself, whatever its name stands for."""
    if not disks:
        return []
    volumes = coordinator.survey.find_all([disk.volume for disk in disks], uuids(disks))
    by_name = {volume.name: volume for volume in volumes}
    for disk, volume in zip(disks, volumes, strict=True):
        if by_name[volume.name] != volume:
            raise Conflict(
                f"two disks would be named {volume.name}, and a host has one of that name", "clone one of them"
            )
        if volume.kind == "tree":
            raise UsageError(f"volume {volume.name} is a tree, and no disk", f"write --root {volume.name}")
        if volume.kind != "disk" and not disk.readonly:
            raise Conflict(
                f"volume {volume.name} is a golden image or a snapshot: no guest can write it",
                f"storkit volume clone {volume.name} NEW, or --disk {volume.name}:ro",
            )
    pairs = zip(disks, volumes, strict=True)
    return [replace(disk, volume=volume.name, uuid=volume.uuid) for disk, volume in pairs]


def _contradictions(wanted: GuestWish, change: bool) -> list[StorkitError]:
    if wanted.without and not change:
        return [UsageError("--without takes something from a guest that is there", "say --replace, or leave it out")]
    return [
        UsageError(f"{_OPTIONS.get(key, f'--{key}')} and --without {key} contradict each other", "say one of them")
        for key in wanted.without
        if getattr(wanted, "bridges" if key == "nics" else key) is not None
    ]


def _without(guest: Guest, keys: Sequence[str]) -> Guest:
    """The guest less what is not to be there any more."""
    none: dict[str, Any] = {"disks": [], "root": None, "nics": [], "machine": "", "console": "", "agent": False}
    for key in keys:
        if key == "nvram":
            guest = replace(guest, disks=[disk for disk in guest.disks if disk.bus != FLASH])
        elif key in none:
            guest = replace(guest, **{key: none[key]})
        else:
            guest = replace(guest, boot=replace(guest.boot, **{key: getattr(Boot(), key)}))
    return guest


def _disks(wanted: GuestWish, old: list[Disk]) -> list[Disk]:
    """The disks that are said; one that was there keeps its target and its bus. The last is what UEFI's variables are
    in."""
    flash = [disk for disk in old if disk.bus == FLASH]
    others = [disk for disk in old if disk.bus != FLASH]
    if wanted.disks is not None:
        others = [_disk(text, others) for text in wanted.disks]
    if wanted.nvram is not None:
        flash = [replace(_disk(wanted.nvram, flash), bus=FLASH)]
    return [*others, *flash]


def _disk(text: str, old: list[Disk]) -> Disk:
    name, readonly = text.removesuffix(":ro"), text.endswith(":ro")
    # What POOL/NAME says counts, and not the UUID that was there under this name.
    disk = {disk.volume: disk for disk in old}.get(parts(name)[1], Disk(name))
    return replace(disk, volume=name, uuid="" if "/" in name else disk.uuid, readonly=readonly)


def _nics(bridges: Sequence[str], old: list[Nic]) -> list[Nic]:
    """The cards that are said; each keeps the address and the model of the one that was in its place."""
    return [replace(old[n], bridge=bridge) if n < len(old) else Nic(bridge) for n, bridge in enumerate(bridges)]


def _root(coordinator: Coordinator, wanted: GuestWish, old: Root | None) -> Root | None:
    network = _given({"address": wanted.address, "gateway": wanted.gateway})
    if wanted.root is None:
        if network and old is None:
            raise UsageError("--address and --gateway are for a guest whose root is a tree", "name it with --root")
        return replace(old, **network) if old else None
    volume = tree(coordinator, wanted.root)
    if old is None:
        return Root(volume.name, **{"address": "", **network}, uuid=volume.uuid)
    return replace(old, volume=volume.name, uuid=volume.uuid, path="", **network)


def _given(values: dict[str, Any]) -> dict[str, Any]:
    """What was said, also if it was said to be nothing."""
    return {key: value for key, value in values.items() if value is not None}


def _absolute(path: str | None) -> str | None:
    return str(Path(path).absolute()) if path else path
