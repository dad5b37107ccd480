"""Runs inside a dom0, between `xl migrate` and what carries its stream, and acts at one point of the handshake:
cutter.py cut|hold WHEN COMMAND. It breaks the connection there, or holds everything until somebody writes to GO. It
imports nothing of the tests."""

from __future__ import annotations

import os
import select
import subprocess
import sys
from pathlib import Path

POINTS = {
    "ready": (1, b"domain received, ready to unpause", False),
    "before-go": (0, b"domain is yours, you are cleared to unpause", False),
    "after-go": (0, b"domain is yours, you are cleared to unpause", True),
    "report": (1, b"my copy unpause results are as follows", False),
}
"""Where it acts: at 0, what the source says, or 1, what the destination does; the words; whether they pass first."""
HELD, GO = Path("/run/held"), Path("/run/go")


def main(how: str, when: str, command: str) -> None:
    side, words, passes = POINTS[when]
    carrier = subprocess.Popen(["sh", "-c", command], stdin=subprocess.PIPE, stdout=subprocess.PIPE, bufsize=0)
    assert carrier.stdin and carrier.stdout
    ways = {0: carrier.stdin.fileno(), carrier.stdout.fileno(): 1}
    tails = dict.fromkeys(ways, b"")
    acted = False
    while True:
        for source in select.select(list(ways), [], [])[0]:
            data = os.read(source, 65536)
            if not data:
                sys.exit(0)
            tails[source] = (tails[source] + data)[-200:]
            if (source != 0) == bool(side) and words in tails[source] and not acted:
                acted = True
                if passes:
                    os.write(ways[source], data)
                    data = b""
                    select.select([carrier.stdout], [], [])  # the destination has heard it, and answers
                if how == "hold":
                    os.mkfifo(GO)
                    HELD.touch()
                    GO.read_bytes()  # until it is written to
                else:
                    carrier.kill()
                    print(f"cut at {when}", file=sys.stderr)
                    os._exit(9)
            os.write(ways[source], data)


if __name__ == "__main__":
    main(*sys.argv[1:])
