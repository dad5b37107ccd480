"""storkit between real machines of the lab: ssh, TLS, a storage host that is neither source nor destination."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from tests.guestkit import bootsector
from tests.lab import Host, Lab
from tests.lab.__main__ import INVENTORY, VOLUMES, inventory

pytestmark = pytest.mark.lab
NAMES = ("a", "b", "s")


class Site:
    """Three hosts joined by an inventory; commands are given on a."""

    def __init__(self, lab: Lab, scratch: Path) -> None:
        self.a, self.b, self.s = lab.hosts(*NAMES)
        self.scratch = scratch
        for host in (self.a, self.b, self.s):
            host.put(inventory(NAMES), INVENTORY)
        self.s.run(["mkdir", "-p", "-m", "700", VOLUMES])

    def storkit(self, *words: str, on: Host | None = None) -> Any:
        done = (on or self.a).run(["storkit", "--json", *words], check=False, timeout=240)
        assert done.status == 0, f"storkit {words}: {done.status}\n{done.stdout}\n{done.stderr}"
        return json.loads(done.stdout) if done.stdout.strip() else None

    def guest(self) -> None:
        image = self.scratch / "boot.img"
        bootsector.make_disk(image)
        self.s.put(image.read_bytes(), "/root/boot.img")
        self.storkit("volume", "import", "/root/boot.img", "g")
        self.storkit("guest", "define", "g", "--disk", "g", "--memory", "16MiB")

    def disk(self) -> Path:
        path = self.storkit("volume", "show", "g")["path"]
        copy = self.scratch / "copy.img"
        copy.write_bytes(self.s.get(path))
        return copy

    def status(self) -> Any:
        return self.storkit("migrate", "status", "g")[0]


@pytest.fixture
def site(lab: Lab, tmp_path: Path) -> Site:
    return Site(lab, tmp_path)


def test_hosts_are_ready(site: Site) -> None:
    hosts = site.storkit("host", "check")
    assert {host["host"]: host["problems"] for host in hosts} == {name: [] for name in NAMES}


def test_guest_moves_between_machines_and_loses_nothing(site: Site) -> None:
    site.guest()
    site.storkit("guest", "start", "g", "--on", "a")
    for destination in ("b", "a"):
        moved = site.storkit("migrate", "run", "g", "--to", destination)
        assert sorted(moved["proof"][0]["hosts"]) == ["a", "b"]
        status = site.status()
        assert status["places"] == {destination: "running"} and status["writers"] == [destination]
        before = bootsector.last_record(site.disk())
        site.a.wait_for(lambda: bootsector.last_record(site.disk()) > before, "the guest to go on writing", 120)  # noqa: B023
    site.storkit("guest", "stop", "g", "--force")
    report = bootsector.verify(site.disk())
    assert report.clean, report
