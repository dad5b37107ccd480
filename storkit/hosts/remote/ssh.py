"""A host reached through the system's OpenSSH, which starts `storkit agent` there.

BatchMode (no questions), the admin's own ~/.ssh/config, one ssh process per host per command. What goes wrong with ssh
itself is HostUnreachable, never an error of the verb; so is an agent that does not answer in time, or with what is no
answer (conversation.py).
"""

from __future__ import annotations

import math
import shlex
from collections.abc import Callable, Sequence
from contextlib import suppress
from typing import Any, TypeVar
from urllib.parse import urlsplit

from storkit.core import calls, deadlines, errors
from storkit.core.contracts.hosts import AgentVerbs
from storkit.core.contracts.transports import RIGHTS
from storkit.core.errors import HostUnreachable, StorkitError
from storkit.core.inventory import HostConfig, Inventory
from storkit.hosts.connection import Connection, Progress
from storkit.hosts.remote import answers, asked, wire
from storkit.hosts.remote.conversation import Conversation
from storkit.hosts.remote.wire import Malformed
from storkit.hosts.setup import setup
from storkit.system.timeouts import scaled

T = TypeVar("T")

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


def forwarding_argv(url: str, near: str, far: str) -> list[str]:
    """The ssh command line that leads from a Unix socket of this machine to one of another. It says `.` on standard
    output when `near` is there, and ends when its standard input does not matter any more: it has to be ended."""
    options = [
        "-N",
        "-oLogLevel=INFO",
        "-oExitOnForwardFailure=yes",
        "-oPermitLocalCommand=yes",
        "-oLocalCommand=echo .",
    ]
    ssh, *rest = ssh_argv(url)
    return [ssh, *options, "-L", f"{near}:{far}", *rest[:-1]]


def terminal_argv(url: str, words: Sequence[str]) -> list[str]:
    """The ssh command line that runs a program of another machine on this terminal."""
    argv = ssh_argv(url, shlex.join(words))
    return ["-tt" if word == "-T" else word for word in argv]


_ASKED = {
    "lock": "lock what the command changes",
    "unlock": "unlock what the command has changed",
    "epoch": "number a change of rights",
    "mark": "note that a plan begins",
    "marked": "say whether a plan has begun",
    "unmark": "note that a plan has ended",
    "facts": "say what it is",
    "source": "say where it comes from",
    "neighbours": "say whom it has seen",
    "listen": "listen as {target} does",
    "unlisten": "listen no more",
    "reach": "connect to {address} port {port}",
}
"""What a host that does not answer a request did not do."""


class SshConnection(Connection):
    """An agent at the other end of an ssh process, or of another command (`argv`) that reaches one."""

    def __init__(self, config: HostConfig, inventory: Inventory, argv: Sequence[str] = (), by_hand: str = "") -> None:
        """Start ssh; `greet` before anything else. `argv`: what reaches the agent instead of ssh; `by_hand`: what a
        person can do where it does not."""
        super().__init__(config)
        self._settings = {
            f"{kind}:{name}": settings
            for kind, all_settings in (("transport", inventory.transports), ("hypervisor", inventory.hypervisors))
            for name, settings in all_settings.items()
        }
        by_hand = by_hand or f"try it by hand: {shlex.join(ssh_argv(config.url, 'storkit --version'))}"
        self._itself = calls.agent(self._request)
        self._setup = setup(inventory, config)
        self._talk = Conversation(argv or ssh_argv(config.url), config.name, by_hand)

    def greet(self) -> None:
        """Say hello, and agree on a protocol. Raises HostUnreachable, Unsupported; the connection is closed then."""
        try:
            said = self._talk.greet({**wire.hello(), "setup": wire.told(self._setup)}, scaled(deadlines.HELLO))
            try:
                self.protocol = wire.agreed(said)
            except Malformed as error:
                wire.common(said, f"host {self.config.name}")
                raise self._talk.malformed(str(error)) from None
        except BaseException:
            self._talk.close()
            raise

    @property
    def awaited(self) -> bool:
        return self._talk.awaited

    @property
    def silent(self) -> HostUnreachable | None:
        return self._talk.silent

    def call(self, target: str, verb: str, args: dict[str, Any], progress: Progress | None = None) -> Any:
        self.about_to(verb)
        if self.protocol < 2:
            args = wire.for_version_1(verb, args)
        message: dict[str, Any] = {"do": "call", "target": target, "verb": verb, "args": args, "asked": self.asked}
        if verb in RIGHTS and self.protocol > 1:
            message["epoch"] = self.epoch or self._drawn()
        quiet = deadlines.quiet(verb, args, self._settings.get(target, {}))
        result = self._ask(message, f"carry out {verb} of {target}", quiet, progress)

        def check() -> Any:
            return asked.compared(self.config.name, target, verb, args, answers.checked(target, verb, result))

        return self._checked(check)

    @property
    def itself(self) -> AgentVerbs:
        return self._itself

    def unlock(self) -> None:
        # One that is silent may still be at work on what is locked: its agent keeps the locks until it has ended that.
        if self.silent is None:
            with suppress(HostUnreachable):  # the locks of an agent that is gone are gone with it
                super().unlock()

    def _drawn(self) -> int:
        if not (drawn := self.itself.epoch()):
            raise self._talk.malformed("no epoch: 0")
        return drawn

    def _request(self, _: str, do: str, args: dict[str, Any]) -> Any:
        """What the host says to a request to itself (AgentVerbs)."""
        if do == "source" and self.protocol < 2:
            return ""  # 0.1.0 does not know the question
        said = self._ask({"do": do, **args}, _ASKED[do].format(**args))
        if do == "lock" and self.protocol < 2:
            said = {"given_up": said, "epoch": 0}
        return self._checked(lambda: answers.checked("agent", do, said))

    def end(self) -> None:
        self._talk.end()

    def close(self) -> None:
        self._talk.close()

    def _ask(
        self, message: dict[str, Any], what: str, quiet: float = deadlines.QUESTION, progress: Progress | None = None
    ) -> Any:
        unsaid = self.protocol < 2 and quiet > deadlines.QUESTION
        patience = scaled(quiet * deadlines.UNSAID if unsaid else quiet)
        try:
            return self._talk.request(message, what, patience, progress)
        except errors.CommandFailed as error:
            raise self._named(error) from None

    def _checked(self, check: Callable[[], T]) -> T:
        try:
            return check()
        except (Malformed, LookupError, TypeError) as error:
            raise self._talk.malformed(str(error)) from None

    def _named(self, error: errors.CommandFailed) -> StorkitError:
        if error.host:
            return error
        named = errors.CommandFailed(error.argv, error.status, error.stderr, host=self.config.name, hint=error.hint)
        named.said_by = error.said_by
        return named
