"""What hosts say of themselves and their guests, asked of many at once."""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterable
from typing import TYPE_CHECKING, ParamSpec, TypeVar

from storkit.core.errors import (
    HostUnreachable,
    ServiceUnreachable,
    StorkitError,
    Unsupported,
    UsageError,
    raise_problems,
)
from storkit.core.host import Declared, Drained
from storkit.core.model import GuestState
from storkit.hosts.connections import Connections, not_waited_for
from storkit.plans import asking

if TYPE_CHECKING:
    from storkit.core.guest import Guest

K = TypeVar("K")
V = TypeVar("V")
P = ParamSpec("P")


class HostSurvey:
    """Questions to the hosts. A host that cannot be reached is noted in `silent`: its state is unknown."""

    def __init__(self, connections: Connections) -> None:
        self.connections = connections
        self.off: dict[str, Declared] = {}
        """Hosts that a person has declared off, once `declared_off` has asked."""
        self.silent: dict[str, HostUnreachable | ServiceUnreachable] = {}
        self.unheard: dict[str, HostUnreachable] = {}
        """Hosts that were not waited for, since nothing that was asked depends on them: their state is unknown, too."""
        self.unread: dict[tuple[str, str], StorkitError] = {}
        """What a host could not say, of its exports, attachments or guests, by host and target (`transport:NAME`,
        `hypervisor:NAME`), of hosts that are declared off
        (`host:off`), and whether they take guests (`host:drained`)."""

    @property
    def unknown(self) -> dict[str, HostUnreachable | ServiceUnreachable]:
        """Hosts of which it is not known what is there, and why."""
        return {**self.unheard, **self.silent}

    def guests(
        self,
        hosts: Iterable[str],
        target: str,
        names: list[str] | None = None,
        partial: bool = False,
        needed: Collection[str] | None = None,
    ) -> dict[str, list[GuestState]]:
        """What the hypervisors say, by host; silent hosts are missing. `partial`, `needed`: as in `_told`, `_each`.

        Raises Unsupported, also then: there is no such hypervisor.
        """

        def ask(host: str) -> list[GuestState] | None:
            return self._told(host, target, partial, self.connections.to(host).hypervisor(target).find, names)

        return self._each(list(hosts), ask, str, needed)

    def where(
        self,
        guest: Guest,
        disks: Collection[str],
        hosts: Iterable[str],
        able: Collection[str] | None = None,
        named: Collection[str] = (),
    ) -> tuple[dict[str, str], dict[str, GuestState]]:
        """Where a guest is: host to status; `stopped` is left out, a silent host is `unknown`. And what each host says
        that knows it, stopped or not. `disks` are the UUIDs of its volumes: another guest of its name that has none of
        them is left out.

        `able` are the hosts that can run it, having its disks (None: all): others that are silent are left out, and so
        are those that a person has declared off. Raises what one of them says in place of an answer; what others say
        is noted in `unread`. Only for those that are able, and for `named`, is waited as long as it takes.
        """
        wanted = list(hosts)
        target = f"hypervisor:{guest.hypervisor}"
        needed = None if able is None else {*able, *named}
        answers = self.guests(wanted, target, [guest.name], partial=True, needed=needed)
        unable = {host: self.unread[host, target] for host in wanted if (host, target) in self.unread}
        raise_problems([unable[host] for host in unable if able is None or host in able or not answers])
        states = {
            host: state
            for host in wanted
            for state in answers.get(host, [])
            if state.uuid == guest.uuid or state.volumes.keys() & set(disks)
        }
        places: dict[str, str] = {}
        silent = {host for host in wanted if host not in answers and (able is None or host in able)}
        off = self.declared_off() if silent else {}
        for host in wanted:
            if host in silent - off.keys():
                places[host] = "unknown"
            elif host in states and states[host].status != "stopped":
                places[host] = states[host].status
        return places, states

    def answering(self, hosts: Iterable[str]) -> list[str]:
        """Those of these hosts that answer; the others are noted as silent."""
        wanted = list(hosts)
        answers = self._each(wanted, lambda host: self.connections.to(host), str)
        return [host for host in wanted if host in answers]

    def declared_off(self) -> dict[str, Declared]:
        """The hosts that a person has declared off, as the hosts that answer have kept it."""

        def ask(host: str) -> list[Declared]:
            try:
                return self.connections.to(host).word.find_off()
            except (HostUnreachable, ServiceUnreachable):
                raise
            except (UsageError, Unsupported):  # an agent of the version before keeps nobody's word
                return []
            except StorkitError as error:  # its word does not count, and no other host's is lost with it
                self.unread[host, "host:off"] = error
                return []

        answers = self._each(list(self.connections.inventory.hosts), ask, str)
        self.off = {declared.host: declared for found in answers.values() for declared in found}
        return self.off

    def drained(self, hosts: Iterable[str], needed: Collection[str] | None = None) -> dict[str, Drained]:
        """Those of these hosts that take no guests, and whose word says so. `needed`: as in `_each`."""

        def ask(host: str) -> list[Drained]:
            try:
                return self.connections.to(host).word.find_drained()
            except (HostUnreachable, ServiceUnreachable):
                raise
            except (UsageError, Unsupported):  # an agent of the version before keeps no such word
                return []
            except StorkitError as error:
                self.unread[host, "host:drained"] = error
                return []

        answers = self._each(list(hosts), ask, str, needed)
        return {host: found[0] for host, found in answers.items() if found}

    def speaker(self, host: str) -> str:
        """The host that words are to be marked as of; empty: this machine."""
        config = self.connections.find(host)
        return "" if config and config.machine == "local" else host

    def _told(
        self, host: str, target: str, partial: bool, ask: Callable[P, V], *args: P.args, **kwargs: P.kwargs
    ) -> V | None:
        """A host's answer; None, if it is `partial`, where it cannot say all: why is noted in `unread`."""
        try:
            return ask(*args, **kwargs)
        except HostUnreachable:
            raise
        except StorkitError as error:
            # A hypervisor that does not answer is as a host that does not: what runs there is unknown.
            absent = isinstance(error, (ServiceUnreachable, Unsupported)) and target.startswith("hypervisor:")
            if not partial or absent:
                raise
            self.unread[host, target] = error
            return None

    def _each(
        self, keys: list[K], question: Callable[[K], V | None], host: Callable[[K], str],
        needed: Collection[str] | None = None,
    ) -> dict[K, V]:  # fmt: skip
        """Ask every host, at the same time where there are several machines; silent ones are noted and left out.

        `needed`: those whose answers decide what follows (None: all); others need not be waited for
        (asking.ask_at_once), and are noted in `unheard` then, once for all questions that do not need them. A host on
        this machine is always waited for: no connection carries its answer, that could be closed.
        """
        machines = {key: config.machine for key in keys if (config := self.connections.find(host(key)))}

        def decides(key: K) -> bool:
            return needed is None or host(key) in needed or machines.get(key) == "local"

        asked = [key for key in keys if decides(key) or host(key) not in self.unheard]
        if len(set(machines.values())) < 2:
            said = asking.ask(asked, question)
        else:
            said = asking.ask_at_once(asked, question, decides)
        found: dict[K, V] = {}
        for key in asked:
            answer = said.get(key)
            if key not in said:
                self.unheard[host(key)] = not_waited_for(host(key))
            elif isinstance(answer, asking.Silent):
                self.silent[host(key)] = answer
            elif answer is not None:
                found[key] = answer
        return found
