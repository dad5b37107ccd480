"""What a command asks of its hosts, call by call: each is a round trip to another machine.

A call that is added here costs every user; say why where it is added.
"""

from __future__ import annotations

import shutil
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

import storkit.api
from storkit.core.calls import verbs
from storkit.hosts.connection import LocalConnection
from storkit.hosts.requests import HostRequests
from tests.guestkit import bootsector

INVENTORY = """\
[hosts.a]
url = "local:a"
[hosts.b]
url = "local:b"
[pools.default]
host = "a"
[hypervisors.qemu]
accel = "tcg"
"""
KEPT = "a pool:default kept"
"""What is kept of guests: whether somebody else has changed one, or it has no files."""
LOOK = ["a pool:default find", "a transport:nbd find_exports"]
"""Which volume it is, and who has it."""


@pytest.fixture
def calls(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """Everything that is asked of a host, in order."""
    made: list[str] = []

    call = LocalConnection.call

    def counted(self: LocalConnection, target: str, verb: str, *args: Any) -> Any:
        made.append(f"{self.config.name} {target} {verb}")
        return call(self, target, verb, *args)

    monkeypatch.setattr(LocalConnection, "call", counted)
    for name in sorted(verbs("agent") - {"unlock"}):  # which a silent host is not asked for either
        monkeypatch.setattr(HostRequests, name, _counted(name, made))
    return made


def _counted(name: str, made: list[str]) -> Callable[..., Any]:
    original = getattr(HostRequests, name)

    def counted(self: HostRequests, *args: Any, **kwargs: Any) -> Any:
        made.append(f"{self._performer.setup.host} {name}")
        return original(self, *args, **kwargs)

    return counted


@pytest.fixture
def site(tmp_path: Path) -> Iterator[storkit.api.Storkit]:
    if shutil.which("qemu-system-x86_64") is None or shutil.which("qemu-storage-daemon") is None:
        pytest.skip("qemu-system-x86 not installed")
    file = tmp_path / "inventory.toml"
    file.write_text(INVENTORY)
    with storkit.api.open(file, tmp_path / "coordinator") as opened:
        yield opened


def of(calls: list[str], act: Callable[[], object]) -> list[str]:
    """The calls of one act."""
    calls.clear()
    act()
    return list(calls)


def test_create(site: storkit.api.Storkit, calls: list[str]) -> None:
    assert of(calls, lambda: site.volumes.create("web", "8MiB")) == [
        "a pool:default find",
        "a pool:default find",  # the pool itself sees that the name is free, and what a rollback may delete
        "a pool:default create",
    ]


def test_attach_verify_detach(site: storkit.api.Storkit, calls: list[str]) -> None:
    site.volumes.create("web", "8MiB")
    assert of(calls, lambda: site.attachments.attach("web", "b")) == [
        *LOOK,
        "a lock",
        *LOOK,  # what is true under the lock
        "a mark",
        "a transport:nbd find_exports",
        "a transport:nbd export",
        "a transport:nbd set_writers",
        "b transport:nbd find_attachments",
        "a transport:nbd offers",
        "b transport:nbd attach",
        "a unmark",
        "a pool:default capacity",
    ]
    assert of(calls, lambda: site.attachments.verify("web")) == [
        *LOOK,
        "b transport:nbd find_attachments",
        "a lock",
        *LOOK,
        "b transport:nbd find_attachments",
        "b transport:nbd evidence",
    ]
    assert of(calls, lambda: site.attachments.detach("web", "b")) == [
        *LOOK,
        KEPT,
        "b hypervisor:qemu find",
        "a lock",
        "a transport:nbd find_exports",
        "b hypervisor:qemu find",
        "a mark",
        "b transport:nbd find_attachments",
        "b transport:nbd detach",
        "a transport:nbd find_exports",
        "a transport:nbd unexport",
        "a unmark",
    ]


def test_status(site: storkit.api.Storkit, calls: list[str]) -> None:
    assert of(calls, site.hosts.status) == [
        "a transport:nbd look_exports",
        "b transport:nbd look_exports",
        "a transport:nbd find_attachments",
        "b transport:nbd find_attachments",
        KEPT,
        "a pool:default capacity",
        "a host find_drained",
        "b host find_drained",
    ]


def test_a_guest_that_moves(site: storkit.api.Storkit, calls: list[str], tmp_path: Path) -> None:
    bootsector.make_disk(tmp_path / "boot.img", rest=1)
    site.volumes.import_image(tmp_path / "boot.img", "g")
    site.guests.define("g", storkit.api.GuestWish(memory="16MiB", disks=["g"]))
    try:
        started = of(calls, lambda: site.guests.start("g", "a"))
        moved = of(calls, lambda: site.migrate.run("g", "b"))
        there = of(calls, site.migrate.status)
    finally:
        site.guests.stop("g", force=True)
    assert there == [KEPT, *LOOK, "b hypervisor:qemu find", "a hypervisor:qemu find"]
    assert moved[: moved.index("a mark")] == [
        *LOOK,
        "a hypervisor:qemu find",
        "b hypervisor:qemu find",
        "b host find_drained",
        KEPT,
        "b hypervisor:qemu check",
        "a hypervisor:qemu fingerprint",
        "b hypervisor:qemu fingerprint",
        "a lock",
        *LOOK,
        "a hypervisor:qemu find",
        "b hypervisor:qemu find",
        KEPT,
    ]
    counted = [call for call in moved if not call.endswith("evidence")]  # again where the guest has just written
    assert (len(started), len(counted)) == (24, 49)
