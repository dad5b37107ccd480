"""Usage errors: with --json, wherever it stands, they are JSON on standard output like any other error."""

from __future__ import annotations

import json
import signal
import subprocess
import time
from collections.abc import Callable
from pathlib import Path

import pytest

from storkit.cli.main import main
from tests.e2e.world import World

WRONG = {
    "nothing": (),
    "noun": ("frobnicate",),
    "verb": ("volume", "frobnicate"),
    "no-verb": ("volume",),
    "no-argument": ("volume", "create", "x"),
    "option": ("volume", "list", "--frob"),
    "early-option": ("--frob", "volume", "list"),
    "middle-option": ("volume", "--frob", "list"),
    "more": ("host", "list", "more"),
    "no-value": ("attach", "v", "--on"),
    "choice": ("volume", "export", "v", "f", "--format", "frob"),
    "number": ("guest", "define", "g", "--vcpus", "many"),
    "seconds": ("guest", "stop", "g", "--timeout", "soon"),
    **{word: ("guest", "stop", "g", "--timeout", word) for word in ("nan", "inf", "1e308", "-1")},
    "flag-value": ("volume", "list", "--json=yes"),
    "required": ("migrate", "run", "g"),
    "size": ("volume", "create", "x", "10"),
    "inventory": ("--inventory",),
}


def places(words: tuple[str, ...]) -> list[list[str]]:
    """The words with --json before, after and between them."""
    return [[*words[:at], "--json", *words[at:]] for at in range(len(words) + 1)]


@pytest.mark.parametrize("words", WRONG.values(), ids=WRONG)
def test_usage_errors_are_json(words: tuple[str, ...], tmp_path: Path, capsys: pytest.CaptureFixture[str],
                               monkeypatch: pytest.MonkeyPatch) -> None:  # fmt: skip
    monkeypatch.setenv("XDG_STATE_HOME", str(tmp_path))
    monkeypatch.setenv("XDG_CONFIG_HOME", str(tmp_path))
    for argv in places(words):
        assert main(argv) == 2, argv
        shown = capsys.readouterr()
        error = json.loads(shown.out)["error"]
        assert error["kind"] == "usage" and error["message"] and error["hint"], argv
        assert error["message"] in shown.err and f"next: {error['hint']}" in shown.err
    assert main(list(words)) == 2
    assert ("error" in capsys.readouterr().out) is any(word.startswith("--json") and "=" not in word for word in words)
    assert not any(tmp_path.rglob("*.json*"))


def test_after_two_dashes_it_is_a_name(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["volume", "create", "--", "--json"]) == 2
    shown = capsys.readouterr()
    assert shown.out == "" and "SIZE" in shown.err


@pytest.mark.parametrize("words", places(("volume", "list")), ids=" ".join)
def test_global_options_stand_anywhere(words: list[str], tmp_path: Path, capsys: pytest.CaptureFixture[str],
                                       monkeypatch: pytest.MonkeyPatch) -> None:  # fmt: skip
    monkeypatch.setenv("XDG_STATE_HOME", str(tmp_path))
    monkeypatch.setenv("XDG_CONFIG_HOME", str(tmp_path))
    assert main(words) == 0
    assert json.loads(capsys.readouterr().out) == []


def test_an_interrupted_command_prints_json_too(make_world: Callable[..., World]) -> None:
    world = make_world("raw")
    image = subprocess.Popen(
        [*world.argv, *world.words("--json", "volume", "import", "-", "v")],
        stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, env=world.environment,
    )  # fmt: skip
    spool = world.directory / "coordinator/spool"
    while not (spool.exists() and list(spool.iterdir())):
        assert image.poll() is None
        time.sleep(0.01)
    image.send_signal(signal.SIGTERM)
    out, _ = image.communicate(timeout=60)
    error = json.loads(out)["error"]
    assert image.returncode == 130 and (error["kind"], error["changed"]) == ("interrupted", False)
    assert list(spool.iterdir()) == []
