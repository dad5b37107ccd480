"""Changes in a libvirt domain (libvirt.org/formatdomain.html), as `virsh dumpxml` prints it: new sources for its disks.

A disk keeps its target, bus, serial number, address and driver options; its source is what its `type`, `source`,
`backingStore` and `auth` say, and the format of its driver.
"""

from __future__ import annotations

from collections.abc import Collection, Iterator, Mapping
from dataclasses import replace
from typing import Any
from uuid import UUID, uuid5
from xml.sax.saxutils import escape, quoteattr

from storkit.core.errors import StorkitError, Unsupported, UsageError, raise_problems
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
    numbered,
)
from storkit.guests.documents.markup import Element, elements, with_attribute, with_text, without
from storkit.guests.documents.openers import qemu_openers
from storkit.guests.documents.options import secret

_NVRAM = "nvram"
_CHOSEN = ("vnet", "macvtap", "macvlan")
"""Names of network devices that libvirt chooses."""
_PLACES = {"file": "file", "block": "dev", "dir": "dir", "volume": "volume", "nvme": "namespace", "vhostuser": "path"}
"""The type of a disk to the attribute of its source that says where it is."""


def find_disks(text: str) -> list[DocumentDisk]:
    """Everything that the domain has opened for the guest. Raises UsageError: no XML, or no domain."""
    domain = _domain(text)
    found = [_disk(disk, text) for disk in domain.all("devices/disk")]
    for disk in domain.all("devices/disk"):
        if disk.first("mirror"):
            message = f"line {line_of(text, disk.start)}: disk {disk.get('target', 'dev')} is being copied"
            raise UsageError(message, "end that: virsh blockjob; then print the domain again")
    return [*found, *numbered(_others(domain, text))]


def with_sources(text: str, sources: Mapping[str, DiskSource]) -> str:
    """The domain with these sources in the place of those of its disks, by their targets."""
    edits: list[Edit] = []
    left = set(sources)
    for disk in _domain(text).all("devices/disk"):
        target = disk.get("target", "dev")
        if target in sources:
            left.discard(target)
            edits += _changes(text, disk, sources[target])
    if _NVRAM in left:
        for element in _domain(text).all("os/nvram"):
            left.discard(_NVRAM)
            edits += _variables(text, element, sources[_NVRAM])
    if left:
        raise missing(left)
    return edited(text, edits)


def with_disks_of(text: str, before: str, old: str, targets: Collection[str]) -> str:
    """The domain as libvirt prints it, with these of its disks where an `old` document of it has them; `before`: what
    libvirt had made of that document, with which what it has chosen itself is known, and left out.

    Raises UsageError: it has one of these disks elsewhere than before, or another one that is no volume.
    """
    now, was, wanted = _domain(text), _domain(before), _domain(old)
    disks = {disk.get("target", "dev"): disk for disk in wanted.all("devices/disk")}
    sources = {disk.get("target", "dev"): _source(disk) for disk in was.all("devices/disk")}
    edits: list[Edit] = []
    problems: list[StorkitError] = []
    for disk in now.all("devices/disk"):
        target = disk.get("target", "dev")
        where, hint = f"line {line_of(text, disk.start)}: disk {target}", "give it back what it was: virsh edit"
        if target in targets and target in disks and _source(disk) == sources.get(target):
            edits += _as_in(text, disk, old, disks[target])
        elif target in targets:
            problems.append(UsageError(f"{where} is another one than the volume that it was", hint))
        elif _source(disk) and _source(disk) != sources.get(target):
            problems.append(UsageError(f"{where} is new, and no volume", hint))
    raise_problems(problems)
    for mark in now.all("metadata"):
        own = [child for child in mark.children if child.tag.startswith("storkit:")]
        edits += [without(text, each) for each in ([mark] if len(own) == len(mark.children) else own)]
    for path, attribute in (("os/type", "machine"), ("devices/emulator", ""), ("os/nvram", "")):
        edits += _unchosen(text, now.first(path), before, was.first(path), old, wanted.first(path), attribute)
    return edited(text, edits)


def _source(disk: Element) -> list[Any]:
    """Where a disk comes from, to compare; empty: nowhere."""

    def said(element: Element) -> list[Any]:
        return [element.tag, sorted(element.attributes.items()), [said(child) for child in element.children]]

    return [said(each) for each in disk.all("source")]


def _as_in(text: str, disk: Element, old: str, other: Element) -> Iterator[Edit]:
    """What must change in a disk that libvirt prints for what it was in an `old` document."""
    kind = other.attributes.get("type", "file")
    if disk.attributes.get("type", "file") != kind:
        yield with_attribute(text, disk, "type", kind)
    driver, format = disk.first("driver"), other.get("driver", "type") or "raw"
    if driver is not None and driver.attributes.get("type") != format:
        yield with_attribute(text, driver, "type", format)
    parts = ("source", "auth", "encryption", "backingStore")
    there = "".join(old[each.start : each.end] for part in parts for each in other.all(part))
    first = disk.first("source")
    for part in parts:
        for each in disk.all(part):
            yield Edit(each.start, each.end, there) if each is first else without(text, each)
    if first is None:
        yield Edit(disk.opened, disk.opened, there)


def _unchosen(
    text: str, now: Element | None, before: str, was: Element | None, old: str, wanted: Element | None, attribute: str
) -> Iterator[Edit]:
    """What libvirt, or storkit for a host, has chosen and nobody has changed: as the `old` document has it."""
    if now is None or was is None or text[now.start : now.end] != before[was.start : was.end]:
        return
    if attribute and wanted is not None and attribute in wanted.attributes:
        yield with_attribute(text, now, attribute, wanted.attributes[attribute])
    elif not attribute:
        yield without(text, now) if wanted is None else Edit(now.start, now.end, old[wanted.start : wanted.end])


def secrets(text: str) -> list[Password]:
    """The passwords that stand in the domain."""
    domain = _domain(text)
    found = [_password(text, each) for each in domain.all("devices/graphics") if each.get("", "passwd")]
    for child in domain.children:
        if child.tag.rpartition(":")[2] == "commandline":
            words = [each for each in child.children if secret(each.get("", "value"))]
            found += [Password(line_of(text, each.start), each.get("", "value")) for each in words]
    return found


def _password(text: str, element: Element) -> Password:
    value = element.get("", "passwd")
    return Password(line_of(text, element.start), value, lambda new: [with_attribute(text, element, "passwd", new)])


def renamed(text: str, name: str) -> str:
    """The domain for a guest of this name."""
    return edited(text, [with_text(element, name) for element in _domain(text).all("name")])


def with_machine(text: str, machine: str) -> str:
    """The domain with the version of its machine type that the guest was first started with."""
    return edited(text, [with_attribute(text, each, "machine", machine) for each in _domain(text).all("os/type")])


def with_uuid(text: str, uuid: str) -> str:
    """The domain with a UUID, if it has none: libvirt would make another one on each host."""
    domain = _domain(text)
    name = domain.first("name")
    if domain.first("uuid") or name is None:
        return text
    return edited(text, [Edit(name.end, name.end, f"<uuid>{uuid}</uuid>")])


def cloned(text: str, own: CloneIdentity) -> str:
    """The domain for a guest that is another one. Raises what two guests cannot have both."""
    domain = _domain(text)
    edits = [with_text(each, own.name) for each in domain.all("name")]
    edits += [with_text(each, own.uuid) for each in domain.all("uuid")]
    edits += [with_text(each, str(uuid5(UUID(own.uuid), "genid"))) for each in domain.all("genid") if each.text]
    edits += [
        with_text(each, own.uuid) for each in domain.all("sysinfo/system/entry") if each.get("", "name") == "uuid"
    ]
    for number, card in enumerate(domain.all("devices/interface")):
        edits += [with_attribute(text, each, "address", own.mac(number)) for each in card.all("mac")]
    for number, disk in enumerate(domain.all("devices/disk")):
        edits += [with_text(each, own.serial(number)) for each in disk.all("serial")]
    edits += _chosen_anew(domain, text, own)
    raise_problems([not_twice(line_of(text, each.start), _tag(text, each)) for each in _single(domain, own)])
    return edited(text, edits)


def _chosen_anew(domain: Element, text: str, own: CloneIdentity) -> Iterator[Edit]:
    """What the host chooses for each guest, and files that the guest writes."""
    for graphics in domain.all("devices/graphics"):
        if graphics.get("", "autoport") != "yes":
            fixed = [key for key in ("port", "tlsPort", "websocket") if graphics.get("", key) not in ("", "-1")]
            yield from (with_attribute(text, graphics, key, "-1") for key in fixed)
            if fixed and "autoport" in graphics.attributes:
                yield with_attribute(text, graphics, "autoport", "yes")
    for cid in domain.all("devices/vsock/cid"):
        if cid.get("", "auto") != "yes":
            yield with_attribute(text, cid, "auto", "yes")
    for card in domain.all("devices/interface"):
        for target in card.all("target"):
            if target.attributes.keys() == {"dev"} and not target.get("", "dev").startswith(_CHOSEN):
                yield without(text, target)
    for source in _speakers(domain):
        if _written_by_the_guest(source):
            yield with_attribute(text, source, "path", own.path(source.attributes["path"]))


def _single(domain: Element, own: CloneIdentity) -> Iterator[Element]:
    """What cannot be in two guests, and cannot be chosen anew here."""
    yield from (each for each in domain.all("devices/hostdev"))
    yield from (each for each in domain.all("devices/tpm"))
    if "nvram" not in own.volumes:
        yield from (each for each in domain.all("os/nvram") if each.text.strip())
    yield from (each for each in _speakers(domain) if not _written_by_the_guest(each))
    for card in domain.all("devices/interface"):
        for target in card.all("target"):
            if target.attributes.keys() != {"dev"} and not target.get("", "dev").startswith(_CHOSEN):
                yield target


def _speakers(domain: Element) -> Iterator[Element]:
    """Where devices that speak with the host do so."""
    for kind in ("serial", "console", "channel", "parallel", "rng"):
        for device in domain.all(f"devices/{kind}"):
            yield from (each for each in device.all("source") if {"path", "service"} & each.attributes.keys())


def _written_by_the_guest(source: Element) -> bool:
    """Whether it is a file, or a socket that the guest's own process makes, and no device or server of the host's."""
    path = source.get("", "path")
    return path.startswith("/") and not path.startswith("/dev/") and source.get("", "mode") != "connect"


def _tag(text: str, element: Element) -> str:
    return text[element.start : element.opened]


def _domain(text: str) -> Element:
    root = elements(text)
    if root.tag != "domain":
        raise UsageError(f"the XML is a <{root.tag}>, not a <domain>", "print it with: virsh dumpxml --inactive NAME")
    return root


def _disk(disk: Element, text: str) -> DocumentDisk:
    kind, target = disk.attributes.get("type", "file"), disk.get("target", "dev")
    line = line_of(text, disk.start)
    source = disk.first("source")
    readonly = disk.first("readonly") is not None
    device = disk.attributes.get("device", "disk")
    what = device if device in ("cdrom", "floppy") else "disk"
    if source is None:
        return DocumentDisk(target, line, "", readonly=readonly, kind=what)
    place = source.attributes.get(_PLACES.get(kind, ""), "")
    if kind == "network":
        host = f"{source.get('host', 'name') or source.get('host', 'socket')}:{source.get('host', 'port')}".rstrip(":")
        place = f"{source.attributes.get('protocol', 'network')}:{source.attributes.get('name') or host}"
    elif kind == "volume":
        place = f"{source.attributes.get('pool', '')}/{place}"
    known: DiskSource | None = None
    if (
        kind in ("file", "block")
        and place
        and what == "disk"
        and not (source.first("encryption") or disk.first("encryption"))
    ):
        format = disk.get("driver", "type") or "raw"
        known = DiskSource("file" if kind == "file" else "block", place, format)
    return DocumentDisk(target, line, place or "an unnamed place", known, readonly, what)


def _others(domain: Element, text: str) -> Iterator[DocumentDisk]:
    """What is no disk, and opens something of this host's all the same."""
    for element in domain.all("devices/filesystem"):
        place = element.get("source", "dir") or element.get("source", "file") or element.get("source", "name")
        yield _other(element, text, element.get("target", "dir"), place, "filesystem")
    for element in domain.all("devices/hostdev"):
        address = element.first("source/address")
        words = address.attributes if address else element.attributes
        place = " ".join(f"{key}={value}" for key, value in words.items())
        yield _other(element, text, f"hostdev {place}", place, "device")
    for element in domain.all("devices/memory"):
        path = element.first("source/path")
        if path:
            yield _other(element, text, f"memory {path.text}", path.text, "memory")
    for element in domain.all("os/nvram"):
        place = element.text.strip() or element.get("source", "file") or element.get("source", "dev")
        if place:
            yield _other(element, text, "nvram", place, "nvram")
    for element in domain.all("devices/tpm"):
        kind = element.get("backend", "type")
        yield _other(element, text, "tpm", element.get("backend/device", "path") or kind, "device")
    for element in domain.all("devices/interface"):
        if element.get("", "type") in ("hostdev", "vdpa"):
            place = " ".join(
                f"{key}={value}" for each in element.all("source/address") for key, value in each.attributes.items()
            )
            place = place or element.get("source", "dev")
            yield _other(element, text, f"interface {place}", place, "device")
    for commandline in domain.all("commandline"):
        yield from _arguments(commandline, text)
    for commandline in domain.children:
        if commandline.tag.endswith(":commandline"):
            yield from _arguments(commandline, text)


def _arguments(commandline: Element, text: str) -> Iterator[DocumentDisk]:
    words = [arg.attributes.get("value", "") for arg in commandline.children if arg.tag.rpartition(":")[2] == "arg"]
    line = line_of(text, commandline.start)
    # A disk of QEMU's own words can be named, and not be given another source.
    yield from (replace(each, line=line, kind="argument") for each in qemu_openers(words))


def _other(element: Element, text: str, target: str, place: str, kind: str) -> DocumentDisk:
    return DocumentDisk(target, line_of(text, element.start), place, kind=kind)


def _changes(text: str, disk: Element, source: DiskSource) -> Iterator[Edit]:
    """What must change in a disk for another source."""
    if disk.attributes.get("type", "file") != source.kind:
        yield with_attribute(text, disk, "type", source.kind)
    driver = disk.first("driver")
    if driver is not None and driver.attributes.get("type", "raw") != source.format:
        yield with_attribute(text, driver, "type", source.format)
    elif driver is None and source.format != "raw":
        yield Edit(disk.opened, disk.opened, f"<driver name='qemu' type='{source.format}'/>")
    for element in (*disk.all("auth"), *disk.all("encryption")):
        yield without(text, element)
    for chain in disk.all("backingStore"):
        if chain.children or chain.attributes:
            yield without(text, chain)
    old = disk.first("source")
    same = old is not None and source.kind != "network" and disk.attributes.get("type", "file") in ("file", "block")
    if old is not None and same:
        before = "file" if disk.attributes.get("type", "file") == "file" else "dev"
        after = "file" if source.kind == "file" else "dev"
        yield with_attribute(text, old, before, source.path, after)
        for element in (*old.all("auth"), *old.all("encryption")):
            yield without(text, element)
    elif old is not None:
        yield Edit(old.start, old.end, _written(source))
    else:
        yield Edit(disk.opened, disk.opened, _written(source))


def _variables(text: str, nvram: Element, source: DiskSource) -> Iterator[Edit]:
    """What must change in UEFI variables for another source (formatdomain.html, from libvirt 8.5 on)."""
    if source.format != "raw":
        message = (
            f"line {line_of(text, nvram.start)}: nvram: UEFI variables are raw, and their volume is {source.format}"
        )
        raise Unsupported(message, "make a raw volume of them: storkit volume import --format raw")
    plain = source.kind == "file" and "type" not in nvram.attributes
    if not plain:
        yield with_attribute(text, nvram, "type", source.kind)
    for element in nvram.all("source"):
        yield Edit(element.start, element.end, _written(source))
    if not nvram.first("source"):
        yield Edit(nvram.opened, nvram.closed, escape(source.path) if plain else _written(source))


def _written(source: DiskSource) -> str:
    if source.kind != "network":
        return f"<source {'file' if source.kind == 'file' else 'dev'}={quoteattr(source.path)}/>"
    tls = " tls='yes'" if source.tls else ""
    where = (
        f"transport='unix' socket={quoteattr(source.socket)}"
        if source.socket
        else f"name={quoteattr(source.server)} port='{source.port}'"
    )
    begin = f"<source protocol={quoteattr(source.protocol)} name={quoteattr(source.export)}{tls}>"
    return f"{begin}<host {where}/></source>"
