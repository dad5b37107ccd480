"""The same for many things at a time, where each waits for a server, a device or a program."""

from __future__ import annotations

import contextvars
from collections.abc import Callable, Sequence
from typing import TypeVar

from storkit.core.errors import StorkitError, collected, raise_problems
from storkit.system import moving

T = TypeVar("T")


def for_each_at_once(action: Callable[[T], None], items: Sequence[T]) -> None:
    """Do `action` for all items at the same time; all that failed is raised at the end."""
    problems: list[StorkitError] = []

    def attempt(item: T) -> None:
        with collected(problems):
            action(item)
        moving.moved()

    if len(items) == 1:
        attempt(items[0])
    elif items:
        from concurrent.futures import ThreadPoolExecutor

        with ThreadPoolExecutor(min(8, len(items))) as pool:
            # Each in a copy of this thread's context: who waits for this thread is told when they move.
            runs = [contextvars.copy_context().run for _ in items]
            list(pool.map(lambda run, item: run(attempt, item), runs, items))
    raise_problems(problems)
