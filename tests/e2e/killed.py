"""`python -m tests.e2e.killed POINT ARGS...`: storkit, killed by SIGKILL at a point of its journal.

POINT is `after:N` or `before:N`: after, or before, its Nth journal entry is on the disk. Entry 0 is the plan itself.
"""

from __future__ import annotations

import os
import signal
import sys
from typing import Any

from storkit.cli.main import main
from storkit.plans import journal
from storkit.plans.plan import Plan


def die() -> None:
    os.kill(os.getpid(), signal.SIGKILL)


def arm(when: str, number: int) -> None:
    """Kill this process at entry `number`."""
    count = 0
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


if __name__ == "__main__":
    point, _, given = sys.argv[1].partition(":")
    arm(point, int(given))
    sys.exit(main(sys.argv[2:]))
