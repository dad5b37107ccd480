"""Bytes read past the page cache by a child process: a device or a server that is away holds up that child alone.

A read that the kernel holds cannot be interrupted, not even by SIGKILL: whoever waits in it (state D, proc(5)) stays
until it ends. So no thread of storkit's own reads what may hang. A child that has not answered at the deadline is
killed and not waited for; it has none of storkit's files open, so no lock outlives the command with it. One that has
answered reads for the next who asks, and ends with storkit, at the end of its standard input.
"""

from __future__ import annotations

import atexit
import json
import os
import select
import subprocess
import sys
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from storkit.core.errors import TimedOut
from storkit.system.timeouts import scaled

TIMEOUT = scaled(30.0)
"""Seconds that a disk or a server gets to answer all that one child asks for."""
PROBE = [(0, 4096)]
"""What is read to see whether a disk answers; a smaller one gives what it has."""
_REAPED = scaled(1.0)
"""Seconds that a killed child gets: one that the kernel holds is left to init."""

_CHILD = """\
import json, mmap, os, sys, threading

def read(key, path, ranges, flags):
    descriptor = -1
    try:
        descriptor = os.open(path, os.O_RDONLY | os.O_DIRECT | os.O_CLOEXEC | flags)
        found = os.fstat(descriptor)
        blocks = []
        for offset, length in ranges:
            with mmap.mmap(-1, length) as buffer:
                blocks.append(buffer[:os.preadv(descriptor, [buffer], offset)].hex())
        said = {"mode": found.st_mode, "size": found.st_size, "inode": found.st_ino, "blocks": blocks}
    except OSError as error:
        said = {"errno": error.errno}
    if descriptor >= 0:
        os.close(descriptor)  # before it is said: whoever asked may take the device away next
    line = (json.dumps({"key": key, **said}) + "\\n").encode()
    with saying:
        while line:
            line = line[os.write(1, line):]

saying = threading.Lock()
for line in sys.stdin:
    for key, words in json.loads(line).items():
        threading.Thread(target=read, args=(key, *words), daemon=True).start()
"""


@dataclass(frozen=True, slots=True)
class DiskRead:
    """What a file or a device showed, past this host's page cache."""

    mode: int
    """As in stat(2)."""
    size: int
    """A file's, in bytes; 0 for a device."""
    inode: int
    blocks: list[bytes]
    """One for each range that was asked for, shorter where the file ends."""


@dataclass(frozen=True, slots=True)
class Asked:
    """What to look at."""

    path: str | Path
    ranges: Sequence[tuple[int, int]] = ()
    """Offsets and lengths in bytes: multiples of the logical block size."""
    follow: bool = True
    """Whether the path may be a symbolic link: not where others make them."""


def read(path: str | Path, ranges: Sequence[tuple[int, int]], timeout: float = TIMEOUT) -> DiskRead:
    """Look at one device. Raises OSError as open(2) and read(2) do; TimedOut: it does not answer."""
    return answered(read_all({"it": Asked(path, ranges)}, timeout)["it"])


def answered(answer: DiskRead | OSError | TimedOut) -> DiskRead:
    """What was seen. Raises why nothing was."""
    if isinstance(answer, Exception):
        raise answer
    return answer


def read_all(wanted: Mapping[str, Asked], timeout: float = TIMEOUT) -> dict[str, DiskRead | OSError | TimedOut]:
    """Look at many at the same time, by one child: what each showed, or why it did not."""
    if not wanted:
        return {}
    found: dict[str, DiskRead | OSError | TimedOut] = {}
    words = {key: (str(one.path), list(one.ranges), 0 if one.follow else os.O_NOFOLLOW) for key, one in wanted.items()}
    for answer in _answers(words, timeout):
        key = answer["key"]
        if "errno" in answer:
            found[key] = OSError(answer["errno"], os.strerror(answer["errno"]), str(wanted[key].path))
        else:
            blocks = [bytes.fromhex(block) for block in answer["blocks"]]
            found[key] = DiskRead(answer["mode"], answer["size"], answer["inode"], blocks)
    for key in wanted.keys() - found.keys():
        found[key] = TimedOut(f"{wanted[key].path} does not answer within {timeout:g} s", "storkit status")
    return found


def _answers(wanted: Mapping[str, Any], timeout: float) -> Iterator[dict[str, Any]]:
    deadline = time.monotonic() + timeout
    child = _take()
    assert child.stdin is not None and child.stdout is not None
    text, count = b"", 0
    try:
        with suppress(BrokenPipeError):  # somebody killed it
            child.stdin.write(json.dumps(wanted).encode() + b"\n")
        while count < len(wanted) and (left := deadline - time.monotonic()) > 0:
            if not select.select([child.stdout], [], [], left)[0]:
                break
            piece = os.read(child.stdout.fileno(), 1 << 16)
            if not piece:
                break
            *lines, text = (text + piece).split(b"\n")
            for line in lines:
                count += 1
                yield json.loads(line)
    finally:
        if count == len(wanted):
            _idle.append(child)
        else:
            _end(child)


_idle: list[subprocess.Popen[bytes]] = []
"""Children that have answered all that they were asked."""


@atexit.register
def _end_idle() -> None:
    while _idle:
        _end(_idle.pop())


def _take() -> subprocess.Popen[bytes]:
    """A child for one caller alone."""
    while True:
        try:
            child = _idle.pop()
        except IndexError:
            # The interpreter alone (-I -S): the child needs nothing of storkit's, and starts in a few milliseconds.
            argv = [sys.executable, "-I", "-S", "-c", _CHILD]
            pipe = subprocess.PIPE
            return subprocess.Popen(argv, bufsize=0, stdin=pipe, stdout=pipe, stderr=subprocess.DEVNULL, cwd="/")
        if child.poll() is None:
            return child
        _end(child)


def _end(child: subprocess.Popen[bytes]) -> None:
    assert child.stdin is not None and child.stdout is not None
    child.stdin.close()
    child.stdout.close()
    child.kill()
    with suppress(subprocess.TimeoutExpired):
        child.wait(_REAPED)
