"""A host reached through the system's OpenSSH, which starts `storkit agent` there.

BatchMode (no questions), the admin's own ~/.ssh/config, one ssh process per host per command. What goes wrong with ssh
itself is HostUnreachable, never an error of the verb.
"""

from __future__ import annotations

import itertools
import json
import math
import queue
import subprocess
import threading
from collections.abc import Sequence
from typing import Any
from urllib.parse import urlsplit

from storkit.core import codec, errors
from storkit.core.errors import HostUnreachable, StorkitError, Unsupported
from storkit.core.inventory import HostConfig, Inventory
from storkit.hosts.agent import PROTOCOL, hello
from storkit.hosts.connection import Connection, Progress, Titles
from storkit.hosts.guard import Claim
from storkit.hosts.site import setup
from storkit.system.timeouts import scaled

CONNECT_TIMEOUT = math.ceil(scaled(10))
"""Seconds until an address that does not answer counts as unreachable."""

OPTIONS = (
    "-T",
    "-oBatchMode=yes",
    f"-oConnectTimeout={CONNECT_TIMEOUT}",
    "-oServerAliveInterval=5",
    "-oServerAliveCountMax=3",
)


def ssh_argv(url: str, command: str = "storkit agent") -> list[str]:
    """The ssh command line for a host URL."""
    parts = urlsplit(url)
    argv = ["ssh", *OPTIONS]
    if parts.port:
        argv += ["-p", str(parts.port)]
    if parts.username:
        argv += ["-l", parts.username]
    return [*argv, "--", parts.hostname or "", command]


class SshConnection(Connection):
    """An agent at the other end of an ssh process, or of another command (`argv`) that reaches one."""

    def __init__(self, config: HostConfig, inventory: Inventory, argv: Sequence[str] = ()) -> None:
        super().__init__(config)
        argv = argv or ssh_argv(config.url)
        try:
            # The only program outside system.run: it is a conversation, not a command with an end.
            self._process = subprocess.Popen(
                argv, stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
            )
        except FileNotFoundError:
            raise Unsupported("ssh is not installed", "apt install openssh-client") from None
        self._errors: list[str] = []
        self._stderr = threading.Thread(target=self._collect_errors, daemon=True)
        self._stderr.start()
        self._numbers = itertools.count(1)
        self._waiting: dict[int, queue.SimpleQueue[dict[str, Any] | None]] = {}
        self._writing = threading.Lock()
        self._ended = False
        self._send({**hello(), "setup": codec.dump(setup(inventory, config), reveal=True)})
        answer = self._read()
        if answer is None:
            raise self._lost()
        if "error" in answer:
            raise errors.from_json(answer["error"], config.name)
        if answer.get("hello") != PROTOCOL:
            raise Unsupported(
                f"host {config.name} speaks another version of the agent's protocol",
                "install the same version of storkit there",
            )
        threading.Thread(target=self._dispatch, daemon=True).start()

    def call(self, target: str, verb: str, args: dict[str, Any], progress: Progress | None = None) -> Any:
        return self._request(
            {"do": "call", "target": target, "verb": verb, "args": args, "asked": self.asked}, progress
        )

    def lock(
        self, claims: list[Claim], holder: str, plan: str = "", over_marks: bool = False, titles: Titles = None
    ) -> list[str]:
        wanted = {"claims": codec.dump(claims), "holder": holder, "plan": plan, "over_marks": over_marks}
        return list(self._request({"do": "lock", **wanted, "titles": titles or {}}))

    def unlock(self) -> None:
        if self._process.poll() is None:
            self._request({"do": "unlock"})

    def mark(self, plan: str, names: list[str], title: str, coordinator: str) -> None:
        self._request({"do": "mark", "plan": plan, "names": names, "title": title, "coordinator": coordinator})

    def marked(self, plan: str) -> bool:
        return bool(self._request({"do": "marked", "plan": plan}))

    def unmark(self, plan: str) -> None:
        self._request({"do": "unmark", "plan": plan})

    def facts(self) -> dict[str, Any]:
        return dict(self._request({"do": "facts"}))

    def close(self) -> None:
        for stream in (self._process.stdin,):
            if stream:
                try:
                    stream.close()
                except BrokenPipeError:
                    continue
        try:
            self._process.wait(timeout=scaled(30))
        except subprocess.TimeoutExpired:
            self._process.kill()
            self._process.wait()

    def _request(self, message: dict[str, Any], progress: Progress | None = None) -> Any:
        number = next(self._numbers)
        answers: queue.SimpleQueue[dict[str, Any] | None] = queue.SimpleQueue()
        self._waiting[number] = answers
        if self._ended:
            raise self._lost()
        self._send({"id": number, **message})
        while True:
            answer = answers.get()
            if answer is None:
                raise self._lost()
            if "progress" in answer:
                if progress:
                    progress(answer["progress"], answer["text"])
                continue
            del self._waiting[number]
            if "error" in answer:
                raise self._named(errors.from_json(answer["error"], self.config.name))
            return answer["result"]

    def _named(self, error: StorkitError) -> StorkitError:
        if isinstance(error, errors.CommandFailed) and not error.host:
            named = errors.CommandFailed(error.argv, error.status, error.stderr, host=self.config.name, hint=error.hint)
            named.said_by = error.said_by
            return named
        return error

    def _send(self, message: dict[str, Any]) -> None:
        line = json.dumps(message) + "\n"
        assert self._process.stdin is not None
        try:
            with self._writing:
                self._process.stdin.write(line)
                self._process.stdin.flush()
        except (BrokenPipeError, ValueError):
            raise self._lost() from None

    def _read(self) -> dict[str, Any] | None:
        assert self._process.stdout is not None
        line = self._process.stdout.readline()
        if not line:
            return None
        try:
            answer = json.loads(line)
        except ValueError:
            raise HostUnreachable(
                f"host {self.config.name} answered {line.strip()[:100]!r} instead of the agent's hello",
                "a login script that prints, perhaps: ssh must start `storkit agent` silently",
            ) from None
        return answer if isinstance(answer, dict) else None

    def _dispatch(self) -> None:
        while True:
            try:
                answer = self._read()
            except StorkitError:
                answer = None
            if answer is None:
                break
            waiting = self._waiting.get(answer.get("id", 0))
            if waiting is not None:
                waiting.put(answer)
        self._ended = True
        for waiting in list(self._waiting.values()):
            waiting.put(None)

    def _collect_errors(self) -> None:
        assert self._process.stderr is not None
        for line in self._process.stderr:
            self._errors.append(line.strip())

    def _lost(self) -> HostUnreachable:
        self._process.wait()
        self._stderr.join(timeout=scaled(5))
        told = next((line for line in reversed(self._errors) if line), f"ssh ended with {self._process.returncode}")
        hint = f"try it by hand: {' '.join(ssh_argv(self.config.url, 'storkit --version'))}"
        return HostUnreachable(f"host {self.config.name} cannot be reached: {told}", hint)
