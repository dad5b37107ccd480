"""1,000 clones of a guest's document, each with its disk in its place, against virt-clone.

    python bench/bench_documents.py [COUNT]

storkit: in one process, the clones' records and documents, checked as they are each time, and rendered for a host, for
each language. virt-clone (package virtinst, without which its row is left out): `--print-xml` of the same domain, by
libvirt's test driver, ten times, scaled: it makes one clone a process.
"""

from __future__ import annotations

import shutil
import subprocess
import sys
import tempfile
import time
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

from storkit.core.guest import Guest
from storkit.core.model import DiskSource
from storkit.guests import document
from storkit.guests.clone import clone, met
from storkit.guests.render import render

UUID = "11111111-2222-4333-8444-555555555555"
RUNSTATE = "xmlns:test='http://libvirt.org/schemas/domain/test/1.0'"
DOMAIN = """<domain type='kvm'><name>shop</name><uuid>{uuid}</uuid><memory unit='KiB'>1048576</memory><vcpu>2</vcpu>
  <os><type arch='x86_64' machine='pc'>hvm</type></os>
  <devices>
    <disk type='file' device='disk'><driver name='qemu' type='raw'/><source file='{disk}'/><target dev='vda'/></disk>
    <interface type='network'><mac address='52:54:00:00:00:01'/><source network='default'/></interface>
    <graphics type='vnc' port='-1' autoport='yes'/>
  </devices>
</domain>
"""
XL = """name = "shop"\nuuid = "{uuid}"\nmemory = 1024\nvcpus = 2\ndisk = [ "file:{disk},xvda,w" ]
vif = [ "mac=00:16:3e:00:00:01,bridge=xenbr0" ]\n"""
QEMU = """#!/bin/sh
exec qemu-system-x86_64 -name shop -uuid {uuid} -m 1G -smp 2 -drive file={disk},format=raw,if=virtio \\
  -nic bridge,br=br0,mac=52:54:00:00:00:01 -vnc none
"""


def clones(kind: str, text: str, count: int) -> float:
    (found,) = document.find_disks(kind, text)
    disks, _ = document.adopted(kind, text, {found.target: "shop"}, [], "shop")
    original = document.with_facts(Guest("shop", UUID, 0, hypervisor=kind, document=text, disks=disks))
    start = time.perf_counter()
    made = [clone(original, f"shop{number}") for number in range(count)]
    assert not met(made, [original])
    for guest in made:
        render(guest, [DiskSource("block", f"/dev/storkit/{guest.disks[0].volume}")])
    return time.perf_counter() - start


def virt_clone(place: Path, times: int) -> float:
    disk = place / "shop.img"
    disk.touch()
    (place / "till.img").touch()
    domain = DOMAIN.format(uuid=UUID, disk=disk).replace("<domain type='kvm'>", f"<domain type='test' {RUNSTATE}>")
    (place / "shop.xml").write_text(domain.replace("</domain>", "<test:runstate>5</test:runstate></domain>"))
    (place / "node.xml").write_text('<node><domain file="shop.xml"/></node>')
    words = ["virt-clone", "--connect", f"test:///{place}/node.xml", "-o", "shop", "-n", "till", "--file"]
    start = time.perf_counter()
    for _ in range(times):
        subprocess.run([*words, place / "till.img", "--preserve-data", "--print-xml"], check=True, stdout=-3)
    return time.perf_counter() - start


def main() -> None:
    count = int(sys.argv[1]) if len(sys.argv) > 1 else 1000
    print(f"| {count} clones of one document | seconds |\n| --- | --- |")
    with tempfile.TemporaryDirectory() as base:
        disk = f"{base}/shop.img"
        for kind, text in (("libvirt", DOMAIN), ("xl", XL), ("qemu", QEMU)):
            print(f"| storkit, {kind} | {clones(kind, text.format(uuid=UUID, disk=disk), count):.1f} |")
        if shutil.which("virt-clone"):
            print(f"| virt-clone, libvirt (10 measured) | {virt_clone(Path(base), 10) * count / 10:.0f} |")


if __name__ == "__main__":
    main()
