"""A program that keeps a site open: a host that was silent is asked again in the next call, and once in each."""

from __future__ import annotations

from pathlib import Path

import pytest

import storkit.api
from storkit.core.errors import HostUnreachable
from storkit.core.inventory import HostConfig
from storkit.hosts.connection import Connection
from storkit.hosts.connections import Connections


def test_a_silent_host_is_asked_again_by_the_next_call(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    asked: list[str] = []

    def connect(self: Connections, config: HostConfig) -> Connection:
        asked.append(config.name)
        self._silent[config.name] = HostUnreachable("host a does not answer")
        raise self._silent[config.name]

    monkeypatch.setattr(Connections, "_connect", connect)
    file = tmp_path / "inventory.toml"
    file.write_text('[hosts.a]\nurl = "ssh://a"\n[pools.p]\nhost = "a"\n')
    with storkit.api.open(file, state=tmp_path / "state") as site:
        volumes = site.volumes
        assert volumes.listing().volumes == [] and list(site.silent) == ["a"]
        assert volumes.listing().volumes == [] and asked == ["a", "a"], "it is kept, and asks again"
        with site.one_call():
            volumes.listing()
            site.volumes.listing()
        assert asked == ["a"] * 3 and list(site.silent) == ["a"]
        monkeypatch.undo()
        monkeypatch.setattr(Connections, "to", lambda self, name: Answers())
        assert volumes.listing().volumes == [] and not site.silent


class Answers:
    """A host that has no volume."""

    def pool(self, target: str) -> Answers:
        return self

    def find(self, names: list[str] | None) -> list[str]:
        return []
