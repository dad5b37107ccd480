"""A QEMU that somebody has started by hand is adopted while it runs, with its disks in place, and moved away live."""

from __future__ import annotations

import subprocess
from collections.abc import Callable
from pathlib import Path

import pytest

from tests.e2e.world import REST, World
from tests.guestkit import bootsector

pytestmark = pytest.mark.e2e
MEMORY = "16392K"
"""16 MiB, and what keeps QEMU's own translator from losing writes (docs/migrate.md)."""


@pytest.fixture
def world(make_world: Callable[..., World]) -> World:
    return make_world("raw")


class ByHand:
    """An administrator's QEMU, of a name of its own: others run on this machine."""

    def __init__(self, world: World, *more: str, format: str = "raw", memory: str = MEMORY, qmp: bool = True) -> None:
        self.world, self.name = world, f"hand-{world.directory.name[-24:]}"
        images = world.directory / "images"
        images.mkdir()
        self.disk, self.socket = images / f"old.{format}", world.directory / "their.qmp"
        raw = images / "raw"
        bootsector.make_disk(raw, rest=REST)
        if format == "raw":
            raw.rename(self.disk)
        else:
            subprocess.run(["qemu-img", "convert", "-O", format, raw, self.disk], check=True)
            raw.unlink()
        self.disk.chmod(0o600)
        self.inode = self.disk.stat().st_ino
        words = ["-name", f"guest={self.name},debug-threads=on", "-M", "pc,accel=tcg", "-m", memory, "-display", "none"]
        words += ["-drive", f"file={self.disk},format={format},if=virtio,cache=none", "-nic", "none"]
        words += ["-qmp", f"unix:{self.socket},server=on,wait=off"] * qmp
        self.process = subprocess.Popen(["qemu-system-x86_64", *words, *more], stdin=subprocess.DEVNULL)

    def __enter__(self) -> ByHand:
        return self

    def __exit__(self, *error: object) -> None:
        self.process.kill()
        self.process.wait()


def test_it_is_adopted_as_it_runs_and_moves_away_and_back(world: World) -> None:
    with ByHand(world) as own:
        name = own.name
        last = world.wait_for_writes(own.disk, 0)
        done = world.storkit("--json", "guest", "adopt", name, "--on", "a", "--disk", "vda=g")
        (guest,) = done.json
        assert "nothing keeps that process from writing them" in done.stderr
        assert (guest["hypervisor"], [disk["volume"] for disk in guest["disks"]]) == ("qemu", ["g"])
        shown = world.storkit("--json", "volume", "show", "g").json
        disk = Path(shown["path"])
        assert (disk.stat().st_ino, shown["writers"], own.process.poll()) == (own.inode, ["a"], None)
        last = world.wait_for_writes(disk, last)
        status = world.status(name)
        assert (status["places"], status["writers"]) == ({"a": "running"}, ["a"])
        assert f"(pid {own.process.pid}), its guest's since before it was a volume" in status["exports"][0]["others"]
        assert world.storkit("attach", "g", "--on", "b", ok=None).status == 5
        moved = world.storkit("--json", "migrate", "run", name, "--to", "b").json
        assert moved["proof"][0]["blocks"] > 1
        own.process.wait(30)
        status = world.status(name)
        assert (status["places"], status["writers"]) == ({"b": "running"}, ["b"])
        world.wait_for_writes(disk, last)
        refused = subprocess.run(["qemu-img", "resize", "-f", "raw", disk, "4M"], capture_output=True, check=False)
        assert refused.returncode, "the server has QEMU's locks once the guest's own process has gone"
        world.storkit("migrate", "run", name, "--to", "a")
        world.storkit("guest", "stop", name, "--force")
        assert bootsector.verify(disk).clean
        world.storkit("guest", "release", name)
        assert own.disk.stat().st_ino == own.inode and world.leftovers() == []
