"""The inventory: what it means, and everything that is wrong with one, at once."""

from __future__ import annotations

from dataclasses import fields
from pathlib import Path

import pytest

from storkit.core import codec, registry
from storkit.core.backend import Hypervisor
from storkit.core.errors import NotFound, Problems, StorkitError, UsageError
from storkit.core.inventory import built_in, load, parse

GOOD = """
[hosts.a]
url = "ssh://root@a.example:2222"
[hosts.b]
url = "local:b"
[pools.fast]
host = "b"
type = "directory"
format = "qcow2"
[transports.nbd]
[defaults]
transport = "nbd"
"""


def texts(error: StorkitError) -> list[str]:
    return [e.message for e in error.problems] if isinstance(error, Problems) else [error.message]


def test_good(tmp_path: Path) -> None:
    found = parse(GOOD, tmp_path / "inventory.toml")
    assert found.hosts["a"].machine == "a.example:2222"
    assert found.hosts["a"].reach == "a.example"
    assert found.hosts["b"].url == f"local:{tmp_path}/b"
    assert found.hosts["b"].machine == "local"
    assert found.pools["fast"].settings == {"format": "qcow2"}
    assert found.defaults.pool == "fast"
    assert found.directory == tmp_path


def test_built_in_needs_no_file() -> None:
    found = built_in()
    assert list(found.hosts) == ["local"] and list(found.pools) == ["default"]


def test_hosts_by_url() -> None:
    found = built_in()
    assert found.host("local:/tmp/x").url == "local:/tmp/x"
    assert found.host("ssh://me@h").reach == "h"
    with pytest.raises(NotFound, match="no host 'nowhere'"):
        found.host("nowhere")
    for bad in (
        "local:relative",
        "local:/",
        "local://",
        "local:/./",
        "ftp://h",
        "ssh://",
        "ssh://-oProxyCommand=x",
        "ssh://h/path",
        "ssh://h:99999",
    ):
        with pytest.raises(UsageError):
            found.host(bad)


def test_every_problem_at_once(tmp_path: Path) -> None:
    text = """
    [hosts.a]
    url = "nfs://x"
    colour = "red"
    [hosts."-b"]
    url = "local:/x"
    [pools.p]
    host = "c"
    type = "directory"
    format = "vmdk"
    size = 3
    [pools.q]
    type = "floppy"
    [transports.nbd]
    port_first = "many"
    [defaults]
    pool = "none"
    [colours]
    """
    with pytest.raises(Problems) as caught:
        parse(text, tmp_path / "inventory.toml")
    found = texts(caught.value)
    for part in (
        "unknown section 'colours'",
        "hosts.a: unknown key 'colour'",
        "has no known scheme",
        "'-b' cannot name a host",
        "pools.p.host: there is no host 'c'",
        "pools.p.format: 'vmdk' is not one of",
        "pools.p: unknown key 'size'",
        "pools.q: 'host' is missing",
        "pools.q: there is no pool 'floppy'",
        "transports.nbd.port_first: a whole number is wanted",
        "defaults.pool: there is no pool 'none'",
    ):
        assert any(part in text for text in found), (part, found)
    assert all(str(tmp_path / "inventory.toml") in text for text in found)


@pytest.mark.parametrize("name", registry.names(Hypervisor))  # type: ignore[type-abstract]
def test_a_time_that_is_none_and_a_port_that_is_none_are_refused(name: str) -> None:
    """TOML has nan and inf. Neither ends."""
    wanted = registry.hypervisor(name).Settings
    for key, good, bad in (
        ("stall_timeout", 30, (float("nan"), float("inf"), -1, 10**9)),
        ("migration_port", 49152, (-1, 65536)),
        ("bandwidth", 1 << 20, (-1,)),
        ("downtime_limit", 100, (-1,)),
    ):
        if key in {field.name for field in fields(wanted)}:
            codec.load(wanted, {key: good})
            for value in bad:
                with pytest.raises(UsageError, match=key):
                    codec.load(wanted, {key: value})


def test_syntax_error_names_the_line(tmp_path: Path) -> None:
    with pytest.raises(UsageError, match="line 2"):
        parse("[hosts.a]\nurl = x", tmp_path / "inventory.toml")


def test_missing_file(tmp_path: Path) -> None:
    with pytest.raises(UsageError, match="cannot be read"):
        load(tmp_path / "none.toml")


def test_two_names_for_one_host_are_refused(tmp_path: Path) -> None:
    with pytest.raises(UsageError, match="the same url"):
        parse('[hosts.a]\nurl = "local:/x"\n[hosts.b]\nurl = "local:/x"', tmp_path / "i.toml")
