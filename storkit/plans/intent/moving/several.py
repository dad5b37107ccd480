"""Several guests moved at the same time, each by a plan of its own: what keeps one from moving stops no other."""

from __future__ import annotations

import threading
from collections.abc import Callable, Sequence
from concurrent.futures import Future, ThreadPoolExecutor, wait
from dataclasses import dataclass, replace

from storkit.core.errors import NOTHING_CHANGED, PUT_BACK, Interrupted, StorkitError, together
from storkit.plans.intent.coordinator import Coordinator, Planned
from storkit.plans.intent.moving.choosing import Leaving, Shares
from storkit.plans.intent.moving.outcomes import Migrated, Move
from storkit.plans.journal import new_id
from storkit.plans.plan import Plan, Stages, Step
from storkit.plans.steprun import Reporter, Silent

Run = Callable[[Coordinator, str, str, int], Migrated]
AT_ONCE = 2
"""How many guests move at the same time, unless somebody says otherwise: they share the networks of two hosts."""


def move(
    coordinator: Coordinator, guests: Sequence[Leaving], hosts: Sequence[str], at_once: int, title: str, run: Run
) -> list[Move]:
    """Move guests, each to that of these hosts which has got the fewest bytes of memory by this call so far and can run
    it. They begin in this order, `at_once` of them at the same time. `run` moves one, to a host where others that are
    on their way will take so many bytes of memory.

    Raises Planned, with the plans of all: this coordinator only plans.
    """
    return _Movers(coordinator, hosts, title, run).move(guests, at_once)


class _Movers:
    def __init__(self, coordinator: Coordinator, hosts: Sequence[str], title: str, run: Run) -> None:
        self._coordinator = coordinator
        self._run = run
        self._title = title
        self._shares = Shares(coordinator, hosts)
        self._coming = dict.fromkeys(hosts, 0)
        """By host, the memory of those that are on their way: what it has free does not say so yet."""
        self._lock = threading.Lock()
        self._idle: list[Coordinator] = []
        self._all: list[Coordinator] = []
        self._ended = False

    def move(self, guests: Sequence[Leaving], at_once: int) -> list[Move]:
        if self._coordinator.planning:
            self._plan(guests)
        reporter = self._coordinator.reporter or Silent()
        steps = [Step(str(number), "send", one.source, "", f"move {one.name}") for number, one in enumerate(guests, 1)]
        reporter.begin(Plan(new_id(), self._title, [steps]))
        pool = ThreadPoolExecutor(min(at_once, max(1, len(guests))))
        try:
            moving = [pool.submit(self._one, one, each, reporter) for one, each in zip(guests, steps, strict=True)]
            self._wait(moving)
            return [each.result() for each in moving]
        finally:
            self._end(pool)
            reporter.end()

    def _wait(self, moving: Sequence[Future[Move]]) -> None:
        try:
            wait(moving)
        except KeyboardInterrupt:
            self._ended = True
            for each in self._all:
                each.close()
            raise Interrupted(
                f"interrupted; guests may have been on their way ({self._title})", "the same command goes on with them"
            ) from None

    def _end(self, pool: ThreadPoolExecutor) -> None:
        pool.shutdown(cancel_futures=True)
        for each in self._all:
            self._coordinator.acted |= each.acted or each.connections.acted
            each.close()

    def _one(self, one: Leaving, shown: Step, reporter: Reporter) -> Move:
        reporter.step(shown, "start")
        try:
            with self._another() as mine:
                mine.reporter = _Within(reporter, shown)
                done = self._to_one_of_them(mine, one)
        except StorkitError as error:
            reporter.step(shown, "failed", "; ".join(each.message for each in error.each))
            return Move(one.name, error=error)
        reporter.step(shown, "done", f"to {done.to}")
        return Move(one.name, done)

    def _to_one_of_them(self, coordinator: Coordinator, one: Leaving) -> Migrated:
        """Move a guest to the first host that can run it. Raises what each host says, or what went wrong on the way:
        then no other is tried."""
        problems: list[StorkitError] = []
        tried: set[str] = set()
        while not self._ended and (host := self._choose(one, tried)):
            tried.add(host)
            try:
                with coordinator.call():
                    return self._run(coordinator, one.name, host, self._coming[host] - one.memory)
            except StorkitError as error:
                if error.left in (NOTHING_CHANGED, PUT_BACK):  # otherwise it may be there
                    with self._lock:
                        self._shares.drop(one, host)
                if error.left != NOTHING_CHANGED:
                    raise
                problems += [each for each in error.each if str(each) not in map(str, problems)]
            finally:
                with self._lock:
                    self._coming[host] -= one.memory
        with self._lock:
            problems += self._shares.why_not(one, tried)
        raise together(problems)

    def _choose(self, one: Leaving, tried: set[str]) -> str:
        """The host to try next, which counts as given the guest; empty: all were tried."""
        with self._lock:
            host = self._shares.take(one, tried)
            if host:
                self._coming[host] += one.memory
        return host

    def _another(self) -> _Lent:
        """A coordinator for one move: one command's locks are one coordinator's."""
        with self._lock:
            if not self._idle:
                self._idle.append(self._coordinator.another())
                self._all.append(self._idle[-1])
            return _Lent(self._idle.pop(), self._idle.append)

    def _plan(self, guests: Sequence[Leaving]) -> None:
        """Raise Planned, with all that `move` would do, one guest after the other."""
        stages = Stages()
        for one in guests:
            try:
                self._to_one_of_them(self._coordinator, one)
            except Planned as planned:
                for stage in planned.plan.stages:
                    stages.then(*stage)
            except StorkitError as error:
                self._coordinator.warn(f"guest {one.name} stays: {'; '.join(each.message for each in error.each)}")
        raise Planned(Plan(new_id(), self._title, stages.stages))


@dataclass(frozen=True, slots=True)
class _Lent:
    """One of several, and whom it goes back to."""

    one: Coordinator
    back: Callable[[Coordinator], None]

    def __enter__(self) -> Coordinator:
        return self.one

    def __exit__(self, *error: object) -> None:
        self.back(self.one)


class _Within:
    """A reporter of one guest's plan: to those who watch all of them it is one step."""

    def __init__(self, reporter: Reporter, step: Step) -> None:
        self._reporter, self._step = reporter, step

    def begin(self, plan: Plan) -> None:
        pass

    def step(self, step: Step, event: str, text: str = "") -> None:
        pass

    def progress(self, step: Step, fraction: float, text: str) -> None:
        self._reporter.progress(replace(self._step, host=step.host), fraction, text)

    def end(self) -> None:
        pass
