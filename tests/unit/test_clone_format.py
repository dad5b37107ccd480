"""A clone of a golden image may be an overlay where its pool makes them and what serves it takes them."""

from __future__ import annotations

from pathlib import Path
from types import SimpleNamespace
from typing import cast

import pytest

from storkit.core import inventory
from storkit.core.backend import Site
from storkit.core.model import Volume
from storkit.directory import Directory, DirectorySettings
from storkit.plans.intent.coordinator import Coordinator
from storkit.plans.intent.making import clone_format

SITES = """\
[hosts.a]
url = "local:/nowhere/a"
[pools.default]
host = "a"
type = "{type}"
transport = "{transport}"
{more}
"""


@pytest.mark.parametrize(
    ("type", "transport", "more", "format"),
    [
        ("directory", "nbd", "", "qcow2"),
        ("directory", "iscsi", "", ""),
        ("directory", "nfs", "", ""),
        ("nfs", "nfs", 'path = "/srv"', ""),
        ("lvm", "nbd", 'vg = "vg0"', ""),
    ],
)
def test_what_serves_a_pool_decides(tmp_path: Path, type: str, transport: str, more: str, format: str) -> None:
    file = tmp_path / "inventory.toml"
    file.write_text(SITES.format(type=type, transport=transport, more=more))
    site = inventory.load(file)
    assert clone_format(cast(Coordinator, SimpleNamespace(inventory=site)), site.pools["default"]) == format


@pytest.mark.parametrize(
    ("own", "wished", "made", "format"),
    [("", "qcow2", "overlay", "qcow2"), ("", "", "copy", "raw"), ("raw", "qcow2", "copy", "raw"),
     ("qcow2", "", "overlay", "qcow2")],
)  # fmt: skip
def test_a_pool_makes_an_overlay_where_it_may(
    tmp_path: Path, own: str, wished: str, made: str, format: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("storkit.tech.files.clonefile.reflink", lambda *_: False)
    site = Site("a", tmp_path / "state", tmp_path / "run", tmp_path / "dev")
    pool = Directory(site, DirectorySettings(format=own), "p")  # type: ignore[arg-type]
    uuids = [f"00000000-0000-4000-8000-00000000000{number}" for number in range(3)]
    pool.create([Volume("golden", uuids[0], 1 << 20)])
    (golden,) = pool.relabel([Volume("golden", uuids[0], 1 << 20, kind="image", made="imported")])
    assert golden.format == (own or "raw")
    (clone,) = pool.clone(golden, [Volume("one", uuids[1], 1 << 20, format=wished)])
    assert (clone.made, clone.format) == (made, format)
    # of a disk, which may be written, it is never one
    (copy,) = pool.clone(clone, [Volume("two", uuids[2], 1 << 20, format=wished)])
    assert copy.made == "copy"
