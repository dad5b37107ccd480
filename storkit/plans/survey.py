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
from storkit.core.inventory import Inventory, PoolConfig
from storkit.core.model import Attachment, Damaged, Export, Finding, PoolContent, Usage, Volume
from storkit.hosts.connections import Connections
from storkit.plans import lookup, several
from storkit.plans.hostsurvey import HostSurvey
from storkit.plans.remembered import Hints

if TYPE_CHECKING:
    from storkit.core.guest import KeptGuest

V = TypeVar("V")
P = ParamSpec("P")


class Survey(HostSurvey):
    """Questions of volumes, and of who has them."""

    def __init__(self, connections: Connections, hints: Hints | None = None) -> None:
        super().__init__(connections)
        self.hints = hints or Hints()
        self.failed: dict[str, StorkitError] = {}
        """Pools that cannot be looked at, though their hosts answer: what is in them is unknown."""
        self.damaged: dict[tuple[str, str], Damaged] = {}
        """The damaged volumes that were come across, by pool and name."""
        self._acting: dict[str, PoolConfig] = {}
        """Pools with several managers, as the one has them that acts for them in this command."""

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
