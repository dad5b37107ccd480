"""docs/api.md: its program runs as it stands there, and its table has every method that there is."""

from __future__ import annotations

import inspect
import os
import re
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

import storkit.api
from storkit.api.site import Storkit
from storkit.cli.main import main
from storkit.plans.journal import Journals
from storkit.system.timeouts import scaled
from tests.guestkit import bootsector

ROOT = Path(__file__).resolve().parents[2]
PAGE = (ROOT / "docs" / "api.md").read_text()


def blocks(language: str) -> str:
    return "\n".join(re.findall(rf"^```{language}\n(.*?)^```$", PAGE, re.MULTILINE | re.DOTALL))


def test_the_page_s_program_runs(tmp_path: Path) -> None:
    if shutil.which("qemu-system-x86_64") is None or shutil.which("qemu-storage-daemon") is None:
        pytest.skip("qemu-system-x86 not installed")
    (tmp_path / "inventory.toml").write_text(blocks("toml"))
    bootsector.make_disk(tmp_path / "boot.img", rest=1)
    try:
        done = subprocess.run(
            [sys.executable, "-c", blocks("python")], capture_output=True, text=True, cwd=tmp_path,
            env={**os.environ, "PYTHONPATH": str(ROOT)}, timeout=scaled(120), check=False,
        )  # fmt: skip
    finally:
        own = ["--inventory", str(tmp_path / "inventory.toml"), "--state", str(tmp_path / "coordinator")]
        for command in ("guest stop g --force", "detach web --on a", "detach web --on b"):
            main([*own, *command.split()])
    assert (done.returncode, done.stderr) == (0, "")
    said = done.stdout.splitlines()
    uuid = said[0].split()[1]
    assert re.match(rf"(a and b|b and a): one disk, storkit:{uuid}:", said[2])
    assert "volume web is written by a" in said
    assert "next: storkit detach web --on a, or attach it with --read-only" in said
    assert said[said.index("attach web on b") + 1 :][:3] == [
        "  a: export web to b ",
        "  a: let b write web ",
        "  b: attach web on b ",
    ]
    assert "done clone web to web1, web2 " in said and "['web', 'web1', 'web2']" in said
    assert said[-1] == "g ['b'] ['b'] False"


def test_the_page_has_every_method() -> None:
    rows = re.findall(r"^\| `(\w+)` \| (.+) \|$", PAGE, re.MULTILINE)
    told = {name: set(re.findall(r"`(\w+)`", methods)) for name, methods in rows}
    with Storkit(None, None) as site:
        rooms = {name: getattr(site, name) for name in told}
    assert told == {
        name: {key for key, _ in inspect.getmembers(room, inspect.ismethod) if not key.startswith("_")}
        for name, room in rooms.items()
    }


def test_every_method_says_what_it_does() -> None:
    with Storkit(None, None) as site:
        rooms = [getattr(site, name) for name in re.findall(r"^\| `(\w+)` \|", PAGE, re.MULTILINE)]
    methods = [method for room in rooms for _, method in inspect.getmembers(room, inspect.ismethod)]
    assert not [method for method in methods if not method.__name__.startswith("_") and not method.__doc__]


def test_to_import_it_costs_nothing() -> None:
    code = "import storkit.api, sys; print(*sorted(name for name in sys.modules if name.startswith('storkit.')))"
    found = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True, cwd=ROOT)
    assert found.stdout.split() == ["storkit.api"]


def test_what_is_only_planned_changes_nothing(tmp_path: Path) -> None:
    (tmp_path / "inventory.toml").write_text('[hosts.a]\nurl = "local:a"\n[pools.default]\nhost = "a"\n')
    with storkit.api.open(tmp_path / "inventory.toml", tmp_path / "coordinator") as site:
        plan = site.plan(lambda: site.volumes.create("web", "8MiB"))
        assert plan is not None and [step.title for step in plan.steps] == ["create web in pool default"]
        assert site.volumes.listing().volumes == []
        Journals(site.state / "plans").create(plan).close()
        assert site.plan(lambda: site.plans.resume(plan.id)) == plan
        assert site.plan(lambda: site.plans.rollback(plan.id)) == plan
        assert [(each.id, each.done, each.open) for each in site.plans.listing()] == [(plan.id, 0, True)]
        assert site.plan(lambda: site.guests.define("g", storkit.api.GuestWish())) is None
        assert site.guests.names() == []
        with pytest.raises(storkit.api.errors.UsageError, match="what it has to bring back"):
            site.plan(site.hosts.restore)
        assert site.plan(lambda: (site.plan(lambda: site.volumes.create("a", "8MiB")),
                                  site.volumes.create("b", "8MiB"))) is not None  # fmt: skip
        assert site.volumes.listing().volumes == [], "a plan within a plan does not end the outer one"
        assert not site.planning
        assert site.volumes.create("web", 8 << 20).name == "web"


def test_problems_are_told_all_at_once(tmp_path: Path) -> None:
    with storkit.api.open(state=tmp_path) as site, pytest.raises(storkit.api.errors.Problems) as refused:
        site.volumes.create("a b", "much", pool="none")
    assert len(refused.value.each) == 3


def test_one_name_is_no_list_of_names(tmp_path: Path) -> None:
    """Of the letters of a text each may be the name of a volume, or of a directory: `/` is one."""
    wish = storkit.api.GuestWish
    accept = storkit.api.AcceptWish
    (tmp_path / "inventory.toml").write_text('[hosts.a]\nurl = "local:a"\n[pools.default]\nhost = "a"\n')
    with storkit.api.open(tmp_path / "inventory.toml", tmp_path / "coordinator") as site:
        for name in "ab":
            site.volumes.create(name, "1MiB")
        for act in (
            lambda: site.volumes.delete("ab"),
            lambda: site.volumes.clone("a", "xy"),
            lambda: site.attachments.verify("a", "ab"),
            lambda: site.hosts.check("a"),
            lambda: site.hosts.restore("a"),
            lambda: site.guests.define("g", wish(disks="ab")),
            lambda: site.guests.define("g", wish(without="nics"), change=True),
            lambda: site.guests.import_(tmp_path / "g.xml", {}, local="ab"),
            lambda: site.hosts.accept(accept(import_directories="/", file=tmp_path / "accept.toml")),
        ):
            with pytest.raises(storkit.api.errors.UsageError, match="a list of them is wanted"):
                act()
        assert [volume.name for volume in site.volumes.listing().volumes] == ["a", "b"]
        assert not site.guests.names() and not (tmp_path / "accept.toml").exists()
        with pytest.raises(storkit.api.errors.NotFound):
            site.plans.show("a\0b")
