"""What a person types at xl, with `script=block-storkit` in the guest's xl.cfg and nothing else."""

from __future__ import annotations

from pathlib import Path

import pytest

from tests.lab.xen import XenLab
from tests.lab.xen.hooked import CONFIG, UUID, HookedXen
from tests.lab.xen.world import PATIENT

pytestmark = [pytest.mark.lab, pytest.mark.slow]
TIMES = 5
SAVED = "/root/g1.save"


def test_a_guest_runs_once_and_moves(xen: XenLab, tmp_path: Path) -> None:
    world = HookedXen(xen, tmp_path)
    h1, h2 = world.h1, world.h2
    world.xl(h1, "create", CONFIG)
    world.wait_for_writes(h1, 10)
    assert world.writers() == ["h1"]
    # the same guest a second time
    refused = world.try_xl(h2, "create", CONFIG)
    assert refused.status and "volume g1 is written by h1" in refused.stderr, refused
    assert world.clean(h2) and world.writers() == ["h1"]
    # to a host where nothing is attached
    for source, to in ((h1, h2), (h2, h1)) * TIMES:
        world.xl(source, "migrate", "--live", "g1", to.name)
        assert (world.domains(source), world.domains(to)) == ([], ["g1"])
        world.wait_for_writes(to)
        assert world.writers() == [to.name] and world.clean(source)
    world.end(h1)


def test_a_guest_sleeps_and_wakes_up_elsewhere_once(xen: XenLab, tmp_path: Path) -> None:
    world = HookedXen(xen, tmp_path)
    h1, h2 = world.h1, world.h2
    world.xl(h2, "create", CONFIG)
    world.wait_for_writes(h2, 10)
    world.xl(h2, "save", "g1", SAVED)
    assert world.clean(h2) and world.writers() == []
    hold = world.volume()["hold"]
    assert (hold["guest"], hold["host"], hold["file"]) == (UUID, "h2", SAVED)
    refused = world.try_xl(h1, "create", CONFIG)
    assert refused.status and "sleeps on volume g1" in refused.stderr, refused
    assert world.clean(h1)
    h1.run(["scp", "-q", f"h2:{SAVED}", SAVED], timeout=PATIENT)
    world.xl(h1, "restore", SAVED)
    world.wait_for_writes(h1)
    assert world.writers() == ["h1"] and not world.volume()["hold"]
    # a second time it wakes up to nothing
    refused = world.try_xl(h2, "restore", SAVED)
    assert refused.status and "volume g1" in refused.stderr, refused
    assert world.clean(h2) and world.writers() == ["h1"]
    world.end(h1)


def test_a_guest_that_reboots_crashes_and_is_destroyed(xen: XenLab, tmp_path: Path) -> None:
    world = HookedXen(xen, tmp_path)
    h1, h2 = world.h1, world.h2
    world.storkit("volume", "create", "data", "4MiB")
    world.xl(h1, "create", CONFIG)
    world.wait_for_writes(h1, 10)
    # a second disk comes and goes
    world.xl(h1, "block-attach", "g1", "script=block-storkit,vdev=xvdb,target=data")
    assert world.writers("data") == ["h1"]
    world.xl(h1, "block-detach", "g1", "xvdb")
    assert world.writers("data") == [] and world.writers() == ["h1"]
    # it reboots, and has its disk all the time
    before = world.domain(h1)
    world.xl(h1, "reboot", "g1")
    h1.wait_for(lambda: world.domains(h1) == ["g1"] and world.domain(h1) != before, "the reboot", PATIENT, every=1)
    assert world.writers() == ["h1"]
    world.wait_for_writes(h1)
    # it crashes, and is destroyed by its own xl
    world.crash(h1)
    world.wait_for_nobody(h1)
    assert world.clean(h1)
    # it crashes, is kept, and is destroyed by a person
    world.xl(h2, "create", CONFIG, 'on_crash="preserve"')
    world.wait_for_writes(h2, 5)
    # a host that is not let in: the guest runs on where it is. xl, which saw it suspended, has ended: it does not
    # start it again by itself from now on.
    world.admit("h2")
    refused = world.try_xl(h2, "migrate", "--live", "g1", "h1")
    assert refused.status and "admits no hooks of host h1" in refused.stderr, refused
    assert world.domains(h2) == ["g1"] and world.writers() == ["h2"] and world.clean(h1)
    world.wait_for_writes(h2)
    world.admit("h1", "h2")
    world.crash(h2)
    h2.wait_for(lambda: "---sc-" in world.xl(h2, "list", "-v"), "the crash", PATIENT, every=1)
    assert world.writers() == ["h2"]
    world.xl(h2, "destroy", "g1")
    assert world.writers() == [] and world.clean(h2)
    assert world.report().clean
