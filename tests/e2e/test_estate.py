"""Hosts are brought in, given another storkit, and taken out, by a real sshd."""

from __future__ import annotations

import shutil
import sys
import tempfile
import zipapp
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.e2e.sshd import two_machines
from tests.e2e.world import ROOT, World

pytestmark = pytest.mark.e2e


@pytest.fixture
def machines() -> Iterator[World]:
    with tempfile.TemporaryDirectory(prefix="sk-") as scratch, two_machines(Path(scratch)) as world:
        yield world


def pyz(directory: Path, version: str = "") -> Path:
    """storkit in one file, whose libraries are those of this Python."""
    tree = directory / "tree"
    shutil.copytree(ROOT / "storkit", tree / "storkit", ignore=shutil.ignore_patterns("__pycache__"))
    if version:
        (tree / "storkit/__init__.py").write_text(f'__version__ = "{version}"\n')
    (tree / "__main__.py").write_text("import sys\nfrom storkit.cli.main import main\nsys.exit(main())\n")
    file = directory / f"storkit{version}.pyz"
    zipapp.create_archive(tree, file, interpreter=sys.executable)
    shutil.rmtree(tree)
    return file


def test_a_host_comes_is_upgraded_under_its_guest_and_goes(machines: World) -> None:
    scratch = machines.directory
    authorized, pinned = scratch / "authorized", (scratch / "authorized").read_text()
    login = (scratch / "user.pub").read_text()
    before = machines.inventory.read_text()
    url = machines.storkit("--json", "host", "list").json[1]["url"].replace("127.0.0.2", "localhost")
    there = scratch / "opt/bin/storkit"
    # as its administrator logs in
    authorized.write_text(login)
    words = ("host", "add", "c", url, "--host-state", scratch / "c", "--program", there)
    assert "nothing to copy" in machines.storkit(*words, ok=2).stderr
    assert machines.inventory.read_text() == before
    added = machines.storkit("--json", *words, "--file", pyz(scratch), ok=None)
    assert added.json["host"] == "c" and added.json["authorized"] == f'command="{there} agent --grade guests",restrict'
    assert there.stat().st_mode & 0o777 == 0o755 and not added.json["unit"]
    assert machines.inventory.read_text().startswith(before.rstrip())
    # the key that is to be used from now on, as it was told
    authorized.write_text(f"{added.json['authorized']} {login}")
    facts = machines.storkit("--json", "host", "check", "c", ok=None).json[0]
    assert facts["host"] == "c" and facts["state"] == str(scratch / "c"), facts
    authorized.write_text(pinned)
    again = machines.storkit("host", "add", "c", url.replace("localhost", "127.0.0.2"), ok=5)
    assert "there is a host c already" in again.stderr
    # its storkit is exchanged while a guest runs
    machines.guest()
    machines.storkit("guest", "start", "g", "--on", "b")
    authorized.write_text(login)
    (done,) = machines.storkit("--json", "host", "upgrade", "c", "--program", there, "--file", pyz(scratch, "9.9")).json
    assert done["host"] == "c" and done["before"] and done["after"] == "9.9"
    assert [path.name for path in there.parent.iterdir()] == ["storkit"]
    authorized.write_text(pinned)
    assert machines.running() == ["b"]
    # it has something, and stays
    kept = machines.storkit("host", "remove", "b", ok=None)
    assert "guest g is running on host b" in kept.stderr and "host b may have volume g" in kept.stderr
    machines.storkit("guest", "stop", "g", "--force")
    machines.storkit("host", "remove", "c")
    assert machines.inventory.read_text().rstrip() == before.rstrip()
    machines.storkit("host", "remove", "b")
    assert "[hosts.b]" not in machines.inventory.read_text()
    assert "pool default is on host a" in machines.storkit("host", "remove", "a", ok=None).stderr


def test_what_cannot_be_copied_or_written(world: World) -> None:
    before = world.inventory.read_text()
    text = world.directory / "text"
    text.write_text("no zip")
    for words, message in (
        (("host", "add", "a", "local:other"), "there is a host a already"),
        (("host", "add", "c", "local:a"), "the same url as hosts.a"),
        (("host", "add", "c", "ftp://x"), "hosts.c.url"),
        (("host", "add", "not a name", "local:c"), "not a name"),
        (("host", "add", "c", "ssh://127.0.0.9:1", "--file", text), "no storkit.pyz"),
        (("host", "remove", "d"), "no host"),
    ):
        assert message in world.storkit(*words, ok=None).stderr, words
        assert world.inventory.read_text() == before
    world.inventory.write_text(before + '# about pools\n[pools.other]\nhost = "b"\n')
    world.storkit("host", "add", "c", "local:c")
    world.storkit("host", "remove", "c")
    assert world.inventory.read_text().rstrip() == before + '# about pools\n[pools.other]\nhost = "b"'


def test_the_inventory_stays_whose_and_what_it_is(world: World) -> None:
    """A link to a file with CRLF line ends; hosts in one line; two commands at once."""
    real = world.directory / "real.toml"
    real.write_bytes(world.inventory.read_text().replace("\n", "\r\n").encode())
    real.chmod(0o640)
    world.inventory.unlink()
    world.inventory.symlink_to(real)
    before = real.read_bytes()
    world.storkit("host", "add", "c", "local:c")
    text = real.read_bytes()
    assert world.inventory.is_symlink() and real.stat().st_mode & 0o777 == 0o640
    assert text.startswith(before.rstrip()) and text.count(b"\n") == text.count(b"\r\n")
    world.storkit("host", "remove", "c")
    assert real.read_bytes().rstrip() == before.rstrip()
    running = [world.popen("host", "add", name, f"local:{name}") for name in ("x", "y", "z")]
    assert [each.wait(100) for each in running] == [0, 0, 0]
    for each in running:
        each.communicate()
    assert [each["name"] for each in world.storkit("--json", "host", "list").json][2:] != []
    assert {each["name"] for each in world.storkit("--json", "host", "list").json} == {*"abxyz"}
    one_line = 'hosts = { a = { url = "local:a" }, b = { url = "local:b" } }\n[pools.default]\nhost = "a"\n'
    real.write_text(one_line)
    assert "no tables of their own" in world.storkit("host", "add", "c", "local:c", ok=2).stderr
    assert "no table of its own" in world.storkit("host", "remove", "b", ok=2).stderr
    assert real.read_text() == one_line


def test_a_host_with_a_sleeping_guest_stays_and_so_does_one_that_nobody_speaks_for(world: World) -> None:
    world.guest()
    world.storkit("guest", "start", "g", "--on", "b")
    world.storkit("guest", "save", "g")
    assert "its memory is on host b" in world.storkit("host", "remove", "b", ok=5).stderr
    text = world.inventory.read_text()
    world.inventory.write_text(text.replace('"local:a"', '"ssh://127.0.0.8:1"'))
    assert world.storkit("host", "remove", "b", ok=None).status == 7  # a may still serve it disks
    again = text + '[hosts.c]\nurl = "local:c"\naddress = "10.0.0.3"\n'
    world.inventory.write_text(again)
    assert (
        "another address"
        in world.storkit("host", "add", "c", f"local:{world.directory}/c", "--address", "10.0.0.4", ok=5).stderr
    )
    assert world.inventory.read_text() == again
