"""Signs that a verb moves, for whoever waits for it: given by what does the work, at each piece of it that is done.

A thread that waits gives none. So a verb that is stuck (in the kernel, on a disk that hangs) is told from one that is
slow, and no clock of its own makes it look alive.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from contextvars import ContextVar


def _nobody() -> None:
    """Nobody waits."""


_watcher: ContextVar[Callable[[], None]] = ContextVar("watcher", default=_nobody)


@contextmanager
def watched(sign: Callable[[], None]) -> Iterator[None]:
    """Call `sign` whenever something moves in this thread, and in those that it starts with `parallel.every`."""
    token = _watcher.set(sign)
    try:
        yield
    finally:
        _watcher.reset(token)


def moved() -> None:
    """A piece of work is done."""
    _watcher.get()()


def watcher() -> Callable[[], None]:
    """What `moved` does here, for a callback that another thread calls."""
    return _watcher.get()
