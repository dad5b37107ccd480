"""Changes in a QEMU command, as people write it: each disk gets another source, and each other byte stays.

What the hypervisor adds to start it (its monitor, how it waits for a migration) never stands in the document.
"""

from __future__ import annotations

import re
import shlex
from collections.abc import Iterator, Mapping
from uuid import UUID, uuid5

from storkit.core.errors import StorkitError, UsageError, raise_problems
from storkit.core.model import DiskSource
from storkit.guests.check import text_problem
from storkit.guests.command import Pair, command, pairs
from storkit.guests.documents import blocks
from storkit.guests.documents.edits import (
    CloneIdentity,
    DocumentDisk,
    Edit,
    Password,
    edited,
    missing,
    not_twice,
    numbered,
)
from storkit.guests.documents.launch import lent
from storkit.guests.documents.openers import opened
from storkit.guests.documents.options import Key, read, secret
from storkit.guests.documents.shell import Word

_DESCRIPTOR = re.compile(r"(?:^|,)(?:vhost)?fds?=|[\"'](?:vhost)?fds?[\"']\s*:")
_FILES = ("-kernel", "-initrd", "-dtb", "-bios", "-option-rom")
_CARDS = {"-device": "driver", "-nic": "type", "-net": "type"}
_PORTS = ("-serial", "-parallel", "-monitor", "-qmp", "-qmp-pretty", "-debugcon", "-virtioconsole")
_NETS = ("-netdev", "-nic", "-net", "-chardev")


def find_disks(text: str) -> list[DocumentDisk]:
    """Everything that the command opens for the guest. Raises UsageError: it cannot be read, or not be started."""
    found = pairs(command(text).arguments)
    gone = {pair.word.start for pair in lent(found)}
    kept = [pair for pair in found if pair.word.start not in gone]
    raise_problems([problem for pair in kept for problem in _problems(pair)])
    others = [disk for pair in kept for disk in opened(pair)]
    disks = [block.disk for block in blocks.find(found)]
    variables = [disk for disk in disks if disk.kind == "nvram"]
    return [*(disk for disk in disks if disk.kind != "nvram"), *numbered(others), *variables]


def with_sources(text: str, sources: Mapping[str, DiskSource]) -> str:
    """The command with these sources in the place of those of its disks, by their targets."""
    edits: list[Edit] = []
    left = set(sources)
    changes: dict[int, tuple[Word, list[Edit]]] = {}
    for number, block in enumerate(blocks.find(pairs(command(text).arguments))):
        target = block.disk.target
        if target not in sources:
            continue
        left.discard(target)
        if block.argument is None:
            edits += _as_drive(block, sources[target], number)
        else:
            for pair, edit in blocks.changes(block, sources[target], number):
                assert pair.value
                changes.setdefault(pair.value.start, (pair.value, []))[1].append(edit)
        credentials = blocks.credentials(sources[target], number)
        if credentials:
            edits.append(
                Edit(block.pair.word.start, block.pair.word.start, _words(block.pair.word, "-object", credentials))
            )
    if left:
        raise missing(left)
    return edited(text, [*edits, *(edit for word, changed in changes.values() for edit in word.edits(changed))])


def secrets(text: str) -> list[Password]:
    """The passwords that stand in the command."""
    return [found for pair in pairs(command(text).arguments) if (found := _password(pair))]


def _password(pair: Pair) -> Password | None:
    word, found = pair.value, secret(pair.text)
    if word is None or found is None:
        return None
    argument, key = found
    if pair.option not in ("-object", "-spice", "-iscsi"):
        return Password(pair.line, key.value)
    return Password(pair.line, key.value, lambda new: word.edits([argument.with_value(key, new)]))


def renamed(text: str, name: str) -> str:
    """The command for a guest of this name."""
    return edited(text, [edit for pair in _named(text, "-name") for edit in _with(pair, "guest", name)])


def with_uuid(text: str, uuid: str) -> str:
    """The command as it is: the hypervisor says the UUID where the command does not."""
    return text


def cloned(text: str, own: CloneIdentity) -> str:
    """The command for a guest that is another one. Raises what two guests cannot have both."""
    edits: list[Edit] = []
    problems: list[StorkitError] = []
    cards = serials = 0
    for pair in pairs(command(text).arguments):
        if pair.value is None:
            problems += _alone(pair)
        elif pair.option == "-uuid":
            edits += pair.value.edits([Edit(0, len(pair.text), own.uuid)])
        elif pair.option in ("-name", "-smbios"):
            key, value = ("guest", own.name) if pair.option == "-name" else ("uuid", own.uuid)
            edits += _with(pair, key, value)
        elif pair.option in _CARDS:
            argument = read(pair.text, _CARDS[pair.option])
            card = next((key for key in ("mac", "macaddr") if argument.part(key)), "")
            if card:
                edits += _with(pair, card, own.mac(cards), _CARDS[pair.option])
                cards += 1
            elif argument.get("driver").startswith("vmgenid") and argument.get("guid") not in ("", "auto"):
                edits += _with(pair, "guid", str(uuid5(UUID(own.uuid), "genid")), "driver")
            elif argument.part("serial") and "drive" in argument.below(""):
                edits += _with(pair, "serial", own.serial(serials), "driver")
                serials += 1
            problems += _alone(pair)
        elif file := _written_by_qemu(pair):
            edits += pair.value.edits([Edit(*file, own.path(pair.text[slice(*file)]))])
        else:
            problems += _alone(pair)
    raise_problems(problems)
    return edited(text, edits)


def _written_by_qemu(pair: Pair) -> tuple[int, int] | None:
    """Where in an argument a file stands, or a socket, that QEMU makes for the guest's port or for a monitor."""
    if pair.option in _PORTS:
        match = re.match(r"(?:file|unix):(/[^,]+)(?=(.*))", pair.text)
        serves = match and (pair.text[0] == "f" or re.search(r",server(?:=on|,|$)", match[2]))
        return match.span(1) if match and serves else None
    if pair.option == "-chardev":
        argument = read(pair.text, "backend")
        path = argument.part("path")
        makes = argument.get("backend") == "file" or argument.get("server") == "on"
        return (path.start, path.end) if path and makes and "," not in path.value and not argument.json else None
    return None


def _problems(pair: Pair) -> Iterator[StorkitError]:
    """What keeps a command from being started, or a guest from being moved."""
    line = f"line {pair.line}: "
    if pair.value is not None and (not pair.text or text_problem(pair.text)):
        why = text_problem(pair.text) or "it is empty"
        yield UsageError(f"{line}{pair.option} {pair.text!r} cannot be passed on: {why}", "leave it out")
    elif pair.option in ("-snapshot", "-loadvm"):
        yield UsageError(f"{line}{pair.option}: its disks would not be those that its volumes have", "leave it out")
    elif pair.option in ("-readconfig", "-set"):
        yield UsageError(f"{line}{pair.option} {pair.text}: it may open what is not seen here", "write it as options")
    elif pair.option == "-add-fd" or (pair.option in _NETS and _DESCRIPTOR.search(pair.text)):
        yield UsageError(f"{line}{pair.option} {pair.text}: a descriptor of the program that ran it", "name the device")
    elif pair.option in _FILES and not pair.text.startswith("/"):
        yield UsageError(f"{line}{pair.option} {pair.text}: no full path", "write a full path, the same on all hosts")


def _alone(pair: Pair) -> Iterator[StorkitError]:
    """What cannot be in two guests, and cannot be chosen anew here."""
    option, value = pair.option, pair.text
    single = option in ("-gdb", "-s") or any(disk.kind == "device" for disk in opened(pair))
    if option in ("-vnc", "-spice"):
        single = bool(re.search(r":(?!0\b)\d+|(?:^|,)(?:tls-)?port=", value))
    elif option in ("-netdev", "-nic", "-net"):
        argument = read(value, "type")
        single = single or bool(argument.get("ifname")) or "hostfwd" in argument.below("")
    elif option == "-device":
        single = single or bool(read(value, "driver").get("guest-cid"))
    elif option in (*_PORTS, "-chardev"):
        single = single or bool(
            re.search(r"^(?:unix|tcp|udp|telnet|websocket|file|pipe):|(?:^|[,\"'])(?:path|port)", value)
        )
    if single:
        yield not_twice(pair.line, f"{option} {value}".strip())


def _named(text: str, option: str) -> list[Pair]:
    return [pair for pair in pairs(command(text).arguments) if pair.option == option]


def _with(pair: Pair, key: str, value: str, first: str = "") -> list[Edit]:
    """Another value of a key in an option's argument."""
    argument = read(pair.text, first or key)
    part: Key | None = argument.part(key)
    assert pair.value
    return pair.value.edits([argument.with_value(part, value)]) if part else []


def _as_drive(block: blocks.Block, source: DiskSource, number: int) -> list[Edit]:
    """An image alone (-hda IMAGE) as the -drive that it is, which can say the image's format."""
    word = block.pair.word
    ((pair, edit),) = blocks.changes(block, source, number)
    assert pair.value
    if not block.pair.option:
        return [Edit(word.start, word.end, _words(word, "-drive", edit.text).rstrip())]
    return [Edit(word.start, word.end, "-drive"), *pair.value.edits([edit])]


def _words(beside: Word, *words: str) -> str:
    """More words, to stand before one that is there."""
    return "".join(f"{word}\n" if beside.raw else f"{shlex.quote(word)} " for word in words)
