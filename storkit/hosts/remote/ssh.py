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

from storkit.core import codec, deadlines, errors
from storkit.core.contracts import RIGHTS
from storkit.core.errors import HostUnreachable, StorkitError
from storkit.core.identities import Words
from storkit.core.inventory import HostConfig, Inventory
from storkit.core.model import Listening
from storkit.hosts.connection import Connection, Progress, Titles
from storkit.hosts.guard import Claim
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


class SshConnection(Connection):
    """An agent at the other end of an ssh process, or of another command (`argv`) that reaches one."""

    def __init__(self, config: HostConfig, inventory: Inventory, argv: Sequence[str] = ()) -> None:
        super().__init__(config)
        self._settings = {
            f"{kind}:{name}": settings
            for kind, all_settings in (("transport", inventory.transports), ("hypervisor", inventory.hypervisors))
            for name, settings in all_settings.items()
        }
        by_hand = f"try it by hand: {shlex.join(ssh_argv(config.url, 'storkit --version'))}"
        self._talk = Conversation(argv or ssh_argv(config.url), config.name, by_hand)
        try:
            said = self._talk.greet(
                {**wire.hello(), "setup": wire.told(setup(inventory, config))}, scaled(deadlines.HELLO)
            )
            try:
                self.protocol = wire.agreed(said)
            except Malformed as error:
                wire.common(said, f"host {config.name}")
                raise self._talk.malformed(str(error)) from None
        except BaseException:
            self._talk.close()
            raise

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

    def lock(
        self, claims: list[Claim], holder: str, plan: str = "", over_marks: bool = False, titles: Titles = None
    ) -> list[str]:
        wanted = {"claims": codec.dump(claims), "holder": holder, "plan": plan, "over_marks": over_marks}
        said = self._ask({"do": "lock", **wanted, "titles": titles or {}}, "lock what the command changes")
        return self._checked(lambda: self._locked(said))

    def _locked(self, said: Any) -> list[str]:
        given_up, epoch = (said, 0) if self.protocol < 2 else (said["given_up"], said["epoch"])
        if type(epoch) is not int or not isinstance(given_up, list) or not all(type(one) is str for one in given_up):
            raise Malformed(f"no lock: {wire.shown(said)}")
        self.epoch = epoch
        return given_up

    def _drawn(self) -> int:
        said = self._ask({"do": "epoch"}, "number a change of rights")
        if type(said) is not int or said < 1:
            raise self._talk.malformed(f"no epoch: {wire.shown(said)}")
        return said

    def unlock(self) -> None:
        # One that is silent may still be at work on what is locked: its agent keeps the locks until it has ended that.
        if self.silent is None:
            with suppress(HostUnreachable):  # the locks of an agent that is gone are gone with it
                self._ask({"do": "unlock"}, "unlock what the command has changed")
        self.epoch = 0

    def mark(self, plan: str, names: list[str], title: str, coordinator: str) -> None:
        record = {"plan": plan, "names": names, "title": title, "coordinator": coordinator}
        self._ask({"do": "mark", **record}, "note that a plan begins")

    def marked(self, plan: str) -> bool:
        return bool(self._ask({"do": "marked", "plan": plan}, "say whether a plan has begun"))

    def unmark(self, plan: str) -> None:
        self._ask({"do": "unmark", "plan": plan}, "note that a plan has ended")

    def facts(self) -> dict[str, Any]:
        said = self._ask({"do": "facts"}, "say what it is")
        return self._checked(lambda: answers.facts(said))

    def end(self) -> None:
        self._talk.end()

    def source(self, towards: str) -> str:
        if self.protocol < 2:
            return ""  # 0.1.0 does not know the question
        said = self._ask({"do": "source", "towards": towards}, "say where it comes from")
        return said if isinstance(said, str) else ""

    def listen(self, target: str) -> Listening:
        said = self._ask({"do": "listen", "target": target}, f"listen as {target} does")
        opened: Listening = self._checked(lambda: answers.record(Listening, said, "listen"))
        return opened

    def unlisten(self) -> None:
        self._ask({"do": "unlisten"}, "listen no more")

    def reach(self, address: str, port: int) -> str:
        said = self._ask({"do": "reach", "address": address, "port": port}, f"connect to {address} port {port}")
        why: str = self._checked(lambda: answers.record(Words, said, "reach"))
        return why

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
