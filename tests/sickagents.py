"""Hosts that are sick, behind a fake `ssh` on PATH: they connect, and do not answer, or with what is no answer.

`python -m tests.sickagents DIRECTORY [ssh's options] -- ADDRESS storkit agent` is `storkit agent`, as it is or sick in
the way that DIRECTORY/ADDRESS says, in one line: HOW [WHAT [SECONDS]]. WHAT is the verb or the request that it is sick
at; other requests are answered as ever. As with the real ssh, the agent outlives it: `end` ends what hangs.
"""

from __future__ import annotations

import json
import os
import signal
import sys
import threading
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parent.parent

WRONG: dict[str, Callable[[Any], bytes]] = {
    "wrong-id": lambda number: _line({"id": 4711, "result": []}),
    "no-id": lambda number: _line({"result": []}),
    "text-id": lambda number: _line({"id": str(number), "result": []}),
    "hello-again": lambda number: _line({"id": 0, "hello": 1}),
    "not-utf8": lambda number: b'{"id": 1, "result": "\xff\xfe"}\n',
    "no-json": lambda number: b"Segmentation fault\n",
    "blank": lambda number: b"\n",
    "deep": lambda number: b'{"id": 1, "result": ' + b"[" * 100_000 + b"]" * 100_000 + b"}\n",
    "list": lambda number: b"[1, 2]\n",
    "long": lambda number: b"x" * ((64 << 20) + 2) + b"\n",
    "no-result": lambda number: _line({"id": number}),
    "both": lambda number: _line({"id": number, "result": [], "error": {"kind": "error", "message": "m"}}),
    "error-text": lambda number: _line({"id": number, "error": "no"}),
    "error-null": lambda number: _line({"id": number, "error": None}),
    "error-empty": lambda number: _line({"id": number, "error": {}}),
    "error-message": lambda number: _line({"id": number, "error": {"kind": "conflict", "message": ["no"]}}),
    "error-argv": lambda number: _line({"id": number, "error": {"kind": "command-failed", "message": "m"}}),
    "error-stderr": lambda number: _line(
        {"id": number, "error": {"kind": "command-failed", "message": "m", "argv": 5, "status": "x", "stderr": 1}}
    ),
    "error-problems": lambda number: _line({"id": number, "error": {"kind": "problems", "message": "m"}}),
    "error-no-problem": lambda number: _line(
        {"id": number, "error": {"kind": "problems", "message": "m", "problems": []}}
    ),
    "progress-text": lambda number: _line({"id": number, "progress": "half", "text": "x"}),
    "progress-true": lambda number: _line({"id": number, "progress": True, "text": "x"}),
    "progress-nan": lambda number: b'{"id": %d, "progress": NaN, "text": "x"}\n' % number,
    "progress-huge": lambda number: b'{"id": %d, "progress": 1%s, "text": "x"}\n' % (number, b"0" * 400),
    "progress-list": lambda number: _line({"id": number, "progress": 0.5, "text": ["x"]}),
    "result-number": lambda number: _line({"id": number, "result": 5}),
    "result-null": lambda number: _line({"id": number, "result": None}),
    "result-records": lambda number: _line({"id": number, "result": [{"name": "x"}]}),
    "result-strings": lambda number: _line({"id": number, "result": ["x"]}),
}
"""What is no answer to a request for a list of records, by name."""


def _line(message: Any) -> bytes:
    return json.dumps(message).encode() + b"\n"


def _for_ever() -> None:
    while True:
        time.sleep(3600)


def hosts(directory: Path, *names: str) -> dict[str, str]:
    """Make a fake ssh in `directory`/bin, through which agents are reached; the URLs of these hosts."""
    binaries = directory / "bin"
    binaries.mkdir(parents=True, exist_ok=True)
    ssh = binaries / "ssh"
    ssh.write_text(
        f"#!/bin/sh\necho $$ >> {directory}/ssh.pids\nexec 3<&0\nexport PYTHONPATH={ROOT}\n"
        f'setsid {sys.executable} -m tests.sickagents {directory} "$@" <&3 3<&- &\nexec 3<&- <&-\nwait $!\n'
    )
    ssh.chmod(0o755)
    return {name: f"ssh://127.0.0.{number}" for number, name in enumerate(names, 11)}


def be(directory: Path, url: str, how: str = "well", what: str = "", seconds: float = 0) -> None:
    """From now on a host is sick in this way."""
    _reached(directory, url.removeprefix("ssh://")).unlink(missing_ok=True)
    (directory / url.removeprefix("ssh://")).write_text(f"{how} {what} {seconds}")


def agents(directory: Path, url: str) -> list[int]:
    """The agents that were started on this host."""
    return _pids(directory / f"{url.removeprefix('ssh://')}.pids")


def reached(directory: Path, url: str) -> bool:
    """Whether the host was asked for what it is sick at, since `be`."""
    return _reached(directory, url.removeprefix("ssh://")).exists()


def _reached(directory: Path, address: str) -> Path:
    return directory / f"{address}.reached"


def connected(directory: Path) -> list[int]:
    """The ssh processes that are there."""
    return [pid for pid in _pids(directory / "ssh.pids") if lives(pid)]


def end(directory: Path) -> None:
    """End the agents that hang, and those that were stopped."""
    for said in directory.glob("127.*.pids"):
        for pid in filter(lives, _pids(said)):
            os.kill(pid, signal.SIGKILL)


def lives(pid: int) -> bool:
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] != "Z"
    except FileNotFoundError:
        return False


def _pids(said: Path) -> list[int]:
    return [int(word) for word in said.read_text().split()] if said.exists() else []


def stopped(pid: int) -> bool:
    """Whether a process is stopped, as `stop` stops its agent."""
    return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] == "T"


def fall_sick(how: str, what: str, seconds: float, note: Path) -> None:
    """Make this process's agent sick at one request; `note` is made when it is asked for it."""
    from storkit.hosts.remote.agent import Agent

    answer = Agent.answer

    def say(self: Agent, line: bytes) -> None:
        with self._writing:
            self._output.flush()
            view = memoryview(line)
            while view:
                view = view[os.write(self._output.fileno(), view) :]

    def sick(self: Agent, request: dict[str, Any]) -> None:
        number = request.get("id")
        if what not in ("*", request.get("verb"), request.get("do")):
            answer(self, request)
            return
        note.touch()
        if how == "hang":
            _for_ever()
        elif how == "stop":
            # To this thread: another one would take the process's signal a moment later, with the verb under way here.
            signal.pthread_kill(threading.get_ident(), signal.SIGSTOP)
            answer(self, request)
        elif how == "half":
            say(self, b'{"id": 1, "resu')
            _for_ever()
        elif how == "cut":
            say(self, b'{"id": 1, "resu')
            os._exit(1)
        elif how == "late":
            time.sleep(seconds)
            answer(self, request)
        elif how in ("restless", "moving"):
            # Words without movement, or movement without words, for so long.
            end = time.monotonic() + seconds
            while time.monotonic() < end:
                sign = {"moved": True} if how == "moving" else {"progress": 0.5, "text": "copying"}
                say(self, _line({"id": number, **sign}))
                time.sleep(0.05)
            answer(self, request)
        else:
            say(self, WRONG[how](number))

    Agent.answer = sick  # type: ignore[method-assign]


def main() -> int:
    directory, options = Path(sys.argv[1]), sys.argv[2:]
    address = options[options.index("--") + 1]
    said = directory / address
    how, what, seconds = (said.read_text() if said.exists() else "well  0").split(" ")
    with (directory / f"{address}.pids").open("a") as file:
        file.write(f"{os.getpid()}\n")
    if how == "refused":
        print(f"ssh: connect to host {address} port 22: Connection refused", file=sys.stderr)
        return 255
    if how == "silent":
        _reached(directory, address).touch()
        _for_ever()
    if how == "greets":
        os.write(1, b"Welcome to Debian!\n")
        _for_ever()
    if how == "deaf":  # hello, and then it reads nothing
        sys.stdin.buffer.readline()
        os.write(1, _line({"hello": 1, "version": "0.1.0", "pid": os.getpid()}))
        _for_ever()
    if how in WRONG and what == "*":  # without an agent, which would only be slower
        for number, _ in enumerate(sys.stdin.buffer):
            os.write(1, WRONG[how](number) if number else _line({"hello": 1, "version": "0.1.0", "pid": os.getpid()}))
        return 0
    if how == "replay":  # another version's part of a recorded conversation
        return _replay(Path(what))
    if how not in ("well", ""):
        fall_sick(how, what, float(seconds), _reached(directory, address))
    from storkit.hosts.remote.agent import serve

    return serve()


def _replay(conversation: Path) -> int:
    """Answer as the agent in a recorded conversation did; what was not asked then is a failure."""
    lines = [(line[:2], json.loads(line[3:])) for line in conversation.read_text().splitlines()]
    answers = {_asked(said): lines[number + 1][1] for number, (who, said) in enumerate(lines) if who == "->"}
    for line in sys.stdin.buffer:
        request = json.loads(line)
        answer = answers.get(_asked(request))
        if answer is None:
            print(f"not in the conversation: {line!r}", file=sys.stderr)
            return 1
        os.write(1, _line({**answer, **({"id": request["id"]} if "id" in request else {})}))
    return 0


def _asked(request: dict[str, Any]) -> str:
    """A request without its number, and without what a newer coordinator may say in its hello, or an older agent does
    not look at."""
    if "hello" in request:
        return f"hello {request['hello']}"
    return json.dumps({key: it for key, it in request.items() if key not in ("id", "asked", "titles")}, sort_keys=True)


if __name__ == "__main__":
    sys.exit(main())
