"""What a host says of a guest that was changed there is not taken over unseen where it opens more than before."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any, cast

import pytest

from storkit.core.errors import StorkitError
from storkit.core.guest import Disk, Guest
from storkit.guests import document
from storkit.plans.intent.coordinator import Coordinator
from storkit.plans.intent.kept import refreshing

DOMAIN = """\
<domain type='kvm'>
  <name>g</name>
  <uuid>0f1d0c2e-5a44-4f7c-9d53-3c1a4b6f2f10</uuid>
  <memory unit='KiB'>16384</memory>
  <os><type arch='x86_64' machine='pc'>hvm</type><kernel>/boot/vmlinuz</kernel></os>
  <devices>
    <disk type='file' device='disk'>
      <driver name='qemu' type='raw'/><source file='/img/g.img'/><target dev='vda' bus='virtio'/>
    </disk>
  </devices>
</domain>
"""


def refuse(machine: str, *changes: tuple[str, str]) -> None:
    record = Guest(
        "g", "0f1d0c2e-5a44-4f7c-9d53-3c1a4b6f2f10", 0, hypervisor="libvirt", document=DOMAIN,
        disks=[Disk("g", "vda", uuid="cc18ff28-316c-43a9-9f2c-38e3cc63bc95")],
    )  # fmt: skip
    inventory: Any = SimpleNamespace(host=lambda name: SimpleNamespace(machine=machine))
    text = DOMAIN
    for old, new in changes:
        assert old in text
        text = text.replace(old, new)
    coordinator = cast(Coordinator, SimpleNamespace(inventory=inventory))
    refreshing._refuse_more(coordinator, document.with_facts(record), text, "b")


MORE = [
    ("</devices>", "  <hostdev mode='subsystem' type='usb'/>\n  </devices>"),
    ("/boot/vmlinuz", "/tmp/vmlinuz"),
    ("<devices>", "<devices>\n    <emulator>/tmp/qemu</emulator>"),
    ("</devices>", "  <interface type='bridge'><script path='/tmp/up'/></interface>\n  </devices>"),
]


@pytest.mark.parametrize("change", MORE)
def test_what_opens_more_is_for_a_person_to_look_at(change: tuple[str, str]) -> None:
    with pytest.raises(StorkitError, match="opens or runs more than before, by the words of host b") as caught:
        refuse("b", change)
    assert "storkit guest refresh g --force" in caught.value.hint
    refuse("local", change)


@pytest.mark.parametrize(
    "change",
    [
        ("16384", "32768"),
        ("  <name>", "  <title>longer</title>\n\n  <name>"),  # what it opens stands on another line
        ("bus='virtio'", "bus='sata'"),
        ("<devices>", "<devices>\n    <emulator>/usr/bin/qemu-system-x86_64</emulator>"),
    ],
)
def test_what_opens_no_more_is_taken(change: tuple[str, str]) -> None:
    refuse("b", change)
