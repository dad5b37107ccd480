"""A guest of Xen's whose root is a directory of an NFS server: it boots, and moves while it writes."""

from __future__ import annotations

from pathlib import Path

import pytest

from tests.guestkit import log, nfsroot
from tests.lab.world import storage
from tests.lab.xen import Dom0, XenLab
from tests.lab.xen.world import PATIENT, XenWorld

pytestmark = [pytest.mark.lab, pytest.mark.slow]
CMDLINE = "console=hvc0 quiet mitigations=off panic=-1"


def test_a_guest_boots_from_a_tree_and_moves_while_it_writes(xen: XenLab, tmp_path: Path) -> None:
    world = XenWorld(xen, tmp_path, storage("nfs"))
    kit = nfsroot.build()
    for file, name in ((kit.kernel, "vmlinuz"), (kit.initrd, "initrd"), (kit.root, "root.tar")):
        world.s.put(file, f"/root/web/{name}")
    for host in world.dom0s:
        bridge(host)
        host.run(["scp", "-qr", "s:/root/web", "/root"], timeout=PATIENT)  # a dom0's own line is slow
    world.storkit("volume", "import", "--tree", "/root/web/root.tar", "web")
    address = f"{world.h1.address('san1').rpartition('.')[0]}.200/24"
    world.storkit(
        "guest", "define", "web", "--root", "web", "--address", address, "--memory", nfsroot.MEMORY,
        "--kernel", "/root/web/vmlinuz", "--initrd", "/root/web/initrd", "--cmdline", CMDLINE, "--bridge", "br0",
    )  # fmt: skip
    path = f"{world.storkit('volume', 'show', 'web')['path']}/data/log"

    def writes() -> None:
        before = len(world.s.get(path).splitlines())
        world.s.wait_for(lambda: len(world.s.get(path).splitlines()) > before + 10, "lines of the guest's", PATIENT, 1)

    world.storkit("guest", "start", "web", "--on", "h1")
    writes()
    for destination, other in ((world.h2, world.h1), (world.h1, world.h2)):
        world.storkit("migrate", "run", "web", "--to", destination.name)
        assert (world.domains(destination), world.domains(other)) == (["web"], [])
        (status,) = world.storkit("migrate", "status", "web")
        assert (status["places"], status["writers"], status["window"]) == (
            {destination.name: "running"}, ["guest:web"], False,
        )  # fmt: skip
        writes()
    # What the server refuses, the guest has lost, wherever it is.
    world.storkit("detach", "web", "--on", "guest:web")
    cut = world.s.get(path)
    world.storkit("guest", "stop", "web", "--force")
    assert world.s.get(path) == cut and world.domains(world.h1) == []
    world.storkit("guest", "start", "web", "--on", "h2")
    writes()
    world.storkit("guest", "stop", "web")
    report = log.parse(world.s.get(path))
    assert report.clean and report.count >= 30, report


def bridge(host: Dom0) -> None:
    """Put the guest network's port and the host's address on it on a bridge, as a dom0 for guests has it."""
    host.run(["modprobe", "-a", "bridge", "xen-netback"])
    address = host.address("san1")
    host.run(["sh", "-c", f"ip link add br0 type bridge && ip addr del {address}/24 dev san1 && "
              f"ip link set san1 master br0 && ip addr add {address}/24 dev br0 && ip link set br0 up"])  # fmt: skip
