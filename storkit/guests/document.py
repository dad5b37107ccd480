"""A guest's own document: the configuration that its administrator wrote, in its hypervisor's language.

It is the truth. Rendered for its own hypervisor it has the disks where they are now, and is the same in every other
byte: comments, order, and words that storkit does not know. What of it storkit has to know (memory, processors, the
kernel, which disks) is read from it each time.

Nothing that it opens is overlooked: each disk is a volume of the record, by its target, and whatever else of the host's
it opens is named in the record as local, or the guest is refused.
"""

from __future__ import annotations

import itertools
import re
from collections.abc import Mapping, Sequence
from dataclasses import replace
from types import ModuleType
from typing import Any

from storkit.core.errors import StorkitError, Unsupported, UsageError, raise_problems
from storkit.core.guest import Disk, Guest, derived_mac, derived_serial
from storkit.core.model import DiskSource, Secret
from storkit.guests.documents.edits import CloneIdentity, DocumentDisk, Edit, Password, edited
from storkit.guests.draft import MOST_DISKS, GuestDraft
from storkit.guests.parse import draft
from storkit.guests.place import Place

SUFFIXES = {"libvirt": ".xml", "xl": ".cfg", "qemu": ".sh"}
"""The languages that storkit changes documents in, by hypervisor, to the names of their files."""
_PLACEHOLDER = re.compile(r"storkit-secret-\d{1,6}")
"""What stands in the place of a password."""
LARGEST = 1 << 20
"""Characters."""
_TARGET = re.compile(r"(?:vd|xvd|sd|hd)[a-z]{1,2}")
_IMAGES = ("disk", "cdrom", "floppy", "nvram", "firmware")
"""Kinds of what a QEMU command opens that are files of images."""
FACTS = ("memory", "vcpus", "machine", "cpu", "boot", "nics", "console")
"""What a record has from the document."""
_HARMLESS = (
    "devices/emulator", "devices/controller", "devices/input", "devices/memballoon", "devices/video", "devices/audio",
    "devices/graphics", "devices/console", "devices/serial", "devices/rng", "devices/watchdog", "currentMemory",
    "metadata", "resource", "uuid", "title", "description", "seclabel", "clock", "pm", "features/", "cpu/", "on_",
)  # fmt: skip
"""What a guest of another hypervisor can do without."""
_KNOWN = "no format was given, raw is taken"
"""The volume has its own."""


def language(hypervisor: str) -> ModuleType:
    """What changes documents of a hypervisor's. Raises Unsupported."""
    if hypervisor == "libvirt":
        from storkit.guests.documents import libvirt

        return libvirt
    if hypervisor == "xl":
        from storkit.guests.documents import xl

        return xl
    if hypervisor == "qemu":
        from storkit.guests.documents import qemu

        return qemu
    raise Unsupported(f"guests of {hypervisor} have no document of their own", f"known: {', '.join(SUFFIXES)}")


def read(hypervisor: str, text: str, where: str = "") -> GuestDraft:
    """What a document says of its guest. Raises UsageError: it cannot be read; `where` is named then."""
    return draft(hypervisor, text, where or f"the {hypervisor} configuration")


def facts(hypervisor: str, text: str) -> dict[str, Any]:
    """The values of FACTS that a document has. Raises UsageError: it cannot be read."""
    language(hypervisor)
    found = read(hypervisor, text)
    return {name: getattr(found, name) for name in FACTS}


def find_disks(hypervisor: str, text: str) -> list[DocumentDisk]:
    """Everything that a document has opened for its guest."""
    read(hypervisor, text)  # of which there is an end
    found: list[DocumentDisk] = language(hypervisor).find_disks(text)
    if len(found) > MOST_DISKS:
        raise UsageError(f"the document opens more than {MOST_DISKS} things", "check what the file is")
    return found


def problems(guest: Guest, where: str = "") -> list[StorkitError]:
    """What is wrong with a guest that has a document: what it opens, and the record does not name."""
    try:
        disks = find_disks(guest.hypervisor, guest.document)
        said = read(guest.hypervisor, guest.document)
    except StorkitError as error:
        return [_placed(each, where) for each in error.each]
    volumes = {disk.target for disk in guest.disks}
    found = [*_names(guest, said), *_secrets(guest), *_twice(disks), *_unnamed(guest, disks, volumes)]
    return [_placed(each, where) for each in found]


def apart(hypervisor: str, text: str) -> tuple[str, dict[str, Secret]]:
    """A document with names in the place of its passwords, and these by their names. Raises those of which it would be
    seen who gives them to a process."""
    found: list[Password] = language(hypervisor).secrets(text)
    raise_problems([_open_secret(each) for each in found if each.edits is None])
    secrets: dict[str, Secret] = {}
    edits: list[Edit] = []
    taken = {each.value for each in found}
    names = (f"storkit-secret-{number}" for number in itertools.count(1))
    for each in found:
        if each.edits is None or _PLACEHOLDER.fullmatch(each.value):
            continue
        name = next(name for name in names if name not in taken)
        secrets[name] = Secret(each.value)
        edits += each.edits(name)
    return edited(text, edits), secrets


def needed(guest: Guest) -> list[str]:
    """The names of the passwords that a guest's document has kept elsewhere."""
    if not guest.document:
        return []
    found = language(guest.hypervisor).secrets(guest.document)
    return [each.value for each in found if _PLACEHOLDER.fullmatch(each.value)]


def with_secrets(hypervisor: str, text: str, secrets: Mapping[str, Secret]) -> str:
    """A document with its passwords in the place of their names: for a 0600 file, and nothing else."""
    found: list[Password] = language(hypervisor).secrets(text) if secrets else []
    known = [(each.edits, secrets[each.value]) for each in found if each.edits and each.value in secrets]
    return edited(text, [edit for edits, value in known for edit in edits(value.reveal())])


def stays(guest: Guest) -> list[StorkitError]:
    """What of a guest would stay behind if it moved, and it could not do without: the keys that its TPM holds."""
    found = find_disks(guest.hypervisor, guest.document) if guest.document else []
    return [
        Unsupported(f"{guest.name} has a TPM, whose state stays on its host (line {disk.line} of its document)",
                    "take the TPM out of the document and start the guest again, once nothing is sealed by it")
        for disk in found
        if disk.target == "tpm" or disk.kind == "vtpm"
    ]  # fmt: skip


def warnings(guest: Guest) -> list[str]:
    """What its administrator should know of a document that is kept."""
    if guest.hypervisor != "qemu":
        return []
    from storkit.guests.documents import launch

    return launch.warnings(guest.document)


def with_facts(guest: Guest) -> Guest:
    """A guest of whose record what the document says is what it says. Raises UsageError."""
    readonly = {disk.target: disk.readonly for disk in find_disks(guest.hypervisor, guest.document)}
    disks = [replace(disk, readonly=readonly.get(disk.target, disk.readonly)) for disk in guest.disks]
    return replace(guest, **facts(guest.hypervisor, guest.document), disks=disks)


def render(guest: Guest, sources: Sequence[DiskSource], place: Place) -> str:
    """The guest's document with its disks at `sources`, in the order of its disks; of QEMU's, for a host, the arguments
    that it starts with there, one a line."""
    raise_problems(problems(guest))
    kind = language(guest.hypervisor)
    pairs = {disk.target: source for disk, source in zip(guest.disks, sources, strict=True)}
    text: str = kind.with_sources(guest.document, pairs)
    if not place.machine:
        return text
    if guest.hypervisor == "qemu":
        from storkit.guests.documents import launch

        return "\n".join([*launch.arguments(text, guest, place), ""])
    # For a host, where the guest runs with what was chosen for it: another host must choose the same.
    text = kind.with_uuid(text, guest.uuid)
    return kind.with_machine(text, place.machine) if guest.hypervisor == "libvirt" else text


def refreshed(guest: Guest, before: str, text: str) -> str:
    """The guest's document as its hypervisor's own tools have changed it (`text`), with its disks where it has them.
    `before`: what the hypervisor had made of the document. Raises UsageError: its disks were changed."""
    targets = [disk.target for disk in guest.disks]
    return str(language(guest.hypervisor).with_disks_of(text, before, guest.document, targets))


def cloned(guest: Guest, name: str, uuid: str) -> str:
    """The guest's document for a clone of this name and UUID. Raises Unsupported: what two guests cannot have both."""
    own = CloneIdentity(
        name,
        uuid,
        lambda number: derived_mac(uuid, number),
        lambda number: derived_serial(uuid, number),
        guest.name,
        frozenset(disk.target for disk in guest.disks),
    )
    text: str = language(guest.hypervisor).cloned(guest.document, own)
    return text


def lost(guest: Guest, hypervisor: str) -> list[StorkitError]:
    """What the document says and a configuration for another hypervisor could not."""
    found = read(guest.hypervisor, guest.document)
    warned = [each for each in found.warnings if not (each.startswith(_HARMLESS) or each.endswith(_KNOWN))]
    said = [*warned, *(each.message for each in found.refused)]
    firmware = [
        disk.target for disk in find_disks(guest.hypervisor, guest.document) if disk.kind == "nvram" and disk.mapped
    ]
    return [
        Unsupported(f"{hypervisor} cannot be told what the document of {guest.name} says: {each}",
                    f"take it out of the document, or render it for {guest.hypervisor}")
        for each in [*said, *firmware]
    ]  # fmt: skip


def on_its_buses(guest: Guest) -> Guest:
    """The guest's record for the templates of another hypervisor: its disks have the buses that the document has them
    on, and names that others know."""
    said = read(guest.hypervisor, guest.document)
    by_place = {source.path or source.export: disk.bus for disk, source in said.disks if guest.hypervisor != "xl"}
    places = {disk.target: disk.place for disk in find_disks(guest.hypervisor, guest.document)}
    return replace(guest, disks=[
        replace(disk, bus=by_place.get(places[disk.target], disk.bus),
                target=disk.target if _TARGET.fullmatch(disk.target) else "")
        for disk in guest.disks
    ])  # fmt: skip


def adopted(
    hypervisor: str, text: str, volumes: Mapping[str, str], local: Sequence[str], where: str
) -> tuple[list[Disk], list[str]]:
    """The disks of a document's guest, and the names of what stays local.

    `volumes`: a disk's target, or its place as the document has it, to the volume that it is now. Raises every disk
    that is neither that nor `local`.
    """
    disks: list[Disk] = []
    names: list[str] = []
    wrong: list[StorkitError] = []
    left, kept = set(volumes), set(local)
    for found in find_disks(hypervisor, text):
        names_of_it = (found.target, found.place, found.place.partition(":")[2])
        key = next((each for each in names_of_it if each in volumes), "")
        if key and found.mapped:
            left.discard(key)
            disks.append(Disk(volumes[key], found.target, readonly=found.readonly))
        elif {found.target, found.place} & kept:
            kept -= {found.target, found.place}
            names.append(found.target)
        elif found.place or found.mapped:
            wrong.append(_placed(_outside(found), where))
    wrong += [
        UsageError(f"{where}: it has no disk {each}", "name a disk by its target") for each in sorted(left | kept)
    ]
    raise_problems(wrong)
    return disks, names


def _outside(disk: DocumentDisk) -> UsageError:
    mapped = f"storkit volume import it, then: --disk {disk.target}=VOLUME; or, " if disk.mapped else ""
    word = {"disk": "", "nvram": "UEFI variables ", "cdrom": "cdrom ", "floppy": "floppy "}.get(
        disk.kind, f"{disk.kind} "
    )
    message = f"line {disk.line}: {word or 'disk '}{disk.target} ({disk.place or 'no place'}) is no volume"
    return UsageError(message, f"{mapped}if each host has its own: --local '{disk.target}'")


def _unnamed(guest: Guest, disks: list[DocumentDisk], volumes: set[str]) -> list[StorkitError]:
    targets = {disk.target for disk in disks}
    found: list[StorkitError] = [
        _outside(disk)
        for disk in disks
        if (disk.place or disk.mapped)
        and disk.target not in guest.local
        and (disk.target not in volumes or not disk.mapped)
    ]
    found += [
        UsageError(
            f"line {disk.line}: {disk.target} ({disk.place}) is no full path: it depends on where QEMU is started",
            "write a full path, as /srv/cd.iso",
        )
        for disk in disks
        if guest.hypervisor == "qemu" and disk.target in guest.local and disk.kind in _IMAGES
        if not re.match(r"/|[a-z0-9+-]+:", disk.place)
    ]
    return found + [
        UsageError(
            f"the document has no disk {disk.target or disk.volume}", f"targets there: {', '.join(sorted(targets))}"
        )
        for disk in guest.disks
        if disk.target not in targets
    ]


def _names(guest: Guest, said: GuestDraft) -> list[StorkitError]:
    if not said.name and guest.hypervisor != "qemu":  # QEMU can do without
        return [UsageError("the document names no guest", "write its name into it")]
    return [
        UsageError(f"the document's {what} is {value!r}, and the record's {own!r}", "make them the same")
        for what, value, own in (("name", said.name, guest.name), ("uuid", said.uuid.lower(), guest.uuid))
        if value and value != own
    ]


def _secrets(guest: Guest) -> list[StorkitError]:
    """A document is kept where others may read it, and printed."""
    return [
        _open_secret(each)
        for each in language(guest.hypervisor).secrets(guest.document)
        if not _PLACEHOLDER.fullmatch(each.value)
    ]


def _open_secret(found: Password) -> UsageError:
    hint = "storkit guest import it, which keeps it apart" if found.edits else "take it out, and set it in the guest"
    return UsageError(f"line {found.line}: a password stands in the document", hint)


def _twice(disks: list[DocumentDisk]) -> list[StorkitError]:
    seen: set[str] = set()
    found: list[StorkitError] = []
    for disk in disks:
        if disk.target in seen:
            found.append(UsageError(f"line {disk.line}: a second disk {disk.target}", "give each its own target"))
        seen.add(disk.target)
    return found


def _placed(error: StorkitError, where: str) -> StorkitError:
    return type(error)(f"{where}: {error.message}" if where else error.message, error.hint)
