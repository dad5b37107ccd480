"""Domain XML: storkit's mark in it, what is read from it, and what changes in it from host to host.

The mark is an element in the domain's <metadata> (libvirt.org/formatdomain.html), which libvirt keeps for whoever's
namespace it is in, and which goes along when the domain migrates.
"""

from __future__ import annotations

import xml.etree.ElementTree as ET
from dataclasses import dataclass, field

from storkit.core.errors import UsageError
from storkit.core.guest import Guest

NAMESPACE = "http://storkit.org/xmlns/libvirt/domain/1"
QEMU_NAMESPACE = "http://libvirt.org/schemas/domain/qemu/1.0"
_MARK = f"{{{NAMESPACE}}}guest"
_VOLUME = f"{{{NAMESPACE}}}volume"


@dataclass(frozen=True, slots=True)
class Domain:
    """What storkit wants to know of a domain."""

    name: str
    uuid: str
    machine: str
    ours: bool
    """Whether it has storkit's mark."""
    volumes: dict[str, str] = field(default_factory=dict)
    """UUID to name, as the mark has them."""


_NVRAM = "nvram"
"""UEFI variables, among the disks: no disk is called so."""


def read(xml: str) -> Domain:
    """A domain as `virsh dumpxml` prints it."""
    root = _parse(xml)
    kind = root.find("os/type")
    mark = root.find(f"metadata/{_MARK}")
    volumes = {} if mark is None else {one.get("uuid", ""): one.get("name", "") for one in mark.findall(_VOLUME)}
    machine = kind.get("machine", "") if kind is not None else ""
    return Domain(root.findtext("name", ""), root.findtext("uuid", ""), machine, mark is not None, volumes)


def mark(guest: Guest) -> str:
    """The mark as `virsh metadata` takes it, which gives it its namespace."""
    element = ET.Element("guest")
    for disk in guest.disks:
        if disk.uuid:
            ET.SubElement(element, "volume", name=disk.volume, uuid=disk.uuid)
    return ET.tostring(element, encoding="unicode")


def marked(xml: str, guest: Guest) -> str:
    """A rendered domain with storkit's mark, whatever template it comes from."""
    root = _parse(xml)
    metadata = root.find("metadata")
    if metadata is None:
        metadata = ET.Element("metadata")
        name = root.find("uuid")
        root.insert(0 if name is None else list(root).index(name) + 1, metadata)
    mark = ET.SubElement(metadata, _MARK)
    for disk in guest.disks:
        if disk.uuid:
            ET.SubElement(mark, _VOLUME, name=disk.volume, uuid=disk.uuid)
    return _text(root)


def sources(xml: str) -> dict[str, str]:
    """Where a domain's disks come from: the device name in the guest to its `disk` element, with nothing else in it."""
    found: dict[str, str] = {}
    for disk in _parse(xml).findall("devices/disk"):
        bare = ET.Element("disk", type=disk.get("type", ""))
        for source in disk.findall("source"):
            source.tail = ""
            bare.append(source)
        found[_target(disk)] = ET.tostring(bare, encoding="unicode").strip()
    for nvram in _parse(xml).findall("os/nvram"):
        nvram.tail = ""
        found[_NVRAM] = ET.tostring(nvram, encoding="unicode")
    return found


def places(xml: str) -> dict[str, tuple[str, ...]]:
    """What a domain's disks are: the device name in the guest to the words that say where each comes from, without
    what libvirt adds to them while it runs."""
    return {
        _target(disk): tuple(
            value for source in disk.findall("source") for key, value in sorted(source.items()) if key != "index"
        )
        for disk in _parse(xml).findall("devices/disk")
    }


def cached(xml: str) -> list[str]:
    """The files among a domain's disks that its QEMU writes through the page cache of its host, by their targets."""
    disks = [
        disk for disk in _parse(xml).findall("devices/disk")
        if disk.get("type") == "file" and disk.get("device", "disk") == "disk" and disk.find("readonly") is None
    ]  # fmt: skip
    modes = {_target(disk): [driver.get("cache") for driver in disk.findall("driver")] for disk in disks}
    return [target for target, said in modes.items() if not any(mode in ("none", "directsync") for mode in said)]


def seems_alone(live: str, defined: str) -> bool:
    """Whether libvirt takes a domain that runs for one whose disks no other host sees, and is wrong: it runs since
    before it was adopted, with files of this host that are volumes now. None of them is cached: of that libvirt warns
    by the same word."""
    now, wanted = places(live), places(defined)
    files = {_target(disk) for disk in _parse(live).findall("devices/disk") if disk.get("type") == "file"}
    return any(now[target] != wanted.get(target) for target in files) and not files & set(cached(live))


def moved(xml: str, there: dict[str, str]) -> str:
    """The domain of `virsh dumpxml --migratable`, its disks where the destination has them: the `sources` of it."""
    root = _parse(xml)
    for disk in root.findall("devices/disk"):
        if _target(disk) not in there:
            raise UsageError(
                f"the destination's definition has no disk {_target(disk)}", "define the guest there again"
            )
        other = _parse(there[_target(disk)])
        disk.set("type", other.get("type", ""))
        for old in disk.findall("source"):
            disk.remove(old)
        for new in other:
            disk.insert(1, new)
    system = root.find("os")
    for nvram in root.findall("os/nvram"):
        if system is not None and _NVRAM in there:
            place = list(system).index(nvram)
            system.remove(nvram)
            system.insert(place, _parse(there[_NVRAM]))
    return _text(root)


def _target(disk: ET.Element) -> str:
    target = disk.find("target")
    return target.get("dev", "") if target is not None else ""


def _parse(xml: str) -> ET.Element:
    try:
        return ET.fromstring(xml)
    except ET.ParseError as error:
        raise UsageError(
            f"the domain's XML does not parse: {error}", "mend the libvirt/guest.xml.j2 template"
        ) from None


def _text(root: ET.Element) -> str:
    ET.register_namespace("storkit", NAMESPACE)
    ET.register_namespace("qemu", QEMU_NAMESPACE)
    ET.indent(root)
    return ET.tostring(root, encoding="unicode") + "\n"
