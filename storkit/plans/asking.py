"""Many hosts asked at the same time, and how long each is waited for."""

from __future__ import annotations

import queue
from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, TypeVar

from storkit.core.errors import HostUnreachable, ServiceUnreachable
from storkit.system.timeouts import scaled

if TYPE_CHECKING:
    from concurrent.futures import Future

K = TypeVar("K")
V = TypeVar("V")
Silent = HostUnreachable | ServiceUnreachable

AT_ONCE = 256
"""How many hosts are asked at the same time: many that are silent should cost no more than one."""

LEISURE = 3.0
"""Seconds without any answer after which nobody waits for the rest, where those that are needed have answered."""


def ask(keys: Sequence[K], question: Callable[[K], V]) -> dict[K, V | Silent]:
    """What each says, or why it is silent, asked one after the other."""
    return {key: _said(question, key) for key in keys}


def ask_at_once(keys: Sequence[K], question: Callable[[K], V], needed: Callable[[K], bool]) -> dict[K, V | Silent]:
    """What each says, or why it is silent, all asked at the same time. Raises what else a question raises.

    Where all that are `needed` have answered, and anybody at all, others are waited for only as long as answers go on
    to come: those that are left out. Their questions must end when the connections are closed.
    """
    from concurrent.futures import ThreadPoolExecutor

    ended: queue.SimpleQueue[Future[V | Silent]] = queue.SimpleQueue()
    pool = ThreadPoolExecutor(min(max(1, len(keys)), AT_ONCE))
    said: dict[K, V | Silent] = {}
    try:
        waiting = {pool.submit(_said, question, key): key for key in keys}
        for each in waiting:
            each.add_done_callback(ended.put)
        must, heard = sum(map(needed, keys)), False
        while waiting:
            try:
                one = ended.get(timeout=None if must or not heard else scaled(LEISURE))
            except queue.Empty:
                break
            key = waiting.pop(one)
            must -= needed(key)
            said[key] = answer = one.result()
            heard = heard or not isinstance(answer, Silent)
    except BaseException:
        pool.shutdown(cancel_futures=True)
        raise
    pool.shutdown(wait=not waiting, cancel_futures=True)
    return said


def _said(question: Callable[[K], V], key: K) -> V | Silent:
    try:
        return question(key)
    except (HostUnreachable, ServiceUnreachable) as error:
        return error
