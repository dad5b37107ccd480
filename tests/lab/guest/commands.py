"""Runs inside a host of the lab, in its kept interpreter: storkit's commands, whose agents on other hosts stay.

An agent is an ssh connection, a shell, and an interpreter's start: two seconds of a host's processor. One that has
answered all that it was asked, has opened no door, and lets go of its locks as its end would, serves the next command
whose inventory says the same of its host.
"""

from __future__ import annotations

from collections.abc import Sequence
from contextlib import suppress
from typing import Any

from storkit.core.errors import StorkitError
from storkit.core.inventory import HostConfig, Inventory
from storkit.hosts.remote import ssh
from storkit.hosts.setup import setup

_idle: dict[str, Kept] = {}
_since = ""


class Kept(ssh.SshConnection):
    """A connection that waits for the next command when it is closed."""

    key = ""
    _greeted = _listened = False

    def greet(self) -> None:
        if not self._greeted:
            super().greet()
            self._greeted = True

    def _request(self, target: str, do: str, args: dict[str, Any]) -> Any:
        self._listened = self._listened or do == "listen"
        return super()._request(target, do, args)

    def end(self) -> None:
        if not self._fit():
            super().end()

    def close(self) -> None:
        if self._fit() and self.key not in _idle:
            with suppress(StorkitError):
                self.unlock()
                self.plan, self.acted = "", False
                _idle[self.key] = self
                return
        super().close()

    def _fit(self) -> bool:
        return self._greeted and not self._listened and self.silent is None and not self.awaited

    def leave(self) -> None:
        """End it; its host may be off."""
        super().end()
        super().close()


def connection(config: HostConfig, inventory: Inventory) -> Kept:
    key = repr((config, setup(inventory, config), inventory.transports, inventory.hypervisors))
    kept = _idle.pop(key, None)
    if kept is None or not kept._fit():
        kept = Kept(config, inventory)
        kept.key = key
    return kept


def main(words: Sequence[str], since: str) -> int:
    """Run a command; `since` says how often a host has lost its power or a network so far: no agent outlives that."""
    global _since
    from storkit.cli.main import main as command

    ssh.SshConnection = connection  # type: ignore[assignment, misc]
    if since != _since:
        _since = since
        leave()
    return command(list(words))


def leave() -> None:
    """End every agent that waits; its host may be off."""
    while _idle:
        _idle.popitem()[1].leave()
