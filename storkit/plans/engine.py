"""Runs plans: journals every step before it acts, resumes what was killed, rolls back what should not have been."""

from __future__ import annotations

import os
import socket
import threading
import time
from collections.abc import Iterable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any, NoReturn

from storkit.core import codec
from storkit.core.errors import (
    NOTHING_CHANGED,
    PUT_BACK,
    Conflict,
    HostUnreachable,
    Interrupted,
    NotAllowed,
    StepFailed,
    StorkitError,
    TimedOut,
    Unsafe,
    raise_problems,
    together,
)
from storkit.core.host import Claim
from storkit.core.inventory import HostConfig
from storkit.hosts.connections import Connections
from storkit.plans import verbs
from storkit.plans.journal import Journal, Journals, NotWritten, Unwritten
from storkit.plans.plan import Hold, Plan, Step
from storkit.plans.steprun import Reporter, Silent, StepRun
from storkit.plans.verb import seen


class Engine:
    """Runs the plans of one coordinator."""

    def __init__(self, connections: Connections, state: Path, reporter: Reporter | None = None) -> None:
        self.connections = connections
        self.state = state
        self.journals = Journals(state / "plans")
        self.reporter: Reporter = reporter or Silent()

    def hold(self, holds: list[Hold], plan: str = "", over_marks: bool = False, title: str = "") -> None:
        """Take the plan's names on every host, or none. Raises Conflict with the holder, who is named by `title`.

        `over_marks` takes them although other plans have not ended, and ends those.
        """
        since = time.strftime("%H:%M:%S UTC", time.gmtime())
        holder = f"'{title[:200] or 'storkit'}' since {since} (process {os.getpid()} on {socket.gethostname()})"
        hosts: dict[str, list[Claim]] = {}
        titles: dict[str, dict[str, str]] = {}
        for wanted in holds:
            hosts.setdefault(wanted.host, []).append(Claim(wanted.names, wanted.shared))
            titles.setdefault(wanted.host, {}).update(wanted.titles)
        try:
            for host in sorted(hosts):
                asked = hosts[host], holder, plan, over_marks, titles[host]
                try:
                    given_up = self.connections.to(host).lock(*asked)
                except Conflict as error:
                    if not self._unmark_ended(error):
                        raise
                    given_up = self.connections.to(host).lock(*asked)
                for other in given_up:
                    self._give_plan_up(other)
        except StorkitError:
            self.connections.unlock()
            raise

    def _unmark_ended(self, refused: Conflict) -> bool:
        """Whether the plan that stands in the way has ended, by its journal here: its command was killed just before it
        could take its marks away, which are gone now."""
        named = [plan for plan in self.journals.ids() if plan in refused.message]
        ended = [record for record in map(self.journals.read, named) if record.end]
        for record in ended:
            self._unmark(record.plan)
        return bool(ended)

    def _give_plan_up(self, plan: str) -> None:
        """Say in a plan's journal, if this host has it, that the truth has overtaken it."""
        if plan in self.journals.ids():
            journal = self.journals.reopen(plan)
            if not journal.record.end:
                journal.end("given up")
            journal.close()

    def run(self, plan: Plan) -> dict[str, Any]:
        """Run a plan whose names are held: step id to result.

        Raises StepFailed; what was done stays, to be resumed or rolled back by the command in the hint.
        """
        if not plan.steps:
            return {}
        if all(verbs.VERBS[step.verb].question for step in plan.steps):
            return self._ask(plan)
        self._reach(plan.steps, NOTHING_CHANGED)
        try:
            journal = self.journals.create(plan)
        except StorkitError as error:
            error.left = NOTHING_CHANGED
            raise
        try:
            with _recoverable(plan):
                return self._forward(journal)
        finally:
            journal.close()

    def _reach(self, steps: Iterable[Step], left: str = "") -> None:
        """Connect to every host that these steps need, before the first of them: otherwise that could give a right to a
        host that cannot take it up. Raises HostUnreachable: some are silent.
        """
        silent = self.connections.reach(sorted(set().union(*(verbs.of(step).needs(step) for step in steps))))
        if silent:
            error = together(list(silent.values()))
            error.left = left
            raise error

    def _ask(self, plan: Plan) -> dict[str, Any]:
        """Run a plan that changes nothing: without a journal or a mark, so that there is nothing to end afterwards."""
        journal = Unwritten(plan)
        self.reporter.begin(plan)
        try:
            for stage in plan.stages:
                failures = [error for error in _together(stage, lambda step: self._step(journal, step)) if error]
                raise_problems([single for _, error in failures for single in error.each])
        finally:
            self.reporter.end()
        return journal.record.done

    def resume(self, plan: str) -> dict[str, Any]:
        """Go on with a plan that was killed or failed, from the first step that is not done."""
        with self._reopened(plan, "resumed") as journal, _recoverable(journal.record.plan):
            record = journal.record
            self._reach(step for step in record.plan.steps if step.id not in record.standing)
            return self._forward(journal)

    def rollback(self, plan: str) -> list[str]:
        """Undo what a plan did, last step first; what could not be undone, in a line each."""
        with self._reopened(plan, "rolled back") as journal, _recoverable(journal.record.plan):
            return self._backward(journal)

    @contextmanager
    def _reopened(self, plan: str, what: str) -> Iterator[Journal]:
        record = self.journals.read(plan)
        for name, url in record.plan.hosts.items():
            if name not in self.connections.inventory.hosts:
                self.connections.inventory = self.connections.inventory.with_host(HostConfig(name, url))
        self.hold(record.plan.holds, plan, title=record.plan.title)
        journal = self.journals.reopen(plan)
        try:
            record = journal.record
            if not record.end and record.started and not self._marked_everywhere(record.plan):
                journal.end("given up")
            if what == "resumed" and not (record.end or record.started or self._marked_everywhere(record.plan)):
                # No host carries its mark, so it never started; and what it was planned from may have changed since.
                journal.end("never begun")
                raise Conflict(f"plan {plan} was killed before it began", "run its command again")
            if record.end:
                # Killed just before, it may have left its marks.
                self._unmark(record.plan)
                raise Unsafe(f"plan {plan} has ended ({record.end}); it cannot be {what}", "storkit plan list")
            yield journal
        finally:
            journal.close()

    def _forward(self, journal: Journal) -> dict[str, Any]:
        plan, record = journal.record.plan, journal.record
        try:
            self._mark(plan)
        except StorkitError as error:
            if not record.started:
                self._never_begun(journal, error)
            raise
        self.reporter.begin(plan)
        try:
            for stage in plan.stages:
                waiting = [step for step in stage if step.id not in record.standing]
                failures = [error for error in _together(waiting, lambda step: self._step(journal, step)) if error]
                if failures:
                    self._give_up(journal, failures)
        except KeyboardInterrupt:
            raise Interrupted(
                f"interrupted; plan {plan.id} has not ended",
                f"storkit plan resume {plan.id}, or storkit plan rollback {plan.id}",
            ) from None
        finally:
            self.reporter.end()
        journal.end("completed")
        self._unmark(plan)
        if all(verbs.of(step).again(step) for step in plan.steps):
            self._give_up_earlier(plan)
        return record.done

    def _give_up_earlier(self, plan: Plan) -> None:
        """End plans that were cut short, and of which a plan that is done has done every step: its command was given
        again, as it says (a fence, a drain)."""
        done = [(step.verb, step.host, step.target, step.args) for step in plan.steps]
        for other in self.journals.ids():
            with suppress(StorkitError):
                earlier = self.journals.read(other)
                steps = earlier.plan.steps
                if not (earlier.end or earlier.running) and all(
                    (step.verb, step.host, step.target, step.args) in done for step in steps
                ):
                    self._give_plan_up(other)

    def _give_up(self, journal: Journal, failures: list[tuple[Step, StorkitError]]) -> NoReturn:
        """Put everything back and raise the steps' own error; where that cannot be done, raise StepFailed.

        What cannot be taken back is left for `resume`: after a guest has moved, going on is right, going back is not.
        What is meant to stay (a fence) is repeated by its own command.
        """
        plan, record = journal.record.plan, journal.record
        error = together([error for _, error in failures])
        if not record.started:
            self._never_begun(journal, error)
        failed = "; ".join(f"{step.title}: {each.message}" for step, error in failures for each in error.each)
        hints = list(dict.fromkeys(each.advice for each in error.each if each.hint))
        done = [other for other in plan.steps if other.id in record.standing]
        again = next((command for step in plan.steps if (command := verbs.of(step).again(step))), "")
        left = ""
        silent = any(isinstance(each, HostUnreachable) for each in error.each)  # what it does, and when, nobody knows
        tried = [*done, *(step for step, _ in failures)]
        if done and not silent and all(verbs.VERBS[other.verb].repeated for other in tried):
            journal.end("failed in part")
            self._unmark(plan)
            raise error
        if again:
            journal.end("failed in part" if done else "failed")
            self._unmark(plan)
        else:
            final = any((kind := verbs.VERBS[other.verb]).barrier or not kind.undoable for other in done)
            if not final and not silent:
                try:
                    left = "; ".join(self._undo_all(journal))
                except StorkitError as stuck:
                    left = stuck.message
                if not left:
                    journal.end("failed and rolled back")
                    self._unmark(plan)
                    error.left = PUT_BACK
                    raise error
            again = f"storkit plan resume {plan.id}, or storkit plan rollback {plan.id}"
            again += "".join(f"; if {host} has died: storkit host evacuate {host}" for host in _dead(failures))
        raise StepFailed(
            failed + (f"; {left}" if left and left not in failed else ""),
            "; before that: ".join([again, "; ".join(hints)] if hints else [again]),
            plan=plan.id,
            cause=error,
        )

    def _never_begun(self, journal: Journal, error: StorkitError) -> NoReturn:
        """Nothing was done: whatever it was that failed, there is nothing to resume, and nothing to put back."""
        try:
            journal.end("never begun")
        except NotWritten:
            with suppress(OSError):
                journal.path.unlink()
        for host in _marked(journal.record.plan):
            # Where a mark stays, since its host is silent, resume finds that the plan never began.
            with suppress(StorkitError):
                self.connections.to(host).itself.unmark(journal.record.plan.id)
        error.left = NOTHING_CHANGED
        raise error

    def _step(self, journal: Journal, step: Step) -> tuple[Step, StorkitError] | None:
        verb, run = verbs.of(step), StepRun(self.connections, self.reporter, journal, step, self.state)
        self.reporter.step(step, "start")
        try:
            with journal_lock:
                known = step.id in journal.record.started and step.id not in journal.record.undone
            before = journal.record.started[step.id] if known else codec.dump(verb.find(run, step))
            with journal_lock:
                journal.start(step.id, before)
            result = codec.dump(verb.act(run, step))
            with journal_lock:
                journal.done(step.id, result)
        except StorkitError as error:
            with journal_lock, suppress(StorkitError):
                if step.id in journal.record.started:
                    journal.failed(step.id, error.to_json())
            self.reporter.step(step, "failed", error.message)
            return step, error
        self.reporter.step(step, "done")
        return None

    def _backward(self, journal: Journal) -> list[str]:
        plan = journal.record.plan
        stays = [verb.by_hand(step) for step in plan.steps if (verb := verbs.of(step)).again(step)]
        if stays:
            # Left open it could be resumed, long after the other command.
            journal.end("given up")
            self._unmark(plan)
            raise Unsafe(f"plan {plan.id} is given up, and what it did stays: only {stays[0]} takes it back", stays[0])
        self._mark(plan)
        self.reporter.begin(plan)
        try:
            problems = self._undo_all(journal)
        finally:
            self.reporter.end()
        if problems:
            raise StepFailed(
                f"not everything could be taken back: {'; '.join(problems)}",
                f"storkit plan rollback {plan.id}, once that is mended",
                plan=plan.id,
            )
        journal.end("rolled back")
        self._unmark(plan)
        return [step.title for step in plan.steps if step.id in journal.record.undone]

    def _undo_all(self, journal: Journal) -> list[str]:
        """Undo every step that started, last first; what could not be undone, a line each.

        One that fails does not stop the others, except a barrier, which what was done before it rests on.
        """
        plan, record = journal.record.plan, journal.record
        problems: list[str] = []
        for step in reversed(plan.steps):
            if step.id not in record.started or step.id in record.undone:
                continue
            verb = verbs.of(step)
            if not verb.undoable:
                if step.id in record.done:
                    problems.append(f"{step.title}: nothing takes this back")
                    self.reporter.step(step, "skipped")
                continue
            journal.undo(step.id)
            self.reporter.step(step, "undo")
            try:
                verb.undo(
                    StepRun(self.connections, self.reporter, journal, step, self.state),
                    step,
                    seen(verb, record.started[step.id]),
                )
            except StorkitError as error:
                if step.id not in record.done and all(isinstance(each, NotAllowed) for each in error.each):
                    journal.undone(step.id)  # what a host does not let this key undo, it has not let it do
                    continue
                if not any(isinstance(each, (HostUnreachable, TimedOut)) for each in error.each):
                    journal.stands(step.id)  # of a host that is silent nobody knows what it did
                by_hand = verb.by_hand(step)
                problems.append(f"{step.title}: {error.message}" + (f"; by hand: {by_hand}" if by_hand else ""))
                self.reporter.step(step, "failed", error.message)
                if verb.barrier:
                    raise StepFailed(
                        f"{step.title} cannot be taken back: {error.message}",
                        f"{by_hand}, or storkit plan resume {plan.id}",
                        plan=plan.id,
                        cause=error,
                    ) from None
                continue
            journal.undone(step.id)
            self.reporter.step(step, "undone")
        return problems

    def _mark(self, plan: Plan) -> None:
        for host, names in _marked(plan).items():
            self.connections.to(host).itself.mark(plan.id, names, plan.title, socket.gethostname())

    def _marked_everywhere(self, plan: Plan) -> bool:
        """False: another command has taken the plan's marks away, and set right what it found; so it is stale."""
        return all(self.connections.to(host).itself.marked(plan.id) for host in _marked(plan))

    def _unmark(self, plan: Plan) -> None:
        for host in _marked(plan):
            self.connections.to(host).itself.unmark(plan.id)


def _dead(failures: list[tuple[Step, StorkitError]]) -> list[str]:
    """The hosts that guests ran on, or came to, and that said nothing any more."""
    silent = [
        each.host
        for step, error in failures
        for each in error.each
        if isinstance(each, HostUnreachable) and each.host in verbs.of(step).guest_hosts(step)
    ]
    return list(dict.fromkeys(silent))


@contextmanager
def _recoverable(plan: Plan) -> Iterator[None]:
    """Where the journal takes no more lines nothing more is done, and the plan is as one that was killed."""
    try:
        yield
    except NotWritten as error:
        if error.left == NOTHING_CHANGED:
            raise
        raise StepFailed(
            error.message,
            f"storkit plan resume {plan.id}, or storkit plan rollback {plan.id}; before that: {error.hint}",
            plan=plan.id,
            cause=error,
        ) from error


journal_lock = threading.Lock()
"""Steps of one stage run in threads and write one journal."""


def _marked(plan: Plan) -> dict[str, list[str]]:
    hosts: dict[str, list[str]] = {}
    for hold in plan.holds:
        if not hold.shared:
            hosts.setdefault(hold.host, []).extend(hold.names)
    return hosts


def _together(steps: list[Step], action: Any) -> list[Any]:
    if len(steps) < 2:
        return [action(step) for step in steps]
    from concurrent.futures import ThreadPoolExecutor

    with ThreadPoolExecutor(min(len(steps), 16)) as pool:
        return list(pool.map(action, steps))
