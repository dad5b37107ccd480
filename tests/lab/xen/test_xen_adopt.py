"""A guest that somebody has started with xl, from a file: adopted as it runs, moved, and given back."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from tests.guestkit import log
from tests.lab.world import storage
from tests.lab.xen import XenLab
from tests.lab.xen.world import CMDLINE, PATIENT, XenWorld

pytestmark = [pytest.mark.lab, pytest.mark.slow]
DISK = "/srv/images/g1.img"
CONFIG = "/root/g1.cfg"
AFTER = "/root/after.img"
XL_CFG = f"""\
# by hand
name = "g1"
type = "pvh"
memory = 96
kernel = "/root/vmlinux"
ramdisk = "/root/initrd"
cmdline = "{CMDLINE}"
disk = [ "format=raw, vdev=xvda, access=rw, backendtype=qdisk, target={DISK}" ]
"""


class HandmadeXen(XenWorld):
    """The disks are on h1, where a guest runs that storkit does not know."""

    def _pool(self) -> dict[str, str]:
        return super()._pool() | {"host": "h1"}

    def report(self) -> log.Report:
        self.storkit("volume", "export", "g1", AFTER)
        self.s.run(["scp", "-q", f"h1:{AFTER}", AFTER], timeout=PATIENT)
        after = self.scratch / "after.img"
        after.write_bytes(self.s.get(AFTER))
        return log.verify(after)


def test_a_guest_that_runs_is_adopted_moved_and_given_back(xen: XenLab, tmp_path: Path) -> None:
    world = HandmadeXen(xen, tmp_path, storage("nbd-kernel"))
    h1 = world.h1
    h1.run(
        [
            "sh",
            "-euc",
            'mkdir -m 700 -p /srv/volumes "${1%/*}"; cp --sparse=always /root/guest.img "$1"; chmod 600 "$1"',
            "sh",
            DISK,
        ]
    )
    h1.put(XL_CFG, CONFIG)
    h1.run(["xl", "create", CONFIG], timeout=PATIENT)
    world.wait_for_writes(h1, 10)
    inode = h1.run(["stat", "-c", "%i", DISK]).stdout
    # what speaks against it is said, and nothing is changed
    unnamed = world.run("guest", "adopt", "g1", "--on", "h1")
    assert unnamed.status and "--config FILE" in unnamed.stderr, unnamed
    world.s.put(XL_CFG.replace(DISK, "/srv/images/other.img"), CONFIG)
    other = world.run("guest", "adopt", "g1", "--config", CONFIG, "--on", "h1")
    assert other.status and f"with {DISK} as xvda, and {CONFIG} says /srv/images/other.img" in other.stderr, other
    # adopted, it goes on
    world.s.put(XL_CFG, CONFIG)
    adopted = world.run("guest", "adopt", "g1", "--config", CONFIG, "--on", "h1")
    assert not adopted.status and "goes on with g1 as its process has them open" in adopted.stderr, adopted
    status = world.status()
    assert status["places"] == {"h1": "running"} and status["writers"] == ["h1"], status
    world.wait_for_writes(h1)
    (domain,) = [
        each for each in json.loads(h1.run(["xl", "list", "-l"]).stdout) if each["config"]["c_info"]["name"] == "g1"
    ]
    assert domain["config"]["disks"][0]["pdev_path"] == "/dev/storkit/g1", domain
    # its own xl, which still has the old file, builds it anew with storkit's path
    before = h1.run(["xl", "domid", "g1"]).stdout
    h1.run(["xl", "reboot", "g1"])
    h1.wait_for(
        lambda: h1.run(["xl", "domid", "g1"], check=False).stdout not in ("", before), "the reboot", PATIENT, every=1
    )
    world.wait_for_writes(h1)
    status = world.status()
    assert status["places"] == {"h1": "running"} and status["writers"] == ["h1"], status
    assert "/dev/storkit/g1" in h1.run(["xenstore-ls", "/local/domain/0/backend"]).stdout
    exports = world.storkit("status")["exports"]["h1"]
    assert exports and not any(each["others"] for each in exports), exports
    # and moves, and comes back to what it was adopted from
    for destination in (world.h2, h1):
        world.migrate(destination)
    world.storkit("guest", "stop", "g1")
    report = world.report()
    assert report.clean and report.starts == 2, report
    world.storkit("guest", "release", "g1")
    assert h1.run(["stat", "-c", "%i", DISK]).stdout == inode
