"""What there is: volumes, exports, attachments and guests, asked of the hosts before anything is planned."""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import replace
from typing import TYPE_CHECKING, ParamSpec, TypeVar

from storkit.core.errors import (
    HostUnreachable,
    ServiceUnreachable,
    StorkitError,
    Unsafe,
    Unsupported,
    UsageError,
    quoted,
    raise_problems,
    together,
)
from storkit.core.host import Declared, Drained
from storkit.core.inventory import Inventory, PoolConfig
from storkit.core.model import Attachment, Damaged, Export, Finding, GuestState, PoolContent, Usage, Volume
from storkit.hosts.connections import Connections, not_waited_for
from storkit.plans import asking, lookup, several
from storkit.plans.remembered import Hints

if TYPE_CHECKING:
    from storkit.core.guest import Guest, KeptGuest

K = TypeVar("K")
V = TypeVar("V")
P = ParamSpec("P")


class Survey:
    """Questions to the hosts. A host that cannot be reached is noted in `silent`: its state is unknown."""

    def __init__(self, connections: Connections, hints: Hints | None = None) -> None:
        self.connections = connections
        self.hints = hints or Hints()
        self.off: dict[str, Declared] = {}
        """Hosts that a person has declared off, once `declared_off` has asked."""
        self.silent: dict[str, HostUnreachable | ServiceUnreachable] = {}
        self.unheard: dict[str, HostUnreachable] = {}
        """Hosts that were not waited for, since nothing that was asked depends on them: their state is unknown, too."""
        self.failed: dict[str, StorkitError] = {}
        """Pools that cannot be looked at, though their hosts answer: what is in them is unknown."""
        self.unread: dict[tuple[str, str], StorkitError] = {}
        """What a host could not say, of its exports, attachments or guests, by host and target (`transport:NAME`,
        `hypervisor:NAME`), of hosts that are declared off
        (`host:off`), and whether they take guests (`host:drained`)."""
        self.damaged: dict[tuple[str, str], Damaged] = {}
        """The damaged volumes that were come across, by pool and name."""
        self._acting: dict[str, PoolConfig] = {}
        """Pools with several managers, as the one has them that acts for them in this command."""

    @property
    def unknown(self) -> dict[str, HostUnreachable | ServiceUnreachable]:
        """Hosts of which it is not known what is there, and why."""
        return {**self.unheard, **self.silent}

    def forget_silent(self) -> None:
        """The next question asks every host again."""
        self.connections.forget_silent()
        self.silent.clear()
        self.unheard.clear()
        self._acting.clear()

    def volumes(self, names: list[str] | None = None, pools: Iterable[PoolConfig] | None = None) -> list[Volume]:
        """The volumes of the pools (all by default) that can be reached, in the order of the inventory.

        Pools that cannot be looked at and damaged volumes are noted in `failed` and `damaged`, and left out.
        """
        wanted = self.connections.inventory.pools.values() if pools is None else pools
        return self.of_pools(dict.fromkeys(wanted, names))

    def of_pools(self, wanted: Mapping[PoolConfig, list[str] | None]) -> list[Volume]:
        """As `volumes`, for the names (None: all) that are wanted of each pool."""

        def ask(pool: PoolConfig) -> list[Volume] | None:
            connection, names = self.connections.to(pool.host), wanted[pool]
            with self._noted(pool):
                try:
                    return connection.pool(f"pool:{pool.name}").find(names)
                except (HostUnreachable, ServiceUnreachable):
                    raise
                except StorkitError as error:  # is it some volumes, or the pool?
                    return self._look(pool, names, error)
            return None

        several = {pool: names for pool, names in wanted.items() if pool.managers}
        answers = self._each([pool for pool in wanted if pool not in several], ask, lambda pool: pool.host)
        answers |= self._of_several(several)
        return [volume for pool in wanted for volume in answers.get(pool, [])]

    def _of_several(self, wanted: Mapping[PoolConfig, list[str] | None]) -> dict[PoolConfig, list[Volume]]:
        """As `of_pools`, for pools that have several managers: all of them are asked, and what they see is one."""
        failed: dict[tuple[PoolConfig, str], StorkitError] = {}

        def ask(key: tuple[PoolConfig, str]) -> PoolContent | None:
            pool, manager = key
            try:
                return self.connections.to(manager).pool(f"pool:{pool.name}").look(wanted[pool])
            except (HostUnreachable, ServiceUnreachable):
                raise
            except StorkitError as error:
                failed[key] = error
                return None

        answers = self._each([(pool, each) for pool in wanted for each in pool.managers], ask, lambda key: key[1])
        found: dict[PoolConfig, list[Volume]] = {}
        for pool in wanted:
            self.failed.pop(pool.name, None)
            seen = several.merged(pool, {name: content for (own, name), content in answers.items() if own is pool})
            wrong = [error for (own, _), error in failed.items() if own is pool]
            for name in pool.managers:
                if (pool, name) in failed:
                    self.unread[name, f"pool:{pool.name}"] = failed[pool, name]
            if seen.problem or (wrong and not seen.acting):
                self.failed[pool.name] = seen.problem or wrong[0]
            if not seen.acting:
                continue
            self._acting[pool.name] = replace(pool, host=seen.acting)
            for each in seen.damaged:
                message = quoted(each.message, self.speaker(each.host))
                self.damaged[pool.name, each.name] = replace(each, message=message)
            found[pool] = seen.volumes
        return found

    def acting(self, pool: PoolConfig) -> PoolConfig:
        """A pool, with the one host that acts for it in this command: of several managers the first that answers, and
        sees the pool. Raises why there is none."""
        if not pool.managers:
            return pool
        if pool.name not in self._acting:
            self.of_pools({pool: []})
        if pool.name not in self._acting:
            raise self.silence(pool) or self.failed[pool.name]
        return self._acting[pool.name]

    def silence(self, pool: PoolConfig) -> HostUnreachable | ServiceUnreachable | None:
        """Why nobody speaks for a pool; None: somebody does, or was not asked."""
        if all(host in self.silent for host in pool.hosts):
            return self.silent[pool.hosts[0]]
        return None

    def _able(self, pools: Iterable[PoolConfig]) -> list[PoolConfig]:
        """Pools as `acting` has them; those that nobody acts for are left out, and why is noted."""
        found: list[PoolConfig] = []
        for pool in pools:
            try:
                found.append(self.acting(pool))
            except StorkitError:
                continue
        return found

    def volume(self, name: str) -> Volume:
        """The volume of a name, or of POOL/NAME. Raises NotFound, or HostUnreachable if it may be on a host that is
        silent."""
        return self.find_all([name])[0]

    def find_all(self, names: list[str], uuids: Mapping[str, str] | None = None) -> list[Volume]:
        """The volumes of these names, in this order; every one that is missing is named. `uuids`: of which this is
        known, which decides between two of one name."""
        return lookup.find_all(self, names, uuids or {})

    def present(self, names: Iterable[str], uuids: Mapping[str, str] | None = None) -> list[Volume]:
        """As `find_all`, for those that are found."""
        return list(lookup.present(self, names, uuids or {})[0].values())

    def refuse_damaged(self, names: Iterable[str]) -> None:
        """Raise Unsafe for those of `names` that a damaged volume has."""
        wanted = set(names)
        raise_problems([self.of_damaged(each) for each in self.damaged.values() if each.name in wanted])

    def of_damaged(self, volume: Damaged) -> StorkitError:
        """The error of a command that needs a damaged volume. The words are its host's."""
        error = Unsafe(volume.message, volume.hint)
        error.said_by = self.speaker(volume.host)
        return error

    def _unsafe(self, host: str, finding: Finding) -> StorkitError:
        """The error of a record that a host found damaged."""
        error = Unsafe(quoted(finding.message, self.speaker(host)), finding.hint)
        error.said_by = self.speaker(host)
        return error

    def speaker(self, host: str) -> str:
        """The host that words are to be marked as of; empty: this machine."""
        config = self.connections.find(host)
        return "" if config and config.machine == "local" else host

    def _look(self, pool: PoolConfig, names: list[str] | None, reason: StorkitError) -> list[Volume]:
        """The good volumes of a pool that could not be asked for all; raises `reason` where it is the pool itself."""
        try:
            seen = self.connections.to(pool.host).pool(f"pool:{pool.name}").look(names)
        except (HostUnreachable, ServiceUnreachable):
            raise
        except StorkitError:
            raise reason from None
        for each in seen.damaged:
            message = quoted(each.message, self.speaker(pool.host))
            self.damaged[pool.name, each.name] = replace(each, pool=pool.name, host=pool.host, message=message)
        return seen.volumes

    @contextmanager
    def _noted(self, pool: PoolConfig) -> Iterator[None]:
        """Note what keeps a pool from being looked at, and go on."""
        self.failed.pop(pool.name, None)
        try:
            yield
        except (HostUnreachable, ServiceUnreachable):
            raise
        except StorkitError as error:
            self.failed[pool.name] = error

    def exports(self, volumes: list[Volume]) -> list[Export]:
        """The exports of these volumes, asked of their home hosts."""
        exports: list[Export] = []
        for home, target, group in by_server(volumes, self.connections.inventory):
            exports += self.connections.to(home).transport(target).find_exports([volume.uuid for volume in group])
        return exports

    def all_exports(
        self, homes: Iterable[str] | None = None, partial: bool = False, needed: Collection[str] | None = None
    ) -> dict[str, list[Export]]:
        """Every export, by home host (None: of all hosts); silent ones are missing. `needed` as in `_each`.

        With `partial`, for those who only look, what a host cannot say (a damaged record) is noted in `unread`, and an
        export says who else can write the volume there.
        """

        def ask(host: str) -> list[Export]:
            exports = list[Export]()
            for target in self.connections.inventory.served_by:
                transport = self.connections.to(host).transport(target)
                if partial and (looked := _seen(transport.look_exports)) is not None:
                    exports += looked.exports
                    if looked.damaged:
                        self.unread[host, target] = together([self._unsafe(host, each) for each in looked.damaged])
                elif (told := self._told(host, target, partial, transport.find_exports)) is not None:
                    exports += told
            return exports

        return self._each(list(self.connections.inventory.hosts if homes is None else homes), ask, str, needed)

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

    def attachments(
        self,
        hosts: Iterable[str],
        volumes: list[Volume] | None = None,
        partial: bool = False,
        needed: Collection[str] | None = None,
    ) -> dict[str, list[Attachment]]:
        """What is attached, by host; `partial` and `needed` as in `all_exports`."""
        inventory = self.connections.inventory
        uuids = None if volumes is None else [volume.uuid for volume in volumes]
        targets = inventory.served_by if volumes is None else {inventory.transport(v.pool) for v in volumes}

        def ask(host: str) -> list[Attachment]:
            attachments = list[Attachment]()
            for target in sorted(targets):
                transport = self.connections.to(host).transport(target)
                if (told := self._told(host, target, partial, transport.find_attachments, uuids)) is not None:
                    attachments += told
                elif (seen := _seen(transport.look_attachments, uuids)) is not None:
                    attachments += seen.attachments
            return attachments

        return self._each(list(hosts), ask, str, needed)

    def guests(
        self,
        hosts: Iterable[str],
        target: str,
        names: list[str] | None = None,
        partial: bool = False,
        needed: Collection[str] | None = None,
    ) -> dict[str, list[GuestState]]:
        """What the hypervisors say, by host; silent hosts are missing. `partial` and `needed` as in `all_exports`.

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

    def usage(self, pools: Iterable[PoolConfig] | None = None, volumes: bool = False) -> list[Usage]:
        """How full the pools (all by default) are; with `volumes`, and what each takes of them."""

        def ask(pool: PoolConfig) -> Usage | None:
            connection = self.connections.to(pool.host)
            with self._noted(pool):
                asked = connection.pool(f"pool:{pool.name}")
                found = asked.capacity(volumes=True) if volumes else asked.capacity()
                return replace(found, warnings=[quoted(each, self.speaker(pool.host)) for each in found.warnings])
            return None

        wanted = self._able(self.connections.inventory.pools.values() if pools is None else pools)
        answers = self._each(wanted, ask, lambda pool: pool.host)
        return [answers[pool] for pool in wanted if pool in answers]

    def kept(
        self,
        pools: Iterable[PoolConfig] | None = None,
        volumes: list[str] | None = None,
        needed: Collection[str] | None = None,
    ) -> list[tuple[PoolConfig, KeptGuest]]:
        """The guests that pools (all by default) keep with these volumes (None: with any), without their texts, those
        that were deleted among them. What is damaged is noted in `unread`. `needed`: as in `_each`."""

        def ask(pool: PoolConfig) -> list[KeptGuest] | None:
            connection = self.connections.to(pool.host)
            with self._noted(pool):
                try:
                    found = connection.pool(f"pool:{pool.name}").kept(volumes)
                except (UsageError, Unsupported):  # an agent of the version before keeps no guests
                    return []
                if found.damaged:
                    wrong = [self._unsafe(pool.host, each) for each in found.damaged]
                    self.unread[pool.host, f"pool:{pool.name}"] = together(wrong)
                return found.guests
            return None

        wanted = self._able(self.connections.inventory.pools.values() if pools is None else pools)
        answers = self._each(wanted, ask, lambda pool: pool.host, needed)
        return [(pool, kept) for pool in wanted for kept in answers.get(pool, ())]

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


def _seen(ask: Callable[P, V], *args: P.args, **kwargs: P.kwargs) -> V | None:
    """What a host can say that could not say all; None: nothing, or it is of the version before."""
    try:
        return ask(*args, **kwargs)
    except HostUnreachable:
        raise
    except StorkitError:
        return None


def by_host(volumes: list[Volume]) -> dict[str, list[Volume]]:
    """Volumes by home host."""
    groups: dict[str, list[Volume]] = {}
    for volume in volumes:
        groups.setdefault(volume.host, []).append(volume)
    return groups


def by_server(volumes: list[Volume], inventory: Inventory) -> list[tuple[str, str, list[Volume]]]:
    """Volumes by what serves them: home host, transport (as a step's target), and its volumes."""
    groups: dict[tuple[str, str], list[Volume]] = {}
    for volume in volumes:
        groups.setdefault((volume.host, inventory.transport(volume.pool)), []).append(volume)
    return [(home, target, group) for (home, target), group in groups.items()]
