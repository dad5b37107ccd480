"""Which host each of many guests goes to, and what one that cannot go there means for it and for the others."""

from __future__ import annotations

import threading
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest

from storkit.core.errors import NOTHING_CHANGED, Conflict, StorkitError, UsageError
from storkit.core.inventory import Defaults, Inventory
from storkit.plans.intent.coordinator import Coordinator
from storkit.plans.intent.moving.choosing import Leaving, in_order
from storkit.plans.intent.moving.outcomes import Migrated, Move
from storkit.plans.intent.moving.several import move

GIB = 1 << 30


class Hosts:
    """What moves guests: each host takes those that it may, and notes what it was told is coming."""

    def __init__(self, refuses: dict[str, set[str]] | None = None, breaks: str = "") -> None:
        self.refuses = refuses or {}
        self.breaks = breaks
        self.got: dict[str, list[str]] = {}
        self.coming: dict[str, int] = {}
        self.at_once = self.most = 0
        self._lock = threading.Lock()
        self._all_in = threading.Event()

    def run(self, coordinator: Coordinator, guest: str, to: str, coming: int) -> Migrated:
        with self._lock:
            self.at_once += 1
            self.most = max(self.most, self.at_once)
            self.coming[guest] = coming
        try:
            if guest == self.breaks:
                raise Conflict("the network is gone", "look at it")  # after something was changed
            if guest in self.refuses.get(to, set()):
                error = Conflict(f"{to}: no room", "storkit host check")
                error.left = NOTHING_CHANGED
                raise error
            with self._lock:
                self.got.setdefault(to, []).append(guest)
            return Migrated(guest, to, "plan", [], None, [])
        finally:
            with self._lock:
                self.at_once -= 1


def moved(tmp_path: Path, hosts: Hosts, guests: Sequence[Leaving], to: Sequence[str], at_once: int = 1) -> list[Move]:
    coordinator = Coordinator(Inventory({}, {}), tmp_path, lambda text: None)
    return move(coordinator, guests, to, at_once, "a test", hosts.run)


def guests(**memory: int) -> list[Leaving]:
    return [Leaving(name, "a", size * GIB) for name, size in memory.items()]


def test_each_goes_where_the_least_was_given_so_far(tmp_path: Path) -> None:
    hosts = Hosts()
    done = moved(tmp_path, hosts, guests(big=4, two=2, one=1, last=1), ["b", "c"])
    assert hosts.got == {"b": ["big"], "c": ["two", "one", "last"]}
    assert [each.guest for each in done] == ["big", "two", "one", "last"] and all(each.done for each in done)


def test_a_guest_that_a_host_cannot_run_goes_to_the_next_and_weighs_nothing_on_the_first(tmp_path: Path) -> None:
    hosts = Hosts({"b": {"big"}})
    moved(tmp_path, hosts, guests(big=4, two=2, one=1), ["b", "c"])
    assert hosts.got == {"c": ["big"], "b": ["two", "one"]}


def test_one_that_nobody_can_run_says_why_of_each_host_and_the_others_move(tmp_path: Path) -> None:
    hosts = Hosts({"b": {"big"}, "c": {"big"}})
    big, one = moved(tmp_path, hosts, guests(big=4, one=1), ["b", "c"])
    assert isinstance(big.error, StorkitError) and one.done
    assert [str(each) for each in big.error.each] == ["b: no room", "c: no room"]


def test_what_went_wrong_on_the_way_is_not_tried_again(tmp_path: Path) -> None:
    hosts = Hosts(breaks="big")
    big, one = moved(tmp_path, hosts, guests(big=4, one=1), ["b", "c"])
    assert big.error is not None and big.error.message == "the network is gone" and one.done
    assert hosts.got == {"c": ["one"]}, "what it was given may be there"


def test_none_goes_back_to_where_it_leaves(tmp_path: Path) -> None:
    (one,) = moved(tmp_path, Hosts(), guests(one=1), ["a"])
    assert one.error is not None and "no host" in one.error.message


def test_as_many_at_once_as_are_wished_and_each_host_knows_what_is_coming(tmp_path: Path) -> None:
    class Together(Hosts):
        def run(self, coordinator: Coordinator, guest: str, to: str, coming: int) -> Migrated:
            barrier.wait(timeout=30)
            return super().run(coordinator, guest, to, coming)

    barrier = threading.Barrier(3)
    hosts = Together()
    moved(tmp_path, hosts, guests(one=1, two=2, three=3), ["b"], at_once=3)
    assert sorted(hosts.coming.values())[0] == 0 and max(hosts.coming.values()) >= GIB


def test_guests_that_stay_apart_share_no_host(tmp_path: Path) -> None:
    hosts = Hosts()
    coordinator = Coordinator(Inventory({}, {}, {}, {}, Defaults(apart=["db-*"])), tmp_path, lambda text: None)
    coordinator.hypervisors = lambda kept=(): []  # type: ignore[method-assign]
    leaving = [Leaving(name, "a", GIB) for name in ("db-1", "db-2", "db-3", "web")]
    done = move(coordinator, leaving, ["b", "c"], 1, "a test", hosts.run)
    assert hosts.got == {"b": ["db-1", "web"], "c": ["db-2"]}
    assert done[2].error is not None and [str(each) for each in done[2].error.each] == [
        "b: guest db-3 stays apart from db-1, which is there", "c: guest db-3 stays apart from db-2, which is there",
    ]  # fmt: skip


@pytest.mark.parametrize(
    ("first", "order"),
    [
        ((), ["big", "a1", "a2", "db"]),
        (("db",), ["db", "big", "a1", "a2"]),
        (("a*", "db"), ["a1", "a2", "db", "big"]),
        (("none",), ["big", "a1", "a2", "db"]),
    ],
)
def test_the_order(first: tuple[str, ...], order: list[str]) -> None:
    assert [each.name for each in in_order(guests(a2=2, db=1, big=4, a1=2), first)] == order


def test_one_name_is_no_list_of_names() -> None:
    with pytest.raises(UsageError, match="a list of them is wanted"):
        in_order(guests(one=1), "one")


def test_an_interrupted_move_closes_what_it_has_connected_to(tmp_path: Path, monkeypatch: Any) -> None:
    from storkit.plans.intent.moving import several

    def interrupt(futures: Any) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr(several, "wait", interrupt)
    with pytest.raises(StorkitError, match="interrupted"):
        moved(tmp_path, Hosts(), guests(one=1, two=2), ["b"])
