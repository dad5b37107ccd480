"""A machine that cannot run the lab says why, in words that a skipped test can show."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from tests import xstate
from tests.lab.lab import missing
from tests.lab.xen import lab as xen

NEEDS_ROOT = pytest.mark.skipif(os.geteuid() != 0, reason="the check for packages comes after the one for root")


@NEEDS_ROOT
def test_absent_packages_are_named_with_the_command_that_installs_them(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setenv("PATH", str(tmp_path))
    reason = missing()
    assert "apt-get install" in reason
    packages = set((Path(__file__).parent / "packages.txt").read_text().split())
    assert set(reason.split("install ")[1].split()) - {"apt"} == packages - (set() if xstate.needed() else {"tcc"})


def test_without_root_that_is_the_reason(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("os.geteuid", lambda: 1000)
    assert "needs root" in missing()


def test_the_xen_labs_packages_are_among_those_that_make_test_installs(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setenv("PATH", str(tmp_path))
    named = set(xen.missing().split("install ")[1].split())
    listed = (Path(__file__).parents[2] / "tools/demo.packages").read_text().splitlines()
    assert named and named <= {line.split("#")[0].strip() for line in listed}
