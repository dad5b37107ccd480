"""What the LVM pool reads from LVM, and what it makes of it; no LVM is needed."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from storkit.core.errors import CommandFailed, Conflict, NotFound, StorkitError, Unsafe, Unsupported, UsageError
from storkit.core.model import Volume
from storkit.tech.lvm import checks, tools
from storkit.tech.lvm.tools import LogicalVolume, VolumeGroup

DATA = Path(__file__).parent / "data"
UUID = "2b5e0f0e-7d3c-4c53-9a55-0e8c9c2f7a11"
MIB = 1 << 20


@pytest.fixture
def group() -> VolumeGroup:
    return tools.parse_group((DATA / "lvm-2.03.16-fullreport.txt").read_text())


def test_a_report(group: VolumeGroup) -> None:
    assert (group.name, group.extent, group.making) == ("vg", 4 * MIB, {"0123456789ab": "s.example"})
    pool, disk, image, half, foreign = (group.lvs[name] for name in ("pool", "disk", "image", "half", "foreign"))
    assert pool.is_thin_pool and pool.zeroes and pool.health == "-" and pool.active
    assert pool.data is not None and 0 < pool.data < 100 and pool.metadata is not None
    assert disk.pool == "pool" and disk.active and disk.open and not disk.readonly
    assert image.readonly and not image.active
    assert [group.exists(lv) for lv in (disk, image, half, foreign)] == [True, True, False, False]
    volume = tools.volume_of(disk)
    assert (volume.name, volume.uuid, volume.size, volume.kind) == ("disk", UUID, 5 * MIB + 512, "disk")
    assert (volume.made, volume.created, volume.format) == ("created", "2026-11-21T16:00:00Z", "raw")
    assert tools.volume_of(image).origin == UUID
    assert [lv.name for lv in group.batch("0123456789ab")] == ["half"]


def test_a_report_of_a_group_that_lacks_disks() -> None:
    """As LVM 2.03.16 tells of them: where a disk was last it knows until the group's metadata are written again."""
    report = (DATA / "lvm-2.03.16-fullreport.txt").read_text()
    known, forgotten = "ulKwrJ-zY8K-0iuC-vmPl-6xUv-bNtZ-qdmXna", "V7cV0M-3hXb-Qp4l-0N2e-5J6e-1n6f-YqvUeA"
    said = (
        f"  WARNING: Couldn't find device with uuid {known}.\n"
        f"  WARNING: VG vg is missing PV {known} (last written to /dev/mapper/pv1).\n"
        f"  WARNING: VG vg is missing PV {forgotten} (last written to [unknown]).\n"
    )
    lines = "".join(f"  LVM2_PV_UUID='{disk}'\n" for disk in (known, forgotten))
    group = tools.parse_group(report + lines, said)
    assert group.missing == (f"/dev/mapper/pv1 (PV {known})", f"PV {forgotten}")
    assert tools.parse_group(report).missing == ()
    lv = replace(group.lvs["disk"], attr="-wi-a---pk")
    with pytest.raises(Unsafe, match=r"disk is damaged: a part of it is on /dev/mapper/pv1 \(PV ") as refused:
        tools.volume_of(lv, group.missing)
    assert refused.value.hint == "bring the disk back: pvs"


def test_what_is_no_report() -> None:
    with pytest.raises(ValueError):
        tools.parse_group("  Logical volume created.\n")


def test_an_empty_volume_group() -> None:
    group = tools.parse_group((DATA / "lvm-2.03.16-fullreport-empty.txt").read_text())
    assert group.lvs == {} and group.free == group.size > 0
    assert group.extents(1) == group.extent and group.extents(group.extent) == group.extent


@pytest.mark.parametrize(
    "key, value", [("size", "0"), ("size", "9" * 18), ("uuid", "x"), ("kind", "tree"), ("size", "")]
)
def test_damaged_tags_are_unsafe(group: VolumeGroup, key: str, value: str) -> None:
    disk = group.lvs["disk"]
    with pytest.raises(Unsafe, match=r"tags of logical volume disk.*damaged"):
        tools.volume_of(replace(disk, tags=disk.tags | {key: value}))


@given(st.text(max_size=40))
def test_any_text_survives_as_a_tag(text: str) -> None:
    text = text.encode(errors="replace").decode()
    encoded = tools.encode(text)
    assert tools.decode(encoded) == text
    assert set(encoded) <= set("abcdefghijklmnopqrstuvwxyzABCDEFGHIJKLMNOPQRSTUVWXYZ0123456789_+.-/=!:&#")


@pytest.mark.parametrize(
    "said, kind, told",
    [
        ('  Volume group "none" not found\n  Cannot process volume group none', NotFound, "no volume group vg"),
        ('  Volume group "vg" has insufficient free space (3 extents): 5 required.', Conflict, "no room"),
        ("  Cannot change VG vg while PVs are missing.\n  See vgreduce", Conflict, "until it is back"),
        ("  thin-pool: Required device-mapper target(s) not detected in your kernel.", Unsupported, "lacks"),
        ("  /usr/sbin/thin_check: execvp failed: No such file or directory", Unsupported, "cannot be checked"),
        ("  WARNING: Sum of all thin volumes\n  Something else.", CommandFailed, "Something else"),
    ],
)
def test_complaints_of_lvm_have_a_kind(said: str, kind: type[StorkitError], told: str) -> None:
    error = tools.explain(CommandFailed(["lvcreate"], 5, said), "vg")
    assert type(error) is kind and told in error.message and "WARNING" not in error.message


def thin_pool(data: float, metadata: float, attr: str = "twi-aotz--") -> LogicalVolume:
    return LogicalVolume("pool", 1000 * MIB, attr, "", "", data, metadata)


@pytest.mark.parametrize(
    "pool, floor, told",
    [
        (thin_pool(94.9, 50), "5%", []),
        (thin_pool(95.1, 50), "5%", ["below the floor of 50MiB"]),
        (thin_pool(50, 50), "600MiB", ["below the floor of 600MiB"]),
        (thin_pool(50, 95.5), "100MiB", ["4.5% of its metadata free"]),
        (thin_pool(99.5, 99.5), "1%", ["below the floor of 10MiB", "0.5% of its metadata free"]),
        (thin_pool(100, 50), "0", []),
        (thin_pool(10, 10, "twi-aot---"), "5%", ["does not zero new chunks"]),
        (thin_pool(100, 10, "twi-aotzD-"), "5%", ["out of data space"]),
        (thin_pool(10, 10, "twi-aotzM-"), "5%", ["read-only metadata"]),
    ],
)
def test_what_keeps_a_thin_pool_from_taking_more(pool: LogicalVolume, floor: str, told: list[str]) -> None:
    problems = checks.thin_problems("vg", pool, floor, zeroing=True)
    assert len(problems) == len(told)
    for problem, part in zip(problems, told, strict=True):
        assert isinstance(problem, Conflict) and part in problem.message and "vg" in problem.hint


@pytest.mark.parametrize("text", ["", "5", "5 %", "x%", "-1%", "101%", "1e3%"])
def test_a_bad_share_names_its_key(text: str) -> None:
    with pytest.raises(UsageError, match="warn"):
        checks.share(text, "warn")


def test_warnings_of_a_thin_pool() -> None:
    def said(pool: LogicalVolume, sizes: list[int]) -> str:
        return "; ".join(checks.warnings("p", pool, sizes, "80%", 1.0))

    assert said(thin_pool(79, 79), [500 * MIB, 500 * MIB]) == ""
    assert "over-committed" in said(thin_pool(1, 1), [1001 * MIB])
    assert "80% of the data" in said(thin_pool(80, 1), [])
    assert "81% of the metadata" in said(thin_pool(1, 81), [])
    assert "not known" in said(replace(thin_pool(1, 1), data=None), [])


@pytest.mark.parametrize(
    "name", ["snapshot1", "pvmove", "a_tdata", "a_rimage_0", "a_mlog", "a_vorigin", "x_pmspare", "-".join("ab" * 31)]
)
def test_names_that_lvm_cannot_take(name: str) -> None:
    (problem,) = checks.request_problems(Volume(name, UUID, MIB), "a-very-long-volume-group-" + "x" * 40)
    assert isinstance(problem, UsageError)


def test_other_requests_that_lvm_cannot_fulfil() -> None:
    assert checks.request_problems(Volume("a.b-c_1", UUID, MIB), "vg") == []
    assert checks.request_problems(Volume("mysnapshot", UUID, MIB), "vg") == []
    kinds = [type(problem) for problem in checks.request_problems(Volume("v", "x", 1000), "vg")]
    assert kinds == [UsageError, UsageError]


def test_a_snapshot_of_somebody_else_stands_on_a_volume(group: VolumeGroup) -> None:
    assert checks.needed(group, "disk", "deleted") == []
    cow = LogicalVolume("cow", 4 * MIB, "swi-a-s---", "", "disk")
    lvs = group.lvs | {"cow": cow}
    (problem,) = checks.needed(replace(group, lvs=lvs), "disk", "deleted")
    assert "cow stands on it" in problem.message


def test_a_volume_group_is_known_by_its_uuid(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    lvm = tmp_path / "lvm"
    monkeypatch.setenv("PATH", f"{tmp_path}:/usr/bin:/bin")
    for said in ("Pw3ZsL-sT2h-x0u3-2nJv-iYyq-Zg2o-AbCdEf", "", "../../../../etc", "a\nb"):
        lvm.write_text(f"#!/bin/sh\n[ \"$*\" = 'vgs --noheadings -o vg_uuid vg' ] && printf '  %s\\n' '{said}'\n")
        lvm.chmod(0o755)
        if said.startswith("Pw3"):
            assert tools.uuid("vg") == said
        else:
            with pytest.raises(Unsafe, match="no UUID"):
                tools.uuid("vg")
    lvm.write_text("#!/bin/sh\necho '  Volume group \"vg\" not found' >&2; exit 5\n")
    with pytest.raises(NotFound):
        tools.uuid("vg")
