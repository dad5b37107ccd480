"""What is asked of the agent inside a guest, whatever leads to it: QEMU's socket, or libvirt.

Nothing that it says is believed: it is root of the guest who says it.
"""

from __future__ import annotations

import base64
import ipaddress
import subprocess
import sys
import threading
import time
from abc import ABC, abstractmethod
from collections.abc import Callable, Iterator, Sequence
from contextlib import AbstractContextManager, suppress
from dataclasses import dataclass
from typing import Any, Literal

from storkit.core.errors import CommandFailed, StorkitError, TimedOut, Unsupported, UsageError
from storkit.core.guest import Executed, Frozen, GuestCard
from storkit.core.identities import check_line
from storkit.system import moving
from storkit.system.parallel import for_each_at_once
from storkit.system.qemu.guestagent import AgentRefused, Ask, strange
from storkit.system.timeouts import scaled

PACKAGE = "qemu-guest-agent"
MOST_INPUT = 16 << 20
"""Bytes that a command can be given to read: an agent takes them in one piece."""
FREEZE = scaled(20.0)
"""Seconds that file systems have to write what they hold, and to stand still."""
FROZEN_AT_MOST = scaled(60.0)
"""Seconds after which they go on, whatever has become of who had them stand still."""
_LOOK_AGAIN = 0.5
_MOST_CARDS = 256
_MOST_ADDRESSES = 64
Talk = Callable[[], AbstractContextManager[Ask]]
"""Begins a conversation with an agent. Raises Unsupported: there is none; NotFound: the guest does not run."""


@dataclass(frozen=True, slots=True)
class Way:
    """What leads to the agent of a guest."""

    talk: Talk
    brief: Talk
    """For what is asked by the way: an agent that hangs is given up soon."""
    key: str
    """The guest's own, whatever its name."""
    thaw: Callable[[], list[str]]
    """What has its file systems go on when this process is gone: `socket` and a path, or `program` and its words.
    Raises as `talk`."""


class ByAgent(ABC):
    """The verbs of a hypervisor that leads to agents inside its guests."""

    @abstractmethod
    def _way(self, name: str) -> Way:
        """The way to the agent of a guest, whether there is one or not."""

    def execute(self, name: str, words: list[str], stdin: str = "", timeout: float = 600.0) -> Executed:
        check_input(words, stdin)
        with self._way(name).talk() as ask:
            return execute(ask, name, words, stdin, timeout)

    def cards(self, guests: list[str]) -> dict[str, list[GuestCard]]:
        found: dict[str, list[GuestCard]] = {}

        def one(name: str) -> None:
            with suppress(StorkitError), self._way(name).brief() as ask:
                found[name] = cards(ask)

        for_each_at_once(one, guests)
        return found

    def freeze(self, name: str) -> Frozen:
        try:
            return freeze(self._way(name), name)
        except StorkitError as error:
            return Frozen(name, 0, error.message)

    def thaw(self, name: str) -> Frozen:
        try:
            return thaw(self._way(name), name)
        except StorkitError as error:
            return Frozen(name, 0, error.message)


def absent(name: str) -> Unsupported:
    """An error: the way to the agent is there, and nobody is at its other end."""
    message = f"no agent answers in guest {name}"
    return Unsupported(message, f"in the guest: apt install {PACKAGE}; systemctl start {PACKAGE}")


def unreachable(name: str) -> Unsupported:
    """An error: the guest has no channel for an agent."""
    message = f"guest {name} runs without a channel for a guest agent"
    hint = f"storkit guest define {name} --replace --agent, while it is stopped; in its own document: docs/console.md"
    return Unsupported(message, hint)


def check_input(words: Sequence[str], stdin: str) -> None:
    """Raise UsageError: no agent could run this."""
    if not words or not words[0]:
        raise UsageError("no command is given", "storkit guest exec NAME -- hostname")
    if any("\0" in word for word in words):
        raise UsageError("a command's words have no NUL in them", "leave it out")
    if len(stdin) * 3 // 4 > MOST_INPUT:
        hint = "copy it by ssh, or put it on a disk of the guest"
        raise UsageError(f"a command reads {MOST_INPUT >> 20} MiB at most through a guest's agent", hint)


def execute(ask: Ask, name: str, words: Sequence[str], stdin: str, timeout: float) -> Executed:
    """Run a command (HypervisorVerbs.execute)."""
    end = time.monotonic() + timeout
    wanted: dict[str, Any] = {"path": words[0], "arg": list(words[1:]), "capture-output": True}
    try:
        began = ask("guest-exec", {**wanted, **({"input-data": stdin} if stdin else {})})
    except AgentRefused as error:
        raise CommandFailed(["guest-exec", words[0]], 1, error.reason) from None
    process = _number(began, "pid", "guest-exec")
    again = 0.01
    while True:
        said = ask("guest-exec-status", {"pid": process})
        if not isinstance(said, dict) or not isinstance(said.get("exited"), bool):
            raise strange("guest-exec-status")
        if said["exited"]:
            return _executed(name, said)
        if time.monotonic() >= end:
            killed = _killed(ask, process)
            message = f"{words[0]} did not end within {timeout:g} seconds in guest {name}"
            raise TimedOut(message, "it was killed there" if killed else f"it goes on there: its process is {process}")
        moving.moved()
        time.sleep(min(again, max(0.0, end - time.monotonic())))  # nothing tells that it has ended, but to ask
        again = min(_LOOK_AGAIN, again * 1.5)


def _killed(ask: Ask, process: int) -> bool:
    """Kill a process of a guest, and none that it has begun itself."""
    try:
        ask("guest-exec", {"path": "/bin/sh", "arg": ["-c", f"kill -KILL {process}"]})
        for _ in range(20):
            if ask("guest-exec-status", {"pid": process}).get("exited") is True:
                return True
            time.sleep(0.1)
    except (StorkitError, AttributeError):
        pass
    return False


def _executed(name: str, said: dict[str, Any]) -> Executed:
    command = "guest-exec-status"
    signal = _number(said, "signal", command) if "signal" in said else 0
    status = 0 if signal and "exitcode" not in said else _number(said, "exitcode", command)
    streams: list[tuple[Literal["stdout", "stderr"], str]] = [("stdout", "out"), ("stderr", "err")]
    cut = [stream for stream, key in streams if said.get(f"{key}-truncated") is True]
    stdout, stderr = (_base64(said.get(key, ""), command) for key in ("out-data", "err-data"))
    return Executed(name, status, signal, stdout, stderr, cut)


def _base64(text: Any, command: str) -> str:
    try:
        base64.b64decode(text, validate=True)
    except (TypeError, ValueError):
        raise strange(command) from None
    return str(text)


def _number(said: Any, key: str, command: str) -> int:
    found = said.get(key) if isinstance(said, dict) else None
    # Windows has statuses of 32 bits.
    if type(found) is not int or not -(1 << 31) <= found < 1 << 32:
        raise strange(command)
    return found & 0xFFFFFFFF


def cards(ask: Ask) -> list[GuestCard]:
    """The network cards of a guest, but for its loopback; with the addresses that lead there from elsewhere."""
    said = ask("guest-network-get-interfaces")
    if not isinstance(said, list):
        raise strange("guest-network-get-interfaces")
    return list(_cards(said[:_MOST_CARDS]))


def _cards(said: list[Any]) -> Iterator[GuestCard]:
    for each in said:
        name, mac = (each.get(key, "") for key in ("name", "hardware-address")) if isinstance(each, dict) else ("", "")
        if not isinstance(name, str) or not isinstance(mac, str) or not _is_mac(mac := mac.lower()):
            continue
        with suppress(StorkitError):
            found = list(_addresses(each.get("ip-addresses")))
            if mac != "00:00:00:00:00:00":
                yield GuestCard(check_line(name), mac, found)


def _addresses(said: Any) -> Iterator[str]:
    for each in said[:_MOST_ADDRESSES] if isinstance(said, list) else ():
        text = each.get("ip-address") if isinstance(each, dict) else None
        with suppress(ValueError):
            address = ipaddress.ip_address(text if isinstance(text, str) else "")
            if not (address.is_loopback or address.is_link_local or address.is_multicast or address.is_unspecified):
                yield str(address)


def _is_mac(text: str) -> bool:
    parts = text.split(":")
    return len(parts) == 6 and all(len(part) == 2 and not set(part) - set("0123456789abcdef") for part in parts)


# File systems that stand still

_THAW = """
import json, os, select, socket, subprocess, sys, time
seconds, kind, *words = sys.argv[1:]
if select.select([0], [], [], float(seconds))[0] and os.read(0, 1):
    sys.exit()  # it was done by who asked for it
command = b'{"execute": "guest-fsfreeze-thaw"}'

def thawed():
    if kind == "program":
        return subprocess.run(words, stdout=subprocess.DEVNULL, timeout=30).returncode == 0
    with socket.socket(socket.AF_UNIX) as line:
        line.settimeout(10)
        line.connect(words[0])
        line.sendall(b"\\xff" + command + b"\\n")
        said = b""
        while not said.endswith(b"\\n") or b'"return"' not in said.splitlines()[-1]:
            piece = line.recv(65536)
            if not piece or len(said) > 1 << 20:
                return False
            said += piece
        return True

end = time.monotonic() + 3600
while time.monotonic() < end:
    try:
        if thawed():
            break
    except (FileNotFoundError, ConnectionRefusedError):
        break  # the guest has ended, or moved
    except Exception:
        pass
    time.sleep(1)
"""
"""A process that has file systems go on: at the end of its input, which is that of who had them stand still, or when
their time is over. It tries for an hour: one whose guest stands still itself is answered when that goes on."""


class _Frozen:
    """What keeps a guest from standing still for ever."""

    def __init__(self, thaw: Sequence[str]) -> None:
        argv = [sys.executable, "-I", "-S", "-c", _THAW, str(FROZEN_AT_MOST), *thaw]
        silent = subprocess.DEVNULL
        # A session of its own: what ends this process, a terminal's Ctrl-C too, does not end that one.
        self._process = subprocess.Popen(
            argv, stdin=subprocess.PIPE, stdout=silent, stderr=silent, cwd="/", start_new_session=True
        )

    def done(self) -> None:
        """Its file systems go on already."""
        self._let_go(b".")

    def give_up(self) -> None:
        """Whether they do is not known: it sees to it."""
        self._let_go(b"")

    def _let_go(self, word: bytes) -> None:
        assert self._process.stdin is not None
        with suppress(BrokenPipeError):
            self._process.stdin.write(word)
            self._process.stdin.close()
        # Nobody waits for it: it ends at once, or when it has seen to what it is there for.
        threading.Thread(target=self._process.wait, daemon=True).start()


_frozen: dict[str, _Frozen] = {}
"""By the guests' UUIDs, for as long as this process lives."""


def freeze(way: Way, name: str) -> Frozen:
    """Have file systems stand still (HypervisorVerbs.freeze)."""
    if way.key in _frozen:
        _frozen.pop(way.key).give_up()
    keeper = _Frozen(way.thaw())
    try:
        with way.talk() as ask:
            if ask("guest-fsfreeze-status") != "thawed":
                keeper.done()
                return Frozen(name, 0, "they stand still already, for somebody else")
            count = _number({"count": ask("guest-fsfreeze-freeze", timeout=FREEZE)}, "count", "guest-fsfreeze-freeze")
    except StorkitError as error:
        keeper.give_up()
        return Frozen(name, 0, _why(error))
    if not count:
        keeper.give_up()
        return Frozen(name, 0, "its agent finds none that could")
    _frozen[way.key] = keeper
    return Frozen(name, count)


def thaw(way: Way, name: str) -> Frozen:
    """Have file systems go on (HypervisorVerbs.thaw); how many stood still until now. Those that somebody else had
    stand still stay so: of storkit's other commands each has a process of its own that lets them go on."""
    keeper = _frozen.pop(way.key, None)
    if keeper is None:
        return Frozen(name, 0, "this command did not have them stand still")
    try:
        with way.talk() as ask:
            stood = ask("guest-fsfreeze-status") == "frozen"
            count = _number({"count": ask("guest-fsfreeze-thaw", timeout=FREEZE)}, "count", "guest-fsfreeze-thaw")
    except StorkitError as error:
        keeper.give_up()
        return Frozen(name, 0, _why(error))
    keeper.done()
    if not stood:
        return Frozen(name, 0, "they went on before it was done")
    return Frozen(name, max(1, count))


def _why(error: StorkitError) -> str:
    reason = getattr(error, "reason", "")
    return f"its agent says: {reason}" if reason else error.message
