"""A guest's serial console on a terminal: what is typed arrives, what it says is shown, and Ctrl-] leaves it."""

from __future__ import annotations

import os
import pty
import select
import subprocess
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from storkit.system.timeouts import scaled
from tests.e2e.sshd import two_machines
from tests.e2e.world import World
from tests.guestkit import bootsector

pytestmark = pytest.mark.e2e

ECHO = """\
 fa             cli
 ba f8 03       mov dx, 0x3f8   ; the first serial port's data
 b0 21          mov al, '!'
 ee             out dx, al
 ba fd 03       mov dx, 0x3fd   ; its line status: bit 0, a byte has come
 ec             in al, dx
 a8 01          test al, 1
 74 f8          jz -8
 ba f8 03       mov dx, 0x3f8
 ec             in al, dx
 ee             out dx, al
 eb ef          jmp -17
"""
"""It says `!`, then whatever it is told (16-bit real mode; the UART is a 16550, PC16550D data sheet)."""


@pytest.fixture
def machines() -> Iterator[World]:
    with tempfile.TemporaryDirectory(prefix="sk-") as scratch, two_machines(Path(scratch)) as world:
        yield world


def with_echo(world: World, *words: object) -> None:
    """A running guest of that program."""
    code = bytes.fromhex("".join(line[1:16] for line in ECHO.splitlines()))
    image = world.directory / "echo.img"
    image.write_bytes(code.ljust(510, b"\0") + b"\x55\xaa" + bytes(bootsector.SIZE - 512))
    world.storkit("volume", "import", image, "g")
    world.storkit("guest", "define", "g", "--disk", "g", "--memory", "16MiB", *words)
    world.storkit("guest", "start", "g")


class Terminal:
    """A command on a terminal of its own."""

    def __init__(self, world: World, *words: object) -> None:
        self.ours, theirs = pty.openpty()
        self.process = subprocess.Popen(
            [*world.argv, *world.words(*words)], stdin=theirs, stdout=theirs, stderr=theirs, env=world.environment
        )
        os.close(theirs)
        self.shown = b""

    def type(self, keys: bytes) -> None:
        os.write(self.ours, keys)

    def wait_for(self, text: bytes) -> None:
        end = time.monotonic() + scaled(20)
        while text not in self.shown:
            assert select.select([self.ours], [], [], max(0.0, end - time.monotonic()))[0], self.shown
            try:
                self.shown += os.read(self.ours, 4096)
            except OSError as error:  # nobody has the terminal open any more
                raise AssertionError(self.shown) from error

    def end(self) -> int:
        try:
            return self.process.wait(timeout=scaled(20))
        finally:
            self.process.kill()
            self.process.wait()
            os.close(self.ours)


@contextmanager
def entered(world: World, *words: object) -> Iterator[Terminal]:
    terminal = Terminal(world, *words)
    try:
        terminal.wait_for(b"Ctrl-] leaves it")
        yield terminal
        terminal.type(b"\x1d")
    except BaseException:
        terminal.process.kill()
        raise
    assert terminal.end() == 0


@pytest.mark.parametrize("log", ["", "log"])
def test_what_is_typed_is_told_and_what_is_said_is_shown(world: World, log: str) -> None:
    file = world.directory / "console.log"
    with_echo(world, *(("--console", file) if log else ()))
    with entered(world, "guest", "console", "g") as terminal:
        terminal.type(b"hello\x03\x1a")
        terminal.wait_for(b"hello\x03\x1a")  # keys that would end a program are the guest's
    # it is left: the next one comes in
    with entered(world, "guest", "console", "g") as terminal:
        terminal.type(b"again")
        terminal.wait_for(b"again")
    if log:
        assert file.read_bytes() == b"!hello\x03\x1aagain"
    # the guest's end is the console's
    terminal = Terminal(world, "guest", "console", "g")
    terminal.wait_for(b"Ctrl-]")
    world.storkit("guest", "stop", "g", "--force")
    assert terminal.end() == 0


def test_without_a_terminal_bytes_go_both_ways(world: World) -> None:
    with_echo(world)
    argv = [*world.argv, *world.words("guest", "console", "g")]
    pipe = subprocess.Popen(argv, stdin=subprocess.PIPE, stdout=subprocess.PIPE, env=world.environment)
    assert pipe.stdin and pipe.stdout
    pipe.stdin.write(b"uname\n")
    pipe.stdin.flush()
    assert pipe.stdout.read(6) == b"uname\n"
    pipe.stdin.close()
    assert pipe.wait(scaled(20)) == 0
    pipe.stdout.close()
    world.storkit("guest", "stop", "g", "--force")


def test_it_moves_with_its_guest(world: World) -> None:
    with_echo(world)
    world.storkit("migrate", "run", "g", "--to", "b")
    with entered(world, "guest", "console", "g") as terminal:
        terminal.type(b"moved")
        terminal.wait_for(b"moved")
    world.storkit("guest", "stop", "g", "--force")


def test_what_has_no_console_says_so(world: World) -> None:
    world.guest()
    stopped = world.storkit("guest", "console", "g", ok=5)
    assert "guest g does not run" in stopped.stderr and "storkit guest start g" in stopped.stderr
    assert "no --json" in world.storkit("--json", "guest", "console", "g", ok=2).stdout
    assert "no fleet has a member 'g'" in world.storkit("fleet", "console", "g", ok=4).stderr
    # one that was started before there were consoles
    world.storkit("guest", "start", "g")
    (process,) = (line for line in world.processes() if "id=console,path=" in line)
    Path(process.partition("id=console,path=")[2].partition(",")[0]).unlink()
    assert "from its next start on" in world.storkit("guest", "console", "g", ok=3).stderr
    world.storkit("guest", "stop", "g", "--force")


def test_through_ssh(machines: World) -> None:
    with_echo(machines)
    authorized = machines.directory / "authorized"
    pinned = authorized.read_text()
    refused = Terminal(machines, "guest", "console", "g")
    refused.wait_for(b"or log in on a")
    assert refused.end() != 0
    authorized.write_text(pinned.replace(",restrict ", ",restrict,port-forwarding "))
    with entered(machines, "guest", "console", "g") as terminal:
        terminal.type(b"afar")
        terminal.wait_for(b"afar")
    assert not any("ssh" in line and "-L" in line for line in machines.processes())
    machines.storkit("guest", "stop", "g", "--force")
