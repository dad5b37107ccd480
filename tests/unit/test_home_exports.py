"""The one crash order of the home side (storkit.tech.exports), with a server of a few lines and real grants: a verb is
killed before each of its changes, and what is left is looked at, restored, finished and undone."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any, ClassVar

import pytest

from storkit.core.backend import Site
from storkit.core.errors import Conflict, StorkitError, TimedOut, Unsafe
from storkit.core.identities import ClientName
from storkit.core.model import Client, Export, Offer, Volume, VolumeHold
from storkit.tech.exports import HomeExports
from storkit.tech.grants import GrantStore

V = Volume("v", "cc18ff28-316c-43a9-9f2c-38e3cc63bc95", 1 << 20, "p", "s", path="/v")
W = Volume("w", "68ef4ad6-1cb9-49f8-8773-a1a59a20d669", 1 << 20, "p", "s", path="/w")
A, B = Client("a", False), Client("b", False)


@dataclass(slots=True)
class ToyGrant:
    transport: ClassVar[str] = "toy"
    title: ClassVar[str] = "toy"

    volume: Volume
    clients: dict[ClientName, bool] = field(default_factory=dict)
    writers: list[ClientName] = field(default_factory=list)
    epoch: int = 0
    generation: int = 0


class Killed(BaseException):
    pass


class Server:
    """What the server gives: volume to client to whether it may write. It outlives a command, and dies with power."""

    def __init__(self) -> None:
        self.rights: dict[str, dict[str, bool]] = {}
        self.left: int | None = None
        """Changes until the command is killed."""
        self.stuck: set[str] = set()
        """Volumes whose writes do not come back."""
        self.history: list[dict[str, dict[str, bool]]] = []

    def change(self) -> None:
        if self.left is not None:
            self.left -= 1
            if self.left < 0:
                raise Killed
        self.history.append({uuid: dict(rights) for uuid, rights in self.rights.items()})


class Toys(HomeExports[ToyGrant]):
    kind = ToyGrant

    def __init__(self, site: Site, server: Server) -> None:
        super().__init__(site, None)
        self.server = server
        store = self._grants

        class Counted(GrantStore[ToyGrant]):
            def save(self, grants: Iterable[ToyGrant]) -> None:
                for grant in grants:
                    server.change()
                    store.save([grant])

            def forget(self, uuids: Iterable[str]) -> None:
                for uuid in uuids:
                    server.change()
                    store.forget([uuid])

        self._grants = Counted(site, ToyGrant)

    @contextmanager
    def _lock(self, uuids: Iterable[str]) -> Iterator[None]:
        yield

    def _extend(
        self, volumes: Sequence[Volume], before: dict[str, ToyGrant], clients: Sequence[Client],
        problems: list[StorkitError],
    ) -> list[ToyGrant]:  # fmt: skip
        old = [before.get(volume.uuid, ToyGrant(volume)) for volume in volumes]
        new = {client.name: True for client in clients}
        return [ToyGrant(each.volume, each.clients | new, each.writers, each.epoch, each.generation) for each in old]

    def _take(self, grants: Sequence[ToyGrant], force: bool = False) -> None:
        for grant in grants:
            rights = self.server.rights.get(grant.volume.uuid, {})
            for client, writable in sorted(rights.items()):
                if client not in grant.clients or (writable and client not in grant.writers):
                    if grant.volume.uuid in self.server.stuck:
                        raise TimedOut(f"the writes of {client} do not come back")
                    self.server.change()
                    del rights[client]

    def _give(self, grants: Sequence[ToyGrant]) -> None:
        for grant in grants:
            for client in grant.clients:
                self.server.change()
                self.server.rights.setdefault(grant.volume.uuid, {})[client] = client in grant.writers

    def _observe(self, grants: Sequence[ToyGrant]) -> list[Export]:
        return [
            Export(grant.volume.name, grant.volume.uuid, client, bool(rights.get(client)), "toy", client in rights, "")
            for grant in grants
            for rights in [self.server.rights.get(grant.volume.uuid, {})]
            for client in grant.clients
        ]

    def _offer(self, grant: ToyGrant, client: str) -> Offer:
        raise NotImplementedError

    def _still_there(self, grants: Sequence[ToyGrant], client: str) -> Iterable[StorkitError]:
        for grant in grants:
            if client in self.server.rights.get(grant.volume.uuid, {}):
                yield Unsafe(f"volume {grant.volume.name} is still exported to {client}")


@pytest.fixture
def toys(tmp_path: Path) -> Toys:
    return Toys(Site("s", tmp_path, tmp_path / "run", tmp_path / "dev"), Server())


def writers(toys: Toys, uuid: str = V.uuid) -> set[str]:
    return {client for client, writable in toys.server.rights.get(uuid, {}).items() if writable}


def granted(toys: Toys) -> dict[str, tuple[list[str], list[str]]]:
    return {grant.volume.name: (list(grant.clients), grant.writers) for grant in toys._grants.find()[0]}


def killed_everywhere(toys: Toys, before: Callable[[], object], verb: Callable[[], object]) -> Iterator[int]:
    """Kill `verb` before its first change, its second, ...; `before` puts everything back to where it starts."""
    for at in range(1000):
        before()
        toys.server.left = at
        try:
            verb()
        except Killed:
            toys.server.left = None
            yield at
        else:
            toys.server.left = None
            assert at > 1
            return


def started(toys: Toys) -> None:
    for client in ("a", "b"):
        toys.unfence(client)
    toys.unexport([V, W], ["a", "b"])
    assert granted(toys) == {} and not any(toys.server.rights.values()), "nothing is left of the attempt before"
    toys.export([V, W], [A, B])
    toys.set_writers([V, W], ["a"])


VERBS: dict[str, Callable[[Toys], object]] = {
    "set_writers": lambda toys: toys.set_writers([V, W], ["b"]),
    "unexport": lambda toys: toys.unexport([V, W], ["a"]),
    "unexport all": lambda toys: toys.unexport([V, W], ["a", "b"]),
    "fence": lambda toys: toys.fence("a"),
}


@pytest.mark.parametrize("verb", VERBS)
@pytest.mark.parametrize("power", [False, True], ids=["command killed", "power lost"])
def test_a_right_that_was_taken_stays_taken_whatever_is_killed(toys: Toys, verb: str, power: bool) -> None:
    """After the first change of the verb has been saved, neither a boot nor another command gives `a` its right."""
    for at in killed_everywhere(toys, lambda: started(toys), lambda: VERBS[verb](toys)):
        saved = [grant for grant in toys._grants.find()[0] if "a" not in grant.writers]
        if power:
            toys.server.rights.clear()
        toys.restore()
        for grant in saved:
            assert "a" not in writers(toys, grant.volume.uuid), (at, grant.volume.name)
        now = {grant.volume.uuid: set(grant.writers) for grant in toys._grants.find()[0]}
        assert {uuid: writers(toys, uuid) for uuid in now} == now, "restore makes exactly what is granted"
        VERBS[verb](toys)
        assert writers(toys) == ({"b"} if verb == "set_writers" else set())


def test_a_client_that_goes_is_named_until_the_server_has_let_go(toys: Toys) -> None:
    """Otherwise nobody would know of it: neither who looks at the exports, nor who undoes them."""
    for at in killed_everywhere(toys, lambda: started(toys), lambda: toys.unexport([V, W], ["a", "b"])):
        named = {(export.uuid, export.client) for export in toys.find_exports()}
        has = {(uuid, client) for uuid, rights in toys.server.rights.items() for client in rights}
        assert has <= named, at


def test_there_are_never_two_writers_nor_one_that_is_not_granted(toys: Toys) -> None:
    for _ in killed_everywhere(toys, lambda: started(toys), lambda: toys.set_writers([V, W], ["b"])):
        toys.server.history.clear()
        toys.restore()
        toys.set_writers([V, W], ["a"])
        assert toys.server.history
        for moment in toys.server.history:
            assert all(sum(rights.values()) < 2 for rights in moment.values()), moment


def test_nothing_is_given_on_any_volume_if_something_cannot_be_taken(toys: Toys) -> None:
    started(toys)
    toys.server.stuck = {W.uuid}
    for verb in (lambda: toys.set_writers([V, W], ["b"]), toys.restore):
        with pytest.raises(TimedOut):
            verb()
        assert "b" not in writers(toys, W.uuid) and "a" in writers(toys, W.uuid)
    toys.server.stuck.clear()
    toys.restore()
    assert writers(toys, V.uuid) == writers(toys, W.uuid) == {"b"}


def test_what_hangs_on_one_volume_keeps_no_other_from_being_fenced(toys: Toys) -> None:
    started(toys)
    toys.server.stuck = {V.uuid}
    with pytest.raises(StorkitError):
        toys.fence("a")
    assert "a" not in toys.server.rights[W.uuid] and granted(toys)["w"] == (["b"], [])
    assert granted(toys)["v"] == (["a", "b"], []), "it is still named, and no more a writer"
    toys.server.stuck.clear()
    assert [export.volume for export in toys.fence("a")] == ["v"]
    with pytest.raises(Unsafe, match="fenced"):
        toys.export([V], [A])


def test_a_volume_that_changed_is_not_exported_beside_what_it_was(toys: Toys) -> None:
    started(toys)
    moved: Any = Volume("v", V.uuid, 2 << 20, "p", "s", path="/v")
    with pytest.raises(Conflict, match="as it was before"):
        toys.export([moved], [A])


def generation(toys: Toys) -> int:
    """What a grant says, and with it every export."""
    (grant,) = toys._grants.find([V.uuid])[0]
    return grant.generation


def test_a_volume_counts_the_rights_that_are_given_and_none_that_is_taken(toys: Toys) -> None:
    toys.export([V], [A, B])
    assert generation(toys) == 0
    counted = []
    for hosts in (["a"], ["a"], ["a", "b"], ["b"], [], ["b"]):
        toys.set_writers([V], hosts)
        counted.append(generation(toys))
    assert counted == [1, 1, 2, 2, 2, 3]
    toys.export([V], [Client("c", False)])
    toys.restore()
    assert generation(toys) == 3


def test_the_count_goes_on_where_the_grant_was_forgotten(tmp_path: Path) -> None:
    """By the epoch of the command that gives the right, and never at or below what the volume's metadata know."""
    counted = []
    for epoch in (40, 41, 45):
        toys = Toys(Site("s", tmp_path, tmp_path / "run", tmp_path / "dev", epoch=epoch), Server())
        toys.export([V], [A])
        toys.set_writers([V], ["a"])
        counted.append(generation(toys))
        toys.unexport([V], ["a"])
    assert counted == [40, 41, 45]
    toys = Toys(Site("s", tmp_path / "new", tmp_path / "run", tmp_path / "dev", epoch=3), Server())
    toys.export([V], [A])
    toys.set_writers([replace(V, generation=45)], ["a"])
    assert generation(toys) == 46


def test_a_held_volume_gains_no_writer_but_by_the_id_of_its_hold(toys: Toys) -> None:
    hold = VolumeHold(W.uuid, "g", V.uuid, 1, "2026-01-02T03:04:05Z", "a", "")
    asleep = replace(V, hold=hold, generation=1)
    toys.export([V, W], [A, B])
    toys.set_writers([V], ["a"])
    for hosts in (["b"], ["a", "b"]):
        with pytest.raises(Conflict, match="guest g sleeps on volume v"):
            toys.set_writers([W, asleep], hosts)
    assert (writers(toys), writers(toys, W.uuid), generation(toys)) == ({"a"}, set(), 1)
    toys.set_writers([asleep], ["a"])  # nobody gains anything
    toys.set_writers([asleep], [])
    for volume, sleep in ((asleep, W.uuid), (V, hold.id)):
        with pytest.raises(Conflict, match="has ended"):
            toys.set_writers([volume], ["b"], sleep)
    assert writers(toys) == set()
    toys.set_writers([asleep], ["b"], hold.id)
    assert (writers(toys), generation(toys)) == ({"b"}, 2)
