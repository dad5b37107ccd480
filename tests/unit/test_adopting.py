"""Files that become volumes of a directory pool: what is refused, by its name, and what a kill at any moment leaves."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import tempfile
from collections.abc import Callable
from pathlib import Path
from types import FrameType
from typing import Any

import pytest

import storkit
from storkit.core.errors import Conflict, NotAllowed, StorkitError, Unsafe, Unsupported, UsageError
from storkit.core.model import Existing, Volume
from storkit.directory import Directory
from storkit.hosts.accept import Accepted, Limits
from storkit.system import openers
from storkit.tech.images import qcow2
from tests.unit.directories import MIB, new


def raw(path: Path, size: int = MIB) -> Path:
    path.parent.mkdir(exist_ok=True)
    path.write_bytes(b"\7" * size)
    path.chmod(0o600)
    return path


def refused(pool: Directory, path: Path | str, kind: type[StorkitError], *words: str, format: str = "") -> str:
    with pytest.raises(StorkitError) as caught:
        pool.adopt([new("web", 0)], [Existing(str(path), format)])
    assert pool.find() == []
    for word in words:
        assert any(isinstance(each, kind) and word in each.message for each in caught.value.each), caught.value.each
    return "; ".join(each.hint for each in caught.value.each)


def test_each_that_is_no_file_of_its_own_is_refused_by_what_it_is(pool: Directory, tmp_path: Path) -> None:
    disk = raw(pool.path / "old.img")
    link = pool.path / "link.img"
    link.symlink_to(disk)
    assert "name the file itself" in refused(pool, link, Unsafe, f"a symbolic link, to {disk}")
    refused(pool, pool.path, UsageError, "a directory")
    refused(pool, raw(pool.path / "odd.img", 1000), UsageError, "1000 bytes are not whole 512-byte sectors")
    refused(pool, raw(pool.path / "none.img", 0), UsageError, "is empty")
    other = pool.path / "other.img"
    os.link(disk, other)
    disk.chmod(0o622)
    assert f"-samefile {disk}" in refused(pool, disk, Conflict, "has 2 names (hard links)")
    refused(pool, disk, Unsafe, "may be written by others")
    other.unlink()
    disk.chmod(0o600)
    refused(pool, disk, Unsafe, "its guest takes it for qcow2", format="qcow2")
    assert pool.adopt([new("web", 0)], [Existing(str(disk), "raw")])[0].size == MIB


def test_the_parts_of_an_image_that_lie_elsewhere_are_named(pool: Directory) -> None:
    def image(name: str, *options: str) -> Path:
        path = pool.path / f"{name}.img"
        subprocess.run(["qemu-img", "create", "-q", "-f", "qcow2", *options, path, "1M"], check=True)
        path.chmod(0o600)
        return path

    base = image("base")
    overlay = image("overlay", "-b", base.name, "-F", "qcow2")
    assert "qemu-img convert" in refused(pool, overlay, Unsafe, "a backing file, 'base.img'")
    outside = image("outside", "-o", f"data_file={pool.path}/data.raw")
    refused(pool, outside, Unsafe, "its data in another file", "data.raw")
    kept = image("kept")
    subprocess.run(["qemu-img", "snapshot", "-c", "before", kept], check=True)
    assert "qemu-img convert" in refused(pool, kept, Unsupported, "internal snapshots (1)")
    locked = image("locked")
    with locked.open("r+b") as file:  # crypt_method of the header is AES
        os.pwrite(file.fileno(), (1).to_bytes(4, "big"), 32)
    refused(pool, locked, Unsupported, "encrypted")
    refused(pool, base, Unsafe, "is qcow2 by its content, and its guest takes it for raw", format="raw")
    vmdk = pool.path / "web.vmdk"
    subprocess.run(["qemu-img", "create", "-q", "-f", "vmdk", vmdk, "1M"], check=True)
    vmdk.chmod(0o600)
    assert "volume import" in refused(pool, vmdk, Unsupported, "is vmdk")
    (volume,) = pool.adopt([new("web", 0)], [Existing(str(base))])
    assert (volume.format, volume.size, volume.path) == ("qcow2", MIB, str(pool.path / "web.qcow2"))


def test_a_file_of_another_file_system_would_be_copied(pool: Directory) -> None:
    here = os.stat(pool.path).st_dev
    elsewhere = next(each for each in map(Path, ("/dev/shm", "/var/tmp", "/run")) if each.stat().st_dev != here)
    with tempfile.TemporaryDirectory(dir=elsewhere) as place:
        assert "volume import" in refused(pool, raw(Path(place) / "a.img"), Conflict, "on another file system")


def test_a_directory_that_others_write_gives_no_file(pool: Directory) -> None:
    disk = raw(pool.path / "open" / "old.img")
    disk.parent.chmod(0o777)
    refused(pool, disk, Unsafe, "may be written by")


def test_a_host_lets_only_what_it_has_named_be_adopted(pool: Directory, tmp_path: Path) -> None:
    inside, outside = raw(pool.path / "old.img"), raw(tmp_path / "secret" / "disk.img")
    limits = Limits("storage", Accepted(pools={"p": {"path": str(pool.path)}}), "h")
    for place, allowed in ((inside, True), (outside, False), (pool.path / ".." / "secret" / "disk.img", False)):
        values: dict[str, Any] = {"found": [Existing(str(place))]}
        if allowed:
            with limits.paths("pool", "adopt", values):
                continue
        with pytest.raises(NotAllowed, match="does not let"), limits.paths("pool", "adoptable", values):
            pass


def steps(pool: Directory, act: Callable[[], Any]) -> Callable[[int], bool]:
    """A function that has a process do `act`, and kills it once the directories have changed for the Nth time; whether
    it came so far."""
    root = str(Path(storkit.__file__).parent)

    def look() -> list[tuple[str, int, int]]:
        entries = [entry for place in (pool.path, pool.path / "old") for entry in os.scandir(place)]
        return sorted((e.path, e.inode(), e.stat().st_size) for e in entries if e.name != ".storkit.lock")

    def killed_at(number: int) -> bool:
        child = os.fork()
        if child == 0:
            seen: list[Any] = [look()]

            def trace(frame: FrameType, event: str, argument: Any) -> Any:
                if not frame.f_code.co_filename.startswith(root):
                    return None
                if (now := look()) != seen[-1]:
                    seen.append(now)
                    if len(seen) > number:
                        os.kill(os.getpid(), signal.SIGKILL)
                return trace

            sys.settrace(trace)
            try:
                act()
            finally:
                os._exit(0)
        return os.WIFSIGNALED(os.waitpid(child, 0)[1])

    return killed_at


@pytest.mark.parametrize("mend", ["again", "back"])
@pytest.mark.parametrize("verb", ["adopt", "disown"])
def test_killed_at_any_point_it_is_finished_or_taken_back_and_the_file_is_never_lost(
    pool: Directory, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, verb: str, mend: str
) -> None:
    monkeypatch.setattr(openers, "PROC", tmp_path)  # who has it open is looked for without a change of the directory
    file = raw(pool.path / "old" / "disk.img")
    inode = file.stat().st_ino
    found, volume = [Existing(str(file))], new("web", 0)

    def adopted() -> Volume:
        return pool.adopt([volume], found)[0]

    number = 0
    while True:
        if verb == "disown":
            adopted()
        number += 1
        if not steps(pool, adopted if verb == "adopt" else lambda: pool.disown([volume]))(number):
            break
        pool.create([new("other")])  # any other command clears what was killed away, and leaves the file alone
        pool.delete(pool.find(["other"]))
        if (verb == "adopt") == (mend == "again"):
            made = adopted()
            assert made.was == str(file) and Path(made.path).stat().st_ino == inode, number
        pool.disown([volume])
        assert pool.find() == [] and file.stat().st_ino == inode and file.read_bytes() == b"\7" * MIB, number
    assert number > (3 if verb == "adopt" else 2)


def test_a_size_is_that_of_the_disk_and_not_of_the_file(pool: Directory) -> None:
    path = pool.path / "big.qcow2"
    with path.open("wb") as file:
        qcow2.empty(1 << 40).write(file.fileno())
    path.chmod(0o600)
    (seen,) = pool.adoptable([Existing(str(path))])
    assert (seen.name, seen.size, seen.format, seen.moved) == ("big", 1 << 40, "qcow2", False)
