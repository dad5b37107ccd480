"""A disk becomes larger under its running guest, over every storage and hypervisor there is."""

from __future__ import annotations

from pathlib import Path

import pytest

from tests.lab.lab import Lab
from tests.lab.world import SIZE, Storage, World, each, worlds

pytestmark = pytest.mark.lab


@pytest.mark.parametrize("combination", each(worlds(), []))
def test_under_its_guest(lab: Lab, tmp_path: Path, combination: tuple[Storage, str]) -> None:
    world = World(lab, tmp_path, *combination)
    world.define()
    world.storkit("guest", "start", "g", "--on", "b")
    world.wait_for_writes()
    (grown,) = world.storkit("volume", "resize", "g", f"+{SIZE}B")
    assert grown["size"] == 2 * SIZE and grown["guests"] == {"g": True}
    shown = world.storkit("volume", "show", "g")
    assert [each["size"] for each in shown["attachments"]] == [2 * SIZE]
    assert seen(world) == 2 * SIZE
    world.storkit("verify", "g")
    world.migrate("a")
    assert seen(world, "a") == 2 * SIZE
    report = world.clear()
    assert report.clean, report
    left = world.left()
    assert not left, "\n".join(left)


def seen(world: World, where: str = "b") -> int:
    """How large the disk is to the guest's hypervisor, in bytes."""
    host = world.a if where == "a" else world.b
    if world.hypervisor == "libvirt":
        said = host.run(["sh", "-c", "virsh domblkinfo g $(virsh domblklist g | awk 'NR == 3 { print $1 }')"]).stdout
        return int(next(line for line in said.splitlines() if line.startswith("Capacity")).split()[1])
    code = """
from pathlib import Path
from storkit.system.qemu import qmp
(monitor,) = Path("/run/storkit").glob("qemu-*/qmp")
print([each["inserted"]["image"]["virtual-size"] for each in qmp.call(monitor, "query-block") if "inserted" in each][0])
"""
    return int(host.python(code))
