"""Changes in an xl.cfg(5): each disk's string gets another source. Comments, order and words that storkit does not know
stay as they are."""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping
from dataclasses import replace
from pathlib import PurePath

from storkit.core.errors import StorkitError, UsageError, raise_problems
from storkit.core.model import DiskSource
from storkit.guests.documents.edits import (
    CloneIdentity,
    DocumentDisk,
    Edit,
    Password,
    edited,
    line_of,
    missing,
    not_twice,
)
from storkit.guests.documents.openers import qemu_openers
from storkit.guests.documents.options import secret
from storkit.guests.draft import path_source
from storkit.guests.parse_xl import Assignment, Part, Token, assignments, disk_parts, read_disk, read_settings, unquoted

_OPENERS = ("pci", "p9", "vtpm", "usbdev", "dtdev")
"""Settings that give the guest something of this host's."""
_MAC = re.compile(r"(?:^|,)\s*mac\s*=\s*([0-9A-Fa-f:]+)")
_QEMU = re.compile(r"device_model_args(?:_hvm|_pv)?")


def find_disks(text: str) -> list[DocumentDisk]:
    """Everything that the configuration has opened for the guest. Raises UsageError: it cannot be read."""
    settings = read_settings(text)
    if "disk" in settings and not isinstance(settings["disk"], list):
        raise UsageError("disk: a list is wanted", 'write disk = [ "..." ]')
    found = [_disk(unquoted(token.word, token.line), token.line) for token in _specs(text)]
    for assignment in assignments(text):
        found += _others(assignment, text)
    return found


def with_sources(text: str, sources: Mapping[str, DiskSource]) -> str:
    """The configuration with these sources in the place of those of its disks, by their targets."""
    edits: list[Edit] = []
    left = set(sources)
    for token in _specs(text):
        spec = unquoted(token.word, token.line)
        target = _disk(spec, token.line).target
        if target in sources:
            left.discard(target)
            edits += [_in_token(token, edit) for edit in _changes(spec, disk_parts(spec), sources[target])]
    if left:
        raise missing(left)
    return edited(text, edits)


def secrets(text: str) -> list[Password]:
    """The passwords that stand in the configuration."""
    strings = [(each.key, token) for each in assignments(text) for token in each.tokens if token.kind == "string"]
    return [found for key, token in strings if (found := _password(key, token))]


def _password(key: str, token: Token) -> Password | None:
    value = unquoted(token.word, token.line)
    span = (0, len(value)) if key in ("vncpasswd", "spicepasswd") else (0, 0)
    if match := re.search(r"\b(?:vnc|spice)passwd=([^,]+)", value):
        span = match.span(1)
    if span[0] < span[1]:
        return Password(token.line, value[slice(*span)], lambda new: [_in_token(token, Edit(*span, new))])
    return Password(token.line, value) if secret(value) else None


def renamed(text: str, name: str) -> str:
    """The configuration for a guest of this name."""
    named = [each for each in assignments(text) if each.key == "name"]
    tokens = [one.tokens[0] for one in named if one.tokens[0].kind == "string"]
    return edited(text, [_in_token(each, Edit(0, len(unquoted(each.word, each.line)), name)) for each in tokens])


def with_uuid(text: str, uuid: str) -> str:
    """The configuration with a UUID, if it has none: xl would make another one each time."""
    if any(each.key == "uuid" for each in assignments(text)):
        return text
    return f'{text}{"" if text.endswith(chr(10)) or not text else chr(10)}uuid = "{uuid}"\n'


def cloned(text: str, own: CloneIdentity) -> str:
    """The configuration for a guest that is another one. Raises what two guests cannot have both."""
    edits: list[Edit] = []
    problems: list[StorkitError] = []
    cards = 0
    for assignment in assignments(text):
        tokens = [token for token in assignment.tokens if token.kind == "string"]
        if assignment.key in ("name", "uuid") and tokens:
            edits.append(_in_token(tokens[0], Edit(0, len(unquoted(*tokens[0][1:3])), getattr(own, assignment.key))))
        elif assignment.key == "vif":
            for token in tokens:
                match = _MAC.search(unquoted(token.word, token.line))
                edits += [_in_token(token, Edit(*match.span(1), own.mac(cards)))] if match else []
                cards += 1
        elif assignment.key in (*_OPENERS, "vncdisplay", "spiceport", "spicetls_port"):
            line = line_of(text, assignment.tokens[0].start)
            problems.append(not_twice(line, assignment.key))
    raise_problems(problems)
    return edited(text, edits)


def _specs(text: str) -> list[Token]:
    """The disks' strings that count: a list said anew forgets the one before."""
    found: list[Token] = []
    for assignment in assignments(text):
        if assignment.key == "disk":
            found = found if assignment.operator == "+=" else []
            found += [token for token in assignment.tokens if token.kind == "string"]
    return found


def _disk(spec: str, line: int) -> DocumentDisk:
    values = read_disk(spec)
    vdev, _, kind = values.get("vdev", "").partition(":")
    target, place = vdev or spec, values.get("target", "")
    readonly = values.get("access", "rw") in ("r", "ro")
    if kind == "cdrom" or "cdrom" in values or values.get("devtype") == "cdrom":
        return DocumentDisk(target, line, place, readonly=True, kind="cdrom")
    if _own(values):
        return DocumentDisk(
            target, line, f"/dev/storkit/{place}", path_source(f"/dev/storkit/{place}", "raw"), readonly
        )
    if "script" in values or not place:
        return DocumentDisk(target, line, f"{values.get('script', 'no target')} {place}".strip(), readonly=readonly)
    path = place if place.startswith("/") else f"/dev/{place}"
    source = path_source(path, values.get("format") or "raw")
    if values.get("prefix") == "phy" or values.get("backendtype") == "phy":
        source = replace(source, kind="block")
    return DocumentDisk(target, line, path, source, readonly)


def _own(values: Mapping[str, str]) -> bool:
    """Whether a disk is one of storkit's, by its hotplug script, whose target is a volume's name."""
    return PurePath(values.get("script", "")).name == "block-storkit"


def _others(assignment: Assignment, text: str) -> Iterator[DocumentDisk]:
    """What is no disk, and opens something of this host's all the same."""
    tokens = [token for token in assignment.tokens if token.kind == "string"]
    line = line_of(text, assignment.tokens[0].start)
    words = [unquoted(token.word, token.line) for token in tokens]
    if _QEMU.fullmatch(assignment.key):
        yield from (replace(each, line=line, kind="argument") for each in qemu_openers(words))
    for word in words:
        if assignment.key in _OPENERS or (assignment.key == "usbdevice" and word.startswith(("disk:", "host:"))):
            yield DocumentDisk(f"{assignment.key} {word}", line, word, kind=assignment.key)


def _changes(spec: str, parts: dict[str, Part], source: DiskSource) -> Iterator[Edit]:
    """What must change in a disk's string for another source."""
    values = read_disk(spec)
    if _own(values) and source == path_source(f"/dev/storkit/{values.get('target')}", "raw"):
        return
    target, form = parts.get("target"), parts.get("format")
    backend = "phy" if source.kind == "block" else "qdisk"
    keyed = target is not None and target.first < target.start
    if "," in source.path and not keyed:
        raise UsageError(
            f"{source.path!r} cannot stand in {spec!r}: it has a comma", "write it as target=PATH, at the end"
        )
    prefix = parts.get("prefix")
    if prefix:
        word = "phy:" if source.kind == "block" else f"{'file' if source.format == 'raw' else source.format}:"
        yield Edit(prefix.start, prefix.end, word)
    added: list[str] = []
    if form and not (form.value == "" and source.format == "raw") and (prefix is None or form.start != prefix.start):
        yield Edit(form.start, form.end, source.format)
    elif prefix is None and source.format != "raw":
        added.append(f"format={source.format}")
    if "backendtype" in parts:
        yield Edit(parts["backendtype"].start, parts["backendtype"].end, backend)
    elif backend == "qdisk":
        # QEMU opens a file past the page cache of this host, which another host's would not know of
        added.append("backendtype=qdisk")
    if "script" in parts:
        script = parts["script"]
        yield Edit(script.first, min(script.end + 1, len(spec)), "")
    if target is None:
        added.append(f"target={source.path}")
    else:
        yield Edit(target.start, target.end, source.path)
    if added and keyed and target is not None:
        yield Edit(target.first, target.first, "".join(f"{each}," for each in added))
    elif added:
        yield Edit(len(spec), len(spec), "".join(f",{each}" for each in added))


def _in_token(token: Token, edit: Edit) -> Edit:
    """A change of what a string stands for, as one of the document."""
    quote = token.word[0]
    places = [match.start() for match in re.finditer(r"\\.|[^\\]", token.word[1:-1])] + [len(token.word) - 2]
    start = token.start + 1
    text = edit.text.replace("\\", "\\\\").replace(quote, f"\\{quote}")
    return Edit(start + places[edit.start], start + places[min(edit.end, len(places) - 1)], text)
