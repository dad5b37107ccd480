"""Guest records to the configuration files of hypervisors, by Jinja2 templates that an administrator can replace.

A template is HYPERVISOR/NAME.j2; it is looked for in the administrator's directories, then in the package (also inside
a zipapp), then, in a source tree, in templates/ beside the package. It sees `guest`, `disks`, `nics` and `place`
(docs/templates.md). An undefined name is an error; values are quoted by the template for the syntax they stand in.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from functools import cache
from pathlib import Path
from typing import TYPE_CHECKING, Any

from storkit.core.errors import NotFound, StorkitError, Unsupported, UsageError, raise_problems
from storkit.core.guest import Disk, Guest, Nic
from storkit.core.model import DiskSource
from storkit.guests import document
from storkit.guests.check import check, text_problem
from storkit.guests.limits import limits, xen_type
from storkit.guests.place import Place
from storkit.guests.quoting import quote_json, quote_option, quote_xl

if TYPE_CHECKING:
    import jinja2

FILES = {"qemu": "guest.args", "libvirt": "guest.xml", "xl": "guest.cfg", "uml": "guest.args"}
"""Hypervisor to the name of what is rendered for it."""


@dataclass(frozen=True, slots=True)
class DiskView:
    """A disk as templates see it."""

    index: int
    disk: Disk
    source: DiskSource
    target: str
    """The device name in the guest: the record's, or the next free one."""
    unit: int
    """Its place on its bus, counted from 0."""

    @property
    def node(self) -> str:
        """QEMU's node name."""
        return node_name(self.index)

    @property
    def device(self) -> str:
        """QEMU's device id: the same on every host, as migration wants it."""
        return device_id(self.index)

    @property
    def bus(self) -> str:
        return self.disk.bus

    @property
    def readonly(self) -> bool:
        return self.disk.readonly

    @property
    def serial(self) -> str:
        return self.disk.serial


@dataclass(frozen=True, slots=True)
class NicView:
    """A network card as templates see it."""

    index: int
    bridge: str
    mac: str
    model: str
    tap: str
    kind: str = "bridge"
    group: str = ""


def node_name(index: int) -> str:
    """The QEMU node name of the guest's disk `index`."""
    return f"node{index}"


def device_id(index: int) -> str:
    """The QEMU device id of the guest's disk `index`: /machine/peripheral/ID."""
    return f"disk{index}"


def render(
    guest: Guest,
    disks: Sequence[DiskSource],
    hypervisor: str = "",
    place: Place | None = None,
    templates: Sequence[Path] = (),
) -> str:
    """The configuration of `guest` for a hypervisor (its own by default), in the form of FILES.

    Of a guest that has its own document, that is the document, with the disks where they are now.

    `disks` are in the order of the guest's disks; `templates` are the administrator's template directories, first
    come first served. QEMU's and UML's are one argument a line: `read_args` takes them apart.

    Raises UsageError, Unsupported or Problems: what is wrong with the record, or beyond the hypervisor. UsageError
    also for a template that does not work, with its name and line.
    """
    hypervisor = hypervisor or guest.hypervisor
    if hypervisor not in FILES:
        raise Unsupported(f"there are no templates for {hypervisor!r}", f"known here: {', '.join(FILES)}")
    place = place or Place()
    sources = list(disks)
    raise_problems([*check(guest), *_place_problems(place), *limits(guest, sources, hypervisor, place)])
    if guest.document:
        if hypervisor == guest.hypervisor:
            return document.render(guest, sources, place)
        raise_problems(document.lost(guest, hypervisor))
        guest = document.on_its_buses(guest)
        raise_problems(limits(guest, sources, hypervisor, place))
    names = targets(guest, hypervisor)
    # Also an administrator's own template, that knows nothing of roots, has the whole command line.
    guest = replace(guest, boot=replace(guest.boot, cmdline=guest.cmdline))
    values = {
        "guest": guest,
        "disks": [
            DiskView(index, disk, source, names[index], _unit(guest, index))
            for index, (disk, source) in enumerate(zip(guest.disks, sources, strict=True))
        ],
        "nics": [_nic(guest, index, nic, place) for index, nic in enumerate(guest.nics)],
        "place": place,
        "machine": xen_type(guest) if hypervisor == "xl" else place.machine or guest.machine,
    }
    return _fill(f"{hypervisor}/{FILES[hypervisor]}.j2", values, tuple(templates))


def read_args(text: str) -> list[str]:
    """The arguments in a rendered file of one argument a line."""
    return [line for line in text.split("\n") if line]


PREFIXES = {
    "qemu": {"virtio": "vd", "scsi": "sd", "sata": "sd", "ide": "hd", "flash": "nvram"},
    "libvirt": {"virtio": "vd", "scsi": "sd", "sata": "sd", "ide": "hd", "flash": "nvram"},
    "xl": dict.fromkeys(("virtio", "scsi", "sata", "ide", "xen"), "xvd"),
    "uml": {"virtio": "ubd"},
}


def targets(guest: Guest, hypervisor: str) -> list[str]:
    """The device names of the guest's disks: those in the record, and the next free ones of their bus's kind.

    xl knows no vdX (xen-vbd-interface(7)): it becomes xvdX, and the other way round for QEMU and libvirt.
    """
    given = [_translate(disk.target, hypervisor) for disk in guest.disks]
    taken = set(given)
    names: list[str] = []
    for disk, name in zip(guest.disks, given, strict=True):
        if not name:
            prefix = PREFIXES[hypervisor].get(disk.bus, "vd")
            number = 0
            while (name := prefix + _letters(number)) in taken:
                number += 1
            name = prefix if disk.bus == "flash" else name
            taken.add(name)
        names.append(name)
    return names


def _translate(target: str, hypervisor: str) -> str:
    if hypervisor == "xl":
        return "x" + target if target.startswith("vd") else target
    return target[1:] if target.startswith("xvd") else target


def _letters(number: int) -> str:
    """a to z, then aa, ab and so on."""
    text = ""
    number += 1
    while number:
        number, rest = divmod(number - 1, 26)
        text = chr(ord("a") + rest) + text
    return text


def _unit(guest: Guest, index: int) -> int:
    bus = guest.disks[index].bus
    return sum(disk.bus == bus for disk in guest.disks[:index])


def _nic(guest: Guest, index: int, nic: Nic, place: Place) -> NicView:
    tap = place.taps[index] if index < len(place.taps) else ""
    return NicView(index, nic.bridge, guest.mac(index), nic.model, tap, nic.kind, nic.group)


def _place_problems(place: Place) -> list[StorkitError]:
    texts = [
        place.machine,
        place.qmp,
        place.console,
        place.agent,
        place.pidfile,
        place.uml_dir,
        place.umid,
        place.uefi_code,
        place.uefi_vars,
        *place.taps,
    ]
    return [UsageError(f"{text!r} cannot be used: {text_problem(text)}") for text in texts if text_problem(text)]


def _fill(name: str, values: dict[str, Any], directories: tuple[Path, ...]) -> str:
    import jinja2

    try:
        return _environment(directories).get_template(name).render(values)
    except jinja2.TemplateNotFound as error:
        raise NotFound(f"there is no template {error.name}", "reinstall storkit, or write it yourself") from None
    except jinja2.TemplateSyntaxError as error:
        raise UsageError(f"template {error.filename or error.name}, line {error.lineno}: {error.message}") from None
    except (jinja2.TemplateError, TypeError, ValueError, LookupError, AttributeError) as error:
        hint = "docs/templates.md lists what a template sees"
        raise UsageError(f"template {name} does not work: {error}", hint) from None


@cache
def _environment(directories: tuple[Path, ...]) -> jinja2.Environment:
    import jinja2

    environment = jinja2.Environment(
        loader=jinja2.FunctionLoader(lambda name: _source(name, directories)),
        undefined=jinja2.StrictUndefined,
        autoescape=lambda name: name is not None and name.endswith(".xml.j2"),
        trim_blocks=True,
        lstrip_blocks=True,
        keep_trailing_newline=True,
    )
    environment.filters.update(opt=quote_option, json=quote_json, xl=quote_xl)
    return environment


def _source(name: str, directories: tuple[Path, ...]) -> tuple[str, str, Any] | None:
    """A template's text, for jinja2.FunctionLoader; from resources rather than files, which a zipapp has not."""
    from importlib.resources import files

    for directory in directories:
        file = directory / name
        try:
            return file.read_text(), str(file), lambda: False
        except (FileNotFoundError, NotADirectoryError):
            continue
        except (OSError, UnicodeDecodeError) as error:
            raise UsageError(f"template {file} cannot be read: {error}") from None
    package = files("storkit")
    tree = Path(__file__).parents[2] / "templates"
    for place in (package / "templates", tree):
        resource = place.joinpath(*name.split("/"))
        if resource.is_file():
            return resource.read_text(encoding="utf-8"), str(resource), lambda: True
    return None
