"""storkit on the lab's hosts, before anything moves."""

from __future__ import annotations

from pathlib import Path

import pytest

from tests.lab.lab import Lab
from tests.lab.world import Storage, World, each, worlds

pytestmark = pytest.mark.lab


@pytest.mark.parametrize("combination", each(worlds(), ["iscsi-libvirt"]))
def test_hosts_are_ready(lab: Lab, tmp_path: Path, combination: tuple[Storage, str]) -> None:
    """`host check` finds nothing missing for what the inventory uses."""
    hosts = World(lab, tmp_path, *combination).storkit("host", "check")
    assert {host["host"]: host["problems"] for host in hosts} == {"a": [], "b": [], "s": []}
