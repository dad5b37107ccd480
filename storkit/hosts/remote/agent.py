"""`storkit agent`: carries out verbs for a coordinator, one JSON object a line on stdin and stdout.

    <- {"hello": 1, "protocols": [1, 2], "version": "0.1.0", "setup": {...}}
    -> {"hello": 2, "protocols": [1, 2], "version": "0.1.0", "pid": 4711}
    <- {"id": 1, "do": "call", "target": "pool:default", "verb": "find", "args": {}}
    -> {"id": 1, "progress": 0.5, "text": "copying"}     or     {"id": 1, "moved": true}
    -> {"id": 1, "result": [...]}     or     {"id": 1, "error": {"kind": "conflict", "message": "...", "hint": "..."}}

Requests run at the same time, each in a thread. It takes typed verbs with checked arguments and no commands. An
`authorized_keys` line pins a key to it, with a grade: `command="storkit agent --grade storage"` (core/grades.py,
hosts/accept.py); or binds it to a host, for the hooks of that host's hypervisor alone: `command="storkit agent --for
xen2"` (hosts/admitted.py). A request that is none is answered with an error, and the next one is read.

Signs of life (`moved`) come from the thread that carries the verb out, and from nothing else (system.moving). When its
input ends it lets the verbs under way end, and exits; its locks go with it, and not before: nobody else may change what
a verb that is stuck has begun to change.
"""

from __future__ import annotations

import json
import os
import sys
import threading
import time
from contextlib import suppress
from pathlib import Path
from typing import Any, BinaryIO, TextIO

from storkit.core import calls, codec
from storkit.core.contracts.hooks import HookVerbs
from storkit.core.errors import NotAllowed, StorkitError, Unsupported, UsageError
from storkit.core.grades import READ
from storkit.hosts import accept, rights
from storkit.hosts.remote import wire
from storkit.hosts.requests import HostRequests
from storkit.hosts.setup import LOCAL, Setup, remember, remembered
from storkit.hosts.site import Performer, site
from storkit.system import files, moving

PROGRESS_EVERY = 0.1
"""Seconds between two messages of one verb's progress."""
MOVED_EVERY = 1.0
"""Seconds between two signs that one verb moves."""


class Agent:
    """One connection to a coordinator."""

    def __init__(
        self, performer: Performer, output: TextIO, protocol: int = wire.NEWEST, hooks: HookVerbs | None = None
    ) -> None:
        self._performer = performer
        self._requests = HostRequests(performer)
        self._hooks = hooks
        self._output = output
        self._protocol = protocol
        self._writing = threading.Lock()

    def answer(self, request: dict[str, Any]) -> None:
        """Carry out one request and write its result or error."""
        number = request.get("id")
        try:
            result = self._do(request)
        except StorkitError as error:
            self._write({"id": number, "error": error.to_json()})
        except OSError as error:
            state = self._performer.site.state
            self._write({"id": number, "error": files.explain(error, files.place(error, state)).to_json()})
        except Exception as error:
            import traceback

            where = traceback.extract_tb(error.__traceback__)[-1]
            text = f"{type(error).__name__}: {error} ({where.filename}:{where.lineno})"
            bug = StorkitError(f"a bug in storkit: {text}", "please report it")
            self._write({"id": number, "error": bug.to_json()})
        else:
            self._write({"id": number, "result": result})

    def refuse(self, problem: wire.Malformed) -> None:
        """Say that a line was no request."""
        self._write({"id": None, "error": UsageError(f"not the agent's protocol: {problem}").to_json()})

    def _do(self, request: dict[str, Any]) -> Any:
        if self._performer.limits:
            self._performer.limits.check(request)
        do = request.get("do")
        if do == "call":
            return self._call(request)
        wanted = calls.verb("agent", do) if isinstance(do, str) else None
        if wanted is None:
            host = self._performer.site.host
            raise Unsupported(f"there is no request {do!r}", f"upgrade storkit on host {host}")
        args = {name: value for name, value in request.items() if name not in ("id", "do")}
        result = codec.dump(getattr(self._requests, wanted.name)(**wanted.read(args, wanted.name)))
        return result["given_up"] if wanted.name == "lock" and self._protocol < 2 else result

    def _call(self, request: dict[str, Any]) -> Any:
        number, told, moved_at = request.get("id"), 0.0, time.monotonic()
        args, epoch = request.get("args"), request.get("epoch", 0)
        if not isinstance(args, dict) or type(epoch) is not int:
            raise UsageError("a call without arguments, or with an epoch that is no number")

        def progress(fraction: float, text: str) -> None:
            nonlocal told
            if fraction < 1 and time.monotonic() - told < PROGRESS_EVERY:
                return
            told = time.monotonic()
            self._write({"id": number, "progress": fraction, "text": text})

        def moved() -> None:
            nonlocal moved_at
            if time.monotonic() - moved_at >= MOVED_EVERY:
                moved_at = time.monotonic()
                self._write({"id": number, "moved": True})

        with self._requests.acting(), moving.watched(moved if self._protocol > 1 else lambda: None):
            target, verb = _text(request, "target"), _text(request, "verb")
            self._performer.asked = rights.from_afar(_text(request, "asked"))
            if target == "hook":
                return self._hook(verb, args)
            return self._performer.perform(target, verb, args, progress, epoch)

    def _hook(self, verb: str, args: dict[str, Any]) -> Any:
        if self._hooks is None:
            raise NotAllowed(
                "this key is bound to no host, so nobody's hooks can ask by it",
                'command="storkit agent --for HOST" in authorized_keys of that host',
            )
        wanted = calls.verb("hook", verb)
        if wanted is None:
            raise Unsupported(f"there is no hook {verb!r}", f"upgrade storkit on host {self._performer.site.host}")
        return codec.dump(getattr(self._hooks, verb)(**wanted.read(args, f"hook.{verb}")), reveal=True)

    def _write(self, message: dict[str, Any]) -> None:
        line = json.dumps(message)
        # A coordinator that is gone must not stop the verb that it has begun.
        with self._writing, suppress(OSError):
            self._output.write(line + "\n")
            self._output.flush()


def serve(
    source: BinaryIO | None = None, output: TextIO | None = None, *,
    grade: str = "", file: Path | None = None, client: str = "",
) -> int:  # fmt: skip
    """Serve one coordinator, whose key has this grade, until its end closes; the exit status.

    `file`: what this host accepts, instead of the default one. `client`: the host that the key is bound to, for its
    hooks alone; one request is carried out after the other then, and none is long.
    """
    source = source or sys.stdin.buffer
    if output is None:
        # What a library prints by mistake must not break the protocol.
        output = os.fdopen(os.dup(1), "w")
        os.dup2(2, 1)
    longest = wire.HOOK_LINE_MAX if client else wire.LINE_MAX
    try:
        first = wire.parse(wire.read_line(source, longest) or b"null")
        protocol = wire.common(first, "the coordinator's host")
        told = codec.load(Setup, first.get("setup"), "setup", strict=False)
        if client:
            from storkit.hosts.admitted import AdmittedHooks, BoundLimits

            limits: accept.Limits = (bound := BoundLimits(client, file))
        else:
            limits = accept.limits(grade, file)
        given = limits.setup(told)
        place = site(given)
        if client and remembered(place.state) is None:
            remember(given, place, LOCAL)  # no coordinator will tell it, perhaps, what its boot has to serve again
        elif not client and grade != READ:
            remember(told, place, grade)
        performer = Performer(given, place, limits)
        agent = Agent(performer, output, protocol, AdmittedHooks(performer, bound) if client else None)
    except (ValueError, StorkitError) as error:
        problem = error if isinstance(error, StorkitError) else UsageError(f"not the agent's protocol: {error}")
        output.write(json.dumps({"error": problem.to_json()}) + "\n")
        output.flush()
        return 2
    output.write(json.dumps({**wire.hello(protocol), "pid": os.getpid()}) + "\n")
    output.flush()
    threads: list[threading.Thread] = []
    while True:
        try:
            line = wire.read_line(source, longest)
            if not line:
                break
            request = wire.parse(line)
        except wire.Malformed as problem:
            agent.refuse(problem)
            continue
        if client:
            agent.answer(request)
            continue
        thread = threading.Thread(target=agent.answer, args=(request,))
        thread.start()
        threads = [other for other in threads if other.is_alive()] + [thread]
    for thread in threads:
        thread.join()
    return 0


def _text(request: dict[str, Any], key: str) -> str:
    value = request.get(key, "")
    if not isinstance(value, str):
        raise UsageError(f"{key}: a string is wanted, not {wire.shown(value)}")
    return value
