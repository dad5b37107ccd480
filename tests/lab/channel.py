"""Our end of the serial line to a host's agent: requests with ids, answered in any order."""

from __future__ import annotations

import contextlib
import json
import os
import socket
import threading
from collections import deque
from concurrent.futures import Future
from typing import Any

from tests.lab.errors import LabError

# The serial line's discipline holds 4 KiB; a line that was full once may stay silent. So a request is shorter than
# that, and the next one is sent when the agent has said that it got the last.
LONGEST = 3000


class Channel:
    def __init__(self, name: str, line: socket.socket) -> None:
        self.name, self._line = name, line
        self._lock = threading.Lock()
        self._next = 0
        self._queue: deque[bytes] = deque()
        self._on_the_line = False
        self._waiting: dict[int, Future[dict[str, Any]]] = {}
        self._gone = False
        self.hello: Future[None] = Future()
        threading.Thread(target=self._receive, name=f"lab-{name}", daemon=True).start()

    def request(self, do: str, **fields: Any) -> tuple[int, Future[dict[str, Any]]]:
        with self._lock:
            if self._gone:
                raise LabError(f"host {self.name} is off")
            self._next += 1
            id, answer = self._next, Future[dict[str, Any]]()
            self._waiting[id] = answer
            self._queue.append(json.dumps({"id": id, "do": do, **fields}).encode() + b"\n")
            self._send_next()
        return id, answer

    def _send_next(self) -> None:
        if self._queue and not self._on_the_line:
            self._on_the_line = True
            # a line that broke is noticed by the receiver
            with contextlib.suppress(OSError):
                self._line.sendall(self._queue.popleft())

    def close(self) -> None:
        # shutdown, as close alone would leave the reading thread asleep
        with contextlib.suppress(OSError):
            self._line.shutdown(socket.SHUT_RDWR)

    def _receive(self) -> None:
        buffered = bytearray()
        while True:
            try:
                received = self._line.recv(65536)
            except OSError:
                received = b""
            if not received:
                break
            buffered += received
            while (end := buffered.find(b"\n")) >= 0:
                line = bytes(buffered[:end])
                del buffered[: end + 1]
                self._answered(line)
        with self._lock:
            self._gone = True
            waiting, self._waiting = list(self._waiting.values()), {}
        self._line.close()
        gone = LabError(f"host {self.name} went off")
        for future in waiting:
            future.set_exception(gone)
        if not self.hello.done():
            self.hello.set_exception(gone)

    def _answered(self, line: bytes) -> None:
        try:
            answer = json.loads(line)
        except ValueError:
            return  # what the line echoes before the agent has set it to raw
        if "hello" in answer:
            if not self.hello.done():
                self.hello.set_result(None)
            return
        if "got" in answer:
            with self._lock:
                self._on_the_line = False
                self._send_next()
            return
        with self._lock:
            future = self._waiting.pop(answer["id"], None)
        if future:
            future.set_result(answer)


def socketpair() -> tuple[socket.socket, int]:
    """A line's two ends: ours, and a file descriptor for the host's kernel to inherit."""
    ours, theirs = socket.socketpair()
    os.set_inheritable(theirs.fileno(), True)
    return ours, theirs.detach()
