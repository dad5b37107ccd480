"""The agent inside a guest of libvirt: commands in it, file systems that stand still, and both where it has moved."""

from __future__ import annotations

import time
from pathlib import Path

import pytest

from tests.guestkit import agent, linux
from tests.lab.lab import Lab
from tests.lab.world import IMAGE, World, storage

pytestmark = [pytest.mark.lab, pytest.mark.slow]


def test_commands_in_a_guest_of_libvirt(lab: Lab, tmp_path: Path) -> None:
    world = World(lab, tmp_path, storage("nfs"), "libvirt")
    kit = agent.build()
    for host in (world.a, world.b):
        host.put(kit.kernel.read_bytes(), "/srv/guest/vmlinuz")
        host.put(kit.initrd.read_bytes(), "/srv/guest/initrd")
    world.s.put(kit.root.read_bytes(), IMAGE)
    world.storkit("volume", "import", IMAGE, "g")
    world.storkit(
        "guest", "define", "g", "--disk", "g", "--memory", f"{agent.MEMORY >> 20}MiB", "--machine", "pc",
        "--kernel", "/srv/guest/vmlinuz", "--initrd", "/srv/guest/initrd", "--cmdline", linux.CMDLINE,
    )  # fmt: skip
    world.storkit("guest", "start", "g", "--on", "a")
    end = time.monotonic() + 600
    while (said := world.run("guest", "exec", "g", "--", "sh", "-c", "echo 'it'\\''s \"here\"'; exit 7")).status != 7:
        assert said.status == 3 and "no agent answers in guest g" in said.stderr, said.stderr
        assert time.monotonic() < end, said.stderr
        time.sleep(2)  # nothing tells but to ask it
    assert '"stdout": "it\'s \\"here\\"\\n"' in said.stdout
    missing = world.run("guest", "exec", "g", "--", "no-such-program")
    assert missing.status == 6 and "no-such-program" in missing.stderr
    late = world.run("guest", "exec", "--timeout", "1", "g", "--", "sleep", "1000")
    assert late.status == 8 and "it was killed there" in late.stderr
    kept = world.run("volume", "snapshot", "g", "kept")
    # NFS keeps no disk that a guest has: what is asked here is that its file systems go on whatever becomes of it.
    assert kept.status == 5 and "in use" in kept.stderr, kept
    assert world.storkit("guest", "exec", "g", "--", "sh", "-c", "echo on > /data/f; sync")["status"] == 0
    world.storkit("migrate", "run", "g", "--to", "b")
    moved = world.storkit("guest", "exec", "g", "--", "sh", "-c", "head -c 100000 /dev/zero | busybox tr '\\000' x")
    assert moved["host"] == "b" and moved["stdout"] == "x" * 100_000
    world.storkit("guest", "stop", "g", "--force")
