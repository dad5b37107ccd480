"""How much of what documents can say is kept: every key of xl.cfg(5), every element of libvirt's schema of domains,
every option of QEMU. Judged by the bytes: with its disks elsewhere a document differs in its disks' spans alone.

    pytest -rP tests/unit/test_documents_coverage.py        prints the counts
"""

from __future__ import annotations

import itertools
from collections.abc import Iterator
from pathlib import Path
from xml.etree import ElementTree as ET

import pytest

from storkit.core.errors import StorkitError
from storkit.core.guest import Guest
from storkit.core.model import DiskSource
from storkit.guests import document
from storkit.guests.command import ALONE, arguments
from storkit.guests.documents import qemu
from storkit.guests.documents.edits import DocumentDisk
from storkit.guests.documents.markup import Element, elements
from storkit.guests.render import render

DATA = Path(__file__).parent / "data"
UUID = "11111111-2222-4333-8444-555555555555"
SCHEMAS = Path("/usr/share/libvirt/schemas")
RNG = "{http://relaxng.org/ns/structure/1.0}"


def lines(name: str) -> list[str]:
    return [line for line in (DATA / name).read_text().splitlines() if not line.startswith("#")]


def moved(kind: str, text: str) -> tuple[str, list[DocumentDisk]]:
    """A document as it is imported with all that it opens, and rendered with its disks elsewhere; and these."""
    found = document.find_disks(kind, text)
    mapped = {disk.target: f"v{number}" for number, disk in enumerate(found) if disk.mapped}
    local = [disk.target for disk in found if not disk.mapped and disk.place]
    disks, kept = document.adopted(kind, text, mapped, local, "f")
    name = document.read(kind, text).name
    guest = Guest(name, UUID, 0, hypervisor=kind, document=text, local=kept, disks=disks)
    guest = document.with_facts(guest)
    sources = [DiskSource("block", f"/dev/storkit/{disk.volume}") for disk in guest.disks]
    return render(guest, sources), [disk for disk in found if disk.mapped]


XL_VALUES = {
    "name": '"shop"', "uuid": f'"{UUID}"', "type": '"hvm"', "memory": "512", "maxmem": "1024", "vcpus": "2",

    "disk": '[ "phy:/dev/vg0/shop,xvda2,w" , \'format=raw, vdev=xvdb, target=/srv/a b\', ]', "vif": "[ 'bridge=ovs0' ]",
    "cpus": '[ "0-3", "^1" ]', "pci": "[ '01:00.0' ]", "usbdev": "[ 'hostbus=1' ]", "vtpm": "[ 'backend=t' ]",
    "vncpasswd": '""', "spicepasswd": '""',
    "device_model_args": '[ "-no-hpet", "-hdb", "/srv/b" ]', "device_model_args_pv": "[ ]",
    "device_model_args_hvm": "[ '-no-acpi' ]",
}  # fmt: skip


def test_every_key_of_xl_is_kept() -> None:
    keys = lines("xl-4.17-cfg-keys.txt")
    text = "".join(f"{key}={XL_VALUES.get(key, chr(34) + 'x' + chr(34))} # {n}\n" for n, key in enumerate(keys))
    if "name" not in keys:
        text += "name = 'shop'\n"
    new, disks = moved("xl", text)
    spans = [("phy:/dev/vg0/shop", "phy:/dev/storkit/v0"), ("target=/srv/a b", "target=/dev/storkit/v1")]
    expected = text
    for before, after in spans:
        expected = expected.replace(before, after)
    assert new == expected and len(disks) == 2
    print(f"xl.cfg(5): {len(keys)} of {len(keys)} keys kept")


QEMU_VALUES = {
    "-name": "shop", "-m": "512", "-smp": "2", "-uuid": UUID,
    "-drive": "file=/srv/a,if=virtio,format=raw", "-accel": "tcg",
    "-blockdev": "driver=raw,node-name=n,file.driver=file,file.filename=/srv/b", "-machine": "q35,vmport=off",
    "-object": "memory-backend-ram,id=m,size=512M", "-device": "virtio-blk-pci,drive=n", "-kernel": "/boot/k",
    "-initrd": "/boot/i", "-bios": "/b", "-dtb": "/d", "-option-rom": "/o", "-boot": "order=c,menu=on",
}  # fmt: skip
QEMU_REFUSED = {"-snapshot", "-loadvm", "-readconfig", "-set", "-add-fd"}
"""A disk would not be what it seems, or a descriptor is nobody's: docs/documents.md."""
QEMU_IMAGES = {"-hda", "-hdb", "-hdc", "-hdd", "-sd", "-mtdblock", "-pflash"}
"""They become the -drive that they are."""


def test_every_option_of_qemu_is_kept() -> None:
    options = lines("qemu-7.2-options.txt")
    words = {
        option: ([] if option in ALONE else [QEMU_VALUES.get(option, f"/x{n}")]) for n, option in enumerate(options)
    }
    for option in QEMU_REFUSED:
        with pytest.raises(StorkitError, match=rf"line 1: {option}"):
            qemu.find_disks(f"qemu-system-x86_64 -name shop {option} {' '.join(words[option])}")
    assert words.pop("-cdrom")  # which is what -hdc is
    kept = {option: value for option, value in words.items() if option not in QEMU_REFUSED}
    text = "exec qemu-system-x86_64" + "".join(f" \\\n\t{option} {' '.join(value)}" for option, value in kept.items())
    new, disks = moved("qemu", f"{text} # ours\n")
    before, after = text.split("\n"), new.replace(" # ours\n", "").split("\n")
    changed = {one.split()[0] for one, other in zip(before, after, strict=True) if one != other}
    assert changed == QEMU_IMAGES | {"-drive", "-blockdev"} and len(disks) == len(changed)
    left = [word for word in arguments(text) if word not in arguments(new)]
    assert all(word in QEMU_IMAGES or word.startswith(("/x", "file=", "driver=")) for word in left)
    print(f"QEMU: {len(kept) + 1} of {len(options)} options kept, {len(QEMU_REFUSED)} refused by their line")


class Schema:
    """libvirt's RELAX NG, of which one document is made that has every element."""

    def __init__(self) -> None:
        self.defines: dict[str, list[ET.Element]] = {}
        self.used: set[str] = set()
        for file in ("domaincommon.rng", "basictypes.rng", "storagecommon.rng", "networkcommon.rng",
                     "nwfilter_params.rng", "cputypes.rng", "privatedata.rng", "nodedev.rng"):  # fmt: skip
            for define in ET.parse(SCHEMAS / file).iter(f"{RNG}define"):
                self.defines.setdefault(define.get("name", ""), []).append(define)

    def names(self, of: str = "domain") -> set[str]:
        """The elements that a definition leads to."""
        found: set[str] = set()
        waiting, seen = list(self.defines[of]), set[str]()
        while waiting:
            for node in waiting.pop().iter():
                if node.tag == f"{RNG}element" and node.get("name"):
                    found.add(node.get("name", ""))
                elif node.tag == f"{RNG}ref" and node.get("name") not in seen:
                    seen.add(node.get("name", ""))
                    waiting += self.defines.get(node.get("name", ""), [])
        return found

    def document(self) -> ET.Element:
        root = ET.Element("root")
        for define in self.defines["domain"]:
            self._add(define, root)
        return root[0]

    def _add(self, node: ET.Element, parent: ET.Element) -> None:
        """Everything that may be here, one after the other, each definition once in the whole document."""
        if node.tag == f"{RNG}element":
            child = ET.SubElement(parent, node.get("name") or "anything")
            for each in node:
                self._add(each, child)
        elif node.tag == f"{RNG}attribute":
            parent.set(node.get("name") or "any", next((v.text or "" for v in node.iter(f"{RNG}value")), "1"))
        elif node.tag == f"{RNG}ref":
            name = node.get("name", "")
            if name not in self.used:
                self.used.add(name)
                for define in self.defines.get(name, []):
                    self._add(define, parent)
        elif node.tag in (f"{RNG}text", f"{RNG}data") and not len(parent):
            parent.text = "1"
        elif node.tag == f"{RNG}value" and not len(parent):
            parent.text = node.text
        else:
            for each in node:
                self._add(each, parent)


def walk(element: Element) -> Iterator[Element]:
    yield element
    for child in element.children:
        yield from walk(child)


@pytest.mark.skipif(not SCHEMAS.is_dir(), reason="libvirt's schemas are not installed (libvirt0)")
def test_every_element_of_libvirts_schema_is_kept() -> None:
    schema = Schema()
    domain = schema.document()
    for number, disk in enumerate(domain.findall("devices/disk")):
        disk.attrib["type"] = "file"
        for target in disk.findall("target") or [ET.SubElement(disk, "target")]:
            target.set("dev", f"vd{chr(97 + number)}")
    for name, value in (("name", "shop"), ("uuid", UUID), ("memory", "1048576"), ("vcpu", "2"), ("currentMemory", "9")):
        for element in domain.findall(name):
            element.text = value
            element.attrib.pop("unit", None)
    for graphics in domain.iter("graphics"):
        graphics.attrib.pop("passwd", None)
    for mirror in domain.findall("devices/disk"):
        for each in mirror.findall("mirror"):
            mirror.remove(each)
    ET.indent(domain)
    text = "<!-- ours -->\n" + ET.tostring(domain, encoding="unicode") + "\n\n"
    there = {element.tag for element in walk(elements(text))}
    wanted = schema.names() - {"mirror"}
    assert wanted - there <= set(), sorted(wanted - there)
    new, disks = moved("libvirt", text)
    spans = [(e.start, e.end) for e in walk(elements(text)) if e.tag in ("disk", "nvram") and e.parent]
    after = [(e.start, e.end) for e in walk(elements(new)) if e.tag in ("disk", "nvram") and e.parent]
    assert outside(text, spans) == outside(new, after) and disks
    print(f"libvirt's schema: {len(wanted & there)} of {len(wanted)} elements kept, {len(text)} characters")


def outside(text: str, spans: list[tuple[int, int]]) -> list[str]:
    edges = [0, *itertools.chain.from_iterable(sorted(spans)), len(text)]
    return [text[start:end] for start, end in zip(edges[::2], edges[1::2], strict=True)]


CASES = [path for path in sorted((DATA / "guests").iterdir()) if path.suffix in (".cfg", ".xml")]


@pytest.mark.parametrize("case", CASES, ids=lambda path: path.stem)
def test_documents_as_people_have_them(case: Path) -> None:
    with case.open(newline="") as file:
        text = file.read()
    kind = "xl" if case.suffix == ".cfg" else "libvirt"
    if case.stem == "10-xm-python":
        with pytest.raises(StorkitError) as caught:
            moved(kind, text)
        assert "this is a Python program, as xm took them" in caught.value.hint
        return
    text, passwords = document.apart(kind, text)
    assert bool(passwords) == (case.stem in ("09-secret", "13-graphics-passwd")) and "sesame" not in text
    with pytest.raises(StorkitError, match=r"line \d+: .* is no volume"):
        document.adopted(kind, text, {}, [], case.name)
    new, disks = moved(kind, text)
    before, after = text.splitlines(), new.splitlines()
    changed = [one for one, other in zip(before, after, strict=True) if one != other]
    assert disks and changed and all("disk" in line for line in changed)
