"""The door to a guest's agent (qemu-ga) over the socket of its virtio-serial port.

    with talk(socket) as ask:
        ask("guest-ping")

What an agent says comes from inside the guest: it is data of whoever is root there. It may hang, and it may lie: each
answer has a deadline, a size, and a form. QEMU gives the socket to one client at a time; others wait.
Protocol: qemu.readthedocs.io/en/v7.2.0/interop/qemu-ga.html, and qga/qapi-schema.json.
"""

from __future__ import annotations

import json
import secrets
import socket
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, Protocol

from storkit.core.errors import CommandFailed, NotFound, TimedOut
from storkit.system import moving
from storkit.system.timeouts import scaled

PORT = "org.qemu.guest_agent.0"
"""The name of its port in the guest: /dev/virtio-ports/NAME there."""
ANSWERS = scaled(10.0)
"""Seconds that an agent may say nothing where it has been asked something that it can say at once."""
LONGEST = scaled(300.0)
"""Seconds for an answer that comes piece by piece."""
MOST = 48 << 20
"""Bytes of an answer: two outputs of a command, 16 MiB each at most (GUEST_EXEC_MAX_OUTPUT), as Base64."""
_SYNC = b"\xff"
"""What ends whatever half line either side still has (guest-sync-delimited)."""
_SHOWN = 300


class AgentRefused(CommandFailed):
    """The agent answered with an error; `reason` is its text, which is the guest's word."""

    def __init__(self, command: str, reason: str) -> None:
        super().__init__([command], 1, reason)
        self.reason = reason


class AgentGone(CommandFailed):
    """The connection ended: the guest has ended, or moved to another host."""

    def __init__(self, command: str) -> None:
        said = "the connection to the guest's agent was lost: the guest has ended, or has moved"
        super().__init__([command], 1, said)


class Ask(Protocol):
    """Have an agent carry out a command; what it returns. `timeout`: seconds that it may say nothing.

    Raises AgentRefused, AgentGone, TimedOut; CommandFailed: what it says is no answer.
    """

    def __call__(self, command: str, arguments: dict[str, Any] | None = None, timeout: float = ANSWERS) -> Any: ...


@contextmanager
def talk(path: Path, timeout: float = ANSWERS) -> Iterator[Ask]:
    """A conversation with the agent at a socket, once it has answered. Raises NotFound: nobody has the socket."""
    line = _connected(path, timeout)
    try:
        agent = _Line(line)
        agent.sync(timeout)
        yield agent.ask
    finally:
        line.close()


def value_of(command: str, answer: Any) -> Any:
    """What an answer returns. Raises as `Ask`."""
    if isinstance(answer, dict) and "return" in answer:
        return answer["return"]
    error = answer.get("error") if isinstance(answer, dict) else None
    if isinstance(error, dict):
        raise AgentRefused(command, str(error.get("desc") or error.get("class") or "it does not say why")[:_SHOWN])
    raise strange(command)


def strange(command: str) -> CommandFailed:
    """An error: what was said is no answer of an agent's."""
    return CommandFailed([command], 1, "what the guest says is no answer of a guest agent's")


class _Line:
    """A socket whose lines are an agent's."""

    def __init__(self, connection: socket.socket) -> None:
        self._connection = connection
        self._rest = bytearray()

    def sync(self, timeout: float) -> None:
        """Until an answer is one to us: what the agent still says to whoever came before is thrown away."""
        number = secrets.randbelow(1 << 31)
        command = "guest-sync-delimited"
        self._send(command, _SYNC + _request(command, {"id": number}), timeout)
        end = time.monotonic() + timeout
        while True:
            said = self._line(command, max(0.01, end - time.monotonic()))
            _, mark, line = said.rpartition(_SYNC)
            if mark and _parsed(line) == {"return": number}:
                return

    def ask(self, command: str, arguments: dict[str, Any] | None = None, timeout: float = ANSWERS) -> Any:
        self._send(command, _request(command, arguments), timeout)
        return value_of(command, _parsed(self._line(command, timeout)))

    def _send(self, command: str, data: bytes, timeout: float) -> None:
        sent, view = 0, memoryview(data)
        self._connection.settimeout(timeout)
        try:
            while sent < len(view):
                sent += self._connection.send(view[sent : sent + (1 << 16)])
                moving.moved()
        except TimeoutError:
            raise _silent(command, timeout) from None
        except OSError:
            raise AgentGone(command) from None

    def _line(self, command: str, timeout: float) -> bytes:
        seen, end = 0, time.monotonic() + LONGEST
        self._connection.settimeout(timeout)
        while (at := self._rest.find(b"\n", seen)) < 0:
            seen = len(self._rest)
            if seen > MOST or time.monotonic() > end:
                raise strange(command)
            try:
                piece = self._connection.recv(1 << 20)
            except TimeoutError:
                raise _silent(command, timeout) from None
            except OSError:
                piece = b""
            if not piece:
                raise AgentGone(command)
            self._rest += piece
            moving.moved()
        line = bytes(self._rest[:at])
        del self._rest[: at + 1]
        return line


def _request(command: str, arguments: dict[str, Any] | None) -> bytes:
    return json.dumps({"execute": command, **({"arguments": arguments} if arguments else {})}).encode() + b"\n"


def _parsed(line: bytes) -> Any:
    """A line as JSON; None: it is none."""
    try:
        return json.loads(line)
    except (ValueError, RecursionError):
        return None


def _silent(command: str, timeout: float) -> TimedOut:
    return TimedOut(f"the guest's agent has not answered {command} for {timeout:g} seconds")


def _connected(path: Path, timeout: float) -> socket.socket:
    connection = socket.socket(socket.AF_UNIX)
    end = time.monotonic() + timeout
    try:
        connection.settimeout(timeout)
        while True:
            try:
                connection.connect(str(path))
                return connection
            except BlockingIOError:  # QEMU's listen queue holds one client
                if time.monotonic() > end:
                    raise TimedOut(f"somebody else talks to the agent at {path}") from None
                time.sleep(0.01)
    except (FileNotFoundError, ConnectionRefusedError):
        connection.close()
        raise NotFound(f"nothing listens on {path}") from None
    except BaseException:
        connection.close()
        raise
