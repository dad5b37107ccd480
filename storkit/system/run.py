"""The one door for external programs, built on `sh`.

Every program runs in the C locale, with a timeout, in no shell; its stderr is kept whole and a failure is a
CommandFailed with the argv that can be pasted into a shell. `sh` is imported only when a program is run.
"""

from __future__ import annotations

import contextlib
import os
import shlex
import shutil
import threading
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from storkit.core.errors import CommandFailed, TimedOut, Unsupported
from storkit.system import moving
from storkit.system.timeouts import scaled

TIMEOUT = scaled(60.0)


@dataclass(frozen=True, slots=True)
class Result:
    """What a program left: its exit status and its whole output."""

    status: int
    stdout: str
    stderr: str


def which(tool: str) -> str | None:
    """Where a program is, looking in /usr/sbin and /sbin as well: users' PATH often lacks them."""
    path = os.environ.get("PATH", os.defpath)
    return shutil.which(tool, path=f"{path}:/usr/local/sbin:/usr/sbin:/sbin")


def run(
    argv: Sequence[str | Path],
    *,
    stdin: str | bytes | int | None = None,
    stdout: int | None = None,
    timeout: float = TIMEOUT,
    ok: Sequence[int] = (0,),
    package: str = "",
    env: Mapping[str, str] | None = None,
    on_line: Callable[[str], None] | None = None,
    pass_fds: Sequence[int] = (),
) -> Result:
    """Run a program to its end.

    `ok` are the exit statuses that are answers rather than failures; `package` names what to install if the program is
    missing; `stdin` is what the program reads, or a descriptor that it gets as it is, as it does `stdout`; `on_line`
    gets each piece of stdout as it comes (for progress), split at newlines and carriage returns.

    Raises Unsupported: no such program. TimedOut: killed after `timeout` seconds. CommandFailed: any other status.
    """
    import sh

    words = [str(word) for word in argv]
    program = which(words[0])
    if program is None:
        raise Unsupported(f"{words[0]} is not installed", f"apt install {package}" if package else "install it")
    options: dict[str, Any] = {
        "_env": {**os.environ, "LC_ALL": "C", **(env or {})},
        "_bg": True,
        "_bg_exc": False,
        "_ok_code": list(range(256)),
        "_no_out": False,
        "_tty_out": False,
        "_truncate_exc": False,
        "_return_cmd": True,
        "_close_fds": True,
        "_in": stdin,
    }
    if pass_fds:
        del options["_close_fds"]  # sh refuses both: _pass_fds closes all the others by itself
        options["_pass_fds"] = set(pass_fds)
    if stdout is not None:
        options["_out"] = stdout
    if on_line is not None:
        options["_out"] = _Lines(on_line, moving.watcher())
        options["_out_bufsize"] = 0
    done = sh.Command(program)(*words[1:], **options)
    expired = threading.Event()
    timer = _kill_after(timeout, done, expired)
    try:
        done.wait()
    except sh.SignalException as error:
        if expired.is_set():
            raise TimedOut(
                f"{words[0]} did not end within {timeout:g} seconds", f"try it by hand: {shlex.join(words)}"
            ) from None
        raise CommandFailed(words, error.exit_code, error.stderr.decode(errors="replace")) from None
    finally:
        timer.cancel()
    moving.moved()
    stderr = done.stderr.decode(errors="replace")
    said = "" if on_line else done.stdout.decode(errors="replace")
    if done.exit_code not in ok:
        raise CommandFailed(words, done.exit_code, stderr or said, hint=f"try it by hand: {shlex.join(words)}")
    return Result(done.exit_code, said, stderr)


def _kill_after(seconds: float, running: Any, expired: threading.Event) -> threading.Timer:
    """A timer that kills a program. sh's own _timeout looks only every 100 ms, which every command would wait for."""

    def kill() -> None:
        expired.set()
        with contextlib.suppress(ProcessLookupError):
            running.kill()

    timer = threading.Timer(seconds, kill)
    timer.daemon = True
    timer.start()
    return timer


class _Lines:
    """Cuts a stream into lines at newlines and carriage returns (progress meters use the latter)."""

    def __init__(self, on_line: Callable[[str], None], moved: Callable[[], None]) -> None:
        self._on_line = on_line
        self._moved = moved
        self._rest = ""

    def __call__(self, chunk: str | bytes) -> None:
        text = chunk.decode(errors="replace") if isinstance(chunk, bytes) else chunk
        *lines, self._rest = (self._rest + text).replace("\r", "\n").split("\n")
        for line in lines:
            if line.strip():
                self._moved()
                self._on_line(line)
