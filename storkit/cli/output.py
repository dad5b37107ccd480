"""What a person sees: tables on stdout, everything else on stderr; and what a script sees: JSON on stdout.

All words on a terminal come through here. Much of them is what another host has said: control characters in them are
shown as such, so that they move no cursor, hide nothing, and make no line of their own.
"""

from __future__ import annotations

import sys
import threading
import time
from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, Any

from storkit.core.errors import CommandFailed, Problems, StepFailed, StorkitError

if TYPE_CHECKING:
    from storkit.api import Plan, Step


def shown(text: object) -> str:
    """Text that takes part of a line, with what is no character to be read, line breaks too, as an escape: \\x1b."""
    words = str(text)
    if words.isprintable():
        return words
    return "".join(each if each.isprintable() else each.encode("unicode_escape").decode() for each in words)


def lines_shown(text: str) -> str:
    """As `shown`, for text whose line breaks and tabs are its own: what was put together of words that were shown."""
    return "\n".join("\t".join(shown(part) for part in line.split("\t")) for line in text.split("\n"))


def table(header: Sequence[str], rows: Sequence[Sequence[object]]) -> str:
    """Aligned columns; numbers and sizes are right-aligned by the caller, if at all."""
    texts = [list(header), *([shown(cell) for cell in row] for row in rows)]
    widths = [max(len(row[column]) for row in texts) for column in range(len(header))]
    return "\n".join("  ".join(cell.ljust(width) for cell, width in zip(row, widths, strict=True)).rstrip()
                     for row in texts)  # fmt: skip


def fields(pairs: Sequence[tuple[str, object]]) -> str:
    """One `name  value` a line."""
    width = max(len(name) for name, _ in pairs)
    return "\n".join(f"{name.ljust(width)}  {shown(value)}" for name, value in pairs)


def say(text: str) -> None:
    """A line for people."""
    print(shown(text), file=sys.stderr, flush=True)


def advise(hint: str, said_by: str = "") -> None:
    """What to do next: the last line of an error. `said_by` is the host whose words it is, if it is not ours."""
    if hint:
        say(f"  next (says host {said_by}): {hint}" if said_by else f"  next: {hint}")


def told(message: str, hint: str, said_by: str = "") -> list[str]:
    """A problem in a list of them: a line of what it is, and one of what to do next, as `advise` has it."""
    next_ = f"next (says host {said_by})" if said_by else "next"
    return [f"  {shown(message)}", *([f"    {next_}: {shown(hint)}"] if hint else [])]


def explain(error: StorkitError) -> None:
    """An error, as what happened and what to do next."""
    if isinstance(error, Problems):
        for problem in error.problems:
            explain(problem)
        say(f"storkit: {len(error.problems)} problems" + (f"; {error.left}" if error.left else ""))
        return
    say(f"storkit: {error.message}")
    cause: StorkitError | None = error
    while isinstance(cause, StepFailed):
        cause = cause.cause
    if isinstance(cause, CommandFailed):
        host = f"{cause.said_by} " if cause.said_by else ""
        for line in cause.stderr.splitlines()[:-1][-20:]:
            say(f"  {host}| {line}")
    if error.left:
        say(f"  {error.left}")
    advise(error.hint, error.said_by)


class Lines:
    """A reporter that writes a line a step, with the seconds since the plan began and the step's own milliseconds."""

    def __init__(self) -> None:
        self._began = time.monotonic()
        self._starts: dict[str, float] = {}

    def begin(self, plan: Plan) -> None:
        self._began = time.monotonic()
        say(f"plan {plan.id}: {plan.title}")

    def step(self, step: Step, event: str, text: str = "") -> None:
        now = time.monotonic()
        if event in ("start", "undo"):
            self._starts[step.id] = now
            return
        took = (now - self._starts.get(step.id, now)) * 1000
        word = {"done": "", "undone": "undone: ", "failed": "FAILED: ", "skipped": "left: "}[event]
        say(f"  {now - self._began:7.3f} s  {took:7.0f} ms  {word}{step.title}" + (f": {text}" if text else ""))

    def progress(self, step: Step, fraction: float, text: str) -> None:
        pass

    def end(self) -> None:
        pass


class Bars:
    """A reporter for terminals: a progress bar for steps that say how far they are (rich)."""

    def __init__(self) -> None:
        self._progress: Any = None
        self._tasks: dict[str, Any] = {}
        self._lock = threading.Lock()

    def begin(self, plan: Plan) -> None:
        pass

    def step(self, step: Step, event: str, text: str = "") -> None:
        if event in ("done", "failed", "undone") and step.id in self._tasks:
            self._progress.update(self._tasks.pop(step.id), completed=1.0, visible=event != "done")

    def progress(self, step: Step, fraction: float, text: str) -> None:
        with self._lock:
            if self._progress is None:
                from rich.console import Console
                from rich.progress import BarColumn, Progress, TaskProgressColumn, TextColumn, TimeElapsedColumn

                # File names have brackets, which are no markup of rich's.
                columns = (TextColumn("{task.description}", markup=False), BarColumn(), TaskProgressColumn(),
                           TimeElapsedColumn(), TextColumn("{task.fields[text]}", markup=False))  # fmt: skip
                self._progress = Progress(*columns, console=Console(stderr=True), transient=True)
                self._progress.start()
            if step.id not in self._tasks:
                self._tasks[step.id] = self._progress.add_task(shown(step.title), total=1.0, text="")
            self._progress.update(self._tasks[step.id], completed=fraction, text=shown(text))

    def end(self) -> None:
        if self._progress is not None:
            self._progress.stop()
            self._progress = None
            self._tasks.clear()


def describe(plan: Plan, is_final: Callable[[Step], bool]) -> str:
    """A plan for people: what `-n` prints."""
    lines = [shown(plan.title)]
    for number, stage in enumerate(plan.stages, 1):
        for step in stage:
            note = "   (cannot be taken back)" if is_final(step) else ""
            lines.append(f"  {number:2}. {shown(f'{step.host}: {step.title}')}{note}")
    if not plan.stages:
        lines.append("  nothing to do")
    return "\n".join(lines)
