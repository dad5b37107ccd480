"""`storkit guest exec`."""

from __future__ import annotations

import os
import sys
from typing import TYPE_CHECKING

from storkit.cli import output
from storkit.cli.session import Session
from storkit.core.errors import UsageError

if TYPE_CHECKING:
    from argparse import Namespace

_MOST = 16 << 20


def execute(session: Session, options: Namespace) -> int:
    if options.dry_run:
        raise UsageError("what a command does in a guest is in no plan", "leave --dry-run out")
    done = session.site.guests.execute(options.name, options.words, _input(options), options.timeout)
    for stream in done.cut:
        session.say(f"only the beginning of its {stream} is kept: a guest's agent keeps no more than 16 MiB")
    if options.json:
        texts = {
            key: value.decode(errors="replace") for key, value in (("stdout", done.stdout), ("stderr", done.stderr))
        }
        data = {"guest": done.guest, "host": done.host, "status": done.status, "signal": done.signal, **texts}
        session.print_json({**data, "cut": done.cut})
    else:
        _write(sys.stdout.fileno(), done.stdout)
        _write(sys.stderr.fileno(), done.stderr)
    # A shell knows statuses up to 255; Windows has larger ones, and one of these that ends in zeros is no success.
    return 128 + done.signal if done.signal else min(done.status, 255)


def _input(options: Namespace) -> bytes:
    """What the command is to read: a file or a pipe that is standard input, to its end, where that was asked for."""
    if not options.stdin:
        return b""
    hint = f"storkit guest exec --stdin {options.name} -- COMMAND < FILE"
    if sys.stdin is None or sys.stdin.isatty():
        raise UsageError("--stdin is for a file or a pipe, and standard input is a terminal", hint)
    data = sys.stdin.buffer.read(_MOST + 1)
    if len(data) > _MOST:
        raise UsageError("a command reads 16 MiB at most through a guest's agent", "copy it by ssh, or by a disk")
    return data


def _write(target: int, data: bytes) -> None:
    """What a guest has said: on a terminal its control characters are shown, and move nothing."""
    if os.isatty(target):
        data = output.lines_shown(data.decode(errors="replace").replace("\r\n", "\n")).encode()
    rest = memoryview(data)
    while rest:
        rest = rest[os.write(target, rest) :]
