"""A manager that is off, fenced by a person's word: what the commands do at the hosts that answer."""

from __future__ import annotations

import json
import os
import signal
from collections.abc import Iterator
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path

import pytest

import storkit.api
from storkit.core.errors import HostUnreachable, StorkitError
from storkit.hosts.connections import Connections
from storkit.plans.verbs.fences import Reattach
from storkit.system.files import make_private

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
def hosts(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Hosts]:
    """b and c share a directory, in which there is v; who is off answers nobody."""
    make_private(tmp_path / "nas")
    (tmp_path / "inventory.toml").write_text(INVENTORY.format(t=tmp_path))
    made = Hosts(tmp_path, set())
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
        end_servers(tmp_path / name)


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
