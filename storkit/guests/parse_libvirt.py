"""Reads a libvirt domain (libvirt.org/formatdomain.html): what `virsh dumpxml` prints.

An XML document with a DOCTYPE is refused before any entity in it is expanded.
"""

from __future__ import annotations

import re
import xml.etree.ElementTree as ET
from dataclasses import replace

from storkit.core.errors import UsageError
from storkit.core.guest import Nic
from storkit.core.model import DiskSource
from storkit.guests.draft import GuestDraft, path_source

QEMU = "{http://libvirt.org/schemas/domain/qemu/1.0}"
_FACTORS: dict[str, int] = {"b": 1, "bytes": 1, "": 1024} | {
    letter + kind: base**power
    for power, letter in enumerate("kmgtpe", 1)
    for kind, base in (("", 1024), ("ib", 1024), ("b", 1000))
}
"""libvirt's units, of which upper and lower case are the same (virScaleInteger in src/util/virutil.c)."""
_RUNTIME = {"alias", "address"}
"""Elements that libvirt adds to a running or defined domain by itself, and would add again."""
_SERIAL = re.compile(r"[0-9a-f]{8}-[0-9a-f]{4}-[0-9a-f]{4}-[0-9a-f]")
_SETTINGS = {
    "features/acpi": {},
    "features/apic": {},
    "clock": {"offset": "utc"},
}
"""What the template says as well."""
_ODD_MEMORY = re.compile(
    r"-m\nsize=(\d+)K\n-object\nmemory-backend-ram,id=storkit-memory,size=\1K\n-machine\nmemory-backend=storkit-memory\n"
)
"""What the template gives guests without KVM, before the guest's own words."""
_EVENTS = {"on_poweroff": "destroy", "on_reboot": "restart", "on_crash": "destroy"}


class _Builder(ET.TreeBuilder):
    def doctype(self, name: str, pubid: str | None, system: str | None) -> None:
        raise UsageError("the XML has a DOCTYPE, which no libvirt domain needs", "remove it")


_BUSES = {"hd": "ide", "sd": "scsi", "xv": "xen"}
"""The bus that libvirt takes by the name of a disk that says none (virDomainDiskDefParseXML)."""


def read(text: str) -> GuestDraft:
    """What a domain's XML says. Raises UsageError: no XML, or no domain."""
    try:
        root = ET.fromstring(text.lstrip(), ET.XMLParser(target=_Builder()))
    except (ET.ParseError, ValueError) as error:
        raise UsageError(f"this is no XML: {error}", "print it with: virsh dumpxml --inactive NAME") from None
    if root.tag != "domain":
        raise UsageError(f"the XML is a <{root.tag}>, not a <domain>", "print it with: virsh dumpxml --inactive NAME")
    found = GuestDraft()
    _attributes(found, root, "domain", {"type": ("kvm", "qemu"), "id": None})
    for child in root:
        _top(found, child)
    return found


def _top(found: GuestDraft, element: ET.Element) -> None:
    text = (element.text or "").strip()
    match element.tag:
        case "name" | "uuid":
            setattr(found, element.tag, text)
        case "memory":
            found.memory = _memory(element)
        case "currentMemory":
            if _memory(element) != found.memory:
                found.warn("currentMemory: the guest gets all of its memory")
        case "vcpu":
            found.vcpus = int(text) if text.isdecimal() else 0
            _attributes(found, element, "vcpu", {"placement": ("static",)})
        case "os":
            _attributes(found, element, "os", {"firmware": ("efi", "bios")})
            if element.get("firmware") == "efi":
                found.boot = replace(found.boot, firmware="uefi")
            for child in element:
                _os(found, child)
        case "cpu":
            _cpu(found, element)
        case "features":
            for child in element:
                _setting(found, child, f"features/{child.tag}")
        case "devices":
            for child in element:
                _device(found, child)
        case "on_poweroff" | "on_reboot" | "on_crash":
            if text != _EVENTS[element.tag]:
                found.warn(f"{element.tag}: {text} is not kept")
        case _ if element.tag == f"{QEMU}commandline":
            _commandline(found, element)
        case _:
            _setting(found, element, _plain(element.tag))


def _os(found: GuestDraft, element: ET.Element) -> None:
    match element.tag:
        case "type":
            if element.text != "hvm":
                found.warn(f"os/type: {element.text} becomes hvm")
            _attributes(found, element, "os/type", {"arch": ("x86_64",), "machine": None})
            found.machine = element.get("machine", "")
        case "kernel" | "initrd" | "cmdline":
            found.boot = replace(found.boot, **{element.tag: element.text or ""})  # type: ignore[arg-type]
        case "boot" if element.get("dev") == "hd":
            pass
        case "loader" if element.get("type") == "pflash":
            found.boot = replace(found.boot, firmware="uefi")
            found.warn(f"os/loader: {element.text or ''} becomes the host's own UEFI firmware")
        case _:
            found.warn(f"os/{_shown(element)} is not kept")


def _cpu(found: GuestDraft, element: ET.Element) -> None:
    mode = element.get("mode", "custom")
    model = element.find("model")
    if mode == "host-passthrough":
        found.cpu = "host"
    elif mode in ("host-model", "maximum"):
        found.cpu = "host-model" if mode == "host-model" else "max"
    elif model is not None:
        found.cpu = (model.text or "").strip()
    for child in element:
        if child is not model or mode != "custom":
            found.warn(f"cpu/{_shown(child)} is not kept")
    _attributes(found, element, "cpu", {"mode": None, "match": ("exact",), "check": None, "migratable": ("on",)})


def _device(found: GuestDraft, element: ET.Element) -> None:
    match element.tag:
        case "disk":
            _disk(found, element)
        case "interface" if element.get("type") == "bridge":
            _interface(found, element)
        case "serial" if element.get("type") == "file" and not found.console:
            source = element.find("source")
            found.console = source.get("path", "") if source is not None else ""
            _rest(found, element, "serial", {"source", "target"})
        case "serial" | "console" if element.get("type") == "pty" and _is_first_port(element):
            _rest(found, element, element.tag, {"target"})  # every guest of the template has one
        case "console" if found.console and element.get("type") == "file":
            pass
        case "controller" if element.get("type") == "scsi" and element.get("model") == "virtio-scsi":
            pass
        case _:
            found.warn(f"devices/{_shown(element)} is not kept")


def _is_first_port(element: ET.Element) -> bool:
    """Whether it is the machine's own first serial port, or the console that libvirt makes of it."""
    target = element.find("target")
    if target is None:
        return True
    return target.get("port", "0") == "0" and target.get("type", "serial") in ("serial", "isa-serial")


def _disk(found: GuestDraft, element: ET.Element) -> None:
    driver, target = element.find("driver"), element.find("target")
    if driver is None:
        driver = ET.Element("driver")
    place = f"disk {target.get('dev', '') if target is not None else '?'}"
    if element.get("device", "disk") != "disk":
        found.warn(f"{place}: a {element.get('device')} is not kept")
        return
    source = _source(found, element, place, driver.get("type", "raw"))
    if source is None or target is None:
        found.warn(f"{place}: a disk of type {element.get('type')} without a source that storkit knows is not kept")
        return
    stop, unmap = ("stop",), ("unmap",)
    kept = {"cache": ("none",), "io": ("native",), "discard": unmap, "error_policy": stop, "rerror_policy": stop}
    _attributes(found, driver, f"{place}: driver", {"name": ("qemu",), "type": None, **kept})
    serial = element.findtext("serial", "").strip()
    if serial and not _SERIAL.fullmatch(serial):
        found.warn(f"{place}: serial {serial} becomes the start of the volume's UUID")
    boot = element.find("boot")
    if boot is not None and boot.get("order") != str(len(found.disks) + 1):
        found.warn(f"{place}: boot order {boot.get('order')} becomes {len(found.disks) + 1}, as the disks come")
    _rest(found, element, place, {"driver", "source", "target", "readonly", "serial", "boot"})
    readonly = element.find("readonly") is not None
    name = target.get("dev", "")
    found.add_disk(source, name, target.get("bus") or _BUSES.get(name[:2], "virtio"), readonly)


def _source(found: GuestDraft, disk: ET.Element, place: str, format: str) -> DiskSource | None:
    element = disk.find("source")
    if element is None:
        return None
    if disk.get("type") == "block":
        path = element.get("dev", "")
        source = DiskSource("block", path, format)
    elif disk.get("type") == "file":
        path = element.get("file", "")
        source = replace(path_source(path, format), kind="file")
    elif disk.get("type") == "network" and element.get("protocol") == "nbd":
        host = element.find("host")
        if host is None:
            return None
        path = host.get("socket") or host.get("name") or ""
        source = DiskSource(
            kind="network",
            format=format,
            protocol="nbd",
            export=element.get("name", ""),
            socket=host.get("socket", ""),
            server=host.get("name", ""),
            port=0 if host.get("socket") else int(host.get("port", "10809")),
            tls="x509" if element.get("tls") == "yes" else "",
        )
        if element.get("tlsHostname"):
            found.warn(f"{place}: source tlsHostname is not kept")
    else:
        return None
    _rest(found, element, f"{place}: source", {"host"})
    return source if path else None


def _interface(found: GuestDraft, element: ET.Element) -> None:
    source, mac, model = element.find("source"), element.find("mac"), element.find("model")
    found.nics.append(
        Nic(
            source.get("bridge", "") if source is not None else "",
            mac.get("address", "") if mac is not None else "",
            model.get("type", "virtio") if model is not None else "rtl8139",
        )
    )
    _rest(found, element, f"interface {len(found.nics)}", {"source", "mac", "model"})


def _commandline(found: GuestDraft, element: ET.Element) -> None:
    for child in element:
        if child.tag == f"{QEMU}arg":
            found.extra.append(child.get("value", ""))
        else:
            found.warn(f"commandline/{_shown(child)} is not kept")
    if _ODD_MEMORY.match("\n".join([*found.extra, ""])):
        del found.extra[:6]


def _memory(element: ET.Element) -> int:
    """Bytes; a KiB is the default, `MB` is a power of 1000, `MiB` and `M` are powers of 1024."""
    unit = element.get("unit", "").lower()
    text = (element.text or "").strip()
    factor = _FACTORS.get(unit)
    if factor is None or not text.isdecimal():
        raise UsageError(f"{element.tag}: {text!r} {unit} is no size")
    return int(text) * factor


def _setting(found: GuestDraft, element: ET.Element, place: str) -> None:
    if _SETTINGS.get(place) != element.attrib or len(element):
        found.warn(f"{place}{_attribute_text(element)} is not kept")


def _attributes(found: GuestDraft, element: ET.Element, place: str, known: dict[str, tuple[str, ...] | None]) -> None:
    for key, value in element.attrib.items():
        wanted = known.get(key, ())
        if wanted is not None and value not in wanted:
            found.warn(f"{place} {_plain(key)}={value} is not kept")


def _rest(found: GuestDraft, element: ET.Element, place: str, known: set[str]) -> None:
    for child in element:
        if child.tag not in known | _RUNTIME:
            found.warn(f"{place}: {_shown(child)} is not kept")


def _shown(element: ET.Element) -> str:
    return _plain(element.tag) + _attribute_text(element)


def _attribute_text(element: ET.Element) -> str:
    pairs = [f"{_plain(key)}={value}" for key, value in element.attrib.items()]
    return f" ({', '.join(pairs)})" if pairs else ""


def _plain(tag: str) -> str:
    return tag.rpartition("}")[2]
