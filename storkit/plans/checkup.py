"""The examination of hosts that `host check` makes: whether each can do its part, so that `attach` will work.

Each host is asked what it is, and by which means it would serve and attach; then every host that has a pool listens for
a moment where its servers would, and its clients on other machines try to reach it. Pools come last: one that hangs
takes its host's answers with it.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, field
from functools import partial
from typing import TYPE_CHECKING, Any, ParamSpec, TypeVar

import storkit
from storkit.core import codec
from storkit.core.errors import HostUnreachable, NotAllowed, StorkitError, Unsupported
from storkit.core.host import Door, Facts, Listening
from storkit.core.model import Finding
from storkit.hosts import elsewhere

if TYPE_CHECKING:
    from storkit.hosts.connection import Connection
    from storkit.hosts.connections import Connections

T = TypeVar("T")
P = ParamSpec("P")

CLOCK_SKEW = 2.0
"""Seconds that two hosts' clocks may differ without a word, beyond the time that asking takes."""


@dataclass(frozen=True, slots=True)
class Problem:
    """What keeps a host from being ready, and what mends it. `said_by`: the host whose words these are, if not ours."""

    message: str
    hint: str
    said_by: str = ""

    def to_json(self) -> dict[str, str]:
        said = {"said_by": self.said_by} if self.said_by else {}
        return {"message": self.message, "hint": self.hint, **said}


@dataclass(slots=True)
class Report:
    """What was found of one host."""

    host: str
    facts: dict[str, Any] = field(default_factory=dict)
    error: StorkitError | None = None
    """Why it said nothing of itself."""
    problems: list[Problem] = field(default_factory=list)
    warnings: list[str] = field(default_factory=list)
    status: int = 0
    """7: something did not answer; 1: there are problems."""


class Checkup:
    """One examination. `silent` are hosts that were to try others' ports, or have theirs tried, and do not answer."""

    def __init__(self, connections: Connections, hypervisors: Iterable[str]) -> None:
        self._connections = connections
        self._inventory = connections.inventory
        self._hypervisors = sorted(hypervisors)
        self._reports: dict[str, Report] = {}
        self.silent: dict[str, HostUnreachable] = {}

    def examine(self, hosts: Sequence[str]) -> list[Report]:
        """The reports of these hosts, in this order."""
        for host, said in self._connections.each(hosts, _facts).items():
            self._reports[host] = Report(host)
            if isinstance(said, StorkitError):
                self._reports[host].error = said
            else:
                self._look_at_facts(self._reports[host], *said)
        self._try_ports()
        well = [host for host in hosts if not self._reports[host].error]
        for host, failed in self._connections.each(well, self._ask_backends).items():
            if failed is not None:
                self._tell(self._reports[host], failed)
        for report in self._reports.values():
            report.status = max(report.status, 1 if report.problems else 0)
        return [self._reports[host] for host in hosts]

    def _look_at_facts(self, report: Report, before: float, facts: Facts, after: float) -> None:
        report.facts = {name: value for name, value in codec.dump(facts).items() if name != "findings"}
        said_by = self._speaker(report.host)
        for miss in facts.missing:
            module = miss.needs.rpartition("kernel module ")[2]
            hint = f"apt install {miss.package}" if miss.package else f"modprobe {module}"
            report.problems.append(Problem(f"{miss.needs} is missing, which {miss.backend} needs", hint, said_by))
        self._add(report, (Finding(each.message, each.hint) for each in facts.refused))
        self._add(report, facts.findings)
        if facts.version != storkit.__version__:
            message = f"storkit {facts.version} is there, {storkit.__version__} here"
            report.problems.append(Problem(message, "install the same version on all hosts: storkit --version"))
        skew = max(facts.clock - after, 0) + min(facts.clock - before, 0)
        if abs(skew) > CLOCK_SKEW:
            report.problems.append(Problem(f"its clock is {skew:+.0f} s off", "there: timedatectl set-ntp true"))

    # Ports

    def _try_ports(self) -> None:
        """Have every client try the ports of every server on another machine, where one of the two is examined."""
        pairs = [
            (server, target, client)
            for server, target in dict.fromkeys(
                (host, self._inventory.transport(pool.name))
                for pool in self._inventory.pools.values()
                for host in pool.hosts
            )
            for client in self._inventory.hosts
            if not self._connections.same_machine(server, client)
            and (server in self._reports or client in self._reports)
        ]
        answering = self._answering({host for server, _, client in pairs for host in (server, client)})
        pairs = [pair for pair in pairs if pair[0] in answering and pair[2] in answering]
        servers: dict[str, list[str]] = {}
        for server, target in dict.fromkeys((server, target) for server, target, _ in pairs):
            servers.setdefault(server, []).append(target)
        try:
            doors = self._listen(servers)
            self._reach(pairs, doors)
        finally:
            self._connections.each(servers, lambda connection: connection.itself.unlisten())

    def _answering(self, hosts: set[str]) -> set[str]:
        for host, said in self._connections.each(sorted(hosts - self._reports.keys()), _nothing).items():
            if isinstance(said, HostUnreachable):
                self.silent[host] = said
            if isinstance(said, StorkitError):
                hosts.discard(host)
        return {host for host in hosts if host not in self._reports or not self._reports[host].error}

    def _listen(self, servers: dict[str, list[str]]) -> dict[tuple[str, str], list[Door]]:
        def ask(connection: Connection) -> list[Listening | StorkitError]:
            return [_or_error(connection.itself.listen, target) for target in servers[connection.config.name]]

        doors: dict[tuple[str, str], list[Door]] = {}
        for server, said in self._connections.each(servers, ask).items():
            for target, each in zip(servers[server], said if isinstance(said, list) else [], strict=False):
                report = self._reports.get(server)
                if isinstance(each, StorkitError):
                    what = f"whether other hosts reach {server} by {target.partition(':')[2]} was not tried"
                    self._not_tried(server, what, each)
                    continue
                known = self._connections.doors(server, target)
                # Its clients are to try what is its own, and no port that a host which lies has named.
                doors[server, target] = [door for door in each.doors if elsewhere.is_among(door, known)]
                strange = [door for door in each.doors if door not in doors[server, target]]
                if strange and report:
                    at = f"{strange[0].address} port {strange[0].port}"
                    message = f"host {server} says that it listens at {at}, and does not by the inventory"
                    hint = f"make its address in the inventory, and the settings of {target}, right"
                    report.problems.append(Problem(message, hint))
                if report:
                    self._add(report, each.findings)
        return doors

    def _reach(self, pairs: list[tuple[str, str, str]], doors: dict[tuple[str, str], list[Door]]) -> None:
        tries: dict[str, list[tuple[str, str, Door]]] = {}
        for server, target, client in pairs:
            tries.setdefault(client, []).extend((server, target, door) for door in doors.get((server, target), ()))

        def ask(connection: Connection) -> list[str | StorkitError]:
            from concurrent.futures import ThreadPoolExecutor

            def one(door: Door) -> str | StorkitError:
                return _or_error(connection.itself.reach, door.address, door.port)

            wanted = [door for _, _, door in tries[connection.config.name]]
            with ThreadPoolExecutor(min(len(wanted), 16) or 1) as pool:
                return list(pool.map(one, wanted))

        for client, said in self._connections.each(tries, ask).items():
            for (server, target, door), why in zip(tries[client], said if isinstance(said, list) else [], strict=False):
                if isinstance(why, StorkitError):
                    self._not_tried(client, f"whether {client} reaches other hosts' servers was not tried", why)
                elif why:
                    where = f"{door.address} port {door.port}"
                    message = f"host {client} cannot reach host {server} at {where} ({target.partition(':')[2]}): {why}"
                    hint = f"open the port in the firewall of {server}, and try it on {client}: "
                    problem = Problem(message, hint + f"nc -vz {door.address} {door.port}")
                    (self._reports.get(server) or self._reports[client]).problems.append(problem)

    def _not_tried(self, host: str, what: str, error: StorkitError) -> None:
        """A key that may only read, and an older storkit there, cannot have it tried."""
        report = self._reports.get(host) or next(iter(self._reports.values()))
        if isinstance(error, NotAllowed | Unsupported):
            if (text := f"{what}: {error.message}") not in report.warnings:
                report.warnings.append(text)
        else:
            self._tell(report, error)

    # Backends

    def _ask_backends(self, connection: Connection) -> None:
        """Ask for all that the host has a part in. Pools come last, since they may hang."""
        report = self._reports[connection.config.name]
        pools = [pool for pool in self._inventory.pools.values() if report.host in pool.hosts]
        for target in self._inventory.served_by:
            served = [name for name in self._inventory.pools if self._inventory.transport(name) == target]
            homes = {host for name in served for host in self._inventory.pools[name].hosts}
            away = any(not self._connections.same_machine(home, report.host) for home in homes)
            ready = partial(connection.transport(target).ready, serves=report.host in homes, attaches=away)
            self._add(report, self._findings(report, ready))
        # A host that has disks for other machines may run no guests at all.
        disks_alone = pools and any(not self._connections.same_machine(report.host, n) for n in self._inventory.hosts)
        for hypervisor in self._hypervisors:
            found = self._findings(report, connection.hypervisor(f"hypervisor:{hypervisor}").ready)
            if disks_alone:
                report.warnings += [f"guests could not run on {report.host}: {each.message}" for each in found]
            else:
                self._add(report, found)
        for pool in pools:
            self._look_at_pool(report, connection, pool.name)

    def _findings(self, report: Report, ready: Callable[[], list[Finding]]) -> list[Finding]:
        try:
            return ready()
        except NotAllowed:
            return []  # what the host does not accept is among its facts
        except HostUnreachable:
            raise
        except StorkitError as error:
            if isinstance(error, Unsupported) and report.facts.get("version") != storkit.__version__:
                return []  # another one may not know the question
            return [Finding(each.message, each.hint) for each in error.each]

    def _look_at_pool(self, report: Report, connection: Connection, pool: str) -> None:
        asked = connection.pool(f"pool:{pool}")
        try:
            self._add(report, (Finding(each.message, each.hint) for each in asked.look().damaged))
            report.warnings += asked.capacity().warnings
        except NotAllowed:
            return
        except HostUnreachable as error:
            report.problems.append(Problem(f"pool {pool} does not answer: {error.message}", error.hint))
            report.status = error.exit_code
            return
        except StorkitError as error:
            for each in error.each:
                hint = each.hint or "storkit pool list"
                self._tell(report, StorkitError(f"pool {pool} cannot be looked at: {each.message}", hint))
            return
        self._add(report, self._findings(report, asked.ready))

    # Words

    def _tell(self, report: Report, error: StorkitError) -> None:
        self._add(report, (Finding(each.message, each.hint) for each in error.each))
        if isinstance(error, HostUnreachable):
            report.status = error.exit_code

    def _add(self, report: Report, findings: Iterable[Finding]) -> None:
        """Add what a host has found, each thing once."""
        known = {(problem.message, problem.hint) for problem in report.problems}
        for each in findings:
            if each.warning:
                report.warnings += [text] if (text := f"{each.message}: {each.hint}") not in report.warnings else []
            elif (each.message, each.hint) not in known:
                report.problems.append(Problem(each.message, each.hint, self._speaker(report.host)))

    def _speaker(self, host: str) -> str:
        config = self._connections.find(host)
        return "" if config and config.machine == "local" else host


def _facts(connection: Connection) -> tuple[float, Facts, float]:
    """A machine's facts, with the times before and after it was asked."""
    before = time.time()
    return before, connection.itself.facts(), time.time()


def _nothing(connection: Connection) -> None:
    """Only connect."""


def _or_error(ask: Callable[P, T], *args: P.args, **kwargs: P.kwargs) -> T | StorkitError:
    try:
        return ask(*args, **kwargs)
    except StorkitError as error:
        return error
