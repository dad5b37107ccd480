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
  -drive "file=$DISK,if=none,id=d,cache=none" -device virtio-blk-pci,drive=d,serial=ours \\
  -nic none -object 'secret,id=s,data=sesame' "$@"
"""


def files_with(directory: Path, word: bytes) -> set[str]:
    """The files that have a word in them: the scripts' names, and the directories of others."""
    found = [path for path in directory.rglob("*") if path.is_file() and word in path.read_bytes()]
    assert not [path for path in found if path.name != "start.sh" and path.stat().st_mode & 0o77]
    return {str((path if path.name == "start.sh" else path.parent).relative_to(directory)) for path in found}


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
    kept = text.replace("sesame", "storkit-secret-1")
    assert document.read_text() == kept
    world.storkit("guest", "start", "g", "--on", "a")
    for destination in ("b",):
        moved = world.storkit("--json", "migrate", "run", "g", "--to", destination).json
        assert moved["proof"][0]["blocks"] > 1
        assert world.status()["places"] == {destination: "running"}
    assert files_with(world.directory, b"sesame") == {"start.sh", "coordinator/secrets", "b/qemu/g"}
    (process,) = [line for line in world.processes() if "-name g " in line]
    assert "serial=ours" in process
    assert "-monitor" not in process, "a's process listened there when b's was made, and kept its socket"
    assert "sesame" not in process and f"secret,id=s,file={world.directory}/b/qemu/g/storkit-secret-1" in process
    assert "-nographic" not in process and "/nowhere" not in process and "old.img" not in process
    world.wait_for_writes(world.disk(), world.written())
    world.storkit("guest", "stop", "g", "--force")
    report = bootsector.verify(world.disk())
    assert report.clean and document.read_text() == kept
    assert world.leftovers() == []
