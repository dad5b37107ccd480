"""A manager that is off, fenced by a person's word: what the commands do at the hosts that answer."""

from __future__ import annotations

import json
import os
import signal
import tempfile
from collections.abc import Iterator
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path

import pytest

import storkit.api
from storkit.core.errors import HostUnreachable, StorkitError, Unsafe
from storkit.hosts.connections import Connections
from storkit.plans.verbs.fences import Reattach
from storkit.system.files import make_private
from storkit.tech.files import managed

INVENTORY = """\
[hosts.b]
url = "local:{t}/b"
[hosts.c]
url = "local:{t}/c"
[hosts.d]
url = "local:{t}/d"
[pools.nas]
hosts = ["b", "c"]
path = "{t}/nas"
"""


@dataclass
class Hosts:
    path: Path
    off: set[str]

    def open(self) -> storkit.api.Site:
        return storkit.api.open(self.path / "inventory.toml", state=self.path / "state")

    def power_off(self, host: str) -> None:
        self.off.add(host)
        end_servers(self.path / host)

    def leads(self, host: str = "d") -> Path:
        (link,) = (self.path / host / "dev").iterdir()
        return link.readlink()

    def manager(self) -> str:
        return str(json.loads((self.path / "nas" / "v.json").read_text())["manager"])


def end_servers(place: Path) -> None:
    for file in place.rglob("*.pid"):
        with suppress(ProcessLookupError):
            os.kill(int(file.read_text().split()[0]), signal.SIGKILL)
        file.unlink()


@pytest.fixture
def hosts(monkeypatch: pytest.MonkeyPatch) -> Iterator[Hosts]:
    """b and c share a directory, in which there is v; who is off answers nobody."""
    # Its name is short: the sockets of hosts are below it, and not elsewhere.
    with tempfile.TemporaryDirectory(prefix="sk-") as base:
        yield from _made(Path(base), monkeypatch)


def _made(place: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Hosts]:
    make_private(place / "nas")
    (place / "inventory.toml").write_text(INVENTORY.format(t=place))
    monkeypatch.setattr(managed, "_LEASE", 5.0)
    made = Hosts(place, set())
    real = Connections._connect

    def connect(self: Connections, config: object) -> object:
        if (name := config.name) in made.off:  # type: ignore[attr-defined]
            self._silent[name] = HostUnreachable(f"host {name} does not answer", host=name)
            raise self._silent[name]
        return real(self, config)  # type: ignore[arg-type]

    monkeypatch.setattr(Connections, "_connect", connect)
    with made.open() as site:
        site.volumes.create("v", "1MiB")
    yield made
    for name in ("b", "c", "d"):
        end_servers(place / name)


def test_a_fence_that_was_cut_short_goes_on_when_it_is_given_again(
    hosts: Hosts, monkeypatch: pytest.MonkeyPatch
) -> None:
    with hosts.open() as site:
        site.attachments.attach("v", "d")
    before = hosts.leads()
    hosts.power_off("b")

    def die(*_: object) -> None:
        raise KeyboardInterrupt

    with monkeypatch.context() as patch, hosts.open() as site, pytest.raises((KeyboardInterrupt, StorkitError)):
        patch.setattr(Reattach, "act", die)
        site.fences.fence("b", True)
    assert hosts.manager() == "c" and hosts.leads() == before, "d is left with b"
    with hosts.open() as site:
        site.fences.fence("b", True)
    assert hosts.leads().is_relative_to(hosts.path / "c") and hosts.leads().exists()
    with hosts.open() as site:
        site.fences.fence("b", True)
        site.attachments.detach("v", "d")
    assert hosts.manager() == ""


def test_what_the_manager_that_is_off_had_attached_itself_is_among_what_it_lost(hosts: Hosts) -> None:
    with hosts.open() as site:
        site.attachments.attach("v", "b")
    assert hosts.manager() == "b"
    hosts.power_off("b")
    with hosts.open() as site:
        lost = site.fences.fence("b", True).lost
        assert [(each.volume, each.client, each.writable) for each in lost] == [("v", "b", True)]
        assert hosts.manager() == ""
        site.attachments.attach("v", "d")
        site.attachments.detach("v", "d")


def test_a_mount_point_without_its_file_system_is_no_pool_whose_manager_was_fenced(hosts: Hosts) -> None:
    with hosts.open() as site:
        site.attachments.attach("v", "d")
    hosts.power_off("b")
    nas = hosts.path / "nas"
    away = nas.rename(hosts.path / "away")
    nas.mkdir(mode=0o700)
    with hosts.open() as site:
        for act in (
            lambda: site.attachments.detach("v", "d"),
            lambda: site.fences.fence("b", True),
            lambda: site.volumes.create("w", "1MiB"),
        ):
            with pytest.raises(StorkitError, match="has no record of its managers, and had one before"):
                act()
    assert list(nas.iterdir()) == []
    nas.rmdir()
    away.rename(nas)
    with hosts.open() as site:
        site.fences.fence("b", True)
    assert hosts.leads().is_relative_to(hosts.path / "c")


def test_who_is_let_in_again_has_ended_what_it_served_before(hosts: Hosts) -> None:
    with hosts.open() as site:
        site.attachments.attach("v", "d")
    hosts.power_off("b")
    with hosts.open() as site:
        site.fences.fence("b", True)
    hosts.off.clear()
    assert list((hosts.path / "b" / "nbd").glob("*-*.json"))
    with hosts.open() as site:
        with pytest.raises((Unsafe, StorkitError)):
            site.fences.fence("b", True)
        site.fences.unfence("b")
        assert not list((hosts.path / "b" / "nbd").glob("*-*.json"))
        site.attachments.detach("v", "d")
