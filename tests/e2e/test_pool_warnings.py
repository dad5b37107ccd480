"""A pool that fills is told by the commands that people type, and no other pool is asked for it."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path

import pytest

from storkit.cli.main import main
from storkit.hosts.connection import LocalConnection
from tests.e2e.world import World

TEXT = "pool default is over-committed"


def test_every_command_that_matters_tells_it(make_world: Callable[..., World]) -> None:
    world = make_world("raw")
    world.guest()
    assert world.storkit("--json", "status").json["warnings"] == []
    world.storkit("volume", "create", "huge", "4TiB")
    world.storkit("guest", "start", "g", "--on", "a")
    for command in (
        "status",
        "host check a",
        "pool list",
        "attach huge --on b",
        "pool attach default --on b --read-only",
        "migrate prepare g --to b",
    ):
        words = command.split()
        if words[:2] == ["pool", "attach"]:
            world.storkit("detach", "huge", "--on", "b")
        done = world.storkit("--json", *words)
        shown = done.json[0] if isinstance(done.json, list) else done.json
        assert [warning[: len(TEXT)] for warning in shown["warnings"]] == [TEXT], words
        assert done.stderr.count(TEXT) == 1, words
    world.storkit("migrate", "abort", "g")
    moved = world.storkit("--json", "migrate", "run", "g", "--to", "b")
    assert moved.json["warnings"][0].startswith(TEXT) and TEXT in moved.stderr
    assert json.loads(world.storkit("--json", "host", "check", "b").stdout)[0]["warnings"] == []


def test_attach_asks_its_own_pool_alone(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    Path("inventory.toml").write_text(
        '[hosts.a]\nurl = "local:a"\n[hosts.b]\nurl = "local:b"\n[pools.default]\nhost = "a"\n'
        '[pools.other]\nhost = "b"\n[defaults]\npool = "default"\n'
    )
    asked: list[str] = []
    call = LocalConnection.call

    def counted(self: LocalConnection, target: str, verb: str, *args: object, **kwargs: object) -> object:
        if verb == "capacity":
            asked.append(target)
        return call(self, target, verb, *args, **kwargs)  # type: ignore[arg-type]

    monkeypatch.setattr(LocalConnection, "call", counted)
    storkit = ["--inventory", "inventory.toml", "--state", "coordinator"]
    assert main([*storkit, "volume", "create", "v", "1MiB"]) == 0
    assert asked == []
    assert main([*storkit, "attach", "v", "--on", "b"]) == 0
    assert asked == ["pool:default"]
    assert main([*storkit, "detach", "v", "--on", "b"]) == 0
    assert main([*storkit, "volume", "delete", "v"]) == 0
    assert asked == ["pool:default"]
