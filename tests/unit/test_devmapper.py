"""What the device-mapper module builds and reads; no kernel is needed."""

from __future__ import annotations

import itertools
from pathlib import Path

import pytest

from storkit.core.errors import NotFound, UsageError
from storkit.system import devmapper
from storkit.system.devmapper import Wanted, concise, error, node_name, node_uuid, parse_nodes, parse_tables

DATA = Path(__file__).parent / "data"


def test_names_of_different_volumes_and_roles_never_collide() -> None:
    volumes = ["a", "a-b", "a--b", "a.b", "a_b", "a-guest", "guest", "a.guest", "x" * 63]
    names = [node_name(volume, role) for volume, role in itertools.product(volumes, ["guest", "export"])]
    assert len(set(names)) == len(names)
    assert max(map(len, names)) <= 127, "DM_NAME_LEN with its NUL is 128"
    assert len(node_uuid("2b5e0f0e-7d3c-4c53-9a55-0e8c9c2f7a11", "export")) <= 128


def test_tables() -> None:
    assert error(1 << 20) == "0 2048 error"
    with pytest.raises(UsageError):
        error(1000)
    with pytest.raises(NotFound, match="no device"):
        devmapper.linear("/dev/none-such", 512)
    with pytest.raises(NotFound, match="not a block device"):
        devmapper.linear("/dev/null", 512)


def test_what_dmsetup_is_told() -> None:
    nodes = [Wanted("n1", "STORKIT-1", "0 8 linear 8:0 0\n8 8 error"), Wanted("n2", "STORKIT-2", "0 8 error", True)]
    assert concise(nodes) == "n1,STORKIT-1,,rw,0 8 linear 8:0 0,8 8 error;n2,STORKIT-2,,ro,0 8 error"


def test_nodes_of_dmsetup() -> None:
    info = (DATA / "dmsetup-1.02.185-info.txt").read_text()
    tables = (DATA / "dmsetup-1.02.185-concise.txt").read_text()
    nodes = {node.name: node for node in parse_nodes(info, tables)}
    assert list(nodes) == ["storkit:a:guest", "storkit:b:guest", "storkit:half:guest"]
    a, b, half = nodes.values()
    assert (a.size, a.readonly, a.suspended, a.opens) == (1024 * 512, False, True, 0)
    assert a.table == "0 512 linear 98:16 0\n512 512 error"
    assert (b.size, b.readonly, b.suspended, b.opens) == (2048 * 512, True, False, 1)
    assert b.table == "0 2048 flakey 98:16 0 0 1 1 error_writes"
    assert b.path == "/dev/mapper/storkit:b:guest"
    assert (half.size, half.table) == (0, "")
    assert parse_nodes("No devices found\n", "No devices found\n") == []


def test_separators_in_what_others_named_are_data() -> None:
    tables = parse_tables(r"a\,b,U-1,0,rw,0 8 crypt x\,y 0;c,U-2,1,ro,0 8 error")
    assert tables == {"U-1": (False, "0 8 crypt x,y 0"), "U-2": (True, "0 8 error")}
