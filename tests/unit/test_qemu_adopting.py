"""What is read from the arguments of a QEMU that somebody has started, and the locks that its disk's server takes when
it has ended."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

from storkit.core.errors import Conflict
from storkit.guests.command import arguments, command, pairs
from storkit.guests.documents import launch
from storkit.hypervisors._qemu import adopted, adopting
from storkit.system import openers
from storkit.system.files import write_atomic
from storkit.system.qemu import imagelocks

WORDS = ["/usr/bin/qemu-system-x86_64", "-name", "guest=g,debug-threads=on", "-S", "-append", "a 'b' \"c\" $d", "/x y"]


def test_its_arguments_are_a_command_that_says_the_same() -> None:
    text = adopting.written(WORDS)
    assert command(text).program == WORDS[0] and arguments(text) == WORDS[1:]
    assert text.count("\n") == 4, "an option a line"


def test_its_monitors_for_programs_are_found() -> None:
    words = ["-qmp", "unix:/run/a,server=on,wait=off", "-monitor", "unix:/run/hmp,server", "-qmp", "tcp::4444,server"]
    words += ["-chardev", "socket,id=c,path=own/b,server=on", "-mon", "chardev=c,mode=control"]
    words += ["-chardev", "socket,id=d,path=/run/d,server=on", "-mon", "chardev=d,mode=readline"]
    words += ["-chardev", "socket,id=e,path=/run/e", "-mon", "chardev=e,mode=control"]
    given = pairs(command(adopting.written(["qemu-system-x86_64", *words])).arguments)
    assert list(adopting._monitors(os.getpid(), given)) == [Path("/run/a"), Path.cwd() / "own/b"]


@pytest.mark.parametrize(
    ("words", "grows"),
    [([], True), (["-m", "16"], True), (["-m", "16392K"], False), (["-m", "size=1G,slots=2"], True)],
)
def test_memory_that_storkit_would_start_it_with_more_of(words: list[str], grows: bool) -> None:
    assert launch.grows(adopting.written(["qemu-system-x86_64", "-display", "none", *words])) == grows


def test_a_note_is_of_one_process_and_its_own_socket(tmp_path: Path) -> None:
    note, socket = tmp_path / "adopted", tmp_path / "qmp"
    socket.touch()
    started, inode = openers.started(os.getpid()), socket.stat().st_ino
    written = '{"pid": %d, "started": "%s", "monitor": "%s", "inode": %d}'
    write_atomic(note, written % (os.getpid(), started, socket, inode))
    found = adopted.read(note)
    assert found and found.socket() == socket
    write_atomic(note, written % (os.getpid(), started, socket, inode + 1))
    found = adopted.read(note)
    assert found and found.socket() is None, "somebody else has this path by now"
    write_atomic(note, written % (os.getpid(), int(started) - 1, socket, inode))
    assert adopted.read(note) is None and adopted.read(tmp_path / "none") is None


def test_locks_are_taken_for_a_process_that_had_none(tmp_path: Path) -> None:
    image = tmp_path / "image"
    image.write_bytes(bytes(4096))
    with imagelocks.beside([image], "volume v", {os.getpid()}) as descriptors:
        os.set_inheritable(descriptors[0], True)
        holder = subprocess.Popen([sys.executable, "-c", "input()"], stdin=subprocess.PIPE, pass_fds=descriptors)
    try:
        with imagelocks.held([image], "volume v", writes=True, deadline=0):
            pass  # nobody has any
        imagelocks.lock(holder.pid, descriptors, [image], "volume v", writes=True)
        with (
            pytest.raises(Conflict, match=rf"\(pid {holder.pid}\) holds QEMU's lock"),
            imagelocks.held([image], "volume v", writes=True, deadline=0),
        ):
            pass
        with (
            pytest.raises(Conflict, match=rf"\(pid {holder.pid}\) holds QEMU's lock"),
            imagelocks.beside([image], "volume v", {os.getpid()}),
        ):
            pass
        with imagelocks.beside([image], "volume v", {holder.pid}):
            pass
    finally:
        holder.kill()
        holder.communicate()
    with imagelocks.held([image], "volume v", writes=True, deadline=0):
        pass
