"""A clone of a guest with a document: another guest, and like it in all else."""

from __future__ import annotations

from pathlib import Path
from xml.etree import ElementTree as ET

import pytest

from storkit.core.errors import Unsupported, UsageError
from storkit.core.guest import Guest, derived_mac
from storkit.core.model import DiskSource
from storkit.guests import clone, document
from storkit.guests.documents import libvirt
from storkit.guests.render import render
from tests.unit.documents import DISK, UUID, domain, guest

DATA = Path(__file__).parent / "data"


def test_a_clone_is_another_guest_and_like_it_in_all_else() -> None:
    disk = DISK.replace("{}", "<source file='/srv/s'/>").replace("</disk>", "<serial>abc</serial></disk>")
    card = "<interface type='network'><mac address='52:54:00:00:00:01'/><source network='default'/></interface>"
    original = guest("libvirt", domain(disk + card + "<graphics type='vnc' port='-1' autoport='yes'/>"), vda="shop")
    made = clone.clone(original, "till")
    assert (made.name, made.disks[0].volume) == ("till", "till") and made.uuid != original.uuid
    same = made.document
    for own, old in ((made.uuid, UUID), ("till", "shop"), (derived_mac(made.uuid, 0), "52:54:00:00:00:01")):
        assert own in same
        same = same.replace(own, old)
    serial = same.partition("<serial>")[2].partition("<")[0]
    assert len(serial) == 20 and same.replace(serial, "abc") == original.document
    with pytest.raises(UsageError, match="the document of shop says it"):
        clone.clone(original, "till", ["memory=1GiB"])


@pytest.mark.parametrize(
    "device",
    [
        "<hostdev mode='subsystem' type='pci'><source><address bus='1'/></source></hostdev>",
        "<tpm model='tpm-crb'><backend type='emulator' version='2.0'/></tpm>",
        "<channel type='unix'><source mode='connect' path='/run/ga'/><target type='virtio' name='a'/></channel>",
        "<serial type='dev'><source path='/dev/ttyS0'/></serial>",
        "<serial type='tcp'><source mode='bind' host='::1' service='5'/></serial>",
        "<interface type='ethernet'><target dev='tap7' managed='no'/></interface>",
    ],
)
def test_what_two_guests_cannot_have_both_is_refused_in_a_clone(device: str) -> None:
    text = domain(device)
    local = [disk.target for disk in libvirt.find_disks(text)]
    original = document.with_facts(Guest("shop", UUID, 0, hypervisor="libvirt", document=text, local=local))
    with pytest.raises(Unsupported, match=r"line 8: .*two guests cannot have it both"):
        clone.clone(original, "till")


def facts_of(text: str) -> set[tuple[str, str]]:
    """The texts and attributes of an XML document, each with its path."""
    found: set[tuple[str, str]] = set()

    def read(element: ET.Element, path: str) -> None:
        found.update((f"{path}@{key}", value) for key, value in element.attrib.items())
        found.add((path, (element.text or "").strip()))
        for child in element:
            read(child, f"{path}/{child.tag}")

    read(ET.fromstring(text), "")
    return found


def test_a_clone_changes_what_virt_clone_does_and_what_two_guests_cannot_share() -> None:
    before, after = ((DATA / f"virt-clone-4.1-{name}.xml").read_text() for name in ("before", "after"))
    made = clone.clone(guest("libvirt", before, vda="shop"), "till")
    ours = render(made, [DiskSource("file", "/tmp/vc/till.img")])
    theirs, changed = ({path for path, _ in facts_of(before) ^ facts_of(each)} for each in (after, ours))
    more = {"/genid", "/devices/disk/serial", "/devices/vsock/cid@auto", "/sysinfo/system/entry"}
    more |= {f"/devices/{kind}/source@path" for kind in ("serial", "console", "channel")}
    assert changed - theirs == more and theirs - changed <= {"/title", "/devices/graphics@autoport"}


@pytest.mark.parametrize(
    ("before", "after"),
    [
        ("<graphics type='vnc' port='5901' autoport='no'/>", "<graphics type='vnc' port='-1' autoport='yes'/>"),
        ("<graphics type='spice' tlsPort='5901'/>", "<graphics type='spice' tlsPort='-1'/>"),
        ("<vsock><cid auto='no' address='3'/></vsock>", "<vsock><cid auto='yes' address='3'/></vsock>"),
        ("<interface type='bridge'><target dev='tap7'/></interface>", "<interface type='bridge'></interface>"),
        ("<interface type='bridge'><target dev='vnet3'/></interface>",) * 2,
        ("<serial type='file'><source path='/var/log/shop.log'/></serial>",
         "<serial type='file'><source path='/var/log/till.log'/></serial>"),
        ("<channel type='unix'><source mode='bind' path='/run/ga'/></channel>",
         "<channel type='unix'><source mode='bind' path='/run/till-ga'/></channel>"),
    ],
)  # fmt: skip
def test_what_a_host_chooses_is_chosen_anew_in_a_clone(before: str, after: str) -> None:
    text = domain(before).replace(f"<uuid>{UUID}</uuid>", "")
    original = document.with_facts(Guest("shop", UUID, 0, hypervisor="libvirt", document=text))
    made = clone.clone(original, "till").document
    assert made == text.replace(before, after).replace("<name>shop", "<name>till")


def test_an_xl_clone_is_another_guest() -> None:
    text = (
        f"name = 'shop'\nuuid=\"{UUID}\" # own\nmemory = 512\nvif = [ 'bridge=b, mac=00:16:3e:00:00:01,rate=1', '' ]\n"
    )
    made = clone.clone(guest("xl", text), "till")
    lines = made.document.splitlines()
    assert lines[:2] == ["name = 'till'", f'uuid="{made.uuid}" # own'] and lines[2] == "memory = 512"
    assert lines[3].startswith("vif = [ 'bridge=b, mac=52:") and lines[3].endswith(",rate=1', '' ]")
