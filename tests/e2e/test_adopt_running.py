"""A QEMU that somebody has started by hand is adopted while it runs, with its disks in place, and moved away live."""

from __future__ import annotations

import os
import socket
import subprocess
import time
from collections.abc import Callable
from pathlib import Path

import pytest

from storkit.system.qemu import qmp
from storkit.system.timeouts import scaled
from tests.e2e.test_kill_points import kill
from tests.e2e.world import INVENTORY, REST, World
from tests.guestkit import bootsector

pytestmark = pytest.mark.e2e
MEMORY = "16392K"
"""16 MiB, and what keeps QEMU's own translator from losing writes (docs/migrate.md)."""


@pytest.fixture
def world(make_world: Callable[..., World]) -> World:
    return make_world("raw", INVENTORY.format(format="raw") + '[pools.far]\nhost = "b"\n')


class ByHand:
    """An administrator's QEMU, of a name of its own: others run on this machine."""

    def __init__(
        self, world: World, *more: str, format: str = "raw", memory: str = MEMORY, monitor: bool = True
    ) -> None:
        self.world, self.name = world, f"hand-{os.urandom(6).hex()}"
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
        words += ["-qmp", f"unix:{self.socket},server=on,wait=off"] * monitor
        self.process = subprocess.Popen(["qemu-system-x86_64", *words, *more], stdin=subprocess.DEVNULL)
        end = time.monotonic() + scaled(20.0)
        while monitor and not self.socket.exists():
            assert self.process.poll() is None and time.monotonic() < end
            time.sleep(0.02)

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
        said = world.storkit("volume", "move", "g", "--to", "far", ok=3).stderr
        assert "its disks stay where they are: it was adopted while it ran" in said and "nothing was changed" in said
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


def test_one_whose_disk_nobody_else_may_open_moves_after_its_next_stop(world: World) -> None:
    with ByHand(world, format="qcow2") as own:
        name = own.name
        done = world.storkit("guest", "adopt", name, "--pid", own.process.pid)
        assert "cannot move before its next stop: its own process alone may have" in done.stderr
        assert world.status(name)["places"] == {"a": "running"}
        for words in (("migrate", "run", name, "--to", "b"), ("migrate", "prepare", name, "--to", "b")):
            refused = world.storkit(*words, ok=3).stderr
            assert f"guest {name} stays on a until its next stop: its disks are open in its QEMU" in refused
            assert f"storkit guest stop {name}" in refused
        assert world.storkit("attach", name, "--on", "b", ok=None).status == 5
        refused = world.storkit("volume", "move", name, "--to", "far", ok=3).stderr
        assert f"guest {name} runs on a" in refused and "nothing was changed" in refused
        assert world.storkit("guest", "start", name, "--on", "b", ok=None).status == 5
        assert "qmp" not in refused and own.process.poll() is None
        world.storkit("guest", "stop", name, "--force")
        own.process.wait(30)
        world.storkit("guest", "start", name, "--on", "a")
        world.storkit("migrate", "run", name, "--to", "b")
        world.storkit("guest", "stop", name, "--force")
        world.storkit("guest", "release", name)
        assert own.disk.stat().st_ino == own.inode and world.leftovers() == []


def test_its_uefi_variables_are_a_volume_that_moves_with_it(world: World) -> None:
    """With any firmware, and any bytes in the flash memory that it may write (pflash)."""
    firmware = Path("/usr/share/seabios/bios-256k.bin")
    assert firmware.exists(), "qemu-system-x86 depends on seabios"
    variables, flash = world.directory / "vars.fd", os.urandom(64 << 10)
    variables.write_bytes(flash)
    variables.chmod(0o600)
    more = ["-drive", f"if=pflash,unit=0,format=raw,readonly=on,file={firmware}"]
    with ByHand(world, *more, "-drive", f"if=pflash,unit=1,format=raw,file={variables}") as own:
        name = own.name
        world.storkit("guest", "adopt", name, "--disk", "vda=g", "--disk", "nvram=vars")
        world.storkit("migrate", "run", name, "--to", "b")
        own.process.wait(30)
        (started,) = [line for line in world.processes() if f"-name guest={name}" in line]
        assert str(variables) not in started and str(firmware) in started
        disk = Path(world.storkit("--json", "volume", "show", "g").json["path"])
        world.wait_for_writes(disk, bootsector.last_record(disk))
        kept = world.storkit("--json", "volume", "show", "vars").json
        assert kept["writers"] == ["b"] and Path(kept["path"]).read_bytes() == flash
        world.storkit("guest", "stop", name, "--force")
        assert bootsector.verify(disk).clean and Path(kept["path"]).read_bytes() == flash
        world.storkit("guest", "release", name)
        assert variables.read_bytes() == flash


def test_what_its_process_lacks_is_said(world: World) -> None:
    """A monitor; one that somebody holds; memory that its emulator moves without a loss."""
    with ByHand(world, memory="16M") as own:
        with socket.socket(socket.AF_UNIX) as held:
            held.connect(str(own.socket))
            assert held.recv(4096)
            held.sendall(b'{"execute": "qmp_capabilities"}\n')
            said = world.storkit("--dry-run", "guest", "adopt", own.name).stderr
            assert "cannot move before its next stop: its QEMU's monitor cannot be had" in said
        done = world.storkit("guest", "adopt", own.name)
        assert "loses writes to memory of whole 256 KiB" in done.stderr
        assert "stays on a until its next stop" in world.storkit("migrate", "run", own.name, "--to", "b", ok=3).stderr
        own.process.terminate()
        own.process.wait()
        assert world.status(own.name)["places"] == {}
        world.storkit("guest", "release", own.name)
        assert own.disk.stat().st_ino == own.inode and world.leftovers() == []
    own.socket.unlink(missing_ok=True)
    own.disk.rename(own.disk.with_name("kept.raw"))
    (world.directory / "images").rename(world.directory / "before")
    with ByHand(world, monitor=False) as own:
        done = world.storkit("guest", "adopt", own.name)
        assert "has no monitor for programs (-qmp unix:PATH" in done.stderr
        refused = world.storkit("guest", "stop", own.name, ok=3).stderr
        assert "started without a monitor" in refused and "--force" in refused
        assert world.storkit("--json", "guest", "list").json[0]["places"] == {"a": "running"}
        world.storkit("guest", "stop", own.name, "--force")
        own.process.wait(30)
        assert world.status(own.name)["places"] == {}


def test_what_is_no_guest_of_the_administrators_is_refused(world: World) -> None:
    with ByHand(world) as own:
        refused = world.storkit("guest", "adopt", "g", "--pid", os.getpid(), ok=2).stderr
        assert f"process {os.getpid()} is no QEMU here" in refused
        assert "is the QEMU of" in world.storkit("guest", "adopt", "g", "--pid", own.process.pid, ok=2).stderr
        assert "--pid is the process of one guest" in world.storkit("guest", "adopt", "--pid", 4711, ok=2).stderr
        other = world.directory / "other.raw"
        other.write_bytes(bytes(1 << 20))
        node = {"driver": "file", "filename": str(other), "node-name": "new"}
        qmp.call(own.socket, "blockdev-add", node)
        said = world.storkit("guest", "adopt", own.name, ok=5).stderr
        assert f"writes {other}, which its arguments do not have" in said
        qmp.call(own.socket, "blockdev-del", {"node-name": "new"})
        moved = own.disk.rename(own.disk.with_name("away.raw"))
        own.disk.write_bytes(bytes(2 << 20))
        said = world.storkit("guest", "adopt", own.name, ok=5).stderr
        assert f"does not have {own.disk} open" in said
        moved.rename(own.disk)
        assert own.process.poll() is None and own.disk.stat().st_ino == own.inode


@pytest.mark.slow
@pytest.mark.parametrize("mend", ["resume", "rollback"])
@pytest.mark.parametrize("number", range(19))
def test_killed_anywhere(world: World, number: int, mend: str) -> None:
    """While it is adopted, and while it moves."""
    with ByHand(world) as own:
        name = own.name
        for words in (("guest", "adopt", name, "--disk", "vda=g"), ("migrate", "run", name, "--to", "b")):
            plan = kill(world, f"after:{number}", *words)
            if not plan:
                continue
            if world.storkit("plan", mend, plan, ok=None).status:
                assert "has ended (completed)" in world.storkit("plan", mend, plan, ok=9).stderr
                continue
            if mend == "rollback" and words[0] == "guest":
                assert own.disk.stat().st_ino == own.inode
                assert [each for each in world.leftovers() if not each.startswith(f"{own.process.pid}:")] == []
                world.storkit(*words)
            elif mend == "rollback":
                assert world.running(name) == ["a"]
                world.storkit(*words)
        disk = Path(world.storkit("--json", "volume", "show", "g").json["path"])
        assert (world.status(name)["places"], world.status(name)["writers"]) == ({"b": "running"}, ["b"])
        world.wait_for_writes(disk, bootsector.last_record(disk))
        world.storkit("guest", "stop", name, "--force")
        assert bootsector.verify(disk).clean
