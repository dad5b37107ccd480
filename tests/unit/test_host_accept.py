"""`storkit host accept`: shows and writes what a host accepts of coordinators."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from storkit.cli.main import main
from storkit.hosts.accept import Accepted, load
from storkit.hosts.setup import PoolSettings, Setup, remember, remembered
from storkit.hosts.site import site


class Machine:
    """A machine, by its directory: what it was told, and its file."""

    def __init__(self, directory: Path, capsys: pytest.CaptureFixture[str]) -> None:
        self.directory = directory
        self.state = directory / "state"
        self.file = directory / "etc" / "accept.toml"
        self._capsys = capsys
        for name in ("images", "backup", "fast"):
            (directory / name).mkdir(mode=0o755)

    def told(self, **more: Any) -> None:
        setup = Setup("b", state=str(self.state), **more)
        remember(setup, site(setup), "storage")

    def accept(self, *words: str, ok: int = 0) -> str:
        options = ["--file", str(self.file), "--inventory", str(self.directory / "inventory.toml")]
        assert main(["host", "accept", *words, *options]) == ok
        said = self._capsys.readouterr()
        return said.out if ok == 0 else said.err

    @property
    def accepted(self) -> Accepted | None:
        return load(self.file)


@pytest.fixture
def machine(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> Machine:
    (tmp_path / "inventory.toml").write_text(
        f'[hosts.a]\nurl = "ssh://a"\n[hosts.b]\nurl = "ssh://b"\nstate = "{tmp_path}/state"\n'
        f'[pools.fast]\nhost = "b"\npath = "{tmp_path}/fast"\n[pools.large]\nhost = "b"\ntype = "lvm"\nvg = "vg0"\n'
        '[pools.other]\nhost = "a"\n[transports.nbd]\ncache = "none"\n[hypervisors.qemu]\nbinary = "/opt/qemu"\n'
    )
    return Machine(tmp_path, capsys)


@pytest.mark.parametrize("damage", [b"", b"\xff\xfe", b"{", b"[1]", b"\0" * 4096])
def test_what_was_kept_and_is_damaged_is_written_anew(machine: Machine, damage: bytes) -> None:
    machine.told()
    kept = remembered(machine.state)
    (machine.state / "setup.json").write_bytes(damage)
    machine.told()
    assert kept is not None and remembered(machine.state) == kept


def test_alone_it_shows_and_writes_nothing(machine: Machine) -> None:
    machine.told(pools={"fast": PoolSettings("directory", {"path": str(machine.directory / "fast")})})
    assert "does not exist: a key without a grade is root's here" in machine.accept()
    machine.accept("pool:fast", "--state", str(machine.state), "-n")
    assert not machine.file.exists()
    shown = json.loads(machine.accept("--json"))
    assert (shown["exists"], shown["accepted"]["pools"], shown["file"]) == (False, {}, str(machine.file))


def test_what_was_told_is_shown_and_accepted_by_name(machine: Machine) -> None:
    fast = {"path": str(machine.directory / "fast")}
    machine.told(
        pools={"fast": PoolSettings("directory", fast), "large": PoolSettings("lvm", {"vg": "vg0"})},
        transports={"nbd": {"cache": "none"}, "iscsi": {"portals": ["10.0.0.1"]}, "none": {"path": "/"}},
        hypervisors={"qemu": {"binary": "/opt/qemu", "accel": "kvm"}},
    )
    state = ["--state", str(machine.state)]
    asked = json.loads(machine.accept("--json", "pool:fast", *state))["asked"]
    # What holds no path or program need not be accepted.
    assert [each["target"] for each in asked] == ["pool:large", "hypervisor:qemu"]
    said = machine.accept()
    assert "vg = 'vg0'" in said and "binary = '/opt/qemu'" in said
    assert f"to accept it: storkit host accept pool:large hypervisor:qemu --file {machine.file}" in said
    machine.accept("pool:large", "hypervisor:qemu")
    assert machine.accepted == Accepted(
        state=str(machine.state),
        pools={"fast": {"type": "directory", **fast}, "large": {"type": "lvm", "vg": "vg0"}},
        hypervisors={"qemu": {"binary": "/opt/qemu"}},
    )
    assert "to accept it" not in machine.accept()
    machine.told(pools={"fast": PoolSettings("directory", {"path": "/"})})
    assert f"path = '/' (there: '{fast['path']}')" in machine.accept()


def test_from_the_inventory_it_accepts_what_is_said_for_this_host(machine: Machine) -> None:
    machine.accept("--from-inventory", "b")
    assert machine.accepted == Accepted(
        state=str(machine.state),
        pools={
            "fast": {"type": "directory", "path": str(machine.directory / "fast")},
            "large": {"type": "lvm", "vg": "vg0"},
        },
        hypervisors={"qemu": {"binary": "/opt/qemu"}},
    )
    machine.accept("--from-inventory", "c", ok=4)


def test_directories_are_added_and_removed(machine: Machine) -> None:
    images, backup = str(machine.directory / "images"), str(machine.directory / "backup")
    (machine.directory / "images").chmod(0o777)  # what is only read may be written by others
    machine.accept("--import-dir", images, "--export-dir", backup, "--templates", backup)
    assert machine.accepted == Accepted(import_=[images], export=[backup], templates=backup)
    machine.accept("--import-dir", images, "--remove", backup)
    assert machine.accepted == Accepted(import_=[images], templates=backup)
    machine.accept("--remove", images, "--remove", backup)
    assert machine.accepted == Accepted()


def test_everything_that_is_wrong_is_said_and_nothing_written(machine: Machine) -> None:
    (machine.directory / "backup").chmod(0o777)
    machine.told(pools={"bad": PoolSettings("directory", {"paths": "/"}), "new": PoolSettings("nonsense", {})})
    words = ["pool:none", "pool:bad", "pool:new", "transport:none", "fast", "--import-dir", "/nonexistent"]
    words += ["--export-dir", str(machine.directory / "backup"), "--remove", "pool:gone"]
    said = machine.accept(*words, "--state", str(machine.state), ok=4)
    for part in ("no pool none", "'paths'", "'nonsense'", "no transport 'none'", "'fast' is no pool:NAME",
                 "no directory /nonexistent", "others may write", "pool:gone is not accepted"):  # fmt: skip
        assert part in said, part
    assert not machine.file.exists()


def test_names_that_are_commands_are_not_printed_as_such(machine: Machine) -> None:
    machine.told(pools={"x; touch /tmp/x": PoolSettings("directory", {})})
    assert "cannot name a pool" in machine.accept("--state", str(machine.state), ok=2)


def test_it_is_not_written_where_others_could_write_it(machine: Machine) -> None:
    machine.file.parent.mkdir()
    machine.file.parent.chmod(0o777)
    assert "others may write" in machine.accept("--import-dir", str(machine.directory / "images"), ok=9)
    assert not machine.file.exists()
