"""A volume is set back to what it was when a snapshot was made, under its name and UUID."""

from __future__ import annotations

import subprocess
import time
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path

import pytest

from storkit.system.timeouts import scaled
from tests.e2e.world import World, each_format

pytestmark = pytest.mark.e2e

MIB = 1 << 20


def write(world: World, byte: int, name: str = "v") -> None:
    """Fill a volume that nobody has open."""
    path, format = where(world, name)
    size = world.storkit("--json", "volume", "show", name).json["size"]
    subprocess.run(["qemu-io", "-f", format, "-c", f"write -P {byte} 0 {size}", path], check=True, capture_output=True)


def holds(world: World, byte: int, name: str = "v", size: int = MIB) -> bool:
    path, format = where(world, name)
    done = subprocess.run(["qemu-io", "-f", format, "-c", f"read -P {byte} 0 {size}", path], capture_output=True)
    return done.returncode == 0 and b"verification failed" not in done.stdout


def where(world: World, name: str) -> tuple[Path, str]:
    shown = world.storkit("--json", "volume", "show", name).json
    return Path(shown["path"]), shown["format"]


@pytest.fixture
def made(world: World) -> World:
    """A volume of ones, its snapshot, and the volume of twos since."""
    world.storkit("volume", "create", "v", "1MiB")
    write(world, 1)
    world.storkit("volume", "snapshot", "v", "monday")
    write(world, 2)
    return world


@each_format
def test_there_and_back(made: World) -> None:
    before = made.storkit("--json", "volume", "show", "v").json
    assert "keep v as v.before-" in made.storkit("-n", "volume", "restore", "v", "monday").stdout and holds(made, 2)
    (done,) = made.storkit("--json", "volume", "restore", "v", "monday").json
    assert (done["uuid"], done["size"], done["kind"], done["made"]) == (before["uuid"], MIB, "disk", "restored")
    assert holds(made, 1) and holds(made, 2, done["kept"]) and holds(made, 1, "monday")
    assert f"kept as {done['kept']}" not in made.storkit("volume", "restore", "v", done["kept"], "--discard").stdout
    assert holds(made, 2), "what was kept is restored as any other"

    made.storkit("volume", "resize", "v", "3MiB")
    write(made, 3)
    (done,) = made.storkit("--json", "volume", "restore", "v", "monday").json
    assert done["size"] == MIB and holds(made, 1) and holds(made, 3, done["kept"], 3 * MIB)
    made.storkit("attach", "v", "--on", "b")
    made.storkit("verify", "v")
    made.storkit("detach", "v", "--on", "b")


def test_what_is_refused_changes_nothing(made: World) -> None:
    made.storkit("volume", "create", "w", "1MiB")
    made.storkit("volume", "snapshot", "w", "of-w")
    made.storkit("volume", "clone", "v", "copy")
    for words, why in (
        (("v", "of-w"), "of-w is no snapshot of v"), (("v", "copy"), "copy is no snapshot"),
        (("v", "v"), "v is no snapshot"), (("monday", "monday"), "is never changed"), (("v", "none"), "none"),
    ):  # fmt: skip
        refused = made.storkit("volume", "restore", *words, ok=None)
        assert refused.status in (4, 5) and why in refused.stderr and "nothing was changed" in refused.stderr
    made.storkit("attach", "v", "--on", "b")
    assert "is exported to b" in made.storkit("volume", "restore", "v", "monday", ok=5).stderr
    made.storkit("detach", "v", "--on", "b")
    assert holds(made, 2)


@each_format
@pytest.mark.parametrize("point", ["after:2", "after:4", "after:5", "after:6"])
def test_killed_nobody_uses_half_of_it_and_the_same_command_ends_it(made: World, point: str) -> None:
    """Nor by another command: what it has is neither the one nor the other."""
    made.killed(point, "volume", "restore", "v", "monday")
    state = made.storkit("--json", "volume", "show", "v").json["made"]
    if state == "importing":
        for words in (("attach", "v", "--on", "b"), ("volume", "clone", "v", "c"), ("volume", "export", "v", "x.img")):
            assert made.storkit(*words, ok=None).status in (5, 9), words
    made.storkit("volume", "restore", "v", "monday")
    assert holds(made, 1)
    kept = [each["name"] for each in made.storkit("--json", "volume", "list").json if ".before-" in each["name"]]
    assert any(holds(made, 2, name) for name in kept)
    assert [plan for plan in made.storkit("--json", "plan", "list").json if plan["status"] == "interrupted"] == []
    made.storkit("attach", "v", "--on", "b")


@each_format
def test_a_backup_of_a_snapshot_is_restored_whatever_happens_meanwhile(made: World) -> None:
    file = made.directory / "backup.raw"
    made.storkit("volume", "export", "monday", file, "--format", "raw")
    write(made, 4)
    made.storkit("volume", "import", file, "restored")
    assert holds(made, 1, "restored") and holds(made, 4)


def test_a_disk_that_another_program_has_open_is_not_written_over(made: World) -> None:
    """It was started by hand, and storkit knows nothing of it."""
    path, format = where(made, "v")
    argv = ["qemu-system-x86_64", "-machine", "none", "-nodefaults", "-display", "none", "-monitor", "none", "-S"]
    node = f"driver={format},node-name=v,file.driver=file,file.filename={path}"
    process = subprocess.Popen([*argv, "-blockdev", node])
    try:
        wait_for(lambda: str(path) in " ".join(opened(process.pid)))
        refused = made.storkit("volume", "restore", "v", "monday", "--discard", ok=5).stderr
        assert ("open" in refused and "nothing was changed" in refused) or "put back" in refused, refused
    finally:
        process.kill()
        process.wait()
    assert holds(made, 2) and made.storkit("--json", "volume", "show", "v").json["made"] == "created"


def opened(pid: int) -> list[str]:
    found = []
    for entry in Path(f"/proc/{pid}/fd").iterdir():
        with suppress(OSError):
            found.append(str(entry.readlink()))
    return found


def wait_for(condition: Callable[[], bool]) -> None:
    end = time.monotonic() + scaled(20)
    while not condition():
        assert time.monotonic() < end
        time.sleep(0.01)


def test_a_larger_disk_is_never_cut_before_it_is_whole(made: World) -> None:
    """Killed anywhere, and the plan given up: what can be used is the old disk, or the new one."""
    made.storkit("volume", "resize", "v", "3MiB")
    write(made, 3)
    for point in ("after:2", "after:4"):
        made.killed(point, "volume", "restore", "v", "monday", "--discard")
        shown = made.storkit("--json", "volume", "show", "v").json
        assert shown["made"] == "importing" or (shown["size"] == 3 * MIB and holds(made, 3, size=3 * MIB)), point
    made.storkit("volume", "restore", "v", "monday", "--discard")
    assert made.storkit("--json", "volume", "show", "v").json["size"] == MIB and holds(made, 1)
