"""Who has a file open, by /proc: of real processes, and of a /proc with what this machine has not."""

from __future__ import annotations

import os
import socket
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from storkit.system import openers, unixsockets

OPENER = """
import fcntl, os, struct, sys
mode, lock = sys.argv[2:]
file = os.open(sys.argv[1], os.O_RDWR if mode == "w" else os.O_RDONLY)
if lock == "ofd":
    fcntl.fcntl(file, fcntl.F_OFD_SETLK, struct.pack("hhqqi4x", fcntl.F_RDLCK, 0, 100, 2, 0))
elif lock == "posix":
    fcntl.lockf(file, fcntl.LOCK_EX, 0, 200)
elif lock == "flock":
    fcntl.flock(file, fcntl.LOCK_EX)
elif lock == "name":
    open("/proc/self/comm", "w").write("\\u00e4" * 8)  # 16 bytes, of which the kernel keeps 15
print("ready", flush=True)
sys.stdin.read()
"""


@contextmanager
def opener(path: Path, mode: str = "w", lock: str = "") -> Iterator[int]:
    with subprocess.Popen(
        [sys.executable, "-c", OPENER, path, mode, lock], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
    ) as process:
        assert process.stdout is not None and process.stdout.readline() == "ready\n"
        yield process.pid
        process.kill()


@pytest.fixture
def file(tmp_path: Path) -> Path:
    path = tmp_path / "disk.raw"
    path.write_bytes(bytes(4096))
    return path


def test_one_pass_finds_who_has_what_open_and_how(file: Path) -> None:
    other, second = file.with_name("other"), file.with_name("second name")
    other.touch()
    os.link(file, second)
    with opener(second) as writer, opener(file, "r") as reader, opener(other) as elsewhere, other.open("r+b"):
        found = openers.find([str(file), str(other), str(file.parent / "missing")])
    assert {each.pid: each.writes for each in found[str(file)]} == {writer: True, reader: False}
    assert [each.pid for each in found[str(other)]] == [elsewhere]  # and not this process
    assert len(found) == 2 and not any(each.killed for group in found.values() for each in group)
    assert str(found[str(other)][0]).endswith(f" (pid {elsewhere})")
    assert openers.find([str(file)]) == {str(file): []}


@pytest.mark.parametrize(("lock", "bytes"), [("ofd", (100, 101)), ("posix", (200, 10**9)), ("flock", (0, 10**9))])
def test_the_bytes_that_are_locked(file: Path, lock: str, bytes: tuple[int, int]) -> None:
    with opener(file, lock=lock):
        (found,) = openers.find([str(file)])[str(file)]
    assert [byte for byte in (0, 99, 100, 101, 102, 200, 10**9) if found.has_locked(byte)] == [
        byte for byte in (0, 99, 100, 101, 102, 200, 10**9) if bytes[0] <= byte <= bytes[1]
    ]


MOUNTS = """\
21 1 8:1 / / rw - ext4 /dev/sda1 rw
22 21 0:40 / /net rw - nfs4 server:/ rw
23 21 0:41 / /fuse rw - fuse.sshfs host: rw
24 21 8:2 / /win rw - fuseblk /dev/sda2 rw
"""


class Process:
    """A process in a /proc of its own, with a file open that is on one of MOUNTS."""

    def __init__(self, proc: Path, file: Path, mount: int) -> None:
        self.top = proc / "4711"
        for thread in (self.top, self.top / "task/4711", self.top / "task/4712"):
            for name in ("fd", "fdinfo", "ns"):
                (thread / name).mkdir(parents=True)
            (thread / "ns/mnt").symlink_to("mnt:[4026531841]")
            (thread / "mountinfo").write_text(MOUNTS)
            (thread / "fdinfo/3").write_text(f"pos:\t0\nflags:\t0100002\nmnt_id:\t{mount}\nino:\t1\n")
            (thread / "status").write_text("State:\tS (sleeping)\nSigPnd:\t0\nShdPnd:\t0\n")
            (thread / "comm").write_text("qemu\n")
        (self.top / "fd/3").symlink_to(file)


@pytest.mark.parametrize(("mount", "seen"), [(21, True), (22, False), (23, False), (24, True), (99, False)])
def test_files_of_servers_that_may_be_gone_are_not_looked_at(
    tmp_path: Path, file: Path, monkeypatch: pytest.MonkeyPatch, mount: int, seen: bool
) -> None:
    monkeypatch.setattr(openers, "PROC", tmp_path / "proc")
    Process(tmp_path / "proc", file, mount)
    assert bool(openers.find([str(file)])[str(file)]) is seen


def test_a_process_whose_first_thread_has_ended_is_seen_and_one_that_was_killed_is_told(
    tmp_path: Path, file: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(openers, "PROC", tmp_path / "proc")
    process = Process(tmp_path / "proc", file, 21)
    (process.top / "fd/3").unlink()
    (process.top / "task/4711/status").write_text("State:\tZ (zombie)\nSigPnd:\t0\nShdPnd:\t0\n")
    (process.top / "task/4712/fd/3").symlink_to(file)
    (found,) = openers.find([str(file)])[str(file)]
    assert found.pid == 4711 and found.writes and not found.killed
    (process.top / "task/4712/status").write_text("State:\tD (disk sleep)\nSigPnd:\t0\nShdPnd:\t100\n")
    (found,) = openers.find([str(file)])[str(file)]
    assert found.killed


def test_a_process_whose_name_is_no_text_is_told(file: Path) -> None:
    with opener(file, "w", "name") as pid:
        (found,) = openers.find([str(file)])[str(file)]
        assert found.pid == pid and found.name.startswith("\u00e4" * 7) and not found.killed


def test_a_socket_whose_name_is_no_text_hides_no_other() -> None:
    """Any user can bind one."""
    mine = f"storkit-test-{os.getpid()}"
    with socket.socket(socket.AF_UNIX) as odd, socket.socket(socket.AF_UNIX) as wanted:
        odd.bind(b"\0\xff\xfe" + mine.encode())
        wanted.bind(f"\0{mine}-wanted")
        assert unixsockets.bound(f"@{mine}-wanted") and not unixsockets.bound(f"@{mine}-other")
