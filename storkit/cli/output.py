"""What a person sees: tables on stdout, everything else on stderr; and what a script sees: JSON on stdout."""

from __future__ import annotations

import sys
import threading
import time
from collections.abc import Sequence
from typing import Any

from storkit.core.errors import CommandFailed, Problems, StepFailed, StorkitError
from storkit.core.plan import Plan, Step


def table(header: Sequence[str], rows: Sequence[Sequence[object]]) -> str:
    """Aligned columns; numbers and sizes are right-aligned by the caller, if at all."""
    texts = [list(header), *([str(cell) for cell in row] for row in rows)]
    widths = [max(len(row[column]) for row in texts) for column in range(len(header))]
    return "\n".join("  ".join(cell.ljust(width) for cell, width in zip(row, widths, strict=True)).rstrip()
                     for row in texts)  # fmt: skip


def fields(pairs: Sequence[tuple[str, object]]) -> str:
    """One `name  value` a line."""
    width = max(len(name) for name, _ in pairs)
    return "\n".join(f"{name.ljust(width)}  {value}" for name, value in pairs)


def say(text: str) -> None:
    """A line for people."""
    print(text, file=sys.stderr, flush=True)


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
        for line in cause.stderr.splitlines()[:-1][-20:]:
            say(f"  | {line}")
    if error.left:
        say(f"  {error.left}")
    if error.hint:
        say(f"  next: {error.hint}")


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

                columns = (TextColumn("{task.description}"), BarColumn(), TaskProgressColumn(), TimeElapsedColumn(),
                           TextColumn("{task.fields[text]}"))  # fmt: skip
                self._progress = Progress(*columns, console=Console(stderr=True), transient=True)
                self._progress.start()
            if step.id not in self._tasks:
                self._tasks[step.id] = self._progress.add_task(step.title, total=1.0, text=text)
            self._progress.update(self._tasks[step.id], completed=fraction, text=text)

    def end(self) -> None:
        if self._progress is not None:
            self._progress.stop()
            self._progress = None
            self._tasks.clear()


def describe(plan: Plan, undoable: Any) -> str:
    """A plan for people: what `-n` prints."""
    lines = [plan.title]
    for number, stage in enumerate(plan.stages, 1):
        for step in stage:
            note = "" if undoable(step) else "   (cannot be taken back)"
            lines.append(f"  {number:2}. {step.host}: {step.title}{note}")
    if not plan.stages:
        lines.append("  nothing to do")
    return "\n".join(lines)
