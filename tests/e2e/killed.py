"""storkit, killed by SIGKILL at a point of its journal (`World.killed`).

A point is `after:N` or `before:N`: after, or before, its Nth journal entry is on the disk. Entry 0 is the plan itself.
"""

from __future__ import annotations

import os
import signal
from typing import Any

from storkit.plans import journal
from storkit.plans.plan import Plan


def die() -> None:
    os.kill(os.getpid(), signal.SIGKILL)


def arm(point: str) -> None:
    """Kill this process at a point of the first plan that it makes."""
    when, _, given = point.partition(":")
    number, count = int(given), 0
    append, create = journal.Journal._append, journal.Journals.create

    def counted_append(self: journal.Journal, entry: dict[str, Any]) -> None:
        nonlocal count
        count += 1
        if count == number and when == "before":
            die()
        append(self, entry)
        if count == number and when == "after":
            die()

    def counted_create(self: journal.Journals, plan: Plan) -> journal.Journal:
        opened = create(self, plan)
        if number == 0:
            die()
        return opened

    journal.Journal._append = counted_append  # type: ignore[method-assign]
    journal.Journals.create = counted_create  # type: ignore[method-assign]
