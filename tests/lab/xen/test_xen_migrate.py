"""storkit moves a guest of Xen's that writes."""

from __future__ import annotations

from pathlib import Path

import pytest

from tests.lab.world import storage
from tests.lab.xen import XenLab
from tests.lab.xen.world import XenWorld

pytestmark = [pytest.mark.lab, pytest.mark.slow]
TIMES = 5


@pytest.mark.parametrize("kind", ["nbd-kernel", "iscsi", "nfs"])
def test_guest_moves_there_and_back(xen: XenLab, tmp_path: Path, kind: str) -> None:
    world = XenWorld(xen, tmp_path, storage(kind))
    world.define()
    world.storkit("guest", "start", "g1", "--on", "h1")
    world.wait_for_writes(world.h1, 10)
    for destination in (world.h2, world.h1) * TIMES:
        world.migrate(destination)
    world.storkit("guest", "stop", "g1")
    assert world.domains(world.h1) == []
    report = world.report()
    assert report.clean and not report.recovered and report.starts == 1, report
