"""`storkit agent`: carries out verbs for a coordinator, one JSON object a line on stdin and stdout.

    <- {"hello": 1, "version": "0.1.0", "setup": {...}}
    -> {"hello": 1, "version": "0.1.0", "pid": 4711}
    <- {"id": 1, "do": "call", "target": "pool:default", "verb": "find", "args": {}}
    -> {"id": 1, "progress": 0.5, "text": "copying"}
    -> {"id": 1, "result": [...]}     or     {"id": 1, "error": {"kind": "conflict", "message": "...", "hint": "..."}}

Requests run at the same time, each in a thread. It takes typed verbs with checked arguments and no commands. An
`authorized_keys` line pins a key to it, with a grade: `command="storkit agent --grade storage"` (core/grades.py,
hosts/accept.py). When its input ends it lets the verbs under
way end, and exits; its locks go with it.
"""

from __future__ import annotations

import json
import os
import sys
import threading
import time
from pathlib import Path
from typing import Any, TextIO

import storkit
from storkit.core import codec
from storkit.core.errors import StorkitError, UsageError
from storkit.core.grades import READ
from storkit.hosts import accept, rights
from storkit.hosts.guard import Claim, Guard
from storkit.hosts.site import Performer, Setup, remember, site

PROTOCOL = 1
PROGRESS_EVERY = 0.1
"""Seconds between two messages of one verb's progress."""


def hello() -> dict[str, Any]:
    """The first line of either side."""
    return {"hello": PROTOCOL, "version": storkit.__version__}


class Agent:
    """One connection to a coordinator."""

    def __init__(self, performer: Performer, output: TextIO) -> None:
        self._performer = performer
        self._guard = Guard(performer.site)
        self._held: list[Any] = []
        self._output = output
        self._writing = threading.Lock()

    def answer(self, request: dict[str, Any]) -> None:
        """Carry out one request and write its result or error."""
        number = request.get("id")
        try:
            result = self._do(request)
        except StorkitError as error:
            self._write({"id": number, "error": error.to_json()})
        except Exception as error:
            import traceback

            where = traceback.extract_tb(error.__traceback__)[-1]
            text = f"{type(error).__name__}: {error} ({where.filename}:{where.lineno})"
            bug = StorkitError(f"a bug in storkit: {text}", "please report it")
            self._write({"id": number, "error": bug.to_json()})
        else:
            self._write({"id": number, "result": result})

    def _do(self, request: dict[str, Any]) -> Any:
        if self._performer.limits:
            self._performer.limits.check(request)
        do = request.get("do")
        if do == "call":
            number, told = request.get("id"), 0.0

            def progress(fraction: float, text: str) -> None:
                nonlocal told
                if fraction < 1 and time.monotonic() - told < PROGRESS_EVERY:
                    return
                told = time.monotonic()
                self._write({"id": number, "progress": fraction, "text": text})

            self._performer.asked = rights.from_afar(str(request.get("asked", "")))
            return self._performer.perform(request["target"], request["verb"], request["args"], progress)
        if do == "lock":
            claims = codec.load(list[Claim], request["claims"], "lock")
            titles = codec.load(dict[str, str], request.get("titles", {}), "titles")  # 0.1.0 does not say
            taken, given_up = self._guard.lock(
                claims, request["holder"], request["plan"], request["over_marks"], titles
            )
            self._held += taken
            return given_up
        if do == "unlock":
            while self._held:
                self._held.pop().release(remove=True)
            return None
        if do == "mark":
            return self._guard.mark(request["plan"], request["names"], request["title"], request["coordinator"])
        if do == "marked":
            return self._guard.marked(request["plan"])
        if do == "unmark":
            return self._guard.unmark(request["plan"])
        if do == "facts":
            from storkit.hosts.facts import gather

            return gather(self._performer)
        raise UsageError(f"there is no request {do!r}")

    def _write(self, message: dict[str, Any]) -> None:
        line = json.dumps(message)
        with self._writing:
            self._output.write(line + "\n")
            self._output.flush()


def serve(
    source: TextIO = sys.stdin, output: TextIO | None = None, *, grade: str = "", file: Path | None = None
) -> int:
    """Serve one coordinator, whose key has this grade, until its end closes; the exit status.

    `file`: what this host accepts, instead of the default one.
    """
    if output is None:
        # What a library prints by mistake must not break the protocol.
        output = os.fdopen(os.dup(1), "w")
        os.dup2(2, 1)
    try:
        first = json.loads(source.readline() or "null")
        if not isinstance(first, dict) or first.get("hello") != PROTOCOL:
            raise UsageError(
                f"the other side does not speak version {PROTOCOL} of the agent's protocol",
                "install the same version of storkit on both hosts",
            )
        told = codec.load(Setup, first.get("setup"), "setup")
        limits = accept.limits(grade, file)
        given = limits.setup(told)
        place = site(given)
        if grade != READ:
            remember(told, place, grade)
        agent = Agent(Performer(given, place, limits), output)
    except (ValueError, StorkitError) as error:
        problem = error if isinstance(error, StorkitError) else UsageError(f"not the agent's protocol: {error}")
        output.write(json.dumps({"error": problem.to_json()}) + "\n")
        output.flush()
        return 2
    output.write(json.dumps({**hello(), "pid": os.getpid()}) + "\n")
    output.flush()
    threads: list[threading.Thread] = []
    for line in source:
        thread = threading.Thread(target=agent.answer, args=(json.loads(line),))
        thread.start()
        threads = [other for other in threads if other.is_alive()] + [thread]
    for thread in threads:
        thread.join()
    return 0
