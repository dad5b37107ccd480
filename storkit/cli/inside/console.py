"""`storkit guest console`, `fleet console`."""

from __future__ import annotations

import os
import select
import socket
import sys
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from typing import TYPE_CHECKING

from storkit.cli.session import Session
from storkit.core.errors import CommandFailed, UsageError

if TYPE_CHECKING:
    from argparse import Namespace

ESCAPE = b"\x1d"
"""Ctrl-], as virsh, xl and telnet have it."""
_PIECE = 1 << 16


def console(session: Session, options: Namespace) -> None:
    enter(session, options.name)


def enter(session: Session, name: str) -> None:
    """Put a guest's console on this terminal, until Ctrl-] or the guest's end."""
    for word in (option for option in ("json", "dry-run") if getattr(session.options, option.replace("-", "_"))):
        raise UsageError(f"a console is for a terminal: it has no --{word}", f"storkit guest console {name}")
    if sys.stdin is None or sys.stdout is None:
        raise UsageError("a console needs standard input and output", f"storkit guest console {name}")
    door = session.site.guests.console(name)
    session.site.close()
    if argv := door.program:
        try:
            os.execvp(argv[0], argv)
        except FileNotFoundError:
            raise CommandFailed(argv[:1], 127, f"{argv[0]} is not installed here") from None
    # The terminal first: keys that come before it hands them on would be lost, or end this command.
    with door.open() as line, _raw(sys.stdin.fileno()) as changed:
        session.say(
            f"the console of {door.guest} on {door.host}; Ctrl-] leaves it"
            " (silent: it has nothing to say, or somebody else has it)"
        )
        if changed:
            _write(sys.stderr.fileno(), b"\r")
        _pump(line, sys.stdin.fileno(), sys.stdout.fileno())


def _pump(line: socket.socket, source: int, target: int) -> None:
    """Bytes both ways, until Ctrl-], the end of standard input, or the guest's end."""
    while True:
        ready = select.select([line.fileno(), source], [], [])[0]
        if line.fileno() in ready:
            said = b""
            with suppress(ConnectionResetError):
                said = line.recv(_PIECE)
            if not said:
                return
            _write(target, said)
        if source in ready:
            typed = os.read(source, _PIECE)
            before, escaped, _ = typed.partition(ESCAPE)
            with suppress(BrokenPipeError):
                line.sendall(before)
            if escaped or not typed:
                return


def _write(target: int, data: bytes) -> None:
    rest = memoryview(data)
    while rest:
        rest = rest[os.write(target, rest) :]


@contextmanager
def _raw(source: int) -> Iterator[bool]:
    """The terminal hands every key on while this lasts; what is no terminal stays as it is. Whether it is one."""
    if not os.isatty(source):
        yield False
        return
    import termios
    import tty

    before = termios.tcgetattr(source)
    tty.setraw(source)
    try:
        yield True
    finally:
        termios.tcsetattr(source, termios.TCSANOW, before)
        os.write(sys.stdout.fileno(), b"\r\n")
