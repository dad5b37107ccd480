"""The digest by which copies of a volume are compared: of what it holds, and not of how that lies."""

from __future__ import annotations

import subprocess
from pathlib import Path
from uuid import uuid4

import pytest

from storkit import images
from storkit.core.backend import Site
from storkit.core.errors import Conflict, Unsafe
from storkit.core.model import Attachment, DiskSource, Volume
from storkit.system import locks
from storkit.system.files import make_private

MIB = 1 << 20
SIZE = 3 * MIB + 512


@pytest.fixture
def site(tmp_path: Path) -> Site:
    return Site("a", make_private(tmp_path / "state"), make_private(tmp_path / "run"), tmp_path / "dev")


def volume(path: Path, **more: str) -> Volume:
    return Volume("v", str(uuid4()), SIZE, format=path.suffix[1:], path=str(path), **more)  # type: ignore[arg-type]


def test_it_is_the_same_for_every_copy_and_for_no_other(site: Site, tmp_path: Path) -> None:
    raw, written, image = (tmp_path / name for name in ("sparse.raw", "written.raw", "image.qcow2"))
    data = bytearray(SIZE)
    data[MIB + 5 : MIB + 9], data[-3:] = b"here", b"end"
    written.write_bytes(data)
    subprocess.run(["qemu-img", "convert", "-O", "raw", written, raw], check=True)
    subprocess.run(["qemu-img", "convert", "-O", "qcow2", written, image], check=True)
    assert raw.stat().st_blocks < written.stat().st_blocks
    (digest,) = {images.digest(site, volume(path)) for path in (raw, written, image)}
    for at, byte in ((0, 1), (MIB + 5, ord("H")), (SIZE - 1, 0)):
        other = bytearray(data)
        other[at] = byte
        written.write_bytes(other)
        assert images.digest(site, volume(written)) != digest
    moved = bytearray(SIZE)
    moved[2 * MIB + 5 : 2 * MIB + 9], moved[-3:] = b"here", b"end"
    written.write_bytes(moved)
    assert images.digest(site, volume(written)) != digest, "the same bytes at another place"


def test_an_empty_terabyte_takes_no_time_and_one_in_use_is_refused(site: Site, tmp_path: Path) -> None:
    path = tmp_path / "large.raw"
    path.touch()
    large = Volume("v", str(uuid4()), 1 << 40, format="raw", path=str(path))
    with path.open("r+b") as file:
        file.truncate(1 << 40)
    assert images.digest(site, large).startswith("blocks-sha256:")
    lock = locks.acquire(locks.use_lock(site.run, large.uuid), "v", holder="a server")
    with pytest.raises(Conflict):
        images.digest(site, large)
    lock.release()


def test_only_the_same_volume_is_pulled_into_one_that_is_marked(site: Site, tmp_path: Path) -> None:
    path = tmp_path / "v.raw"
    path.write_bytes(bytes(SIZE))
    (tmp_path / "source").write_bytes(b"\1" * SIZE)
    target = volume(path, made="importing")

    def attached(uuid: str) -> Attachment:
        source = DiskSource("file", path=str(tmp_path / "source"))
        return Attachment("v", uuid, "a", "nfs", str(tmp_path / "dev" / "v"), source, SIZE, False)

    with pytest.raises(Unsafe):
        images.pull(site, target, attached(str(uuid4())))
    with pytest.raises(Unsafe):
        images.pull(site, volume(path, made="created"), attached(target.uuid))
    assert path.read_bytes() == bytes(SIZE)
    images.pull(site, target, attached(target.uuid))
    assert path.read_bytes() == b"\1" * SIZE
