"""A conversation with an agent: requests written to a process, its answers read, each with a deadline.

An answer that does not come in time, or that is none, makes the other end silent: no further request is made, and who
still waits is told why. Nothing here waits without an end, and `hang_up` ends all of it at once.
"""

from __future__ import annotations

import collections
import contextlib
import itertools
import json
import os
import queue
import select
import subprocess
import threading
import time
from collections.abc import Callable, Sequence
from typing import Any

from storkit.core import errors
from storkit.core.errors import HostUnreachable, StorkitError, Unsupported
from storkit.hosts.remote import wire
from storkit.hosts.remote.wire import Malformed
from storkit.system.timeouts import scaled

Progress = Callable[[float, str], None]

PARTING = scaled(5.0)
"""Seconds that an agent with nothing to do has to end when it is told so."""

LAST_LOOK = scaled(0.05)
"""Seconds that an answer has to be read which came while this process itself stood still."""

HELLO = 0
"""The number under which the other end's first line is waited for."""

_live: set[Conversation] = set()
_over = threading.Event()


def hang_up() -> None:
    """End every conversation of this process at once, and begin none any more: the command is asked to end."""
    _over.set()
    for each in list(_live):
        each.break_off(HostUnreachable(f"host {each.host} was not waited for: the command was asked to end"))


_NOT_FOUND = 127
"""The status of a shell that finds no such command (POSIX, Shell Command Language 2.8.2)."""


class Conversation:
    """One process that is spoken to. `by_hand` is the command with which a person would look for what is wrong."""

    def __init__(self, argv: Sequence[str], host: str, by_hand: str) -> None:
        self.host = host
        self.silent: HostUnreachable | None = None
        """Why nothing more is asked of this host."""
        self._by_hand = by_hand
        self._program = argv[0]
        self._numbers = itertools.count(HELLO + 1)
        self._last = HELLO
        self._waiting: dict[int, queue.SimpleQueue[dict[str, Any] | None]] = {HELLO: queue.SimpleQueue()}
        self._writing = threading.Lock()
        self._said: collections.deque[str] = collections.deque(maxlen=50)
        try:
            # The only program outside system.run: it is a conversation, not a command with an end.
            self._process = subprocess.Popen(
                argv, stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=subprocess.PIPE
            )
        except FileNotFoundError:
            raise Unsupported("ssh is not installed", "apt install openssh-client") from None
        assert self._process.stdin is not None
        os.set_blocking(self._process.stdin.fileno(), False)
        self._stderr = threading.Thread(target=self._collect_errors, daemon=True)
        self._stderr.start()
        _live.add(self)
        threading.Thread(target=self._read, daemon=True).start()
        if _over.is_set():
            hang_up()

    def greet(self, first: dict[str, Any], quiet: float) -> dict[str, Any]:
        """Say hello, and the other end's first line. Raises what it says is wrong; HostUnreachable."""
        try:
            self._send(first, quiet)
            return self._await(HELLO, "say hello", quiet, None)
        finally:
            del self._waiting[HELLO]

    def request(self, message: dict[str, Any], what: str, quiet: float, progress: Progress | None = None) -> Any:
        """The result of a request, after at most `quiet` seconds without a sign of it. Raises what it raised there.

        Raises HostUnreachable if the answer did not come, and is not waited for again: what was asked may yet be done.
        """
        number = next(self._numbers)
        self._waiting[number] = queue.SimpleQueue()
        try:
            self._check()
            self._last = max(self._last, number)
            self._send({"id": number, **message}, quiet)
            return self._await(number, what, quiet, progress)["result"]
        finally:
            del self._waiting[number]

    @property
    def awaited(self) -> bool:
        """Whether an answer is still to come, or the first line."""
        return bool(self._waiting)

    def break_off(self, why: HostUnreachable) -> None:
        """Wait for nothing more, and end the process."""
        self._fall_silent(why)
        self._process.terminate()

    def end(self) -> None:
        """Tell the other end that there is nothing more to do. It lets verbs that it carries out come to their end."""
        stream = self._process.stdin
        assert stream is not None
        with contextlib.suppress(OSError):
            stream.close()

    def close(self) -> None:
        """End the conversation, and the process: at once if the other end is silent, or has not answered yet. Whoever
        still waits for that is told."""
        if self.awaited:
            self._fall_silent(HostUnreachable(f"host {self.host} was not waited for"))
        self.end()
        for patience, stop in ((0.0 if self.silent else PARTING, self._process.terminate), (1.0, self._process.kill)):
            try:
                self._process.wait(timeout=patience)
                break
            except subprocess.TimeoutExpired:
                stop()
        with contextlib.suppress(subprocess.TimeoutExpired):
            self._process.wait(timeout=PARTING)
        _live.discard(self)

    def _check(self) -> None:
        if self.silent is not None:
            raise HostUnreachable(self.silent.message, self.silent.hint, host=self.host)

    def _send(self, message: dict[str, Any], quiet: float) -> None:
        """Write a line. A pipe that nobody reads fills up: that is no reason to wait for ever either."""
        deadline = time.monotonic() + quiet
        if not self._writing.acquire(timeout=quiet):
            raise self._gave_up("take a request", quiet)
        try:
            self._write(json.dumps(message).encode() + b"\n", deadline, quiet)
        finally:
            self._writing.release()

    def _write(self, line: bytes, deadline: float, quiet: float) -> None:
        assert self._process.stdin is not None
        rest = memoryview(line)
        try:
            descriptor = self._process.stdin.fileno()
            poll = select.poll()
            poll.register(descriptor, select.POLLOUT)
            while rest:
                try:
                    rest = rest[os.write(descriptor, rest) :]
                except BlockingIOError:
                    if time.monotonic() >= deadline or self.silent:
                        raise self._gave_up("take a request", quiet) from None
                    poll.poll(100)
        except (BrokenPipeError, ValueError):
            raise self._lost() from None

    def _await(self, number: int, what: str, quiet: float, progress: Progress | None) -> dict[str, Any]:
        answers, seen = self._waiting[number], object()
        deadline = time.monotonic() + quiet
        while True:
            overdue = time.monotonic() > deadline
            try:
                answer = answers.get(timeout=LAST_LOOK if overdue else max(0.0, deadline - time.monotonic()))
            except queue.Empty:
                if overdue:
                    raise self._gave_up(what, quiet) from None
                continue
            if answer is None:
                self._check()
                raise self._lost()
            if number == HELLO and "error" not in answer:
                return answer
            if "moved" in answer:
                deadline = time.monotonic() + quiet
            elif "progress" in answer:
                now = (answer["progress"], answer["text"])
                if now != seen:
                    seen, deadline = now, time.monotonic() + quiet
                elif overdue and answers.empty():
                    raise self._gave_up(what, quiet)
                if progress:
                    progress(min(1.0, max(0.0, now[0])), now[1])
            elif "error" in answer:
                raise self._error(answer["error"])
            else:
                return answer

    def _gave_up(self, what: str, quiet: float) -> HostUnreachable:
        """The other end is silent from now on. Who waits for another answer of it goes on: that verb may move."""
        message = f"host {self.host} does not answer: it did not {what} within {quiet:g} seconds"
        self.silent = self.silent or HostUnreachable(message, self._by_hand, host=self.host)
        return HostUnreachable(message, self._by_hand, host=self.host)

    def _error(self, said: Any) -> StorkitError:
        try:
            if not isinstance(said["message"], str) or not isinstance(said["kind"], str):
                raise TypeError
            return errors.from_json(said, self.host)
        except (LookupError, TypeError, ValueError, AttributeError, RecursionError):
            return self.malformed(f"an error of the wrong shape: {wire.shown(said)}")

    def malformed(self, reason: str, hint: str = "") -> HostUnreachable:
        """The other end has answered with what is no answer: it is silent from now on."""
        message = f"host {self.host} answers with what is no answer: {reason}"
        why = HostUnreachable(message, hint or self._by_hand, host=self.host)
        self.break_off(why)
        return why

    def _fall_silent(self, why: HostUnreachable) -> None:
        self.silent = self.silent or why
        for waiting in list(self._waiting.values()):
            waiting.put(None)

    def _read(self) -> None:
        """Pass answers on to those who wait for them, until there are no more."""
        stream = self._process.stdout
        assert stream is not None
        first = True
        try:
            while line := wire.read_line(stream):  # type: ignore[arg-type]
                self._pass_on(wire.parse(line), first)
                first = False
        except Malformed as error:
            printed = "a login script that prints, perhaps: ssh must start `storkit agent` silently"
            self.malformed(str(error), printed if first else "")
        for waiting in list(self._waiting.values()):
            waiting.put(None)

    def _pass_on(self, answer: dict[str, Any], first: bool) -> None:
        number = HELLO if first else answer.get("id")
        if type(number) is not int or not HELLO <= number <= self._last or (number == HELLO) != first:
            raise Malformed(f"an answer to request {wire.shown(number)}, which was not made")
        if not first:
            _check_shape(answer)
        waiting = self._waiting.get(number)
        if waiting is not None:
            waiting.put(answer)

    def _collect_errors(self) -> None:
        stream = self._process.stderr
        assert stream is not None
        while line := stream.readline(4096):
            self._said.append(line.decode(errors="replace").strip())

    def _lost(self) -> HostUnreachable:
        """The process has ended, or is about to."""
        try:
            self._process.wait(timeout=PARTING)
        except subprocess.TimeoutExpired:
            self._process.terminate()
        self._stderr.join(timeout=PARTING)
        told = next((line for line in reversed(self._said) if line), "")
        told = told or f"{self._program} ended with {self._process.returncode}"
        what, hint = "cannot be reached", self._by_hand
        if self._process.returncode == _NOT_FOUND:
            what = "has no storkit where ssh finds it"
            hint = f"install it there as /usr/local/bin/storkit (a user's ~/.local/bin is not on ssh's PATH); {hint}"
        self.silent = self.silent or HostUnreachable(f"host {self.host} {what}: {told}", hint, host=self.host)
        return HostUnreachable(self.silent.message, self.silent.hint, host=self.host)


def _check_shape(answer: dict[str, Any]) -> None:
    """Raise Malformed for what is neither a result, an error, progress nor a sign of life."""
    kinds = [kind for kind in ("result", "error", "progress", "moved") if kind in answer]
    if len(kinds) != 1:
        raise Malformed(f"an answer without a result: {wire.shown(answer)}")
    if kinds == ["progress"]:
        part, text = answer["progress"], answer.get("text")
        number = isinstance(part, int | float) and not isinstance(part, bool)
        if not number or not -1e9 < part < 1e9 or not isinstance(text, str):  # also what is no number at all (NaN)
            raise Malformed(f"progress of the wrong shape: {wire.shown(answer)}")
