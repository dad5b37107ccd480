"""A guest as somebody's script has it: kept as it is, started by storkit, moved while it runs."""

from __future__ import annotations

from pathlib import Path

import pytest

from tests.e2e.world import REST, World
from tests.guestkit import bootsector

pytestmark = pytest.mark.e2e

SCRIPT = """\
#!/bin/sh
# the guest of ours
set -e
DISK={directory}/old.img
exec /usr/bin/qemu-system-x86_64 -name "g" \\
  -m 16 -M pc,accel=tcg -nographic \\
  -monitor unix:{directory}/mon,server,nowait -S -pidfile /nowhere/pid \\
  -drive "file=$DISK,if=none,id=d,cache=none" -device ide-hd,drive=d,serial=ours \\
  -nic none "$@"
"""


def test_a_guest_of_a_script_moves_and_its_script_stays(make_world: object, tmp_path: Path) -> None:
    world: World = make_world("raw")  # type: ignore[operator]
    image = world.directory / "old.img"
    bootsector.make_disk(image, rest=REST)
    script = world.directory / "start.sh"
    text = SCRIPT.format(directory=world.directory)
    script.write_text(text)
    world.storkit("volume", "import", image, "g")
    refused = world.storkit("guest", "import", script, ok=None)
    assert refused.status == 2 and f"line 8: disk d ({image}) is no volume" in refused.stderr
    world.storkit("guest", "import", script, "--disk", "d=g")
    document = world.directory / "guests" / "g.sh"
    assert document.read_text() == text
    world.storkit("guest", "start", "g", "--on", "a")
    for destination in ("b",):
        moved = world.storkit("--json", "migrate", "run", "g", "--to", destination).json
        assert moved["proof"][0]["blocks"] > 1
        assert world.status()["places"] == {destination: "running"}
    (process,) = [line for line in world.processes() if "-name g " in line]
    assert "serial=ours" in process and f"-monitor unix:{world.directory}/mon,server,nowait" in process
    assert "-nographic" not in process and "/nowhere" not in process and "old.img" not in process
    world.wait_for_writes(world.disk(), world.written())
    world.storkit("guest", "stop", "g", "--force")
    report = bootsector.verify(world.disk())
    assert report.clean and document.read_text() == text
    assert world.leftovers() == []
