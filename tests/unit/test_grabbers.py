"""Whether multipathd and LVM would take storkit's disks, by what they say of their own settings."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest

from storkit.system.block import grabbers
from storkit.system.block.grabbers import (
    LVM_FILTER,
    MULTIPATH_BLACKLIST,
    GrabbableDisk,
    lvm_takes,
    multipath_takes,
    parse_lvmconfig,
    parse_multipath,
)
from storkit.tech.iscsi.sessiondisk import sample

DATA = Path(__file__).parent / "data"
NBD = GrabbableDisk("nbd15")
PRINTED = """\
defaults {
	verbosity 2
	find_multipaths "%s"
}
blacklist {
	devnode "!^(sd[a-z]|dasd[a-z]|nvme[0-9])"
	device {
		vendor "SGI"
		product "Universal Xport"
	}
%s
}
blacklist_exceptions {
	property "(SCSI_IDENT_|ID_WWN)"
%s
}
"""


def takes(finds: str = "off", blacklist: str = "", exceptions: str = "", disk: GrabbableDisk | None = None) -> bool:
    return multipath_takes(parse_multipath(PRINTED % (finds, blacklist, exceptions)), disk or sample())


@pytest.mark.parametrize(
    ("finds", "taken"),
    [("off", True), ("no", True), ("greedy", True), ("smart", True), ("on", False), ("yes", False), ("strict", False)],
)
def test_multipathd_takes_what_find_multipaths_lets_it(finds: str, taken: bool) -> None:
    assert takes(finds) == taken


@pytest.mark.parametrize(
    "line",
    [
        MULTIPATH_BLACKLIST,
        'devnode "^sd"',
        'devnode ".*"',
        'wwid "36001405.*"',
        'protocol "scsi:iscsi"',
        'device {\n\tvendor "LIO-ORG"\n\t}',
        'device {\n\tvendor "LIO-ORG"\n\tproduct ".*"\n\t}',
    ],
)
def test_a_blacklist_that_leaves_storkits_disks_out(line: str) -> None:
    assert not takes(blacklist=line)
    assert takes(blacklist=line, exceptions=line)


@pytest.mark.parametrize(
    "line", ['devnode "^dasd"', 'wwid "3600508b"', 'device {\n\tvendor "LIO-ORG"\n\tproduct "TCMU"\n\t}', 'wwid "("']
)
def test_a_blacklist_of_others(line: str) -> None:
    assert takes(blacklist=line)


def test_a_disk_that_multipathd_never_takes() -> None:
    assert not takes(disk=NBD)


@pytest.mark.parametrize(
    ("text", "iscsi", "nbd"),
    [
        ('use_devicesfile=0\n# global_filter=["a|.*|"]\n', True, True),
        ('use_devicesfile=0\nglobal_filter="r|^/dev/mapper/storkit:|"\n', True, True),
        (f"global_filter=[{LVM_FILTER}]\n", False, True),
        ('global_filter=["r|^/dev/nbd|","r|^/dev/mapper/storkit:|"]\n', True, False),
        ('global_filter=["a|^/dev/nvme|","r|.*|"]\n', False, False),
        ('global_filter=["a|.*|"]\nfilter=["r/^\\/dev\\/sd/"]\n', False, True),
        ('global_filter=["a|^/dev/sd|","r|.*|"]\n', True, False),
    ],
)
def test_lvms_filters(text: str, iscsi: bool, nbd: bool) -> None:
    settings = parse_lvmconfig(text)
    assert (lvm_takes(settings, sample(), False), lvm_takes(settings, NBD, False)) == (iscsi, nbd)


def test_a_devices_file_leaves_out_what_is_not_in_it() -> None:
    settings = parse_lvmconfig("use_devicesfile=1\n")
    assert not lvm_takes(settings, sample(), True)
    assert lvm_takes(settings, sample(), False)  # without the file, LVM looks everywhere


def test_what_the_programs_print(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The programs are asked where they are installed; one that fails says nothing."""
    monkeypatch.setenv("PATH", f"{tmp_path}:/usr/bin:/bin")
    for name, text in (("multipath", "exit 1"), ("lvmconfig", "echo 'use_devicesfile=0'")):
        program = tmp_path / name
        program.write_text(f"#!/bin/sh\n{text}\n")
        program.chmod(0o755)
    found = grabbers.findings(replace(sample(), name="sdx"), LVM_FILTER)
    assert [(each.warning, "vgchange -ay" in each.message) for each in found] == [(True, True)]
    assert LVM_FILTER in found[0].hint
