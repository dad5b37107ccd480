"""What differs between hosts, volumes, guests and plans is named with the command that mends it, and that mends it."""

from __future__ import annotations

import json
import os
import shutil
import signal
from pathlib import Path
from typing import Any

import pytest

from tests.e2e.test_json import record
from tests.e2e.world import World

pytestmark = pytest.mark.e2e


def audit(world: World) -> list[dict[str, Any]]:
    """What differs; people are told the same."""
    said = world.storkit("--json", "audit", ok=None)
    found: list[dict[str, Any]] = said.json
    assert said.status == (1 if found else 0)
    assert all(each.keys() == record("Drift") for each in found)
    text = world.storkit("audit", ok=said.status).stdout
    assert all(each["name"] in text and each["mend"] in text for each in found)
    assert "\\n" not in text and text.count("\n  mend: ") == sum(1 for each in found if each["mend"])
    return found


def mend(world: World, each: dict[str, Any]) -> None:
    """Type the first command that it names."""
    words = each["mend"].partition(";")[0].split()
    assert words[0] == "storkit", each
    world.storkit(*words[1:])


def only(world: World, kind: str, name: str) -> dict[str, Any]:
    (found,) = audit(world)
    assert (found["kind"], found["name"]) == (kind, name), found
    return found


def records(world: World, host: str, text: str) -> list[Path]:
    """The records of a host, other than volumes', that have this text in them."""
    base = world.directory / host
    files = [path for path in base.rglob("*.json") if "volumes" not in path.parts]
    return [path for path in files if text in path.read_text()]


def test_nothing_differs_after_all_kinds_of_work(world: World) -> None:
    assert audit(world) == []
    assert world.storkit("sweep").stdout.strip() == "no orphans"
    world.guest()
    world.storkit("guest", "start", "g")
    world.storkit("migrate", "prepare", "g", "--to", "b")
    (window,) = audit(world)
    assert "a and b may write it" in window["what"] and window["mend"].startswith("storkit migrate finish g")
    world.storkit("migrate", "abort", "g")
    world.storkit("migrate", "run", "g", "--to", "b")
    world.storkit("volume", "create", "v", "1MiB")
    world.storkit("attach", "v", "--on", "a", "--read-only")
    world.storkit("attach", "v", "--on", "b")
    assert audit(world) == []
    world.storkit("guest", "stop", "g", "--force")
    assert audit(world) == []


def test_servers_and_plans(world: World) -> None:
    world.storkit("volume", "create", "v", "1MiB")
    world.storkit("attach", "v", "--on", "b")
    (server,) = [line for line in world.processes() if "qemu-storage-daemon" in line]
    os.kill(int(server.partition(":")[0]), signal.SIGKILL)
    served, broken = audit(world)
    assert (served["kind"], broken["kind"], broken["client"]) == ("export", "attachment", "b")
    mend(world, served)
    assert audit(world) == []
    world.killed("after:2", "detach", "v", "--on", "b")
    found = audit(world)
    plan = next(each for each in found if each["kind"] == "plan")
    assert "is interrupted: detach v" in plan["what"]
    mend(world, plan)
    assert audit(world) == []


def test_orphans_are_shown_and_then_swept(world: World) -> None:
    for name in ("v", "w"):
        world.storkit("volume", "create", name, "1MiB")
        world.storkit("attach", name, "--on", "b")
    uuids = {name: world.storkit("--json", "volume", "show", name).json["uuid"] for name in ("v", "w")}
    # b has forgotten v, and a has forgotten what it gave for w
    for path in records(world, "b", uuids["v"]):
        path.unlink()
    for path in records(world, "a", uuids["w"]):
        path.unlink()
    found = {each["kind"]: each for each in audit(world) if each["orphan"]}
    assert (found["export"]["name"], found["attachment"]["name"]) == ("v", "w"), found
    shown = world.storkit("--json", "sweep").json
    assert [each["removed"] for each in shown] == [False, False]
    assert {each["kind"] for each in audit(world) if each["orphan"]} == {"export", "attachment"}
    swept = world.storkit("--json", "sweep", "--yes").json
    assert [each["removed"] for each in swept] == [True, True]
    assert swept[0].keys() == record("Drift") | {"removed"}
    assert audit(world) == []


def test_an_import_whose_coordinator_is_gone(world: World) -> None:
    image = world.directory / "image"
    image.write_bytes(bytes(range(256)) * 4096)
    world.killed("after:2", "volume", "import", "--format", "raw", image, "half")
    (half,) = [each for each in audit(world) if each["kind"] == "volume"]
    assert not half["orphan"] and "its content never came into it" in half["what"]
    shutil.rmtree(world.directory / "coordinator")
    assert [each["orphan"] for each in audit(world) if each["kind"] == "volume"] == [True]
    kept = world.storkit("--json", "sweep", "--yes", ok=None)
    assert kept.status == 0


def test_a_move_that_was_cut_short_is_no_orphan(world: World) -> None:
    text = world.inventory.read_text()
    world.inventory.write_text(text + '[pools.other]\nhost = "b"\n')
    world.storkit("volume", "create", "v", "4MiB")
    for point in ("after:4", "after:9", "after:12"):
        to = "default" if world.storkit("--json", "volume", "show", "v").json["pool"] == "other" else "other"
        assert world.killed(point, "volume", "move", "v", "--to", to).status == -9
        found = audit(world)
        assert not any(each["orphan"] for each in found), found
        cut = [each for each in found if each["kind"] == "volume"]
        assert all("its move was cut short" in each["what"] for each in cut) and (cut or point == "after:4"), found
        if cut:
            mend(world, cut[0])
        else:
            world.storkit("volume", "move", "v", "--to", to)
        assert audit(world) == []


def test_guests_that_are_not_where_their_disks_are(world: World) -> None:
    world.guest()
    world.storkit("guest", "start", "g", "--on", "b")
    world.storkit("fence", "b")
    cut = audit(world)[0]
    assert cut["kind"] == "guest" and "it runs on b, and volume g is not exported to that host" in cut["what"]
    world.storkit("guest", "stop", "g", "--force")
    world.storkit("unfence", "b")
    assert audit(world) == []
    # its disk is taken away by hand
    volume = world.storkit("--json", "volume", "show", "g").json
    for path in Path(volume["path"]).parent.glob("g*"):
        path.unlink()
    assert "its volume g is in no pool" in only(world, "guest", "g")["what"]


def test_a_guest_that_no_record_knows_by_its_name(world: World) -> None:
    world.guest()
    world.storkit("guest", "start", "g", "--on", "b")
    record = world.directory / "guests/g.toml"
    record.with_name("h.toml").write_text(record.read_text().replace('name = "g"', 'name = "h"'))
    record.unlink()
    shutil.rmtree(world.directory / "a/volumes/.guests")
    strange = [each for each in audit(world) if each["kind"] == "guest"]
    assert strange[0]["name"] == "g" and "its own calls it h" in strange[0]["what"], strange
    assert {each["guest"] for each in world.storkit("--json", "status").json["guests"]} == {"g"}


def test_who_is_silent_damaged_or_there_twice(world: World) -> None:
    world.storkit("volume", "create", "v", "1MiB")
    pool = Path(world.storkit("--json", "volume", "show", "v").json["path"]).parent
    (pool / "bad.json").write_text("{}")
    bad = only(world, "volume", "bad")
    assert bad["mend"] and not bad["said_by"]
    (pool / "bad.json").unlink()
    text = world.inventory.read_text()
    other = world.directory / "other"
    shutil.copytree(pool, other)
    world.inventory.write_text(text + f'[pools.other]\nhost = "b"\ntype = "directory"\npath = "{other}"\n')
    found = audit(world)
    assert any("with one UUID" in each["what"] for each in found), found
    world.inventory.write_text(text.replace('"local:b"', '"ssh://127.0.0.8:1"'))
    silent = only(world, "host", "b")
    assert silent["mend"] == "storkit host check b"
    assert json.loads(world.storkit("--json", "sweep").stdout) == []
