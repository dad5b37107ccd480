"""What a monitoring system is told: one line, and an exit status."""

from __future__ import annotations

import os
import signal

import pytest

from tests.e2e.world import World

pytestmark = pytest.mark.e2e


def check(world: World, status: int) -> tuple[list[str], list[str]]:
    line = world.storkit("status", "--check", ok=status).stdout
    assert line.count("\n") == 1 and line.startswith(("OK: ", "WARNING: ", "CRITICAL: ")[status])
    said = world.storkit("--json", "status", "--check", ok=status).json
    assert said["status"] == ("ok", "warning", "critical")[status]
    assert all(reason in line for reason in [*said["critical"], *said["warning"]])
    return said["critical"], said["warning"]


def test_fine_warning_and_critical(world: World) -> None:
    assert check(world, 0) == ([], [])
    world.storkit("volume", "create", "v", "1MiB")
    world.storkit("attach", "v", "--on", "b")
    assert check(world, 0) == ([], [])
    world.storkit("host", "drain", "b")
    assert check(world, 1) == ([], ["host b takes no guests"])
    world.storkit("host", "undrain", "b")
    world.killed("after:2", "detach", "v", "--on", "b")
    critical, warning = check(world, 2 if world.storkit("--json", "status", "--check", ok=None).status == 2 else 1)
    assert len(warning) == 1 and warning[0].endswith("is interrupted"), (critical, warning)
    (plan,) = [each["id"] for each in world.storkit("--json", "plan", "list").json if each["status"] == "interrupted"]
    world.storkit("plan", "rollback", plan)
    assert check(world, 0) == ([], [])


def test_what_is_critical(world: World) -> None:
    world.guest()
    world.storkit("guest", "start", "g", "--on", "b")
    assert check(world, 0) == ([], [])
    (server,) = [line for line in world.processes() if "qemu-storage-daemon" in line]
    os.kill(int(server.partition(":")[0]), signal.SIGKILL)
    critical, _ = check(world, 2)
    assert "g is not served to b by a" in critical and any("g on b is broken" in each for each in critical)
    world.storkit("host", "restore")
    assert check(world, 0) == ([], [])
    text = world.inventory.read_text()
    world.inventory.write_text(text.replace('"local:b"', '"ssh://127.0.0.8:1"'))
    assert "host b does not answer" in check(world, 2)[0]
    world.inventory.write_text(text)
    (world.directory / "a/volumes/bad.json").write_text("{}")
    assert any("damaged" in each for each in check(world, 1)[1])
