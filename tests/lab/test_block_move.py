"""A disk that a guest has as a block device is moved under it: by its host's kernel, whatever runs the guest."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from tests.guestkit import bootsector
from tests.lab.host import Host
from tests.lab.lab import Lab
from tests.lab.world import World, storage

pytestmark = [pytest.mark.lab, pytest.mark.slow]

NEAR = """
[pools.near]
host = "a"
type = "lvm"
transport = "iscsi"
vg = "near"
"""
KILLED = """
import sys
from tests.e2e import killed
from storkit.cli.main import main
killed.arm(sys.argv[1])
sys.exit(main(sys.argv[2:]))
"""


class Blocks(World):
    """A pool of logical volumes on s, and one on a, where the guest is."""

    def __init__(
        self, lab: Lab, scratch: Path, kind: str = "iscsi", hypervisor: str = "qemu", commands: str = "a"
    ) -> None:
        self.lab = lab
        super().__init__(lab, scratch, storage(kind), hypervisor, commands)
        self.a.run(["modprobe", "dm-mod"])
        self.a.run(["vgcreate", "-q", "near", self.a.add_disk(256 << 20)])

    def inventory(self) -> str:
        return super().inventory() + NEAR

    def shown(self) -> Any:
        return self.storkit("volume", "show", "g")

    def disk(self, name: str = "g") -> Path:
        volume = self.shown()
        return self._of(self.lab.host(volume["host"]), volume["path"])

    def near(self) -> Path:
        """A copy of what a has of the volume, whoever else answers."""
        return self._of(self.a, "/dev/near/g")

    def _of(self, host: Host, path: str) -> Path:
        home, self.s = self.s, host
        try:
            return self._copy(path, "raw")
        finally:
            self.s = home

    def move(self, to: str) -> Any:
        """Move the disk under its guest, and see that there is one, and nothing of the other."""
        before = self.shown()
        (done,) = self.storkit("volume", "move", "g", "--to", to)
        assert (done["pool"], done["guest"], done["uuid"]) == (to, "g", before["uuid"]), done
        assert done["digest"].startswith("blocks-sha256:")
        self.one(to)
        print(f"to {to}: its writes were held for {done['stall_ms']} ms")
        return done

    def one(self, pool: str) -> None:
        volumes = self.storkit("volume", "list")
        assert [(each["name"], each["pool"], each["made"]) for each in volumes] == [("g", pool, "moved")], volumes
        names = nodes(self.a)
        assert len(names) == 1 and ":fill." not in names[0], names
        assert self.a.run(["readlink", "/dev/storkit/g"]).stdout.strip() == f"/dev/mapper/{names[0]}"
        assert self.a.run(["ls", "/var/lib/storkit/mirrornodes"], check=False).stdout == ""
        assert self.storkit("audit") == []

    def begin(self) -> int:
        """A guest that writes on a; its last record."""
        self.define()
        self.storkit("guest", "start", "g", "--on", "a")
        return self.wait_for_record(3)

    def killed(self, entry: int, *words: str) -> None:
        """Run a command that is killed after so many entries of its journal."""
        argv = ["/usr/bin/python3", "-c", KILLED, f"after:{entry}", *words]
        self.commands.run(argv, check=False, timeout=600, env=self.commands.python_environment)

    def whole(self, last: int) -> None:
        """The guest, which ends now, has all of its records."""
        self.storkit("guest", "stop", "g", "--force")
        report = self.report()
        assert report.clean, report
        assert bootsector.last_record(self.disk()) >= last

    def goes_on(self, last: int) -> int:
        """The guest has all of its records, and writes more; its last one."""
        return self.wait_for_record(last + 2)


def nodes(host: Host) -> list[str]:
    """The guest's nodes of device-mapper: not those that a target serves."""
    names = host.run(["dmsetup", "ls"]).stdout.split("\n")
    return [name.split()[0] for name in names if name.startswith("storkit:") and ":export" not in name]


def test_to_its_own_host_and_back_under_writes(lab: Lab, tmp_path: Path) -> None:
    world = Blocks(lab, tmp_path)
    last = world.begin()
    world.move("near")
    last = world.goes_on(last)
    assert nodes(world.a) == ["storkit:g:local"]
    world.move("default")
    last = world.goes_on(last)
    assert nodes(world.a) == ["storkit:g:attached"]
    assert world.migrate("b").to == "b"
    world.whole(last)
    world.delete()


def test_the_copys_host_loses_its_power_and_the_guest_goes_on(lab: Lab, tmp_path: Path) -> None:
    world = Blocks(lab, tmp_path)
    last = world.begin()
    world.move("near")
    last = world.goes_on(last)
    world.killed(8, "volume", "move", "g", "--to", "default")
    assert {each["made"] for each in world.storkit("volume", "list")} == {"mirroring", "filling"}
    world.s.power_off()
    last = bootsector.last_record(world.near())
    world.a.wait_for(lambda: bootsector.last_record(world.near()) > last + 2, "writes without the copy", 180, every=2)
    world.boot(world.s)
    world.storkit("host", "restore", timeout=300)
    world.storkit("volume", "move", "g", "--to", "default")
    world.one("default")
    last = world.goes_on(last)
    world.whole(last)
