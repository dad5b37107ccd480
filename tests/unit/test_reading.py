"""Disks are read by a child that may hang: the answer comes, or its deadline does."""

from __future__ import annotations

import errno
import os
import subprocess
import sys
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest

from storkit.core.errors import TimedOut
from storkit.system.block import reading
from storkit.system.block.reading import Asked, DiskRead


@pytest.fixture
def disk(tmp_path: Path) -> Path:
    path = tmp_path / "disk"
    path.write_bytes(b"a" * 4096 + b"b" * 4096)
    try:
        os.close(os.open(path, os.O_RDONLY | os.O_DIRECT))
    except OSError:
        pytest.skip("this file system has no O_DIRECT")
    return path


def test_blocks_are_read_where_they_are(disk: Path) -> None:
    seen = reading.read(disk, [(4096, 4096), (0, 4096), (8192, 4096)])
    assert seen.blocks == [b"b" * 4096, b"a" * 4096, b""]
    assert (seen.size, seen.inode) == (8192, disk.stat().st_ino)


def test_what_cannot_be_read_says_why_and_keeps_no_other_from_being_read(disk: Path, tmp_path: Path) -> None:
    (tmp_path / "link").symlink_to(disk)
    found = reading.read_all(
        {
            "disk": Asked(disk),
            "none": Asked(tmp_path / "none"),
            "link": Asked(tmp_path / "link", [(0, 512)]),
            "odd": Asked(tmp_path / "link", follow=False),
        }
    )
    assert isinstance(found["disk"], DiskRead) and isinstance(found["link"], DiskRead)
    assert [getattr(found[key], "errno", 0) for key in ("none", "odd")] == [errno.ENOENT, errno.ELOOP]
    with pytest.raises(FileNotFoundError, match="none"):
        reading.read(tmp_path / "none", [])


def test_a_disk_that_hangs_is_given_up_at_the_deadline_and_no_other_with_it(disk: Path, tmp_path: Path) -> None:
    # As an NFS file whose server is gone, a pipe that nobody writes holds who opens it.
    os.mkfifo(tmp_path / "hangs")
    found = reading.read_all({"hangs": Asked(tmp_path / "hangs"), "disk": Asked(disk)}, timeout=1)
    assert isinstance(found["disk"], DiskRead)
    hangs = found["hangs"]
    assert isinstance(hangs, TimedOut) and "hangs does not answer within 1 s" in hangs.message
    assert reading.read_all({}) == {}


def test_who_has_answered_reads_for_the_next_and_who_hangs_never_again(disk: Path, tmp_path: Path) -> None:
    reading.read(disk, [])
    (first,) = reading._idle
    assert reading.read(disk, [(0, 4096)]).blocks == [b"a" * 4096] and reading._idle == [first]
    assert [entry.readlink() for entry in Path(f"/proc/{first.pid}/fd").iterdir() if entry.name not in "012"] == []
    os.mkfifo(tmp_path / "hangs")
    reading.read_all({"hangs": Asked(tmp_path / "hangs"), "disk": Asked(disk)}, timeout=1)
    assert reading._idle == [] and first.poll() is not None
    reading.read(disk, [])
    (second,) = reading._idle
    second.kill()
    second.wait()
    assert reading.read(disk, [(4096, 4096)]).blocks == [b"b" * 4096]


def test_many_ask_at_the_same_time_and_each_gets_its_own(disk: Path, tmp_path: Path) -> None:
    def ask(number: int) -> bytes:
        return reading.read(disk, [(4096 * (number % 2), 4096)]).blocks[0]

    with ThreadPoolExecutor(16) as pool:
        said = list(pool.map(ask, range(16)))
    assert said == [b"ab"[number % 2 :][:1] * 4096 for number in range(16)]


def test_no_child_outlives_its_command(disk: Path) -> None:
    code = "import sys; from storkit.system.block import reading as r; r.read(sys.argv[1], []); print(r._idle[0].pid)"
    said = subprocess.run([sys.executable, "-c", code, disk], stdout=subprocess.PIPE, text=True, check=True).stdout
    assert not Path(f"/proc/{said.strip()}").exists()
