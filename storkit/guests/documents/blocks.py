"""The disks of a QEMU command: the words of it that open an image, and what must change in them for another source.

A disk keeps its device, bus, cache mode and the like; what changes is the protocol layer of its tree of block nodes
(the file, the device, the server) and the format of the layer above it (qemu-block-drivers(7), QMP BlockdevOptions).
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass, replace
from typing import Any

from storkit.core.errors import Unsupported, UsageError
from storkit.core.model import DiskSource
from storkit.guests.command import Pair
from storkit.guests.documents import options
from storkit.guests.documents.edits import DocumentDisk, Edit
from storkit.guests.documents.options import Argument
from storkit.guests.draft import path_source, uri_source
from storkit.guests.quoting import quote_option

FORMATS = ("raw", "qcow2", "qcow", "qed", "vmdk", "vdi", "vpc", "vhdx", "parallels", "bochs", "cloop", "dmg")
"""Formats of images; other drivers with a layer below them (luks, throttle) are the guest's own affair."""
IMAGES = {
    "-hda": ("hda", "index=0,media=disk"),
    "-hdb": ("hdb", "index=1,media=disk"),
    "-hdc": ("hdc", "index=2,media=disk"),
    "-hdd": ("hdd", "index=3,media=disk"),
    "-cdrom": ("hdc", "index=2,media=cdrom"),
    "-fda": ("fda", "if=floppy,index=0"),
    "-fdb": ("fdb", "if=floppy,index=1"),
    "-sd": ("", "if=sd"),
    "-mtdblock": ("", "if=mtd"),
    "-pflash": ("", "if=pflash"),
    "": ("hda", "index=0,media=disk"),
}
"""Options whose argument is an image, or an image alone, to the disk's name and the -drive that it is (vl.c)."""
_NAMES = {"ide": "hd", "virtio": "vd", "scsi": "sd", "xen": "xvd", "floppy": "fd"}
_POSIX = ("file", "host_device", "host_cdrom")
_NOTHING = ("null-co", "null-aio")
_ABOVE = ("blkdebug", "blklogwrites", "blkreplay", "blkverify", "copy-before-write", "quorum")
"""Drivers of layers that name those below by other words than `file`."""
_CHILDREN = ("file", "backing", "data-file", "raw", "test", "image", "log", "target", "children", "primary")
_KEPT = {
    "driver", "node-name", "discard", "cache", "read-only", "auto-read-only", "force-share", "detect-zeroes",
}  # fmt: skip
"""Keys that every node has (BlockdevOptions), whatever it opens."""
_DRIVES = _KEPT | {
    "if", "id", "index", "bus", "unit", "media", "aio", "rerror", "werror", "format", "snapshot", "readonly",
    "copy-on-read", "serial", "addr", "cyls", "heads", "secs", "trans", "file",
}  # fmt: skip
"""Keys of -drive that say nothing of the image."""
_OF_A_FORMAT = {
    "backing", "block-size", "cache-clean-interval", "cache-size", "data-file", "discard-no-unref", "encrypt",
    "l2-cache-entry-size", "l2-cache-size", "lazy-refcounts", "log-size", "offset", "overlap-check",
    "pass-discard-other", "pass-discard-request", "pass-discard-snapshot", "prealloc-align", "prealloc-mode",
    "prealloc-size", "refcount-cache-size", "size", "subformat",
}  # fmt: skip
"""Keys that a format has, and another has not."""
_RECONNECT = 300
"""Seconds that QEMU tries to reach an NBD server again before the guest's requests fail."""


@dataclass(frozen=True, slots=True)
class Block:
    """A disk, and the words that say where it is."""

    disk: DocumentDisk
    pair: Pair
    argument: Argument | None = None
    """None: the word is the image."""
    prefix: str = ""
    """Before the keys of the protocol layer."""
    layer: tuple[Pair, Argument, str] | None = None
    """Where the layer above that is described."""
    unit: str = ""
    """The -drive that an image alone is."""


Change = tuple[Pair, Edit]
"""What changes in the argument of an option."""


def find(pairs: list[Pair]) -> list[Block]:
    """The disks of a command, those of UEFI variables last. Raises UsageError, with its line."""
    found: list[Block] = []
    nodes: dict[str, tuple[Pair, Argument]] = {}
    taken: dict[str, int] = {}
    for pair in pairs:
        if pair.option in ("-drive", "-blockdev"):
            argument = _read(pair)
            if pair.option == "-blockdev":
                nodes[argument.get("node-name")] = (pair, argument)
                found += _nodes(pair, argument)
            else:
                found += _drive(pair, argument, taken)
        elif pair.option in IMAGES and pair.value:
            found.append(_image(pair, taken))
    above = {
        part.value: (pair, argument, part.key[: -len("file")])
        for pair, argument in nodes.values()
        for part in argument.parts
        if part.leaf and f".{part.key}".endswith(".file")
    }
    found = [_layered(block, above) for block in found]
    return _firmware(found, _flash(pairs))


def changes(block: Block, source: DiskSource, number: int) -> Iterator[Change]:
    """What must change in a command for another source of a disk, the `number`th. Raises Unsupported, with its line."""
    pair, argument = block.pair, block.argument
    if argument is None:
        yield pair, Edit(0, len(pair.text), f"{_flat(source, number)},format={source.format},{block.unit}")
    elif pair.option == "-drive" and block.prefix == "file":
        yield from ((pair, edit) for edit in _file(block, argument, source, number))
    else:
        yield from ((pair, edit) for edit in _protocol(block, argument, source, number))
        yield from _format(block, source)


def credentials(source: DiskSource, number: int) -> str:
    """The argument of the -object with which QEMU proves itself to a server; empty: it need not."""
    if not source.tls:
        return ""
    user = f",username={quote_option(source.tls_user)}" if source.tls == "psk" and source.tls_user else ""
    verify = ",verify-peer=on" if source.tls == "x509" else user
    return f"tls-creds-{source.tls},id={_tls(number)},endpoint=client,dir={quote_option(source.tls_dir)}{verify}"


def _tls(number: int) -> str:
    return f"storkit-tls{number}"


def _read(pair: Pair) -> Argument:
    try:
        return options.read(pair.text, "driver" if pair.option == "-blockdev" else "")
    except UsageError as error:
        raise UsageError(f"line {pair.line}: {pair.option} {error.message}", error.hint) from None


def _image(pair: Pair, taken: dict[str, int]) -> Block:
    name, unit = IMAGES[pair.option]
    values = options.read(unit)
    kind = _kind(values)
    if not name:
        name = _name(values, taken)
    place = pair.text
    disk = DocumentDisk(name, pair.line, place, _known(place, "raw") if kind == "disk" else None, kind=kind)
    return Block(disk, pair, unit=unit)


def _kind(drive: Argument) -> str:
    if drive.get("media") == "cdrom":
        return "cdrom"
    return {"floppy": "floppy", "pflash": "nvram"}.get(drive.get("if"), "disk")


def _drive(pair: Pair, argument: Argument, taken: dict[str, int]) -> Iterator[Block]:
    kind, name = _kind(argument), argument.get("id") or _name(argument, taken)
    readonly = "on" in (argument.get("readonly"), argument.get("read-only")) or kind == "cdrom"
    disk = DocumentDisk(name, pair.line, "", readonly=readonly, kind=kind)
    file = argument.part("file")
    format = argument.get("format") or argument.get("driver")
    if argument.get("snapshot") == "on":
        message = f"line {pair.line}: disk {name}: what the guest writes with snapshot=on stays on its host"
        raise UsageError(message, "leave snapshot=on out")
    if file is not None and file.leaf:
        if file.value:
            source = _known(file.value, format) if kind == "disk" else None
            yield Block(replace(disk, place=file.value, source=source), pair, argument, "file")
        yield from (each for each in _tree(pair, argument, disk, "backing.") if "backing" in argument.below(""))
    elif format in _POSIX or argument.part("filename"):
        yield from _tree(pair, argument, disk, "")
    elif format or argument.below("file."):
        yield from (_tree(pair, argument, disk, "") if format else _tree(pair, argument, disk, "file."))


def _nodes(pair: Pair, argument: Argument) -> Iterator[Block]:
    name = argument.get("node-name") or "-blockdev"
    readonly = argument.get("read-only") == "on"
    yield from _tree(pair, argument, DocumentDisk(name, pair.line, "", readonly=readonly), "")


def _tree(pair: Pair, argument: Argument, disk: DocumentDisk, prefix: str) -> Iterator[Block]:
    """The protocol layers of a tree of nodes."""
    children = [each for each in _CHILDREN if argument.below(f"{prefix}{each}.")]
    if not children:
        keys = argument.below(prefix).keys()
        driver = argument.get(f"{prefix}driver")
        kept = _DRIVES if pair.option == "-drive" and not prefix else _KEPT
        if keys - kept and "file" not in keys and driver not in (*_NOTHING, *FORMATS, *_ABOVE):
            yield _leaf(pair, argument, disk, prefix)
        return
    for child in children:
        below = f"{prefix}{child}."
        if child == "children":
            for number in argument.below(below):
                yield from _tree(pair, argument, disk, f"{below}{number}.")
        else:
            yield from _tree(pair, argument, disk, below)


def _leaf(pair: Pair, argument: Argument, disk: DocumentDisk, prefix: str) -> Block:
    values = {part.key[len(prefix) :]: part.value for part in argument.parts if part.key.startswith(prefix)}
    driver = values.get("driver", "file")
    place = values.get("filename") or values.get("path") or values.get("url") or values.get("dir")
    if driver in _POSIX and place:
        known = DiskSource("file" if driver == "file" else "block", place)
    else:
        words = [value for key, value in values.items() if key not in _KEPT and not value.startswith(("{", "["))]
        place, known = f"{driver}:{':'.join(words)}", None
    path = prefix.replace("file.", "").rstrip(".")
    if path:
        # One image behind another: a volume is one image.
        return Block(replace(disk, target=f"{disk.target}.{path}", place=place, kind="argument"), pair)
    above = (pair, argument, prefix[: -len("file.")]) if prefix else None
    source = (
        replace(known, format=argument.get("driver") or argument.get("format") or "raw") if known and above else known
    )
    kept = source if source and source.format in FORMATS and disk.kind == "disk" else None
    return Block(replace(disk, place=place, source=kept), pair, argument, prefix, above)


def _layered(block: Block, above: Mapping[str, tuple[Pair, Argument, str]]) -> Block:
    """A node's disk, with the layer that another -blockdev puts above it."""
    node = block.argument.get("node-name") if block.argument else ""
    if block.layer or block.pair.option != "-blockdev" or node not in above:
        return block
    _, argument, prefix = layer = above[node]
    format = argument.get(f"{prefix}driver")
    disk = block.disk
    readonly = disk.readonly or argument.get(f"{prefix}read-only") == "on"
    source = replace(disk.source, format=format) if disk.source and format in FORMATS else None
    return replace(block, layer=layer, disk=replace(disk, readonly=readonly, source=source))


def _flash(pairs: list[Pair]) -> set[str]:
    """The nodes that are flash memory of the machine's."""
    found: set[str] = set()
    for pair in pairs:
        if pair.option in ("-machine", "-M"):
            argument = options.read(pair.text, "type")
            found |= {argument.get("pflash0"), argument.get("pflash1")}
    return found - {""}


def _firmware(blocks: list[Block], flash: set[str]) -> list[Block]:
    """The disks, with flash memory told apart: what cannot be written is firmware, the same on all hosts."""
    disks: list[Block] = []
    memory: list[Block] = []
    for block in blocks:
        names = {block.argument.get("node-name")} if block.argument else set()
        if block.layer:
            names.add(block.layer[1].get("node-name"))
        if block.disk.kind != "nvram" and not (block.pair.option == "-blockdev" and names & flash):
            disks.append(block)
        elif not block.disk.readonly:
            memory.append(replace(block, disk=replace(block.disk, kind="nvram")))
    codes = [
        replace(block, disk=replace(block.disk, target=f"pflash{number}", kind="firmware"))
        for number, block in enumerate(memory[:-1])
    ]
    variables = [replace(block, disk=replace(block.disk, target="nvram", source=None)) for block in memory[-1:]]
    return [*disks, *codes, *variables]


def _name(drive: Argument, taken: dict[str, int]) -> str:
    """The name of a disk that has none, as the guest would call it."""
    kind = drive.get("if") or "ide"
    most = {"ide": 2, "scsi": 7}.get(kind, 1)
    place = [drive.get(key) for key in ("index", "bus", "unit")]
    if any(each and not each.isdecimal() for each in place):
        place = ["", "", ""]
    if place[0]:
        number = int(place[0])
    elif place[1] or place[2]:
        number = int(place[1] or 0) * most + int(place[2] or 0)
    else:
        number = taken.get(kind, 0)
    taken[kind] = max(taken.get(kind, 0), number + 1)
    letter = chr(ord("a") + number) if number < 26 else str(number)
    return f"{_NAMES[kind]}{letter}" if kind in _NAMES else f"{kind}{number}"


def _known(place: str, format: str) -> DiskSource | None:
    if place.startswith("/"):
        return path_source(place, format if format in FORMATS else "raw")
    return uri_source(place, format if format in FORMATS else "raw")


def _values(source: DiskSource, number: int) -> dict[str, Any]:
    """The keys of a protocol layer that opens a source."""
    if source.kind != "network":
        return {"filename": source.path}
    server: dict[str, Any] = (
        {"type": "unix", "path": source.socket}
        if source.socket
        else {"type": "inet", "host": source.server, "port": str(source.port), "keep-alive": True}
    )
    tls = {"tls-creds": _tls(number)} if source.tls else {}
    return {"server": server, "export": source.export, "reconnect-delay": _RECONNECT, **tls}


def _flat(source: DiskSource, number: int) -> str:
    """A source as the file of a -drive."""
    if source.kind != "network":
        return f"file={quote_option(source.path)}"
    return options.written("file.", {"driver": "nbd", **_values(source, number)})


def _file(block: Block, argument: Argument, source: DiskSource, number: int) -> Iterator[Edit]:
    """For a -drive with file=PLACE."""
    file = argument.part("file")
    format = argument.part("format") or argument.part("driver")
    assert file
    gone = [part for name, parts in argument.below("file.").items() if name not in _KEPT for part in parts]
    if source.kind != "network":
        yield argument.with_value(file, source.path)
    else:
        yield Edit(file.first, file.end, _flat(source, number))
    if format is None:
        yield argument.added(file, "", {"format": source.format})
    elif format.value not in FORMATS and format.value not in _POSIX and source.format != "raw":
        raise _layer(block, format.value, source)
    elif format.value != source.format and format.value in (*FORMATS, *_POSIX, "nbd"):
        yield argument.with_value(format, source.format)
        yield from _of_format(argument, "")
    yield from argument.without(gone)


def _protocol(block: Block, argument: Argument, source: DiskSource, number: int) -> Iterator[Edit]:
    """For a layer that is described by its driver and keys."""
    keys = argument.below(block.prefix)
    driver = argument.part(f"{block.prefix}driver") or (None if block.prefix else argument.part("format"))
    wanted = {"block": "host_device", "file": "file"}.get(source.kind, "nbd")
    posix = source.kind != "network" and (driver is None or driver.value in _POSIX)
    kept = _DRIVES if block.pair.option == "-drive" and not block.prefix else _KEPT
    old = [
        part for name, parts in keys.items() for part in parts if (name == "filename" if posix else name not in kept)
    ]
    if driver is not None and driver.value != wanted:
        yield argument.with_value(driver, wanted)
    new = _values(source, number) if driver is not None or posix else {"driver": wanted, **_values(source, number)}
    yield from argument.replaced(block.prefix, old, new)


def _format(block: Block, source: DiskSource) -> Iterator[Change]:
    """What must change in the layer above."""
    if block.layer is None:
        if source.format != "raw":
            raise _layer(block, "no format", source)
        return
    pair, argument, prefix = block.layer
    driver = argument.part(f"{prefix}driver") or (argument.part("format") if not prefix else None)
    if driver is None:
        last = max(argument.parts, key=lambda part: part.end)
        yield pair, argument.added(last, prefix, {"format": source.format})
    elif driver.value == source.format:
        return
    elif driver.value not in FORMATS:
        if source.format != "raw":
            raise _layer(block, driver.value, source)
    else:
        yield pair, argument.with_value(driver, source.format)
        yield from ((pair, edit) for edit in _of_format(argument, prefix))


def _of_format(argument: Argument, prefix: str) -> Iterator[Edit]:
    """Take out what only the format has that was there."""
    keys = argument.below(prefix)
    parts = [part for name, each in keys.items() if name in _OF_A_FORMAT for part in each]
    yield from argument.without([part for part in parts if part.first > 1])


def _layer(block: Block, what: str, source: DiskSource) -> Unsupported:
    message = f"line {block.pair.line}: disk {block.disk.target} has {what} there, and its volume is {source.format}"
    return Unsupported(message, "make a raw volume of it: storkit volume import")
