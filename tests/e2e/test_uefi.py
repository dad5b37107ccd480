"""A guest with real UEFI firmware (OVMF), which writes variables at its first start: a volume that goes along."""

from __future__ import annotations

import time
from collections.abc import Callable
from pathlib import Path

import pytest

from storkit.hypervisors._qemu import host
from tests.e2e.world import World

pytestmark = pytest.mark.slow  # the firmware alone is twenty seconds of a processor, without KVM
BOOT_ORDER = "BootOrder".encode("utf-16-le")


def test_variables_go_along_and_stay(make_world: Callable[..., World]) -> None:
    found = host.firmware()
    assert found, "make packages-all installs ovmf"
    template = found[1].read_bytes()
    assert BOOT_ORDER not in template
    world = make_world("raw")
    world.storkit("volume", "create", "v", "16MiB")
    world.storkit("volume", "import", found[1], "vars", "--format", "raw")
    world.storkit("guest", "define", "u", "--disk", "v", "--memory", "200MiB", "--firmware", "uefi", "--nvram", "vars")
    variables = Path(world.storkit("--json", "volume", "show", "vars").json["path"])
    world.storkit("guest", "start", "u", "--on", "a")
    end = time.monotonic() + 300
    while BOOT_ORDER not in variables.read_bytes():
        assert time.monotonic() < end, "the firmware has written nothing"
        time.sleep(0.5)
    world.storkit("migrate", "run", "u", "--to", "b")
    assert world.status("u")["places"] == {"b": "running"}
    world.storkit("guest", "stop", "u", "--force")
    kept = variables.read_bytes()
    assert BOOT_ORDER in kept and len(kept) == len(template)
    world.storkit("guest", "start", "u", "--on", "a")
    assert BOOT_ORDER in variables.read_bytes()
    world.storkit("guest", "stop", "u", "--force")
    assert not list(world.directory.rglob("uefi-vars.fd"))
