"""What commands print with --json has the keys that docs/json.md says, no more and no fewer."""

from __future__ import annotations

import dataclasses
import json
import os
import re
import shutil
import typing
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from storkit.cli.commands import COMMANDS
from storkit.cli.main import main
from storkit.core import errors
from storkit.core.guest import Guest, KeptGuest
from storkit.core.inventory import HostConfig
from storkit.core.model import (
    Attachment,
    DiskSource,
    Export,
    GuestStatus,
    MigrationResult,
    Usage,
    Volume,
    VolumeHold,
    VolumeKind,
)
from storkit.plans.intent.drift.audit import Drift
from storkit.plans.plan import Hold, Plan, Step
from tests.guestkit import bootsector

PAGE = (Path(__file__).resolve().parents[2] / "docs" / "json.md").read_text()
RECORDS: dict[str, Any] = {
    "Host": HostConfig,
    "Volume": Volume,
    "VolumeHold": VolumeHold,
    "Usage": Usage,
    "Export": Export,
    "Attachment": Attachment,
    "Drift": Drift,
    "DiskSource": DiskSource,
    "Guest": Guest,
    "KeptGuest": KeptGuest,
    "Migration": MigrationResult,
    "Plan": Plan,
    "Step": Step,
    "Hold": Hold,
}

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

Run = Callable[..., Any]


def record(name: str) -> set[str]:
    """The keys of a record, as the page has them."""
    match = re.search(rf"^### {name}$\n(.*?)(?=^##|\Z)", PAGE, re.MULTILINE | re.DOTALL)
    assert match, f"docs/json.md has no record {name}"
    return set(re.findall(r"`(\w+)`", re.sub(r"\([^)]*\)", "", match[1])))


def shapes() -> dict[str, tuple[bool, set[str]]]:
    """Command to whether it prints a list, and the keys of its object."""
    found = {}
    for command, shape in re.findall(r"^\| `([a-z ]+)` \| `([^`]+)`", PAGE, re.MULTILINE):
        keys: set[str] = set()
        for part in shape.strip("[]").split(" + "):
            keys |= set(part.strip("{}").split(", ")) if part.startswith("{") else record(part)
        found[command] = (shape.startswith("["), keys)
    return found


def test_every_command_has_its_shape_on_the_page() -> None:
    commands = {f"{command.noun} {command.verb}".strip() for command in COMMANDS}
    assert shapes().keys() == {name for name in commands if not name.startswith("hook ")} - {
        "completion",
        "fleet console",
        "guest console",
        "fleet ssh",
        "names",
        "agent",
    }


@pytest.mark.parametrize("name", RECORDS)
def test_records_have_the_keys_of_the_page(name: str) -> None:
    assert record(name) == {field.name for field in dataclasses.fields(RECORDS[name])}


def test_the_page_names_every_status_and_kind() -> None:
    text = re.sub(r"\s+", " ", PAGE)
    for word in (*typing.get_args(GuestStatus), *typing.get_args(VolumeKind)):
        assert re.search(rf"\b{word}\b", text), word


def test_errors_have_the_keys_of_the_page() -> None:
    base = {"kind", "message", "hint"}
    problem = errors.NotFound("there is no volume web", "storkit volume list")
    assert json.loads(re.findall(r"```json\n(.*?)```", PAGE, re.DOTALL)[0]) == {
        "error": {**problem.to_json(), "changed": False}
    }
    for error, more in (
        (errors.CommandFailed(["lvs"], 5), {"argv", "status", "stderr", "host"}),
        (errors.StepFailed("x", cause=problem), {"plan", "cause"}),
        (errors.Problems([problem]), {"problems"}),
    ):
        assert error.to_json().keys() == base | more
        assert all(f"`{key}`" in PAGE for key in more)


@pytest.fixture
def storkit(tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> Iterator[Run]:
    """Runs a command in this process, with hosts a and b; its JSON, checked against the page."""
    if shutil.which("qemu-system-x86_64") is None:
        pytest.skip("qemu-system-x86 not installed")
    monkeypatch.chdir(tmp_path)
    Path("inventory.toml").write_text(INVENTORY)
    documented = shapes()

    def run(*words: str, status: int = 0) -> Any:
        options = ["--inventory", "inventory.toml", "--state", "coordinator", "--json"]
        assert main([*options, *words]) == status, capsys.readouterr().err
        result = json.loads(capsys.readouterr().out)
        if status == 0:
            command = next(name for name in (" ".join(words[:2]), words[0]) if name in documented)
            is_list, wanted = documented[command]
            assert isinstance(result, list) is is_list
            assert not is_list or result, f"{command} printed an empty list: nothing was checked"
            for item in result if is_list else [result]:
                assert item.keys() == wanted, command
        checked.add(command if status == 0 else "")
        return result

    checked: set[str] = set()
    run.checked = checked  # type: ignore[attr-defined]
    yield run
    for entry in Path("/proc").iterdir():
        try:
            line = (entry / "cmdline").read_bytes() if entry.name.isdigit() else b""
        except OSError:
            continue
        if os.fsencode(tmp_path) in line and b"qemu" in line:
            os.kill(int(entry.name), 9)


def test_every_command_prints_what_the_page_says(storkit: Run, monkeypatch: pytest.MonkeyPatch) -> None:
    bootsector.make_disk(Path("boot.img"))
    storkit("host", "list")
    storkit("host", "check")
    storkit("host", "add", "c", "local:c")
    storkit("host", "remove", "c")
    storkit("host", "accept", "--file", "accept.toml", "--dry-run")
    storkit("hooks", "admit", "b", "--volumes", "default/*", "--here", "--from-inventory", "a", "--file", "hooks.toml")
    storkit("volume", "create", "data", "1MiB")
    storkit("volume", "import", "boot.img", "golden", "--golden")
    storkit("volume", "clone", "golden", "g", "other")
    storkit("volume", "snapshot", "data", "kept")
    storkit("volume", "restore", "data", "kept", "--discard")
    storkit("volume", "resize", "data", "2MiB")
    storkit("volume", "move", "data", "--to", "default")
    storkit("volume", "rename", "data", "data2")
    storkit("volume", "rename", "data2", "data")
    storkit("volume", "flatten", "other")
    storkit("volume", "export", "data", "data.img")
    storkit("volume", "list")
    storkit("pool", "list")
    storkit("guest", "define", "g", "--disk", "g", "--memory", "16MiB")
    storkit("guest", "clone", "g", "h", "--set", "disks.0.volume=other")
    Path("i.args").write_text("qemu-system-x86_64 -name i -m 64 -drive file=/dev/vg/i,if=virtio,format=raw\n")
    storkit("guest", "import", "i.args", "--disk", "/dev/vg/i=data")
    storkit("guest", "move", "h", "--to", "a")
    storkit("guest", "rename", "h", "h2")
    storkit("guest", "rename", "h2", "h")
    storkit("guest", "start", "g")
    storkit("guest", "resume", "g")
    storkit("guest", "list")
    storkit("guest", "show", "g")
    storkit("guest", "render", "g")
    monkeypatch.setenv("EDITOR", "true")
    assert storkit("guest", "edit", "g")["generation"] == 0
    assert storkit("guest", "refresh", "g")["changes"] == []
    record_file = Path("guests/g.toml")
    record_file.write_text(f"# ours\n{record_file.read_text()}")
    assert [each["what"] for each in storkit("guest", "diff", "g")] == ["g.toml"]
    assert storkit("guest", "commit", "g")["generation"] == 2
    storkit("guest", "checkout", "g")
    storkit("volume", "show", "g")
    storkit("guest", "save", "g")
    assert storkit("volume", "show", "g")["hold"].keys() == record("VolumeHold")
    storkit("guest", "restore", "g")
    storkit("guest", "save", "g")
    storkit("guest", "discard", "g", "--force")
    storkit("guest", "start", "g")
    prepared = storkit("migrate", "prepare", "g", "--to", "b")
    assert prepared["migration"] is None and prepared["proof"][0].keys() == record("Proof")
    proof = storkit("verify", "g")[0]
    assert sorted(proof["hosts"]) == ["a", "b"]
    assert storkit("migrate", "status")[0]["window"] is True
    storkit("migrate", "abort", "g")
    moved = storkit("migrate", "run", "g", "--to", "b")
    assert moved["migration"].keys() == record("Migration")
    storkit("migrate", "finish", "g")
    storkit("migrate", "cleanup", "g")
    storkit("host", "restore")
    seen = storkit("status")
    assert seen["exports"]["a"][0].keys() == record("Export")
    attached = storkit("attach", "data", "--on", "b")
    assert attached["source"].keys() == record("DiskSource")
    storkit("detach", "data", "--on", "b")
    assert storkit("pool", "attach", "default", "--on", "a", status=5)["error"]["message"].startswith("volume g is")
    storkit("guest", "stop", "g", "--force")
    storkit("guest", "snapshot", "g", "first")
    storkit("guest", "revert", "g", "first", "--discard")
    storkit("volume", "delete", "g.first")
    assert storkit("host", "drain", "b")["moved"] == []
    storkit("host", "undrain", "b")
    text = Path("inventory.toml").read_text()
    Path("inventory.toml").write_text(text.replace('"local:b"', '"ssh://127.0.0.8:1"'))
    assert storkit("host", "evacuate", "b")["started"] == []
    Path("inventory.toml").write_text(text)
    storkit("unfence", "b")
    everything = storkit("pool", "attach", "default", "--on", "b")
    assert {each["volume"]: each["writable"] for each in everything} == {
        "data": True, "g": True, "golden": False, "kept": False, "other": True
    }  # fmt: skip
    storkit("pool", "detach", "default", "--on", "b")
    storkit("attach", "data", "--on", "b")
    assert storkit("fence", "b")["lost"][0].keys() == record("Export")
    storkit("unfence", "b")
    storkit("detach", "data", "--on", "b")
    for guest in ("g", "h", "i"):
        storkit("guest", "delete", guest)
    plans = storkit("plan", "list")
    shown = storkit("plan", "show", plans[-1]["id"])
    assert shown["plan"].keys() == record("Plan") and shown["plan"]["stages"][0][0].keys() == record("Step")
    storkit("volume", "delete", "g", "other", "golden", "data", "kept")
    assert storkit("volume", "show", "g", status=4)["error"].keys() == {"kind", "message", "hint", "changed"}
    disk = Path("boot.img").absolute()
    storkit("volume", "adopt", str(disk), "own")
    storkit("volume", "release", "own")
    Path("own.cfg").write_text(f'name = "own"\nmemory = 64\ndisk = [ "format=raw, vdev=xvda, target={disk}" ]\n')
    storkit("guest", "adopt", "--config", "own.cfg")
    storkit("guest", "release", "own")
    storkit("volume", "import", str(disk), "golden", "--golden")
    storkit("image", "seal", "golden")
    storkit("image", "seal", "golden", "golden")
    storkit("image", "list")
    storkit("image", "show", "golden@2")
    storkit("image", "verify", "golden")
    storkit("image", "prune", "golden")
    fleet = ("--image", "golden", "--count", "1", "--memory", "16MiB")
    storkit("fleet", "create", "ci", *fleet)
    storkit("fleet", "list")
    storkit("fleet", "start", "ci")
    storkit("fleet", "reset", "ci", "ci-01")
    storkit("fleet", "inventory", "ci")
    storkit("guest", "address", "ci-01")
    storkit("fleet", "stop", "ci", "--force")
    storkit("fleet", "replace", "ci", "ci-01")
    storkit("fleet", "show", "ci")
    storkit("fleet", "destroy", "ci")
    storkit("fleet", "sweep")
    checked = storkit.checked  # type: ignore[attr-defined]
    of_a_guest_with_ssh = {"fleet run", "fleet wait", "image build"}  # test_fleet_debian.py, test_image_build.py
    of_orphans = {"audit", "sweep"}  # tests/e2e/test_audit.py
    of_ssh = {"host upgrade"}  # tests/e2e/test_estate.py
    of_this_machine = {"hooks install", "hooks status", "hooks remove"}  # tests/e2e/test_hooks_installed.py
    assert shapes().keys() - checked == {
        "plan resume",
        "plan rollback",
        *of_a_guest_with_ssh,
        "guest exec",  # test_guest_agent.py
        *of_orphans,
        *of_ssh,
        *of_this_machine,
    }


def test_an_error_says_whether_anything_is_changed(storkit: Run) -> None:
    storkit("volume", "create", "v", "1MiB")
    storkit("attach", "v", "--on", "b")
    for words, status in (
        (("volume", "create", "v", "1MiB"), 5),
        (("volume", "create", "a/b", "0", "--pool", "none"), 2),
        (("volume", "resize", "v", "512KiB", "--shrink", "--shrink"), 5),
        (("volume", "export", "v", "/none/x"), 2),
        (("volume", "import", "/none", "w"), 4),
        (("attach", "v", "--on", "nowhere"), 4),
        (("migrate", "run", "none", "--to", "b"), 4),
        (("frobnicate",), 2),
    ):
        assert storkit(*words, status=status)["error"]["changed"] is False, words
    # One that cannot say, since it was in the middle of a verb.
    (uuid,) = {path.stem for path in Path("a/nbd").glob("*.json")}
    Path(f"a/nbd/{uuid}.json").write_text("{")
    assert storkit("host", "restore", "a", status=9)["error"]["changed"] is None
    assert storkit("detach", "v", "--on", "b", status=9)["error"]["changed"] is False


def test_a_dry_run_prints_the_plan(storkit: Run, capsys: pytest.CaptureFixture[str]) -> None:
    options = ["--inventory", "inventory.toml", "--state", "coordinator", "--json", "-n"]
    assert main([*options, "volume", "create", "data", "1MiB"]) == 0
    plan = json.loads(capsys.readouterr().out)
    assert plan.keys() == record("Plan") and plan["stages"][0][0].keys() == record("Step")
    assert not Path("a/volumes").exists()


@pytest.mark.parametrize("verb", ["resume", "rollback"])
def test_an_interrupted_plan(storkit: Run, verb: str, monkeypatch: pytest.MonkeyPatch) -> None:
    from storkit.plans.journal import Journal

    class Stopped(BaseException):
        pass

    def stop(*_: object) -> None:
        raise Stopped

    with monkeypatch.context() as patch:
        patch.setattr(Journal, "done", stop)
        with pytest.raises(Stopped):
            storkit("volume", "create", "data", "1MiB")
    (plan,) = storkit("plan", "list")
    assert plan["status"] == "interrupted"
    storkit("plan", verb, plan["id"])
    assert len(list(Path("a/volumes").glob("*.json"))) == (1 if verb == "resume" else 0)
