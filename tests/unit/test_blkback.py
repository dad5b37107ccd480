"""What Xen's backend in the kernel has open for domains, in a sysfs and a /proc as a dom0 has them."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from storkit.system import openers
from storkit.system.block import blkback
from storkit.system.block.blkback import DomainDisk


@pytest.mark.parametrize(
    ("number", "name"),
    [
        (51712, "xvda"), (51713, "xvda1"), (51728, "xvdb"), (51952, "xvdp"), (51967, "xvdp15"),
        (1 << 28 | 16 << 8, "xvdq"), (1 << 28 | 26 << 8 | 3, "xvdaa3"), (768, ""), (2048, ""),
    ],
)  # fmt: skip
def test_disks_are_named_as_the_guest_names_them(number: int, name: str) -> None:
    assert blkback.name(number) == name


def domain(devices: Path, number: str, device: str | None, mode: str = "w") -> None:
    (devices / number).mkdir(parents=True)
    if device is not None:
        (devices / number / "physical_device").write_text(f"{device}\n")
        (devices / number / "mode").write_text(f"{mode}\n")


def test_a_disk_without_a_device_is_none(tmp_path: Path) -> None:
    domain(tmp_path, "vbd-3-51712", "fd:1")
    domain(tmp_path, "vbd-4-51712", "7:1f", "r")
    domain(tmp_path, "vbd-5-51712", None)
    domain(tmp_path, "vbd-6-51712", "")
    domain(tmp_path, "vif-3-0", "fd:1")
    assert sorted(blkback.find(tmp_path), key=str) == [
        DomainDisk(3, "xvda", (0xFD, 1), writes=True),
        DomainDisk(4, "xvda", (7, 0x1F), writes=False),
    ]


def test_the_thread_that_serves_a_device_has_it_open(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    null = os.stat("/dev/zero")  # any device: its kind is not looked at
    number = f"{os.major(null.st_rdev):x}:{os.minor(null.st_rdev):x}"
    devices, proc = tmp_path / "devices", tmp_path / "proc"
    domain(devices, "vbd-3-51712", number)
    domain(devices, "vbd-4-51728", number, "r")
    for pid, name in {"70": "3.xvda-0", "71": "4.xvda-0", "72": "4.xvdb-0", "73": "4.xvdb-1", "74": "xl"}.items():
        (proc / pid).mkdir(parents=True)
        (proc / pid / "comm").write_text(f"{name}\n")
        (proc / pid / "cmdline").write_text("")
    (proc / "74" / "cmdline").write_text("qemu-system-i386\0-xen-domid\0" + "4\0-xen-attach\0")
    monkeypatch.setattr(openers, "PROC", proc)
    monkeypatch.setattr(blkback, "DEVICES", devices)
    monkeypatch.setattr(openers, "_key", lambda there: ("device", there.st_rdev, 0))
    found = openers.find(["/dev/zero"])["/dev/zero"]
    assert [(each.pid, each.name, each.writes, each.direct) for each in sorted(found, key=str)] == [
        (70, "3.xvda-0", True, True),
        (72, "4.xvdb-0", False, True),
    ]
    assert openers.of_domain(4) == [71, 72, 73, 74] and openers.of_domain(3) == [70] and not openers.of_domain(5)
