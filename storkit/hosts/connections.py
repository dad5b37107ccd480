"""The connections of one command to the hosts of the inventory."""

from __future__ import annotations

import threading
from collections.abc import Callable, Container, Iterable
from typing import TYPE_CHECKING, Any, TypeVar

from storkit.core.errors import HostUnreachable, StorkitError, raise_problems
from storkit.core.inventory import HostConfig, Inventory
from storkit.hosts.connection import Connection, LocalConnection

if TYPE_CHECKING:
    from storkit.core.host import Door
    from storkit.hosts.remote.ssh import SshConnection

T = TypeVar("T")


class Connections:
    """The connections of one command, each opened when it is first needed; safe to use from several threads.

    `named`: URLs, beside the inventory's hosts, that somebody has named as hosts on this machine.
    """

    def __init__(self, inventory: Inventory, named: Container[str] = ()) -> None:
        self.inventory = inventory
        self._named = named
        self._open: dict[str, Connection] = {}
        self._silent: dict[str, HostUnreachable] = {}
        self._doors: dict[str, threading.Lock] = {}
        self._greeted: dict[str, SshConnection] = {}
        """Those whose hosts have not said hello yet."""
        self._closed = False
        self._acted = False
        """Whether one that is closed may have changed something."""

    def find(self, name: str) -> HostConfig | None:
        """The host of the inventory's name, or of a URL. None: only another host speaks of it, as the client of an
        export, for example. Such a name is shown; it is never connected to."""
        found = self.inventory.known(name)
        if found is None and ":" in name and name in self._named:
            return HostConfig(name, name)
        return found

    def to(self, name: str) -> Connection:
        """The connection to a host, by the inventory's name or by URL.

        Raises HostUnreachable, at once if the host did not answer before: one command waits for a silent host once.
        """
        config = self.find(name)
        if config is None:
            raise HostUnreachable(
                f"host {name} is not in the inventory", f"storkit fence {name}, or name it in the inventory", host=name
            )
        # Two threads that ask for one host get one connection; for others, neither waits.
        with self._doors.setdefault(config.name, threading.Lock()):
            if config.name in self._silent:
                raise _again(self._silent[config.name])
            if config.name not in self._open:
                if self._closed:
                    raise HostUnreachable(f"host {config.name} is asked nothing any more: the command has ended")
                self._open[config.name] = self._connect(config)
            connection = self._open[config.name]
        if self._closed:  # meanwhile
            connection.close()
        if connection.silent is not None:
            raise _again(connection.silent)
        return connection

    def each(self, names: Iterable[str], ask: Callable[[Connection], T]) -> dict[str, T | StorkitError]:
        """What hosts answer, or why they do not, all asked at the same time: silent ones are not waited for in turn."""

        def one(name: str) -> T | StorkitError:
            try:
                return ask(self.to(name))
            except StorkitError as error:
                return error

        wanted = list(dict.fromkeys(names))
        if len(wanted) < 2:
            return {name: one(name) for name in wanted}
        from concurrent.futures import ThreadPoolExecutor

        with ThreadPoolExecutor(min(len(wanted), 64)) as pool:
            return dict(zip(wanted, pool.map(one, wanted), strict=True))

    def reach(self, names: Iterable[str]) -> dict[str, HostUnreachable]:
        """Connect to hosts, all at the same time: those that do not answer, and why. Raises what else is wrong."""
        wrong = {name: said for name, said in self.each(names, lambda host: None).items() if said is not None}
        raise_problems([error for error in wrong.values() if not isinstance(error, HostUnreachable)])
        return {name: error for name, error in wrong.items() if isinstance(error, HostUnreachable)}

    def _connect(self, config: HostConfig) -> Connection:
        if config.machine == "local":
            return LocalConnection(config, self.inventory)
        from storkit.hosts.remote.ssh import SshConnection

        connection = self._greeted[config.name] = SshConnection(config, self.inventory)
        try:
            connection.greet()
        except HostUnreachable as error:
            if self._greeted.pop(config.name, None):  # otherwise nobody waits for it any more
                self._silent[config.name] = error
            raise
        self._greeted.pop(config.name, None)
        return connection

    def same_machine(self, one: str, other: str) -> bool:
        """Whether two hosts share files and Unix sockets; one that is not known shares them with nobody."""
        first, second = self.find(one), self.find(other)
        return first is not None and second is not None and first.machine == second.machine

    def address(self, name: str) -> str:
        """Where a host comes from, as the inventory has it; empty: it says nothing, or does not know the host."""
        config = self.find(name)
        return config.reach if config else ""

    def doors(self, name: str, target: str) -> list[Door]:
        """Where the servers of a transport are on a host, as the inventory has it (Transport.doors)."""
        from pathlib import Path

        from storkit.core import codec, registry
        from storkit.core.backend import Site

        nowhere = Path("/nonexistent")  # nothing is asked of that host, and nothing done here
        transport = registry.transport(target.partition(":")[2])
        given = self.inventory.transports.get(transport.name, {})
        settings: Any = codec.load(transport.Settings, given, target)
        return transport(Site(name, nowhere, nowhere, nowhere, self.address(name)), settings).doors()

    @property
    def acted(self) -> bool:
        """Whether anything was asked of any host that may have changed something."""
        return self._acted or any(connection.acted for connection in list(self._open.values()))

    def forget_silent(self) -> None:
        """Ask hosts again that did not answer, or were not waited for. What they have locked stays so until their
        agents have ended."""
        self._leave_greeted()
        self._silent.clear()
        for name, connection in list(self._open.items()):
            if connection.silent is not None or connection.awaited:
                self._acted = self._acted or connection.acted
                del self._open[name]
                connection.close()

    def unlock(self) -> None:
        for connection in list(self._open.values()):
            connection.unlock()

    def close(self) -> None:
        """End all connections, at once where an answer is still to come."""
        self._closed = True
        self._leave_greeted()
        for connection in list(self._open.values()):
            connection.end()
        for connection in list(self._open.values()):
            connection.close()
        self._open.clear()

    def _leave_greeted(self) -> None:
        for name in list(self._greeted):
            if connection := self._greeted.pop(name, None):
                connection.close()


def not_waited_for(name: str) -> HostUnreachable:
    """Why nothing is known of a host that had not answered yet when everybody had that something depends on."""
    return HostUnreachable(f"host {name} was not waited for: nothing that was asked for depends on it")


def _again(error: HostUnreachable) -> HostUnreachable:
    return HostUnreachable(error.message, error.hint, host=error.host)
