"""Images of every format, made by qemu-img, and hostile ones made by patching their bytes."""

from __future__ import annotations

import gzip
import hashlib
import io
import lzma
import os
import random
import struct
import subprocess
import uuid
from pathlib import Path

import pytest

from storkit import images
from storkit.core import codec
from storkit.core.backend import Site
from storkit.core.errors import Conflict, NotFound, Problems, StorkitError, Unsafe, Unsupported, UsageError
from storkit.core.imagefiles import ImageInfo
from storkit.core.model import Volume
from storkit.directory import Directory, DirectorySettings
from storkit.system import locks
from storkit.tech.files.content import streams
from storkit.tech.images import headers
from tests.filesystems import mounted

MIB = 1 << 20
SIZE = 8 * MIB


@pytest.fixture
def site(tmp_path: Path) -> Site:
    return Site("local", tmp_path / "state", tmp_path / "run", tmp_path / "dev")


@pytest.fixture
def disk(tmp_path: Path) -> Path:
    """A disk with data at its start, in the middle and at its very end, and holes between."""
    path = tmp_path / "disk.raw"
    noise = random.Random(7)
    with path.open("wb") as file:
        for offset, length in ((0, 70_000), (3 * MIB + 512, 200_000), (SIZE - 4096, 4096)):
            file.seek(offset)
            file.write(noise.randbytes(length))
    assert path.stat().st_blocks * 512 < SIZE // 2
    return path


def make(disk: Path, format: str, *options: str) -> Path:
    path = disk.with_name(f"image-{'-'.join(options) or 'plain'}.{format}")
    words = [word for option in options for word in ("-o", option)]
    subprocess.run(["qemu-img", "convert", "-f", "raw", "-O", format, *words, disk, path], check=True)
    return path


def importing(site: Site, format: str, size: int = SIZE) -> Volume:
    pool = Directory(site, DirectorySettings(format=format))  # type: ignore[arg-type]
    (volume,) = pool.create([Volume("v", str(uuid.uuid4()), size, made="importing")])
    return volume


def content(volume: Volume, tmp_path: Path) -> bytes:
    flat = tmp_path / "flat.raw"
    subprocess.run(["qemu-img", "convert", "-f", volume.format, "-O", "raw", volume.path, flat], check=True)
    return flat.read_bytes()


def patch(path: Path, offset: int, data: bytes) -> Path:
    with path.open("r+b") as file:
        file.seek(offset)
        file.write(data)
    return path


def reasons(error: StorkitError) -> str:
    problems = error.problems if isinstance(error, Problems) else [error]
    assert all(problem.hint for problem in problems)
    return "; ".join(problem.message for problem in problems)


FORMATS = [
    ("raw", ()),
    ("qcow2", ()),
    ("qcow2", ("compat=0.10",)),
    ("qcow2", ("cluster_size=4k",)),
    ("qcow2", ("extended_l2=on",)),
    ("qcow2", ("compression_type=zstd",)),
    ("vmdk", ()),
    ("vmdk", ("subformat=streamOptimized",)),
    ("vpc", ("force_size=on",)),
    ("vpc", ("subformat=fixed,force_size=on",)),
    ("vdi", ()),
    ("vdi", ("static=on",)),
]


@pytest.mark.parametrize("target", ["raw", "qcow2"])
@pytest.mark.parametrize(("format", "options"), FORMATS, ids=lambda value: str(value))
def test_every_format_arrives_whole_and_sparse(
    site: Site, disk: Path, tmp_path: Path, format: str, options: tuple[str, ...], target: str
) -> None:
    source = make(disk, format, *options)
    info = images.inspect(site, str(source))
    assert (info.format, info.compression, info.virtual_size) == (format, "", SIZE)
    assert 0 < info.required < SIZE
    volume = importing(site, target, SIZE + 2 * MIB)
    assert images.fill(site, volume, str(source)) == info
    assert content(volume, tmp_path) == disk.read_bytes() + bytes(2 * MIB)
    assert Path(volume.path).stat().st_blocks * 512 < SIZE // 2
    assert Path(volume.path).stat().st_mode & 0o777 == 0o600
    codec.load(ImageInfo, codec.dump(info))


@pytest.mark.parametrize("packer", ["gz", "xz", "zst"])
@pytest.mark.parametrize("format", ["raw", "qcow2", "vmdk", "vpc"])
def test_compressed_images_are_unpacked_and_leave_no_spool(
    site: Site, disk: Path, tmp_path: Path, format: str, packer: str
) -> None:
    options = {"vpc": ("subformat=fixed,force_size=on",)}.get(format, ())
    packed = pack(make(disk, format, *options), packer)
    info = images.inspect(site, str(packed))
    assert (info.format, info.compression, info.virtual_size) == (format, packer, SIZE)
    digest = hashlib.sha256(packed.read_bytes()).hexdigest()
    volume = importing(site, "raw")
    filled = images.fill(site, volume, str(packed), checksum=f"sha256:{digest}")
    assert (filled.source, filled.compression) == (str(packed), packer)
    assert content(volume, tmp_path) == disk.read_bytes()
    assert sorted(path.name for path in Path(volume.path).parent.iterdir()) == [".storkit.lock", "v.json", "v.raw"]


def pack(path: Path, packer: str) -> Path:
    packed = path.with_name(path.name + "." + packer)
    if packer == "zst":
        subprocess.run(["zstd", "-q", "-f", path, "-o", packed], check=True)
    else:
        packed.write_bytes({"gz": gzip, "xz": lzma}[packer].compress(path.read_bytes()))
    return packed


@pytest.mark.parametrize("packer", ["gz", "xz", "zst"])
def test_cut_and_damaged_compressed_images_are_refused(site: Site, disk: Path, packer: str) -> None:
    packed = pack(disk, packer)
    whole = packed.read_bytes()
    packed.write_bytes(whole[: len(whole) * 2 // 3])
    with pytest.raises(UsageError, match="cut short"):
        images.inspect(site, str(packed))
    middle = len(whole) // 2
    packed.write_bytes(
        whole[:middle] + bytes(byte ^ 0xFF for byte in whole[middle : middle + 64]) + whole[middle + 64 :]
    )
    with pytest.raises(UsageError, match="damaged"):
        images.inspect(site, str(packed))


def test_a_bomb_is_stopped_at_the_limit_and_leaves_nothing(site: Site, tmp_path: Path) -> None:
    bomb = tmp_path / "bomb.raw.gz"
    with gzip.open(bomb, "wb") as file:
        for _ in range(256):
            file.write(bytes(MIB))
    assert bomb.stat().st_size < MIB
    with pytest.raises(UsageError, match="64MiB is the limit"):
        images.inspect(site, str(bomb), max_size=64 * MIB)
    volume = importing(site, "raw")
    with pytest.raises(UsageError, match="smaller than the image"):
        images.fill(site, volume, str(bomb))
    assert not list(Path(volume.path).parent.glob("*.partial"))


@pytest.mark.parametrize("name", ["sha256", "sha512"])
def test_the_checksum_is_verified(site: Site, disk: Path, name: str) -> None:
    right = hashlib.new(name, disk.read_bytes()).hexdigest()
    images.inspect(site, str(disk), checksum=f"{name}:{right.upper()}")
    wrong = right[:-1] + ("0" if right[-1] != "0" else "1")
    for call in (images.inspect, lambda *a, **k: images.fill(a[0], importing(site, "raw"), a[1], **k)):
        with pytest.raises(UsageError, match="has the checksum"):
            call(site, str(disk), checksum=f"{name}:{wrong}")
    for bad in ("md5:" + "0" * 32, f"{name}:12", right, f"{name}:{'g' * len(right)}"):
        with pytest.raises(UsageError, match="not a checksum"):
            images.inspect(site, str(disk), checksum=bad)


def qcow2_extension(path: Path, kind: int, data: bytes) -> None:
    """Put a header extension first, and close the list after it."""
    length = struct.unpack(">I", path.read_bytes()[100:104])[0]
    padded = data.ljust(-(-len(data) // 8) * 8, b"\0")
    patch(path, length, struct.pack(">II", kind, len(data)) + padded + bytes(8))


def hostile(disk: Path) -> dict[str, tuple[Path, type[StorkitError], str]]:
    """Name to (image, kind of error, part of the reason)."""
    found: dict[str, tuple[Path, type[StorkitError], str]] = {}

    def add(name: str, kind: type[StorkitError], reason: str, format: str = "qcow2", *options: str) -> Path:
        path = make(disk, format, *options).rename(disk.with_name(f"{name}.{format}"))
        found[name] = (path, kind, reason)
        return path

    path = add("backing", Unsafe, "backing file, '/etc/shadow'")
    patch(path, 8, struct.pack(">QI", 600, len("/etc/shadow")))
    patch(path, 600, b"/etc/shadow")
    path = disk.with_name("overlay.qcow2")
    subprocess.run(["qemu-img", "create", "-q", "-f", "qcow2", "-F", "raw", "-b", disk, path], check=True)
    found["overlay"] = (path, Unsafe, "stands on a backing file")
    path = disk.with_name("datafile.qcow2")
    other = disk.with_name("other.data")
    subprocess.run(["qemu-img", "create", "-q", "-f", "qcow2", "-o", f"data_file={other}", path, "8M"], check=True)
    found["data-file"] = (path, Unsafe, "data in another file")
    qcow2_extension(add("data-file-name", Unsafe, "another file, '/etc/shadow'"), 0x44415441, b"/etc/shadow")
    patch(add("encrypted", Unsupported, "encrypted"), 32, struct.pack(">I", 1))
    qcow2_extension(add("luks", Unsupported, "encrypted"), 0x0537BE77, bytes(16))
    patch(add("dirty", UsageError, "not closed cleanly"), 72, struct.pack(">Q", 1))
    patch(add("corrupt", UsageError, "marked as corrupt"), 72, struct.pack(">Q", 2))
    patch(add("features", Unsupported, "not known here"), 72, struct.pack(">Q", 1 << 40))
    patch(add("absurd", UsageError, "is the limit"), 24, struct.pack(">Q", 1 << 62))
    patch(add("beyond", UsageError, "is the limit"), 24, struct.pack(">Q", (1 << 64) - 512))
    patch(add("no-size", UsageError, "no bytes"), 24, struct.pack(">Q", 0))
    patch(add("version", UsageError, "qcow2 version 9"), 4, struct.pack(">I", 9))
    patch(add("clusters", UsageError, "clusters of 2^40"), 20, struct.pack(">I", 40))
    patch(add("l1-far", UsageError, "truncated"), 40, struct.pack(">Q", 1 << 50))
    patch(add("l1-big", UsageError, "L1 table of"), 36, struct.pack(">I", 1 << 30))
    patch(add("extension", UsageError, "longer than the header"), 112, struct.pack(">II", 5, 1 << 30))
    for format in ("qcow2", "vmdk", "vdi"):
        path = add(f"truncated-{format}", UsageError, "truncated", format)
        os.truncate(path, path.stat().st_size - MIB - 64 * 1024 if format == "vdi" else 300_000)
    path = add("truncated-vpc", UsageError, "truncated", "vpc")
    os.truncate(path, path.stat().st_size - 70_000)
    path = add("truncated-fixed", UsageError, "truncated", "vpc", "subformat=fixed,force_size=on")
    path.write_bytes(path.read_bytes()[:MIB] + path.read_bytes()[-512:])
    path = add("short", UsageError, "bad qcow2 header")
    os.truncate(path, 40)
    add("flat", Unsafe, "data is in other files", "vmdk", "subformat=monolithicFlat")
    path = add("extents", Unsafe, "point elsewhere", "vmdk")
    text = path.read_bytes()
    at = text.index(b'SPARSE "')
    patch(path, at, b'FLAT "/etc/shadow" 0\n#')
    path = add("parent", Unsafe, "stands on a parent", "vmdk")
    patch(path, path.read_bytes().index(b"parentCID=ffffffff"), b"parentCID=12345678")
    patch(add("no-sectors", Unsafe, "descriptor names other files", "vmdk"), 12, bytes(8))
    patch(add("text-mode", UsageError, "text mode", "vmdk"), 73, b"\n\n\r\n")
    path = add("differencing", Unsafe, "differencing", "vpc")
    footer = bytearray(path.read_bytes()[:512])
    footer[60:64], footer[64:68] = struct.pack(">I", 4), bytes(4)
    footer[64:68] = struct.pack(">I", ~sum(footer) & 0xFFFFFFFF)
    patch(path, 0, bytes(footer))
    patch(add("footer", UsageError, "checksum is wrong", "vpc"), 48, struct.pack(">Q", SIZE * 2))
    patch(add("vdi-parent", Unsafe, "stands on a parent", "vdi"), 0x1B8, b"x" * 16)
    patch(add("vdi-diff", Unsafe, "stands on a parent", "vdi"), 0x4C, struct.pack("<I", 4))
    patch(add("vdi-blocks", UsageError, "bytes for a disk of", "vdi"), 0x180, struct.pack("<I", 3))
    return found


def test_hostile_and_damaged_images_are_refused_with_the_reason(site: Site, disk: Path) -> None:
    cases = hostile(disk)
    assert len(cases) > 30
    missed = []
    for name, (path, kind, reason) in cases.items():
        try:
            images.inspect(site, str(path))
            missed.append(f"{name}: accepted")
        except StorkitError as error:
            kinds = [type(p) for p in error.problems] if isinstance(error, Problems) else [type(error)]
            if kind not in kinds or reason not in reasons(error) or str(path) not in reasons(error):
                missed.append(f"{name}: {kinds} {reasons(error)}")
    assert not missed


def test_hostile_images_are_refused_when_compressed_too(site: Site, disk: Path) -> None:
    cases = hostile(disk)
    for name in ("backing", "data-file", "encrypted", "absurd", "flat", "vdi-parent", "differencing"):
        path, kind, reason = cases[name]
        with pytest.raises((kind, Problems)) as caught:
            images.inspect(site, str(pack(path, "gz")))
        assert reason in reasons(caught.value)
    # What only the whole file shows is found when it has been unpacked, and before the volume is written.
    volume = importing(site, "raw")
    with pytest.raises(UsageError, match="truncated"):
        images.fill(site, volume, str(pack(cases["truncated-qcow2"][0], "gz")))
    assert Path(volume.path).stat().st_blocks == 0


def test_a_raw_disk_whose_content_looks_like_qcow2_is_raw_only_when_told(site: Site, disk: Path) -> None:
    nested, kind, _ = hostile(disk)["backing"]
    with pytest.raises(kind):
        images.inspect(site, str(nested))
    info = images.inspect(site, str(nested), format="raw")
    assert (info.format, info.virtual_size) == ("raw", -(-nested.stat().st_size // 512) * 512)
    volume = importing(site, "raw")
    images.fill(site, volume, str(nested), format="raw")
    assert Path(volume.path).read_bytes().startswith(nested.read_bytes())


def test_what_is_no_image_is_refused(site: Site, disk: Path, tmp_path: Path) -> None:
    with pytest.raises(NotFound):
        images.inspect(site, str(tmp_path / "none"))
    with pytest.raises(UsageError, match="is a directory") as caught:
        images.inspect(site, str(tmp_path))
    assert "--tree" in caught.value.hint
    fifo = tmp_path / "fifo"
    os.mkfifo(fifo)
    with pytest.raises(UsageError, match="neither a file nor"):
        images.inspect(site, str(fifo))
    (tmp_path / "empty").touch()
    with pytest.raises(UsageError, match="empty"):
        images.inspect(site, str(tmp_path / "empty"))
    with pytest.raises(UsageError, match="looks like raw"):
        images.inspect(site, str(disk), format="qcow2")
    with pytest.raises(UsageError, match="not a format"):
        images.inspect(site, str(disk), format="nbd")
    for magic, name in ((b"vhdxfile", "vhdx"), (b"PK\3\4", "zip"), (b"QED\0", "qed")):
        other = tmp_path / "other"
        other.write_bytes(magic + bytes(4096))
        with pytest.raises(Unsupported, match=name):
            images.inspect(site, str(other))


def test_fill_writes_only_volumes_that_are_being_imported(site: Site, disk: Path) -> None:
    volume = importing(site, "raw")
    pool = Directory(site)
    (done,) = pool.relabel([Volume("v", volume.uuid, SIZE, made="imported")])
    with pytest.raises(Unsafe, match="not being imported"):
        images.fill(site, done, str(disk))


def test_fill_starts_anew_after_a_half_import(site: Site, disk: Path, tmp_path: Path) -> None:
    for format in ("raw", "qcow2"):
        volume = importing(site, format)
        noise = tmp_path / "noise.raw"
        noise.write_bytes(random.Random(1).randbytes(SIZE))
        images.fill(site, volume, str(noise))
        images.fill(site, volume, str(disk))
        assert content(volume, tmp_path) == disk.read_bytes()
        Directory(site).delete([volume])


def test_two_imports_into_one_volume_exclude_each_other(site: Site, disk: Path) -> None:
    volume = importing(site, "raw")
    lock = locks.acquire(locks.use_lock(site.run, volume.uuid), "v", holder="image import")
    with pytest.raises(Conflict, match="image import"):
        images.fill(site, volume, str(disk))
    lock.release()


def test_a_stream_is_kept_until_it_is_imported(site: Site, disk: Path) -> None:
    path = streams.spool(io.BytesIO(disk.read_bytes()), site.state, headers.MAX_SIZE)
    assert path.read_bytes() == disk.read_bytes()
    assert path.stat().st_blocks * 512 < SIZE // 2
    dead = path.with_name("stream-1-dead.partial")
    dead.touch()
    second = streams.spool(io.BytesIO(bytes(MIB)), site.state, headers.MAX_SIZE)
    assert second.read_bytes() == bytes(MIB)
    assert path.exists() and second.exists() and not dead.exists()
    assert images.inspect(site, str(path)).virtual_size == SIZE


def test_progress_is_reported(tmp_path: Path, disk: Path) -> None:
    seen: list[float] = []
    site = Site("h", tmp_path / "s", tmp_path / "r", tmp_path / "d", progress=lambda part, text: seen.append(part))
    images.fill(site, importing(site, "raw"), str(disk))
    assert seen and seen[-1] == 1.0 and seen == sorted(seen)


def test_a_file_that_changes_while_it_is_imported_is_refused(tmp_path: Path, disk: Path) -> None:
    site = Site("h", tmp_path / "s", tmp_path / "r", tmp_path / "d", progress=lambda part, text: os.utime(disk))
    with pytest.raises(Unsafe, match="was changed while"):
        images.fill(site, importing(site, "raw"), str(disk))


def test_a_full_disk_stops_the_import_and_leaves_no_spool(tmp_path: Path) -> None:
    place = tmp_path / "place"
    place.mkdir()
    noise = tmp_path / "noise.raw"
    noise.write_bytes(random.Random(3).randbytes(96 * MIB))
    subprocess.run(["zstd", "-q", noise], check=True)
    with mounted("tmpfs", place, 80 * MIB):
        site = Site("h", place, tmp_path / "run", tmp_path / "dev")
        volume = importing(site, "raw", 96 * MIB)
        for source, reason in ((noise, "no room for v"), (noise.with_name("noise.raw.zst"), "no space left")):
            with pytest.raises(Conflict, match=reason):
                images.fill(site, volume, str(source))
            assert Path(volume.path).stat().st_blocks == 0
            assert not list(Path(volume.path).parent.glob("*.partial"))
        with pytest.raises(Conflict, match="no space left"):
            streams.spool(io.BytesIO(noise.read_bytes()), place, headers.MAX_SIZE)
        assert not list((place / "spool").iterdir())


@pytest.mark.parametrize("format", headers.FORMATS)
@pytest.mark.parametrize("compress", [False, True])
def test_export_and_import_again(site: Site, disk: Path, tmp_path: Path, format: str, compress: bool) -> None:
    volume = importing(site, "qcow2")
    images.fill(site, volume, str(disk))
    (volume,) = Directory(site).relabel([Volume("v", volume.uuid, SIZE, made="imported")])
    out = tmp_path / "out" / f"export, with a comma.{format}"
    out.parent.mkdir()
    if compress and format not in ("qcow2", "vmdk"):
        with pytest.raises(UsageError, match="not compressed"):
            images.export_image(site, volume, str(out), format, compress)
        assert not list(out.parent.iterdir())
        return
    assert images.export_image(site, volume, str(out), format, compress).file == str(out)
    assert [path.name for path in out.parent.iterdir()] == [out.name]
    info = images.inspect(site, str(out))
    assert (info.format, info.virtual_size) == (format, SIZE)
    subprocess.run(["qemu-img", "compare", "-f", "raw", "-F", format, disk, out], check=True)
    with pytest.raises(Conflict, match="exists already"):
        images.export_image(site, volume, str(out), format)


def test_export_of_a_volume_in_use_or_half_imported_is_refused(site: Site, tmp_path: Path) -> None:
    volume = importing(site, "raw")
    with pytest.raises(Conflict, match="has not ended"):
        images.export_image(site, volume, str(tmp_path / "x"))
    (volume,) = Directory(site).relabel([Volume("v", volume.uuid, SIZE, made="imported")])
    lock = locks.acquire(locks.use_lock(site.run, volume.uuid), "v", holder="a server")
    with pytest.raises(Conflict, match="a server"):
        images.export_image(site, volume, str(tmp_path / "x"))
    lock.release()
    assert not list(tmp_path.glob("x*"))
