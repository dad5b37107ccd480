"""Images that were cut short, and files that are no images: never a disk with status 0."""

from __future__ import annotations

import gzip
import random
import subprocess
import uuid
from pathlib import Path

import pytest

from storkit import images
from storkit.core.backend import Site
from storkit.core.errors import Problems, StorkitError, UsageError
from storkit.core.model import Volume
from storkit.directory import Directory

KIB, MIB = 1 << 10, 1 << 20


@pytest.fixture
def site(tmp_path: Path) -> Site:
    return Site("local", tmp_path / "state", tmp_path / "run", tmp_path / "dev")


def made(tmp_path: Path, format: str, *options: str, size: int = 3 * MIB) -> Path:
    """An image with data up to its very end."""
    raw, path = tmp_path / "disk.raw", tmp_path / f"image.{format}"
    raw.write_bytes(random.Random(1).randbytes(size))
    subprocess.run(["qemu-img", "convert", "-f", "raw", "-O", format, *options, raw, path], check=True)
    return path


@pytest.mark.parametrize("missing", [1, 512, 4 * KIB, 60 * KIB, 200 * KIB])
@pytest.mark.parametrize("format", ["qcow2", "vmdk", "vpc", "vdi"])
def test_whatever_is_missing_at_the_end_is_missed(site: Site, tmp_path: Path, format: str, missing: int) -> None:
    """qemu-img check lets an image pass whose last cluster is there in part, and its end reads as zeros."""
    path = made(tmp_path, format, *(("-o", "force_size=on") if format == "vpc" else ()))
    images.inspect(site, str(path))
    path.write_bytes(path.read_bytes()[:-missing])
    with pytest.raises((UsageError, Problems)) as caught:
        images.inspect(site, str(path))
    assert all("truncated" in problem.message for problem in caught.value.each)


@pytest.mark.parametrize("format", ["qcow2", "vmdk"])
@pytest.mark.parametrize("size", [512, 65536 + 512, 3 * MIB + 1536])
def test_a_disk_that_ends_inside_a_cluster_is_whole(site: Site, tmp_path: Path, format: str, size: int) -> None:
    assert images.inspect(site, str(made(tmp_path, format, size=size))).virtual_size == size


@pytest.mark.parametrize("missing", [512, 60 * KIB, 200 * KIB])
@pytest.mark.parametrize("format", ["qcow2", "vmdk"])
def test_compressed_clusters_that_are_cut_make_no_other_disk(
    site: Site, tmp_path: Path, format: str, missing: int
) -> None:
    raw, path = tmp_path / "disk.raw", tmp_path / f"image.{format}"
    raw.write_bytes(random.Random(1).randbytes(16 * KIB).hex().encode() * 96)
    words = ["-c", *(["-o", "subformat=streamOptimized"] if format == "vmdk" else [])]
    subprocess.run(["qemu-img", "convert", "-f", "raw", "-O", format, *words, raw, path], check=True)
    path.write_bytes(path.read_bytes()[:-missing])
    (volume,) = Directory(site).create([Volume("v", str(uuid.uuid4()), raw.stat().st_size, made="importing")])
    try:
        images.fill(site, volume, str(path))
    except StorkitError:
        return
    # What was cut is padding, or the end marker.
    assert missing == 512 and Path(volume.path).read_bytes() == raw.read_bytes()


@pytest.mark.parametrize("size", [1, 511, 513, MIB + 100])
@pytest.mark.parametrize("packed", [False, True])
def test_a_raw_image_is_whole_sectors_unless_it_is_said_to_be_raw(
    site: Site, tmp_path: Path, size: int, packed: bool
) -> None:
    data = random.Random(1).randbytes(size)
    path = tmp_path / ("disk.img.gz" if packed else "disk.img")
    path.write_bytes(gzip.compress(data) if packed else data)
    with pytest.raises(UsageError, match=f"{size} bytes are no whole number of sectors") as caught:
        images.inspect(site, str(path))
    assert "--format raw" in caught.value.hint
    info = images.inspect(site, str(path), format="raw")
    whole = -(-size // 512) * 512
    assert (info.virtual_size, info.padding) == (whole, whole - size)
    (volume,) = Directory(site).create([Volume("v", str(uuid.uuid4()), whole, made="importing")])
    images.fill(site, volume, str(path), format="raw")
    assert Path(volume.path).read_bytes() == data + bytes(whole - size)


@pytest.mark.parametrize("name", ["a.qcow2", "a.VMDK", "a.vhd", "a.vdi", "a.vhdx", "a.vmdk.gz", "a.qcow2.xz"])
def test_a_raw_disk_under_the_name_of_a_format_is_doubted(site: Site, tmp_path: Path, name: str) -> None:
    """A fixed vpc image that lost its footer, or any that lost its header."""
    path = tmp_path / name
    path.write_bytes(gzip.compress(bytes(1024)) if name.endswith(("gz", "xz")) else bytes(1024))
    with pytest.raises(UsageError, match="is named like a") as caught:
        images.inspect(site, str(path))
    assert "--format raw" in caught.value.hint
    assert images.inspect(site, str(path), format="raw").virtual_size == 1024


def test_an_empty_file_is_refused_also_as_raw(site: Site, tmp_path: Path) -> None:
    for name, data in (("a.img", b""), ("a.img.gz", gzip.compress(b""))):
        (tmp_path / name).write_bytes(data)
        for format in ("", "raw"):
            with pytest.raises(UsageError, match="empty"):
                images.inspect(site, str(tmp_path / name), format)
