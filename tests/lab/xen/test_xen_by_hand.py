"""A guest that was started with `xl create`, and is moved with `xl migrate`: storkit does the disks around it."""

from __future__ import annotations

from pathlib import Path

import pytest

from tests.lab.world import storage
from tests.lab.xen import XenLab
from tests.lab.xen.world import PATIENT, XenWorld

pytestmark = [pytest.mark.lab, pytest.mark.slow]


def test_prepare_xl_migrate_finish(xen: XenLab, tmp_path: Path) -> None:
    world = XenWorld(xen, tmp_path, storage("nbd-kernel"))
    world.define()
    world.storkit("attach", "g1", "--on", "h1")
    world.h1.put(world.storkit("guest", "render", "g1", "--on", "h1")["text"], "/root/g1.cfg")
    world.h1.run(["xl", "create", "/root/g1.cfg"], timeout=PATIENT)
    world.wait_for_writes(world.h1, 10)
    assert world.status()["places"] == {"h1": "running"}
    world.storkit("migrate", "prepare", "g1", "--to", "h2")
    world.h1.run(["xl", "migrate", "g1", "h2"], timeout=PATIENT)
    world.storkit("migrate", "finish", "g1")
    status = world.status()
    assert status["places"] == {"h2": "running"} and status["writers"] == ["h2"], status
    world.wait_for_writes(world.h2)
    world.storkit("guest", "stop", "g1")
    report = world.report()
    assert report.clean and not report.recovered and report.starts == 1, report
