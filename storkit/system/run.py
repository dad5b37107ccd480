"""The one door for external programs.

Every program runs in the C locale, with a timeout, in no shell; its stderr is kept whole and a failure is a
CommandFailed with the argv that can be pasted into a shell.

A program whose output is followed as it comes runs by `sh`, which forks this process and calls back from a thread. Most
programs end within milliseconds, and there the fork of a Python process costs more than the program does: they are
started without one (subprocess uses vfork(2)), with files in memory as their input and output, so that only their end
is waited for, and nothing that they leave running is.
"""

from __future__ import annotations

import contextlib
import os
import select
import shlex
import subprocess
import threading
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from io import FileIO
from pathlib import Path
from typing import Any

from storkit.core.errors import CommandFailed, TimedOut, Unsupported
from storkit.system import locks, moving
from storkit.system.timeouts import scaled

TIMEOUT = scaled(60.0)
_REAPED = scaled(1.0)
"""Seconds that a killed program gets to end: one that the kernel holds (state D, proc(5)) is left to init."""


@dataclass(frozen=True, slots=True)
class Result:
    """What a program left: its exit status and its whole output."""

    status: int
    stdout: str
    stderr: str


def which(tool: str) -> str | None:
    """Where a program is, looking in /usr/sbin and /sbin as well: users' PATH often lacks them."""
    path = f"{os.environ.get('PATH', os.defpath)}:/usr/local/sbin:/usr/sbin:/sbin"
    places = [Path(tool)] if "/" in tool else [Path(directory or "/", tool) for directory in path.split(":")]
    return next((str(place) for place in places if os.access(place, os.X_OK) and place.is_file()), None)


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
    locked: bool = False,
) -> Result:
    """Run a program to its end.

    `ok` are the exit statuses that are answers rather than failures; `package` names what to install if the program is
    missing; `stdin` is what the program reads, or a descriptor that it gets as it is, as it does `stdout`; `on_line`
    gets each piece of stdout as it comes (for progress), split at newlines and carriage returns, and not with `stdout`.
    `locked`: the program changes what this process has locked, so the locks last for as long as it runs, also when this
    process is killed (`locks.lent`).

    Raises Unsupported: no such program. TimedOut: killed after `timeout` seconds. CommandFailed: any other status.
    """
    words = [str(word) for word in argv]
    program = which(words[0])
    if program is None:
        raise Unsupported(f"{words[0]} is not installed", f"apt install {package}" if package else "install it")
    environment = {**os.environ, "LC_ALL": "C", **(env or {})}
    with contextlib.ExitStack() as stack:
        given = [*pass_fds, *(stack.enter_context(locks.lent()) if locked else [])]
        if on_line is None:
            done = _run_to_end(program, words, environment, stdin, stdout, given, timeout)
        else:
            done = _follow(program, words, environment, stdin, given, timeout, on_line)
    by_hand = f"try it by hand: {shlex.join(words)}"
    if done is None:
        raise TimedOut(f"{words[0]} did not end within {timeout:g} seconds", by_hand)
    if done.status < 0:
        raise CommandFailed(words, done.status, done.stderr)
    moving.moved()
    if done.status not in ok:
        raise CommandFailed(words, done.status, done.stderr or done.stdout, hint=by_hand)
    return done


def _run_to_end(
    program: str,
    words: Sequence[str],
    environment: Mapping[str, str],
    stdin: str | bytes | int | None,
    stdout: int | None,
    pass_fds: Sequence[int],
    timeout: float,
) -> Result | None:
    """What a program left; None: it was killed after `timeout` seconds."""
    with _memory() as input, _memory() as output, _memory() as errors:
        if isinstance(stdin, str | bytes):
            input.write(stdin.encode() if isinstance(stdin, str) else stdin)
            input.seek(0)
        process = subprocess.Popen(
            [program, *words[1:]],  # who looks for a daemon that it leaves finds it by its path
            env=environment,
            pass_fds=pass_fds,
            stdin=stdin if isinstance(stdin, int) else input,
            stdout=output if stdout is None else stdout,
            stderr=errors,
        )
        try:
            ended = _wait(process, timeout)
        finally:
            if process.poll() is None:
                process.kill()
                with contextlib.suppress(subprocess.TimeoutExpired):
                    process.wait(_REAPED)
        return Result(process.returncode, _text(output), _text(errors)) if ended else None


def _memory() -> FileIO:
    """A file that no directory has."""
    return FileIO(os.memfd_create("storkit"), "r+")


def _text(file: FileIO) -> str:
    file.seek(0)
    return file.readall().decode(errors="replace")


def _wait(process: subprocess.Popen[bytes], timeout: float) -> bool:
    """Whether it ended in time. Popen.wait sleeps between its looks; a descriptor of the process wakes at its end."""
    descriptor = os.pidfd_open(process.pid)
    try:
        poll = select.poll()
        poll.register(descriptor, select.POLLIN)
        return bool(poll.poll(timeout * 1000))
    finally:
        os.close(descriptor)


def _follow(
    program: str,
    words: Sequence[str],
    environment: Mapping[str, str],
    stdin: str | bytes | int | None,
    pass_fds: Sequence[int],
    timeout: float,
    on_line: Callable[[str], None],
) -> Result | None:
    """The same of a program whose lines on stdout are given to `on_line`, and not kept."""
    import sh

    options: dict[str, Any] = {
        "_env": environment,
        "_bg": True,
        "_bg_exc": False,
        "_ok_code": list(range(256)),
        "_tty_out": False,
        "_truncate_exc": False,
        "_return_cmd": True,
        "_in": stdin,
        "_out": _Lines(on_line, moving.watcher()),
        "_out_bufsize": 0,
        # sh refuses both: _pass_fds closes all the others by itself
        **({"_pass_fds": set(pass_fds)} if pass_fds else {"_close_fds": True}),
    }
    done = sh.Command(program)(*words[1:], **options)
    expired = threading.Event()
    timer = _kill_after(timeout, done, expired)
    try:
        done.wait()
    except sh.SignalException as error:
        return None if expired.is_set() else Result(error.exit_code, "", error.stderr.decode(errors="replace"))
    finally:
        timer.cancel()
    return Result(done.exit_code, "", done.stderr.decode(errors="replace"))


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
