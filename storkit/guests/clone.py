"""A new guest from an existing one: new name, UUID, MAC addresses and volumes, and what `--set KEY=VALUE` says."""

from __future__ import annotations

import dataclasses
import re
import types
import typing
from collections.abc import Mapping, Sequence
from pathlib import PurePosixPath
from typing import Any
from uuid import uuid4

from storkit.core import codec
from storkit.core.errors import Conflict, StorkitError, UsageError, raise_problems
from storkit.core.guest import Disk, Guest, Root
from storkit.core.model import check_name
from storkit.guests import document, files
from storkit.guests.files import from_data

_MAC = re.compile(r"(?<![0-9A-Fa-f:])(?:[0-9A-Fa-f]{2}:){5}[0-9A-Fa-f]{2}(?![0-9A-Fa-f:])")


def clone(guest: Guest, name: str, overrides: Sequence[str] = (), volumes: Mapping[str, str] | None = None) -> Guest:
    """`guest` under a new name.

    Its writable disks are on the volumes that `volumes` names for the old ones (by default `volume_names`); read-only
    disks stay shared. MAC addresses are derived from the new UUID. `overrides` are `KEY=VALUE` with dotted keys:
    `memory=512MiB`, `boot.cmdline=quiet`, `disks.0.volume=NAME`, `nics.1.bridge=br1` (one past the end adds one).

    Raises UsageError or Problems: everything that is wrong with the overrides and with what comes of them.
    """
    if check_name("guest", name) == guest.name:
        raise UsageError(f"the clone of {name!r} cannot have its name", "name it otherwise")
    renamed = volume_names(guest, name) if volumes is None else dict(volumes)
    disks = [_moved(disk, renamed.get(disk.volume, disk.volume)) for disk in guest.disks]
    uuid = str(uuid4())
    new = dataclasses.replace(
        guest,
        name=name,
        uuid=uuid,
        document=document.cloned(guest, name, uuid) if guest.document else "",
        root=_root(guest, renamed),
        disks=disks,
        nics=[dataclasses.replace(nic, mac="") for nic in guest.nics],
        console=_console(guest, name),
    )
    data = codec.dump(new)
    problems: list[StorkitError] = []
    for override in overrides:
        if guest.document and not override.startswith("disks."):
            hint = f"change it in the clone's document, {name}{document.SUFFIXES[guest.hypervisor]}, once it is there"
            problems.append(UsageError(f"{override!r}: the document of {guest.name} says it", hint))
            continue
        _override(data, override, problems)
    for number, disk in enumerate(data["disks"]):
        if number < len(disks) and disk["volume"] != disks[number].volume:
            disk["uuid"] = ""
    result = from_data(data, "the clone", problems)
    if result and result.root and guest.root:
        problems += _root_problems(result.root, guest)
    shared = {disk.volume for disk in guest.disks}
    for number, made in enumerate(result.disks if result else []):
        if made.volume in shared and not made.readonly:
            problems.append(
                UsageError(
                    f"the clone: disks[{number}].volume: {made.volume!r} is {guest.name}'s own, which both would write",
                    f"name another: --set disks.{number}.volume=NAME",
                )
            )
    raise_problems(problems)
    assert result is not None
    return result


def met(guests: Sequence[Guest], others: Sequence[Guest]) -> list[StorkitError]:
    """UUIDs and MAC addresses that new guests would have in common with each other, or with `others`."""
    owners: dict[str, str] = {}
    for other in others:
        for identity in _identities(other):
            owners.setdefault(identity, other.name)
    found: list[StorkitError] = []
    for guest in guests:
        for identity in sorted(_identities(guest)):
            if owners.setdefault(identity, guest.name) != guest.name:
                message = f"guest {guest.name} would have {identity}, as {owners[identity]} has"
                found.append(Conflict(message, "give it another: storkit guest show; then clone again"))
    return found


def differences(original: Guest, made: Guest) -> str:
    """What a clone has that its original has not, and the other way round, line by line."""
    import difflib

    before, after = ((each.document or files.dumps(each)).splitlines() for each in (original, made))
    lines = difflib.unified_diff(before, after, original.name, made.name, "", "", 0, "")
    return "\n".join(line for line in lines if not line.startswith("@@"))


def _identities(guest: Guest) -> set[str]:
    own = {guest.mac(number).lower() for number in range(len(guest.nics))} if not guest.document else set()
    return {guest.uuid, *own, *(mac.lower() for mac in _MAC.findall(guest.document))}


def volume_names(guest: Guest, name: str) -> dict[str, str]:
    """What the clones of the guest's writable volumes are called: `web-data` of guest `web` becomes `NAME-data`."""
    written = [disk.volume for disk in guest.disks if not disk.readonly]
    return {
        volume: name + volume.removeprefix(guest.name)
        if volume == guest.name or volume.startswith((f"{guest.name}-", f"{guest.name}.", f"{guest.name}_"))
        else f"{name}-{volume}"
        for volume in [*([guest.root.volume] if guest.root else []), *written]
    }


def _root(guest: Guest, renamed: Mapping[str, str]) -> Root | None:
    if guest.root is None or guest.root.volume not in renamed:
        return guest.root
    return dataclasses.replace(guest.root, volume=renamed[guest.root.volume], uuid="")


def _root_problems(root: Root, guest: Guest) -> list[StorkitError]:
    """What of its root a clone cannot have in common with the guest that it is of."""
    assert guest.root is not None
    problems: list[StorkitError] = []
    for key, same in (("volume", root.volume == guest.root.volume), ("address", root.host == guest.root.host)):
        if same:
            message = f"the clone: root.{key}: {getattr(root, key)!r} is {guest.name}'s own"
            problems.append(UsageError(message, f"name another: --set root.{key}=..."))
    return problems


def _moved(disk: Disk, volume: str) -> Disk:
    return disk if disk.volume == volume else dataclasses.replace(disk, volume=volume, uuid="")


def _console(guest: Guest, name: str) -> str:
    """A console file of its own: two guests would write over each other's."""
    if not guest.console:
        return ""
    path = PurePosixPath(guest.console)
    file = path.name.replace(guest.name, name) if guest.name in path.name else f"{name}-{path.name}"
    return str(path.with_name(file))


def _override(data: dict[str, Any], override: str, problems: list[StorkitError]) -> None:
    """Put one KEY=VALUE into `data`, the plain form of a Guest, or add to `problems`."""
    key, equals, text = override.partition("=")
    if not equals or not key:
        problems.append(UsageError(f"{override!r} sets nothing", "write KEY=VALUE, as memory=512MiB"))
        return
    if key in ("name", "uuid"):
        problems.append(UsageError(f"{key} cannot be set: a clone has its own", "leave it out"))
        return
    hint: Any = Guest
    step: Any
    place: Any = data
    parts = key.split(".")
    for number, part in enumerate(parts):
        last = number == len(parts) - 1
        if typing.get_origin(hint) is types.UnionType:
            hint = typing.get_args(hint)[0]
        if dataclasses.is_dataclass(hint):
            hints = typing.get_type_hints(hint)
            if part not in hints:
                known = ", ".join(sorted(hints.keys() - {"name", "uuid"}))
                problems.append(UsageError(f"{override!r}: there is no {part!r}", f"known here: {known}"))
                return
            hint, step = hints[part], part
        elif typing.get_origin(hint) is list:
            if not part.isdecimal() or int(part) > len(place):
                problems.append(
                    UsageError(f"{override!r}: {part!r} is no index", f"count from 0; {len(place)} adds one at the end")
                )
                return
            hint, step = typing.get_args(hint)[0], int(part)
            if step == len(place):
                place.append({} if dataclasses.is_dataclass(hint) else "")
        else:
            problems.append(UsageError(f"{override!r}: {'.'.join(parts[:number])} has no parts"))
            return
        if not last:
            place[step] = {} if place[step] is None else place[step]
            place = place[step]
            continue
        try:
            place[step] = _value(hint, key, text)
        except StorkitError as error:
            problems.append(type(error)(f"{override!r}: {error.message}", error.hint))


def _value(hint: Any, key: str, text: str) -> Any:
    """What a text means for a field of type `hint`; memory stays a text, which is read with the file's other sizes."""
    if key == "memory":
        return text
    if hint is int:
        if not text.isdecimal():
            raise UsageError("a whole number is wanted")
        return int(text)
    if hint is bool:
        if text not in ("true", "false"):
            raise UsageError("true or false is wanted")
        return text == "true"
    if dataclasses.is_dataclass(hint) or typing.get_origin(hint) is list:
        raise UsageError("it has parts, which are set one by one", f"write {key}.PART=VALUE")
    return text
