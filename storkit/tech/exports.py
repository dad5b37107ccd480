"""The home host's half of a transport, written once: what is granted, and bringing the servers to it.

A technology fills in what is its own (the methods that raise NotImplementedError, and those that do nothing here): the
fields of its grants, taking and giving a right in its server, and looking at what the server really does.

Every change goes in one order, whatever is killed at whatever moment:

1. *The lock, then the checks.* Everything that can be refused is refused before anything is saved. The epoch is looked
   at under the lock, so that a command that was held up changes nothing (storkit.tech.grants).
2. *A right that is taken is saved first,* and then taken from the server. From the moment it is saved no command, and
   no boot, gives it back: `restore` and every later change of the volume begin by taking whatever the server gives
   beyond the grant, and wait, as the first command did, until the last write has ended. So a kill between the two
   leaves a right that the next command takes, never one that nobody knows of.
3. *A right that is given is saved with those that are taken,* and given to the server last, after all that is taken has
   ended, on all volumes. If anything could not be taken, nothing is given. A kill between saving and giving leaves a
   writer that the server still refuses: `restore` makes exactly what is granted.
4. *A client that goes keeps its place in the grant until the server has let go of it.* Its right to write is saved as
   gone at once (2); its name stays until there is nothing left of it, because the grant is what names the rest: for
   `find_exports`, which shows what the server still does, and for the command that finishes the work.
5. *The grant is forgotten last.* A server without a grant would be one that nobody stops.

A fence marks the client first: from then on no command lets it in, and `restore` treats it as a client that goes.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Collection, Iterable, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, nullcontext, suppress
from dataclasses import replace
from typing import Any, ClassVar, Generic, Protocol

from storkit.core.backend import Site, Transport
from storkit.core.errors import Conflict, StorkitError, collected, raise_problems
from storkit.core.model import Client, Export, Exported, Offer, Volume, check_name
from storkit.system import openers
from storkit.tech import strangers
from storkit.tech.grants import G, GrantStore, grant_without, grants_of_client, refused_writers
from storkit.tech.records import damaged_findings


class HomeExports(ABC, Generic[G]):
    """The exports of one transport on one home host."""

    kind: type[G]
    """The dataclass of its grants."""
    writable_kinds: ClassVar[tuple[str, ...]] = ("disk",)
    """The kinds of volumes that can have writers."""

    def __init__(self, site: Site, settings: Any) -> None:
        self.site = site
        self.settings = settings
        self._grants = self._store()

    def _store(self) -> GrantStore[G]:
        """Where the grants are."""
        return GrantStore(self.site, self.kind)

    # The verbs

    def export(self, volumes: list[Volume], clients: list[Client]) -> list[Export]:
        names = {client.name for client in clients}
        uuids = [volume.uuid for volume in volumes]
        with self._lock(uuids), self._hold(volumes) as held:
            grants = self._extended(held, clients)
            self._grants.admit(grants)
            self._grants.save(grants)
            # A `fence` that began meanwhile has either read these grants, and waits, or its mark is seen here.
            if refused := self._grants.refused(names):
                self._withdraw(grants, [name for name in names if self._grants.fenced(name)])
                raise_problems(refused)
            self._take(grants)
            self._give(grants)
        return [export for export in self.find_exports(uuids) if export.client in names]

    def _extended(self, volumes: list[Volume], clients: list[Client]) -> list[G]:
        """The grants that the volumes had, with `clients` added, after everything that can be refused was."""
        found, problems = self._grants.find(volume.uuid for volume in volumes)
        before = {grant.volume.uuid: grant for grant in found}
        problems += self._grants.refused(client.name for client in clients)
        for volume in volumes:
            check_name("volume", volume.name)
            old = before.get(volume.uuid)
            if old is not None and _image(volume) != _image(old.volume) and self._in_use(old):
                message = f"volume {volume.name} is exported as it was before it changed"
                problems.append(Conflict(message, f"storkit detach {volume.name}"))
        grants = self._extend(volumes, before, clients, problems)
        if not problems:
            problems += self._refuse_held([grant for grant in grants if not _within(grant, before)], ())
        raise_problems(problems)
        return grants

    def set_writers(self, volumes: list[Volume], hosts: list[str], hold: str = "", fills: bool = False) -> None:
        uuids = [volume.uuid for volume in volumes]
        with self._lock(uuids):
            grants, problems = self._grants.find(uuids)
            raise_problems(problems)
            self._grants.admit(grants)
            found = {grant.volume.uuid: grant for grant in grants}
            for volume in volumes:
                problems += refused_writers(volume, found.get(volume.uuid), hosts, self.writable_kinds, hold, fills)
            if hosts:
                problems += self._refuse_writers(grants)
            more = [grant for grant in grants if not set(hosts) <= set(grant.writers)]
            problems += self._refuse_held(more, set(hosts))
            problems += self._refuse_to_leave_behind([grant for grant in grants if grant not in more], hosts)
            raise_problems(problems)
            floor = {volume.uuid: volume.generation for volume in volumes}
            for grant in grants:
                self._lose(grant, [writer for writer in grant.writers if writer not in hosts])
                if not set(hosts) <= set(grant.writers):
                    grant.generation = self._grants.next_generation(grant, floor[grant.volume.uuid])
                grant.writers = sorted(set(hosts))
            self._grants.save(grants)
            self._take(grants)
            self._give(grants)

    def grow(self, volumes: list[Volume]) -> None:
        uuids, problems = {volume.uuid: volume for volume in volumes}, list[StorkitError]()
        with self._lock(uuids):
            grants, found = self._grants.find(uuids)
            raise_problems(found)
            self._grants.admit(grants)
            for grant in grants:
                volume = uuids[grant.volume.uuid]
                if volume.size < grant.volume.size:
                    message = f"volume {volume.name} is exported, and cannot become smaller"
                    problems.append(Conflict(message, f"storkit detach {volume.name} --on {min(grant.clients)}"))
            raise_problems(problems)
            before = [grant.volume.size for grant in grants]
            _sized(grants, (uuids[grant.volume.uuid].size for grant in grants))
            try:
                self._enlarge(grants)
            except StorkitError:
                self._give_somehow(grants, before)
                raise
            self._grants.save(grants)
            self._give(grants)

    def _give_somehow(self, grants: Sequence[G], before: Sequence[int]) -> None:
        """Serve volumes again, whose clients wait, as large as they are by now: as they were before, or as wanted."""
        wanted = [grant.volume.size for grant in grants]
        for sizes in (before, wanted):
            _sized(grants, sizes)
            self._grants.save(grants)
            with suppress(StorkitError):
                return self._give(grants)
        return None

    def unexport(self, volumes: list[Volume], clients: list[str]) -> None:
        uuids = [volume.uuid for volume in volumes]
        with self._lock(uuids):
            self._settle(volumes)
            grants, problems = self._grants.find(uuids)
            raise_problems(problems)
            self._grants.admit(grants)
            for grant in grants:
                writers = [writer for writer in grant.writers if writer not in clients]
                problems += self._refuse_to_leave_behind([grant], writers)
            raise_problems(problems)
            self._withdraw(grants, clients)
            self._grants.forget(set(uuids) - {grant.volume.uuid for grant in grants})

    def fence(self, client: str) -> list[Export]:
        # The mark comes first: from then on no other command lets the host in.
        self._grants.fence(client)
        had: list[Export] = []
        problems: list[StorkitError] = []
        for found, damaged in self._in_turn():
            problems += damaged
            uuids = [grant.volume.uuid for grant in found if self._reaches(grant, client)]
            with self._lock(uuids):
                grants = [grant for grant in self._grants.find(uuids)[0] if self._reaches(grant, client)]
                had += [export for export in self._observe(grants) if export.client == client]
                done = _together(lambda some: self._withdraw(some, [client], force=True), grants, problems)
                problems += self._still_there(done, client)
                problems += self._left_behind(done) if client == self.site.host else []
        raise_problems(problems)
        return had

    def unfence(self, client: str) -> None:
        self._grants.unfence(client)

    def restore(self) -> None:
        """Make exactly what is granted, after a crash or a reboot, or whatever has changed it. Fenced clients go."""
        problems: list[StorkitError] = []
        for found, damaged in self._in_turn():
            problems += damaged
            uuids = [grant.volume.uuid for grant in found]
            with self._lock(uuids):
                _together(self._remake, self._grants.find(uuids)[0], problems)
        raise_problems(problems)

    def find_exports(self, volumes: list[str] | None = None) -> list[Export]:
        grants, problems = self._grants.find(volumes)
        raise_problems(problems)
        return self._observe(grants)

    def look_exports(self, volumes: list[str] | None = None) -> Exported:
        grants, problems = self._grants.find(volumes)
        found = strangers.find(self.site.run, [grant.volume for grant in grants])
        others = {each.volume.uuid: f"{each}; {each.hint}" for each in found}
        exports = [replace(export, others=others.get(export.uuid, "")) for export in self._observe(grants)]
        return Exported(exports, damaged_findings(problems))

    def offers(self, volumes: list[Volume], client: str) -> list[Offer]:
        grants, problems = self._grants.find(volume.uuid for volume in volumes)
        raise_problems(problems)
        offers: list[Offer] = []
        for grant in grants_of_client(grants, volumes, client):
            with collected(problems):
                offers.append(self._offer(grant, client))
        raise_problems(problems)
        return offers

    # The order of a change

    def _withdraw(self, grants: Sequence[G], clients: Sequence[str], *, force: bool = False) -> None:
        """Take these clients' exports away; with `force`, also past a server that hangs."""
        self._reduce(grants, [grant_without(grant, clients) for grant in grants], force)

    def _remake(self, grants: Sequence[G]) -> None:
        left = [self._grants.without_fenced(grant) for grant in grants]
        self._reduce(grants, left)
        staying = [grant for grant in left if grant.clients]
        self._give(staying)
        self._restored(staying)

    def _reduce(self, grants: Sequence[G], left: Sequence[G], force: bool = False) -> None:
        """Bring servers and records from `grants` to `left`, in which some have fewer clients."""
        smaller = [(old, new) for old, new in zip(grants, left, strict=True) if len(new.clients) < len(old.clients)]
        for old, new in smaller:
            named = grant_without(old, ())
            named.writers = new.writers
            self._grants.save([named])
        self._take(left, force)
        self._clear(grants, left, force)
        self._grants.save(new for _, new in smaller if new.clients)
        self._grants.forget(new.volume.uuid for new in left if not new.clients)

    # What each technology fills in

    def _in_turn(self) -> Iterator[tuple[list[G], list[StorkitError]]]:
        """All grants, and an error for each unreadable one, in groups: none waits for what only a later one needs."""
        yield self._grants.find()

    def _settle(self, volumes: Sequence[Volume]) -> None:
        """End what is left here of a time in which this host had these volumes. Their lock is held."""

    @abstractmethod
    def _lock(self, uuids: Iterable[str]) -> AbstractContextManager[None]:
        """Keep other commands from changing the servers of these volumes meanwhile. Raises Conflict."""

    def _hold(self, volumes: list[Volume]) -> AbstractContextManager[list[Volume]]:
        """Keep pools from changing or deleting these volumes, as they are then, until the grant says that they are in
        use."""
        return nullcontext(volumes)

    @abstractmethod
    def _extend(
        self, volumes: Sequence[Volume], before: dict[str, G], clients: Sequence[Client], problems: list[StorkitError]
    ) -> list[G]:
        """The grants that these volumes have (`before`, by UUID) with `clients` added, as copies; nothing is changed.

        Existing rights stay as they are. Everything that refuses a volume or a client is added to `problems`.
        """

    def _in_use(self, grant: G) -> bool:
        """Whether anything depends on the volume's bytes being where and what they were."""
        return bool(grant.clients)

    def _refuse_writers(self, grants: Sequence[G]) -> Iterable[StorkitError]:
        """Why nobody may write these volumes, whoever it is."""
        return ()

    def _refuse_held(self, grants: Sequence[G], writers: Collection[str]) -> Iterable[StorkitError]:
        """Whoever else on this host can write these volumes, so that nobody may get a right to them. What a guest has
        open since before they were volumes writes as this host does, which then has to be one of the `writers`."""
        found = strangers.find(self.site.run, [grant.volume for grant in grants])
        here = self.site.host
        return [each.refuse(here) for each in found if each.unexpected or (writers and here not in writers)]

    def _refuse_to_leave_behind(self, grants: Sequence[G], writers: Collection[str]) -> Iterable[StorkitError]:
        """Why this host cannot lose its right while others have one: what a guest has open here writes on without."""
        here = self.site.host
        return self._left_behind([each for each in grants if writers and here in each.writers and here not in writers])

    def _left_behind(self, grants: Sequence[G]) -> list[StorkitError]:
        """An error for each of these volumes that a guest here has had open since before it was a volume."""
        known = [grant.volume for grant in grants if openers.earlier(self.site.run, grant.volume.uuid)]
        return [each.refuse(self.site.host) for each in strangers.find(self.site.run, known) if each.earlier]

    def _lose(self, grant: G, losers: Sequence[str]) -> None:
        """Change, unsaved, what the grant has of clients that lose the right to write."""

    @abstractmethod
    def _take(self, grants: Sequence[G], force: bool = False) -> None:
        """Take whatever the servers give beyond these grants, and wait until it has ended: when this returns, no write
        without a grant can still reach a disk. A volume without clients has no server afterwards.

        Nothing is given, and nothing is started. Raises what could not be taken, after all else was; with `force` a
        server that does not answer is killed.
        """

    @abstractmethod
    def _give(self, grants: Sequence[G]) -> None:
        """Start what does not run, and give the clients what they have by these grants. All that is too much has been
        taken."""

    def _clear(self, grants: Sequence[G], left: Sequence[G], force: bool) -> None:
        """Remove all that is there for clients which are not in `left`; their access has been taken. `grants` are those
        that named them, in the same order."""

    def _restored(self, grants: Sequence[G]) -> None:
        """Make again what this host itself has by these grants."""

    def _reaches(self, grant: G, client: str) -> bool:
        """Whether a client has anything of this volume."""
        return client in grant.clients

    def _enlarge(self, grants: Sequence[G]) -> None:
        """Make what serves these volumes as large as they are in these grants, which are not saved yet. Whoever has one
        may have to wait for `_give`, and loses no write. Done already is fine."""

    @abstractmethod
    def _observe(self, grants: Sequence[G]) -> list[Export]:
        """The exports of these volumes as the servers have them."""

    @abstractmethod
    def _offer(self, grant: G, client: str) -> Offer:
        """What a client of this grant needs for attaching the volume."""

    @abstractmethod
    def _still_there(self, grants: Sequence[G], client: str) -> Iterable[StorkitError]:
        """An error for each way that `client`, which has just been cut off, still has to the volumes of `grants`: these
        are as they were before."""


class _Restored(Protocol):
    def restore(self) -> object: ...


class HomeSide(Transport):
    """The part of a transport's class that runs at the home host: HomeExports has it."""

    @property
    @abstractmethod
    def _exports(self) -> HomeExports[Any]: ...

    @property
    @abstractmethod
    def _attachments(self) -> _Restored: ...

    def export(self, volumes: list[Volume], clients: list[Client]) -> list[Export]:
        return self._exports.export(volumes, clients)

    def grow(self, volumes: list[Volume]) -> None:
        self._exports.grow(volumes)

    def unexport(self, volumes: list[Volume], clients: list[str]) -> None:
        self._exports.unexport(volumes, clients)

    def look_exports(self, volumes: list[str] | None = None) -> Exported:
        return self._exports.look_exports(volumes)

    def offers(self, volumes: list[Volume], client: str) -> list[Offer]:
        return self._exports.offers(volumes, client)

    def set_writers(self, volumes: list[Volume], hosts: list[str], hold: str = "", fills: bool = False) -> None:
        self._exports.set_writers(volumes, hosts, hold, fills)

    def fence(self, client: str) -> list[Export]:
        return self._exports.fence(client)

    def unfence(self, client: str) -> None:
        self._exports.unfence(client)

    def restore(self) -> list[Export]:
        # Attachments on the server's own machine need it: they come second.
        problems: list[StorkitError] = []
        for restore in (self._exports.restore, self._attachments.restore):
            with collected(problems):
                restore()
        raise_problems(problems)
        return self.find_exports()


def _sized(grants: Iterable[G], sizes: Iterable[int]) -> None:
    for grant, size in zip(grants, sizes, strict=True):
        grant.volume = replace(grant.volume, size=size)


def _within(grant: G, before: Mapping[str, G]) -> bool:
    """Whether a grant lets nobody in who was not let in before."""
    return grant.volume.uuid in before and grant.clients.keys() <= before[grant.volume.uuid].clients.keys()


def _image(volume: Volume) -> tuple[str, str, int, str]:
    """What an export depends on."""
    return volume.path, volume.format or "raw", volume.size, volume.kind


def _together(act: Callable[[Sequence[G]], None], grants: Sequence[G], problems: list[StorkitError]) -> Sequence[G]:
    """Do it for all at once. Where that fails, do it one by one, so that what is wrong with one keeps no other from it;
    what fails then is added to `problems`. Those for which it was done."""
    try:
        if grants:
            act(grants)
        return grants
    except StorkitError as error:
        if len(grants) == 1:
            problems.append(error)
            return []
    done: list[G] = []
    for grant in grants:
        with collected(problems):
            act([grant])
            done.append(grant)
    return done
