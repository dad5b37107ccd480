"""A guest whose disk has no room stands still, says why, and goes on where it was once there is room."""

from __future__ import annotations

import os
import subprocess
import time
from collections.abc import Callable
from contextlib import ExitStack

import pytest

from storkit.core.errors import Conflict
from storkit.system.timeouts import scaled
from tests.e2e.qemuhosts import NAME, Hosts, status, wait_until
from tests.e2e.world import World
from tests.filesystems import mounted
from tests.guestkit import bootsector

pytestmark = pytest.mark.e2e

ROOM = 512 << 10
LEFT = 64 << 10
"""Bytes that the guest finds: it writes its numbered records over 1 MiB."""


def test_a_guest_without_room_goes_on_when_there_is_some(make_world: Callable[..., World]) -> None:
    world = make_world()
    volumes = world.directory / "a/volumes"
    volumes.mkdir(parents=True)
    with mounted("tmpfs", volumes, ROOM):
        world.guest()
        there = os.statvfs(volumes)
        (volumes / ".other").write_bytes(b"x" * max(0, there.f_bavail * there.f_frsize - LEFT))
        world.storkit("guest", "start", "g", "--on", "b")
        wait_until(lambda: os.statvfs(volumes).f_bavail == 0, "no room left", timeout=scaled(60.0))
        deadline = time.monotonic() + 60
        while world.status()["places"] != {"b": "paused"}:
            assert time.monotonic() < deadline, "it does not stand still"
        reason = "volume g: no space left (ENOSPC)"
        assert world.status()["reasons"] == {"b": reason}
        for words in (("guest", "list"), ("guest", "show", "g"), ("migrate", "status", "g")):
            assert f"paused on b ({reason})" in world.storkit(*words).stdout
        assert f"guest g is paused on b: {reason}" in world.storkit("status").stdout
        again = world.storkit("guest", "resume", "g", ok=5).stderr
        assert f"stands still again on b: {reason}" in again and "next: storkit guest resume g" in again
        last = world.written()
        subprocess.run(["mount", "-o", f"remount,size={4 * ROOM}", volumes], check=True)
        assert "goes on on b" in world.storkit("guest", "resume", "g").stdout
        world.wait_for_writes(volumes / "g.raw", last + 10)
        assert "runs on b already" in world.storkit("guest", "resume", "g").stdout
        world.storkit("guest", "stop", "g", "--force")
        assert bootsector.verify(world.disk()).clean


def test_a_guest_goes_on_only_where_its_host_may_write(make_world: Callable[..., World]) -> None:
    """Fenced, it has what it has in its memory from before: it is stopped and started, and never woken."""
    world = make_world()
    world.guest()
    assert "runs on no host" in world.storkit("guest", "resume", "g", ok=4).stderr
    world.storkit("guest", "start", "g", "--on", "b")
    world.storkit("fence", "b")
    assert "storkit guest stop g --force" in world.storkit("guest", "resume", "g", ok=9).stderr
    world.storkit("guest", "stop", "g", "--force")


def test_a_guest_without_room_moves_as_it_is(hosts: Hosts) -> None:
    """It stands still at the destination as well, with the request that failed, and goes on there."""
    small = hosts.base / "small"
    small.mkdir()
    with mounted("tmpfs", small, ROOM), ExitStack() as stack:
        stack.callback(hosts.end)
        hosts.disk = small / "disk.img"
        guest = hosts.boot_sector()
        there = os.statvfs(small)
        (small / "other").write_bytes(b"x" * (there.f_bavail * there.f_frsize - LEFT))
        hosts.define(guest)
        hosts.a.start(NAME)
        wait_until(lambda: status(hosts.a) == "paused", "it does not stand still", 60)
        hosts.a.send(NAME, hosts.b.receive(NAME, same_machine=True))
        hosts.b.resume(NAME, run=False)
        (state,) = hosts.b.find([NAME])
        # Which disk it was, only QEMU at the source knew.
        assert (state.status, state.reason) == ("paused", "a disk failed, or had no room")
        subprocess.run(["mount", "-o", f"remount,size={4 * ROOM}", small], check=True)
        assert hosts.b.wake(NAME).status == "running"
        hosts.writes_on()
        hosts.end()
        assert bootsector.verify(hosts.disk).clean


def test_a_guest_that_awaits_its_migration_is_not_woken(hosts: Hosts) -> None:
    guest = hosts.boot_sector()
    hosts.start(guest)
    hosts.b.receive(NAME, same_machine=True)
    wait_until(lambda: status(hosts.b) == "incoming", "it does not wait")
    with pytest.raises(Conflict, match="it is incoming"):
        hosts.b.wake(NAME)
    assert hosts.a.wake(NAME).status == "running"
    hosts.b.retire(NAME)
